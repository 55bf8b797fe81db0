"""The registry that selectors, evictions and benchmarks share."""

from dataclasses import dataclass

import pytest

from ragkv.options import Registry


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    side: float = 1.0


@pytest.fixture
def shapes():
    return Registry("shape", {"circle": Circle}, {"round": "circle"})


def test_a_class_is_found_and_built_by_name_or_alias(shapes):
    assert shapes.find("circle") is shapes.find("round") is Circle
    assert shapes.build("round", {"radius": 2.0}) == Circle(2.0)


def test_a_registered_class_is_found(shapes):
    assert shapes.register("square")(Square) is Square
    assert list(shapes) == ["circle", "square"]
    assert shapes.build("square", {}) == Square()


def test_a_taken_name_is_refused_unless_the_class_is_the_same(shapes):
    for name in ("circle", "round"):
        with pytest.raises(ValueError, match=f"the shape name '{name}' is taken: choose another"):
            shapes.register(name)(Square)
    again = dataclass(frozen=True)(type("Circle", (), {"__qualname__": Circle.__qualname__, "__module__": __name__}))
    assert shapes.register("circle")(again) is again
    assert shapes.find("round") is again


def test_errors_list_what_there_is(shapes):
    with pytest.raises(ValueError, match=r"unknown shape 'oval': choose one of circle \(or an alias: round = circle\)"):
        shapes.find("oval")
    with pytest.raises(ValueError, match="shape 'circle' has no option side: it takes radius"):
        shapes.build("circle", {"side": 3})
    with pytest.raises(ValueError, match=r"unknown shape 'oval': choose one of circle$"):
        Registry("shape", {"circle": Circle}).find("oval")
