"""The rooms of the package: imports go one way, from a room to those below it, and no room is too full."""

import ast
from pathlib import Path

from helpers import ROOT

PACKAGE = ROOT / "ragkv"
FLOORS = (  # from the ground up: a room imports from its own floor's rooms above it in this list never
    ("version", "options", "parameters", "shards"),
    ("kernels", "prompt"),
    ("models",),
    ("selectors", "eviction", "store"),
    ("loading",),
    ("fusion",),
    ("tiny",),
    ("rag", "benchmarks", "results"),
    ("experiment", "costs"),
    ("bench", "figures", "doctor"),
    ("report", "explorer"),
    ("calibrate", "planning", "run"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[tuple[str, ...]]:
    """The package's own modules that a file imports anywhere in it, each as the parts of its name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "ragkv"}
    return found


def home(name: tuple[str, ...]) -> str:
    """The room of what is imported; names that the package itself gives are of no room."""
    return name[0] if name and name[0] in FLOOR else "__init__"


def test_every_room_is_on_a_floor():
    assert {parts[0] for parts in MODULES.values()} == set(FLOOR)


def test_imports_go_down():
    upwards = [
        f"{'.'.join(parts)} imports {'.'.join(name)}"
        for path, parts in MODULES.items()
        for name in imported(path)
        if home(name) != parts[0] and FLOOR[home(name)] >= FLOOR[parts[0]]
    ]
    assert not upwards


def test_no_module_imports_itself_through_others():
    """Within a room, too: what a module imports never leads back to it."""
    known = set(MODULES.values())

    def module(name):
        """The module that a name comes from."""
        for end in range(len(name), 0, -1):
            for parts in (name[:end], (*name[:end], "__init__")):
                if parts in known:
                    return parts
        return ("__init__",)

    arrows = {parts: {module(name) for name in imported(path)} - {parts} for path, parts in MODULES.items()}
    left = {parts: set(others) for parts, others in arrows.items()}
    while ends := [parts for parts, others in left.items() if not others & left.keys()]:
        for parts in ends:
            del left[parts]
    assert not left, "these modules import each other in a circle: " + ", ".join(map(".".join, sorted(left)))


def test_the_ground_floor_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_a_module_is_read_in_one_sitting():
    long = {str(path): lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 300}
    assert not long
