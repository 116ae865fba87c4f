"""Record: fields by annotation, frozen and compared by them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import pytest

from minifer.record import Record


class Size(Record):
    width: int
    height: int = 1
    notes: Mapping[str, int] = MappingProxyType({})

    @cached_property
    def area(self) -> int:
        return self.width * self.height

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError("a negative width")


class Name(Record):
    text: str


class Pen(Record, frozen=False, eq=False):
    colour: str = "red"


def test_fields_by_position_name_and_default():
    assert (Size(3).width, Size(3).height, dict(Size(3).notes)) == (3, 1, {})
    assert Size(3, height=2) == Size(3, 2) == Size(width=3, height=2)
    assert repr(Size(3, 2, {})) == "Size(width=3, height=2, notes={})"
    match Size(4, 5):
        case Size(width, height):
            assert (width, height) == (4, 5)


def test_equal_and_hash_by_fields_and_class():
    class Other(Record):
        text: str

    assert Name("a") == Name("a") != Name("b")
    assert Name("a") != Other("a") and Name("a") != "a"
    assert len({Name("a"), Name("a"), Name("b")}) == 2
    sized = Size(3)
    assert sized.area == 3
    assert sized == Size(3)  # what was computed does not count


def test_records_that_are_not_frozen_can_be_changed():
    pen = Pen()
    pen.colour = "blue"
    assert pen.colour == "blue" and Pen().colour == "red"
    assert pen != Pen("blue") and len({pen, Pen("blue")}) == 2


def test_with_changes_some_fields_and_checks_again():
    assert Size(3, 2).with_(height=5) == Size(3, 5)
    with pytest.raises(ValueError, match="negative"):
        Size(3).with_(width=-1)


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, "lacks width"),
        ((1, 2, {}, 4), {}, "3 fields, not 4"),
        ((1,), {"width": 2}, "given twice"),
        ((1,), {"depth": 2}, "no field"),
        ((), {"height": 2}, "lacks width"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(values, named, message):
    with pytest.raises(TypeError, match=message):
        Size(*values, **named)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda size: pickle.loads(pickle.dumps(size))])
def test_copies_and_pickles(again):
    size = Size(3, 2)
    assert size.area == 6
    assert again(size) == size
