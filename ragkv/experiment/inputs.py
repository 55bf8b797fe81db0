"""What a run depends on besides its profile, models and files of benchmarks: whether it exists, and has changed."""

from collections.abc import Iterable
from pathlib import Path

import xxhash
from huggingface_hub import HfApi, try_to_load_from_cache

from ragkv.models.load import embedded_models, model_source

SECONDS = 10  # to wait for the hub
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
    if name and path.exists():
        return str(path)
    parts = name.split("/")
    if len(parts) == 1 and str(model_source(name)) != name:  # a name that ragkv knows
        return name
    if len(parts) == 2 and parts[0] not in ("", ".", "..", "~") and parts[1]:
        return name
    raise ValueError(
        f"model {name!r} could not be loaded: it is none of the embedded ones ({', '.join(embedded_models())}), there "
        f"is no folder {path.resolve()}, and ids on the hub have an owner: owner/name"
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


def model_state(name: str, root: Path) -> str:
    """Changes when a model's files do: those of a local model, or the revision of one from the hub.

    Errors as in `check_model`.
    """
    source = find_model(name, root)
    if _on_hub(source):
        return _revision(source, root)
    path = Path(model_source(source))
    return state_of([path] if path.is_file() else [*_visible(path), *path.glob("additional_chat_templates/*")])


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


def state_of(paths: Iterable[Path]) -> str:
    """Changes when one of these files does, or a file in one of these folders.

    Small files are compared by content, larger ones by size and modification time.
    """
    digest = xxhash.xxh3_128()
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            digest.update(f"\n{file.relative_to(path.parent)}\0".encode(errors="surrogateescape"))
            digest.update(_state(file))
    return digest.hexdigest()


def _state(file: Path) -> bytes:
    if not file.is_file():
        return b"missing"
    about = file.stat()
    if about.st_size <= SMALL:
        return file.read_bytes()
    return f"{about.st_size} bytes, {about.st_mtime_ns}".encode()


def _visible(folder: Path) -> list[Path]:
    """The files in a folder, without hidden ones and those in folders within it."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
