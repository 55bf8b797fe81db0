"""The YAML files of profiles: read, with those that they extend, before their parameters are validated."""

from pathlib import Path
from typing import Any

import yaml

LARGEST = 2**20  # bytes of a file


def read_profile(name: str, folder: Path, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """The parameters in ``<folder>/<name>.yaml``, over those of the file that it extends.

    Parameters
    ----------
    extended_by
        The profiles that lead to this one by ``extends``.

    Raises
    ------
    ValueError
        A file does not exist or cannot be read; the message is one line that says which and why.
    """
    if not isinstance(name, str) or name != Path(name).name:
        raise ValueError(
            f"{name!r} is not the name of a profile: give the name of a file in {folder}, without .yaml; "
            "in YAML, quote a name that is a number"
        )
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
        raise ValueError(f"no profile {name!r} in {folder.resolve()}: there are {known}")
    if name in extended_by:
        raise ValueError(f"{path}: profiles extend each other in a circle, {' -> '.join([*extended_by, name])}")
    parameters = _parse(path)
    if not isinstance(parameters, dict):
        raise ValueError(f"{path}: it must hold parameters by name, such as `models: [tiny-llama]`")
    other = parameters.pop("extends", None)
    return parameters if other is None else read_profile(other, folder, (*extended_by, name)) | parameters


class _Loader(yaml.SafeLoader):
    """Refuses a name that occurs twice in a mapping: the last one would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ValueError(f"{key.value!r} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


def _parse(path: Path) -> Any:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: the file of a profile has at most {LARGEST:,} bytes")
    try:
        return _Loader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: this is not UTF-8 text. Save the file as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: lists and parameters are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
