"""The registry that selectors, evictions and benchmarks share."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from ragkv.options import Registry


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    side: float = 1.0


@dataclass(frozen=True)
class Polygon:
    corners: int = 3
    side: float | None = None
    filled: bool = False
    colour: Literal["red", "blue"] = "red"


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


@pytest.mark.parametrize(
    "options",
    [{"corners": np.int64(5)}, {"side": 2}, {"side": np.float32(2)}, {"side": None}, {"filled": True}, {"colour": "x"}],
)
def test_values_of_the_right_type_are_taken(options):
    """Those of other types than numbers, texts and booleans are for the class to check."""
    assert Registry("shape", {"polygon": Polygon}).build("polygon", options) == Polygon(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corners": "5"}, "corners is '5', expected int"),
        ({"corners": 5.0}, "corners is 5.0, expected int"),
        ({"corners": True}, "corners is True, expected int"),
        ({"corners": None}, "corners is None, expected int"),
        ({"corners": [5]}, "corners is a list, expected int"),
        ({"side": "2"}, "side is '2', expected float or nothing"),
        ({"side": True}, "side is True, expected float or nothing"),
        ({"filled": "no"}, "filled is 'no', expected bool"),
        ({"filled": 1}, "filled is 1, expected bool"),
    ],
)
def test_values_of_another_type_are_not_coerced(options, message):
    """A text such as "no" would count as true, and true as 1."""
    with pytest.raises(ValueError, match=f"^shape 'polygon': the option {message}$"):
        Registry("shape", {"polygon": Polygon}).build("polygon", options)
