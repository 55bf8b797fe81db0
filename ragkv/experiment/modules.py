"""Python modules that a profile names: a user's own benchmarks, selectors and evictions, imported to register them.

Importing a module runs its code. Read a profile's ``modules`` before you use a profile that somebody else wrote.
"""

import ast
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, resolve_name, spec_from_file_location
from pathlib import Path
from types import ModuleType

# Where packages are installed, and ragkv's own code: their versions say what they are.
INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
INSTALLED.append(Path(__file__).parents[1])


def import_modules(modules: Iterable[str], root: Path) -> list[Path]:
    """Import the modules that a profile names.

    Parameters
    ----------
    modules
        Each the path of a Python file, relative to `root`, or the dotted name of an installed module.

    Returns
    -------
    list
        The files of these modules and of those that they import, except of installed packages: what a run with this
        profile depends on.

    Raises
    ------
    ValueError
        A file or module does not exist, or its code raises an error.
    """
    files: list[Path] = []
    for name in modules:
        module = _import_one(name, root)
        _add_with_imports(Path(module.__file__ or ""), module.__package__ or "", files)
    return files


def _import_one(name: str, root: Path) -> ModuleType:
    try:
        module = _import_file(root / name) if name.endswith(".py") else importlib.import_module(name)
    except (Exception, SystemExit) as error:  # SystemExit: of a script without `if __name__ == "__main__"`
        raise ValueError(f"modules: {name} cannot be imported: {type(error).__name__}: {error}") from error
    if not module.__file__:
        raise ValueError(f"modules: {name} is not a module with a file: name a .py file or an importable module")
    return module


def _import_file(path: Path) -> ModuleType:
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
    return sys.modules[name]


def _add_with_imports(file: Path, package: str, files: list[Path]) -> None:
    """Add a file, and all that it imports except of installed packages, also what only its functions import.

    Parameters
    ----------
    package
        What the file's relative imports start from.
    """
    if file in files:
        return
    files.append(file)
    for imported in _imports(file, package):
        for source, parent in _files_of(imported):
            if not any(source.is_relative_to(folder) for folder in INSTALLED):
                _add_with_imports(source, parent, files)


def _imports(file: Path, package: str) -> list[str]:
    """The dotted names that a file imports; some may be names within modules."""
    try:
        tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):  # nobody has imported it yet
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                with suppress(ImportError):  # beyond the outermost package, in a function that nobody has called
                    base = resolve_name("." * node.level + base, package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _files_of(name: str) -> Iterator[tuple[Path, str]]:
    """The files of a module and of the packages around it, each with its own package; nothing is imported."""
    folders = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        inner = ".".join(parts[:count])
        spec = getattr(sys.modules.get(inner), "__spec__", None) or PathFinder.find_spec(inner, folders)
        if spec is None:
            return
        folders = spec.submodule_search_locations
        if spec.has_location and spec.origin:
            yield Path(spec.origin), inner if folders is not None else inner.rpartition(".")[0]
        if folders is None:
            return


def code_of(files: Iterable[Path]) -> str:
    """A hash of these files' contents, which changes when their code does."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
