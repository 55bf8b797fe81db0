"""The layout of the package: every room imports only from the floors below it, and modules stay small."""

from imports import MODULES, PACKAGE, imports

# Rooms from the ground up. A room imports from the floors below it, never from its own floor or from above.
FLOORS = (
    ("version", "extras", "options", "parameters", "shards", "starter", "terminal"),
    ("kernels", "prompt"),
    ("models",),
    ("selectors", "eviction", "store"),
    ("loading", "costs"),
    ("fusion", "contexts"),
    ("tiny",),
    ("rag", "benchmarks", "results"),
    ("experiment",),
    ("bench", "figures", "doctor", "serving"),
    ("report", "explorer"),
    ("planning", "run"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST = 300  # lines of a module
MOST = 12  # files of ragkv/ itself

Parts = tuple[str, ...]  # of a module's name, without "ragkv": ("store", "kvstore")


def imported(module: Parts) -> set[Parts]:
    """What a module imports from the package, anywhere in it."""
    path = PACKAGE.joinpath(*module).with_suffix(".py")
    return {tuple(found.name.split(".")[1:]) for found in imports(path) if found.package == "ragkv"}


def room(name: Parts) -> str:
    """The room that an imported name is in; public names such as ``ragkv.KVStore`` are in ``ragkv/__init__.py``."""
    return name[0] if name and name[0] in FLOOR else "__init__"


def test_every_room_is_on_a_floor():
    there = {parts[0] for parts in MODULES.values()}
    assert there - FLOOR.keys() == set(), "put new rooms on a floor, in FLOORS above"
    assert FLOOR.keys() - there == set(), "these rooms are gone: remove them from FLOORS above"


def test_rooms_import_from_the_floors_below_them():
    upwards = [
        f"{'.'.join(module)} (floor {FLOOR[module[0]]}) imports {'.'.join(name)} (floor {FLOOR[room(name)]})"
        for module in MODULES.values()
        for name in imported(module)
        if room(name) != module[0] and FLOOR[room(name)] >= FLOOR[module[0]]
    ]
    assert upwards == [], "move what is needed down to a lower room, or give it to the function as an argument"


def module_of(name: Parts) -> Parts:
    """The module that an imported name is defined in: the longest beginning of it that is a module or package."""
    known = set(MODULES.values())
    for end in range(len(name), 0, -1):
        for module in (name[:end], (*name[:end], "__init__")):
            if module in known:
                return module
    return ("__init__",)


def test_no_modules_import_each_other_in_a_circle():
    """Within a room, too. Modules whose imports are all resolved are taken away; what then remains is in a circle."""
    waiting = {module: {module_of(name) for name in imported(module)} - {module} for module in MODULES.values()}
    while resolved := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in resolved:
            del waiting[module]
    circle = sorted(f"ragkv.{'.'.join(module)}" for module in waiting)
    assert circle == [], "these modules import each other in a circle, or import from one"


def test_the_package_itself_has_few_files():
    files = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(files) <= MOST, f"put some of these into rooms: {', '.join(files)}"


def test_modules_are_short_enough_to_read_in_one_sitting():
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}, (
        "split these modules by what they do"
    )
