"""Values are made, compared and shown like frozen dataclasses."""

from __future__ import annotations

import copy
import pickle

import pytest

from tcpcore.value import Value


class Point(Value):
    x: int
    y: int = 2


class Place(Point):
    name: str = "here"


def test_fields_in_their_order_or_by_name() -> None:
    assert Point(1) == Point(1, 2) == Point(y=2, x=1)
    assert Place(1, 2, "there") == Place(1, name="there")
    assert vars(Place(1)) == {"x": 1, "y": 2, "name": "here"}


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((), {"y": 1}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})],
)
def test_too_few_and_too_many(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point is made of x, y"):
        Point(*values, **named)


def test_they_do_not_change() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot be set"):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    assert point._replace(x=3) == Point(3)
    assert point == Point(1)


def test_equal_ones_have_equal_hashes() -> None:
    assert len({Point(1), Point(1), Point(2), Place(1)}) == 3
    assert Point(1) != (1, 2)


def test_they_are_shown_and_copied() -> None:
    assert repr(Place(1)) == "Place(x=1, y=2, name='here')"
    assert copy.copy(Place(1)) == pickle.loads(pickle.dumps(Place(1))) == Place(1)
