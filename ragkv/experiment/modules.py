"""Python modules that a profile names: a user's own benchmarks, selectors and evictions, imported to register them.

Importing a module runs its code. Read a profile's ``modules`` before you use a profile that somebody else wrote.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def import_modules(modules: Iterable[str], root: Path) -> list[Path]:
    """Import the modules that a profile names.

    Parameters
    ----------
    modules
        Each the path of a Python file, relative to `root`, or the dotted name of an installed module.

    Returns
    -------
    list
        The modules' files: what a run with this profile depends on.

    Raises
    ------
    ValueError
        A file or module does not exist, or its code raises an error.
    """
    return [_import_one(name, root) for name in modules]


def _import_one(name: str, root: Path) -> Path:
    try:
        if name.endswith(".py"):
            return _import_file(root / name)
        module = importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"modules: {name} cannot be imported: {type(error).__name__}: {error}") from error
    if not module.__file__:
        raise ValueError(f"modules: {name} is not a module with a file: name a .py file or an importable module")
    return Path(module.__file__)


def _import_file(path: Path) -> Path:
    """Import a file once per process, under a name that belongs to its path."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # as for every .py file
        module = module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pydantic look a class's module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return path


def code_of(files: Iterable[Path]) -> str:
    """A hash of these files' contents, which changes when their code does."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
