"""The plan: what runs, in which order, on which memory. All shapes are concrete.

A plan is immutable and shared between threads. It names memory by (base, offset) pairs; a run brings its own
bases: base 0 is address zero (constants carry absolute addresses), base 1 the arena, and each further base
one array: an input, a value made by a Python step, or an output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from minifer import dtypes
from minifer.ir import NOTHING, Node, TensorType, Type
from minifer.lazy import cached_property
from minifer.ops.registry import PLAIN
from minifer.plan.arena import lower_bound
from minifer.record import Record

ABSOLUTE, ARENA, FIRST_ARRAY = 0, 1, 2  # base indices


class Buffer:
    """A piece of memory: "const" (an array), "arena" (an offset is chosen later) or "array" (a base of its own)."""

    def __init__(self, kind: str, nbytes: int, array: np.ndarray | None = None, base: int = -1):
        self.kind, self.nbytes = kind, nbytes
        self.array = array  # const only
        self.base = base  # array only: index into the bases of a run
        self.offset = 0  # arena only, set by the arena

    @cached_property
    def address(self) -> int:
        """Where a constant lies."""
        assert self.array is not None
        return self.array.__array_interface__["data"][0]


class Slot(Record, eq=False):
    """A tensor in a buffer, `offset` bytes in, with the shape as it lies in memory: contiguous but for gaps."""

    buffer: Buffer
    dtype: str
    shape: tuple[int, ...]  # in memory order (channels last: N, spatial..., C)
    offset: int = 0
    layout: str = PLAIN
    gap: int = 0  # elements left out behind each row (the last dimension)

    if not TYPE_CHECKING:  # as Record's own, but quicker: very many are made

        def __init__(self, buffer, dtype, shape, offset=0, layout=PLAIN, gap=0):
            self.buffer, self.dtype, self.shape = buffer, dtype, shape
            self.offset, self.layout, self.gap = offset, layout, gap

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """Bytes it takes in memory."""
        left_out = self.size // self.shape[-1] * self.gap if self.gap else 0
        return (self.size + left_out) * itemsize(self.dtype)

    def view(self, shape: tuple[int, ...], offset: int = 0, dtype: str | None = None) -> Slot:
        """The same memory under another shape, `offset` bytes further in."""
        return Slot(self.buffer, dtype or self.dtype, shape, self.offset + offset, PLAIN)

    def address(self) -> tuple[int, int]:
        """(base, offset) as they stand in an argument record."""
        if self.buffer.kind == "const":
            return ABSOLUTE, self.buffer.address + self.offset
        if self.buffer.kind == "arena":
            return ARENA, self.buffer.offset + self.offset
        return self.buffer.base, self.offset


@cache
def itemsize(dtype: str) -> int:
    """Bytes per element in memory (sub-byte types are held one a byte)."""
    return max(1, dtypes.bits(dtype) // 8)


class KernelStep(Record, eq=False):
    """One native kernel call. `arguments` in parameter order: Slot (or None) for pointers, numbers for scalars."""

    kernel: Any  # KernelSpec
    arguments: tuple[Any, ...]
    node: Node
    reads: tuple[Slot, ...]
    writes: tuple[Slot, ...]
    joined: tuple[Node, ...] = ()  # later nodes with arithmetic of their own that the call does as well


class PythonStep(Record, eq=False):
    """One operator run by its reference. Inputs are Slots, or names of values that live as Python objects."""

    node: Node
    inputs: tuple[Slot | str | None, ...]
    captured: tuple[tuple[str, Slot | str], ...]  # what its subgraphs read of this graph
    known: dict[str, Any]  # captured values that are known before the run
    outputs: tuple[str, ...]  # names of the results, "" where not asked for
    types: tuple[Type | None, ...]  # their types as planned; None where only the run tells
    buffers: tuple[Buffer | None, ...]  # array buffers that the tensor results become
    why: str = ""  # why no kernel runs here
    index: int = 0  # of the node in its graph


Step = KernelStep | PythonStep


class Plan(Record, eq=False):
    """One stage. `inputs` names what it needs, `outputs` what later stages and the caller get from it."""

    steps: tuple[Step, ...] = ()
    inputs: tuple[tuple[str, int], ...] = ()  # (name, base)
    outputs: tuple[tuple[str, Any], ...] = ()  # (name, Slot | object name)
    fresh: tuple[tuple[int, np.dtype, tuple[int, ...]], ...] = ()  # output arrays to allocate: base, dtype, shape
    bases: int = FIRST_ARRAY
    arena_bytes: int = 0
    known: Mapping[str, Any] = NOTHING  # values found while planning
    types: Mapping[str, Type] = NOTHING
    consts: Sequence[np.ndarray] = ()  # keeps alive what records point to
    dynamic: bool = False  # ends with a step whose result types only the run tells

    def held_bytes(self) -> int:
        """Bytes that a run of the stage allocates: the arena, outputs, results of Python steps."""
        made = [b for step in self.python_steps() for b in step.buffers if b is not None]
        return self.arena_bytes + sum(math.prod(s) * d.itemsize for _, d, s in self.fresh) + sum(b.nbytes for b in made)

    def least_arena_bytes(self) -> int:
        """The most bytes of intermediate values that live at one step: no arena can be smaller."""
        spans = lifetimes(self.steps, [slot for _, slot in self.outputs if isinstance(slot, Slot)])
        return lower_bound([(first, last, buffer.nbytes) for buffer, (first, last) in spans.items()])

    def native_steps(self) -> int:
        """How many steps run as kernels."""
        return sum(isinstance(s, KernelStep) for s in self.steps)

    def python_steps(self) -> list[PythonStep]:
        """The steps that run by reference."""
        return [s for s in self.steps if isinstance(s, PythonStep)]


def lifetimes(steps: Sequence[Step], leaving: Iterable[Slot]) -> dict[Buffer, list[int]]:
    """The first and last step that uses each arena buffer; what leaves the stage lives to its end."""
    spans: dict[Buffer, list[int]] = {}
    for i, step in enumerate(steps):
        used: list[Any]
        if isinstance(step, KernelStep):
            used = [*step.reads, *step.writes]
        else:
            used = [*step.inputs, *(s for _, s in step.captured)]
        for slot in used:
            if isinstance(slot, Slot) and slot.buffer.kind == "arena":
                spans.setdefault(slot.buffer, [i, i])[1] = i
    for slot in leaving:
        if slot.buffer in spans:
            spans[slot.buffer][1] = len(steps)
    return spans


def tensor(slot: Slot) -> TensorType:
    """The type of what lies in a slot, in memory order."""
    return TensorType(slot.dtype, slot.shape)
