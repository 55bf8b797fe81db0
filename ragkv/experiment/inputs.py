"""What a run depends on besides its profile, models and files of benchmarks: whether it exists, and has changed."""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash
from huggingface_hub import HfApi, try_to_load_from_cache

from ragkv.benchmarks.base import exists
from ragkv.models.load import embedded_models, model_source

SECONDS = 10  # to wait for the hub
ADAPTER = "adapter_config.json"
BLOCKS = 64  # that are compared of a larger file,
BLOCK = 4096  # bytes each
SMALL = 2**20  # bytes of a file up to which its content is compared, instead of its size and time


def find_model(name: str, root: Path) -> str:
    """What `ragkv.load_model` takes: a local model's path below `root`, or the name as it is.

    Raises
    ------
    ValueError
        There is no such model here, and the name cannot be an id on the hub.
    """
    if name in embedded_models():
        return name
    path = root / Path(name).expanduser()
    if name and exists(path):
        return str(path)
    parts = name.split("/")
    if len(parts) == 1 and str(model_source(name)) != name:  # a name that ragkv knows
        return name
    if len(parts) == 2 and parts[0] not in ("", ".", "..", "~") and parts[1]:
        return name
    raise ValueError(
        f"model {name!r} could not be loaded: it is none of the embedded ones ({', '.join(embedded_models())}), there "
        f"is no folder {os.path.abspath(path)}, and ids on the hub have an owner: owner/name"
    )


def check_model(name: str, root: Path) -> None:
    """Check that a model exists, without loading it.

    Raises
    ------
    ValueError
        It is neither here nor on the hub, or the hub cannot be asked.
    """
    source = find_model(name, root)
    if _on_hub(source):
        _revision(source, root)
        return
    path = Path(model_source(source))
    if not (path / ADAPTER).is_file():
        if not (path / "config.json").is_file():
            what = "the folder has no config.json" if path.is_dir() else "it is neither a folder nor a .gguf file"
            raise ValueError(f"model {name!r} could not be loaded: {path} is not a model: {what}")
    elif base := _base_of(path):
        check_model(base, Path())


def model_state(name: str, root: Path) -> str:
    """Changes when a model's files do: those of a local model, or the revision of one from the hub.

    Errors as in `check_model`.
    """
    source = find_model(name, root)
    if _on_hub(source):
        return _revision(source, root)
    path = Path(model_source(source))
    files = [path] if path.is_file() else [*_visible(path), *path.glob("additional_chat_templates/*")]
    base = _base_of(path)
    return state_of(files) + (model_state(base, Path()) if base else "")


def _base_of(folder: Path) -> str | None:
    """The model that an adapter of peft was trained on; transformers looks for it in the current folder."""
    if (folder / "config.json").exists() or not (folder / ADAPTER).is_file():
        return None
    try:
        return json.loads((folder / ADAPTER).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):  # whoever loads it will say so
        return None


def _on_hub(source: str) -> bool:
    return str(model_source(source)) == source and not Path(source).exists()


def _revision(source: str, root: Path) -> str:
    """The commit of a model on the hub: of the copy in the cache, otherwise the one that would be downloaded."""
    repository, _, file = source.partition(":")
    cached = try_to_load_from_cache(repository, file or "config.json")
    if isinstance(cached, str):
        return Path(cached).parent.name
    try:
        return HfApi().model_info(repository, timeout=SECONDS).sha or ""
    except Exception as error:  # the hub's client raises many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"model {source!r} could not be loaded: there is no folder {(root / source).resolve()}, and the hub says: "
            f"{reason}"
        ) from None


def state_of(paths: Iterable[Path], *, without: Path | None = None) -> str:
    """Changes when one of these files does, or a file in one of these folders; links are followed.

    Small files are compared by content, larger ones by size, modification time and some of their content, since copies
    and archives may keep a time. Hidden files and folders are left out.

    Parameters
    ----------
    without
        A folder that does not count.
    """
    digest = xxhash.xxh3_128()
    for path in paths:
        for file in sorted(_inside(path, without)) if path.is_dir() else [path]:
            name = str(file.relative_to(path.parent)).encode(errors="surrogateescape")
            state = _state(file)
            digest.update(f"{len(name)} {len(state)} ".encode() + name + state)
    return digest.hexdigest()


def _inside(folder: Path, without: Path | None) -> Iterator[Path]:
    """The files below a folder; one that links lead to more than once is listed once."""
    left_out = None if without is None else os.path.realpath(without)
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen or real == left_out:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in names if not name.startswith("."))


def _state(file: Path) -> bytes:
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            return b"no file"
        if about.st_size <= SMALL:
            return file.read_bytes()
        state = f"{about.st_size} bytes, {about.st_mtime_ns} ".encode()
        with file.open("rb") as content:
            for number in range(BLOCKS):  # from the beginning to the end
                content.seek(max(0, about.st_size - BLOCK) * number // (BLOCKS - 1))
                state += content.read(BLOCK)
        return state
    except OSError as error:  # whoever reads it will say so
        return f"{type(error).__name__}".encode()


def _visible(folder: Path) -> list[Path]:
    """The files in a folder, without hidden ones and those in folders within it."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
