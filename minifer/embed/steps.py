"""What a compiled model does, before it is code: kernel calls, copies, branches and loops.

Steps stand in parts. The model's graph is one part, and so is every branch of an If and the body of every Loop and
Scan. All addresses are places: an offset behind one of the part's bases. A part that runs inside another gets its
bases from the outer ones, and `Inside` says how.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minifer.ir import TensorType

Place = tuple[int, int]  # (base, offset in bytes)


@dataclass(frozen=True)
class CallStep:
    """One kernel call: its kernel and its argument record, whose pointers are places."""

    kernel: Any  # KernelSpec
    words: tuple[int, ...]


@dataclass(frozen=True)
class Copy:
    """`nbytes` from one place to another; the two do not overlap."""

    target: Place
    source: Place
    nbytes: int


@dataclass(frozen=True)
class Link:
    """A base of an inner part: an outer place, `stride` bytes further on in every turn of a loop."""

    base: int
    place: Place
    stride: int = 0


@dataclass(frozen=True)
class Inside:
    """A part that runs inside another, and where each of its bases is."""

    part: Part
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Branch:
    """One of two parts runs, as the byte at `condition` says."""

    condition: Place
    then: Inside
    otherwise: Inside


@dataclass(frozen=True)
class Repeat:
    """`body` runs again and again, at most `trips` times (a number, or the place of an int64; None: no limit), and
    only while the byte at `running` is not 0 (None: it is not asked). `after` follows every turn."""

    body: Inside
    trips: int | Place | None
    running: Place | None
    turn: Place | None  # gets the number of the turn, an int64, before each
    after: tuple[Copy, ...] = ()


Step = CallStep | Copy | Branch | Repeat


@dataclass(eq=False)
class Part:
    """A graph's steps. Base 0 is address zero, base 1 `memory` bytes of the workspace that are the part's own."""

    inputs: dict[str, int]  # the base of each input that is read
    outputs: tuple[tuple[int, TensorType], ...]  # base and type of each; no two have the same base
    weights: int  # the base of the constants
    bases: int  # how many there are
    memory: int
    steps: list[Step] = field(default_factory=list)


def all_inside(part: Part) -> Iterator[Inside]:
    """All parts inside a part, and inside those, in the order of the steps."""
    for step in part.steps:
        found = (step.then, step.otherwise) if isinstance(step, Branch) else ()
        for inside in (step.body,) if isinstance(step, Repeat) else found:
            yield inside
            yield from all_inside(inside.part)


def all_calls(part: Part) -> Iterator[CallStep]:
    """The kernel calls of a part and of all those inside it."""
    for each in (part, *(inside.part for inside in all_inside(part))):
        yield from (step for step in each.steps if isinstance(step, CallStep))
