"""Python modules that a profile names: a user's own benchmarks, selectors and evictions, imported to register them.

Importing a module runs its code. Read a profile's ``modules`` before you use a profile that somebody else wrote.
"""

import ast
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
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
    imported: dict[Path, ModuleType] = {}
    for name in modules:
        _add_with_imports(_import_one(name, root), imported)
    return list(imported)


def _import_one(name: str, root: Path) -> ModuleType:
    try:
        module = _import_file(root / name) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
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


def _add_with_imports(module: ModuleType, imported: dict[Path, ModuleType]) -> None:
    """Add a module, and all that it imports except of installed packages, by the path of its file."""
    file = Path(module.__file__ or "")
    if file in imported:
        return
    imported[file] = module
    for name in _imports(file, module.__package__ or "") if file.suffix == ".py" else []:
        other = sys.modules.get(name)
        source = getattr(other, "__file__", None)
        if other and source and not any(Path(source).is_relative_to(folder) for folder in INSTALLED):
            _add_with_imports(other, imported)


def _imports(file: Path, package: str) -> Iterator[str]:
    """The dotted names that a file imports; some may be names within modules."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            base = resolve_name(name, package) if node.level else name
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def code_of(files: Iterable[Path]) -> str:
    """A hash of these files' contents, which changes when their code does."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
