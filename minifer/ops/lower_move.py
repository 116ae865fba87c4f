"""How elements are moved: strided views of memory, and the kernel calls that write one out.

Most operators that move elements are one view of their input: a start, and a size and a stride for each axis of
the output (Transpose permutes them, Slice scales them, Expand sets them to 0). A view that lies in memory as the output
would is no work at all. Any other is written out by a transposition or a strided copy.

A view is taken of whichever layout the input has, and the output gets the same layout, so a chain of channels-last
operators stays channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.kernels import concat, move, take
from minifer.kernels.odometer import RANK
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined
from minifer.record import Record

#: one axis of a view: (size, stride in elements)
Axis = tuple[int, int]

#: a run of elements is at least this long
SHORT = 8

TOO_MANY_AXES = Declined(f"more than {RANK} axes that cannot be merged")


def element_bytes(dtype: str) -> int:
    """Bytes that an element takes in memory."""
    return max(1, dtypes.bits(dtype) // 8)


def width(nbytes: int) -> str:
    """The kernel instance that moves elements of so many bytes."""
    return f"u{8 * nbytes}"


def memory_order(rank: int, layout: str) -> tuple[int, ...]:
    """The axes of a tensor in the order in which they lie in memory."""
    return tuple(range(rank)) if layout == PLAIN else (0, *range(2, rank), 1)


class View(Record):
    """Elements of a slot: `axes` in the order of the ONNX dimensions, from element `start`, in a layout."""

    slot: Any
    start: int
    axes: tuple[Axis, ...]
    layout: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(n for n, _ in self.axes)

    def with_axes(self, axes: Sequence[Axis], start: int | None = None, layout: str | None = None) -> View:
        """The same memory seen with other axes."""
        start = self.start if start is None else start
        return View(self.slot, start, tuple(axes), layout or self.layout)


def dense(shape: Sequence[int]) -> list[int]:
    """Row-major strides in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return strides[::-1]


def resting(low: Any, i: int) -> str:
    """The layout in which input `i` lies; row-major if it lies in both."""
    held = low.layouts(i)
    return PLAIN if PLAIN in held else next(iter(held))


def view_of(low: Any, i: int, layout: str | None = None) -> View:
    """Input `i` as a view, in a layout, or as it lies."""
    layout = layout or resting(low, i)
    slot, shape = low.input(i, layout), low.shape(i)
    order = memory_order(len(shape), layout)
    strides = dense([shape[a] for a in order])
    return View(slot, 0, tuple((shape[a], strides[order.index(a)]) for a in range(len(shape))), layout)


# ---------------------------------------------------------------- merging axes


def merge(sizes: Sequence[int], *strides: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Axes without those of size 1; neighbours that all operands cross with one step are one axis."""
    axes = [(n, s) for n, *s in zip(sizes, *strides) if n != 1]
    merged: list[tuple[int, list[int]]] = []
    for n, steps in axes:
        if merged and all(before == n * now for before, now in zip(merged[-1][1], steps)):
            merged[-1] = (merged[-1][0] * n, steps)
        else:
            merged.append((n, steps))
    return [n for n, _ in merged], [[s[k] for _, s in merged] for k in range(len(strides))]


def table(sizes: Sequence[int], *strides: Sequence[int]) -> np.ndarray:
    """The table that strided kernels take: sizes, then the strides of each operand, missing leading axes of size 1."""
    out = np.zeros((1 + len(strides), RANK), np.int64)
    out[0] = 1
    for row, values in zip(out, (sizes, *strides)):
        row[RANK - len(values) :] = values
    return out


def common_width(nbytes: int, run: int, *offsets: int) -> int:
    """Bytes of the unit in which to move runs of `run` elements of `nbytes` bytes, all `offsets` (in elements) apart.

    Words of four bytes where all divides into them, so that most element types share one kernel; else smaller ones.
    A run that is as long as a machine word is moved as one.
    """
    if run * nbytes in (2, 4, 8) and not any(o % run for o in offsets):
        return run * nbytes
    for unit in (4, 2):
        if not any(v * nbytes % unit for v in (run, *offsets)):
            return unit
    return 1


# ---------------------------------------------------------------- writing views out


def is_dense(axes: Sequence[Axis]) -> bool:
    """True where the axes, in this order, walk through memory without a gap."""
    sizes, (strides,) = merge([n for n, _ in axes], [s for _, s in axes])
    return not sizes or (len(sizes) == 1 and strides[0] == 1)


def finish(low: Any, view: View, i: int = 0) -> Declined | None:
    """Make output `i` of a view that has its shape: as an alias where it lies so already, else by a copy."""
    shape = low.out_shape(i)
    assert view.shape == shape, f"view of {view.shape} for an output of {shape}"
    if 0 in shape:
        low.output(i)
        return None
    layouts = [view.layout, *(other for other in (PLAIN, CHANNELS_LAST) if other != view.layout)]
    for layout in layouts if len(shape) > 2 else [PLAIN]:
        order = memory_order(len(shape), layout)
        if is_dense([view.axes[a] for a in order]):
            offset = view.slot.offset + view.start * element_bytes(view.slot.dtype)
            low.alias(view.slot.with_(offset=offset, shape=tuple(shape[a] for a in order), layout=layout), i)
            return None
    layout = view.layout if len(shape) > 2 else PLAIN
    axes = [view.axes[a] for a in memory_order(len(shape), layout)]
    return write(low, view.slot, view.start, axes, low.output(i, layout))


def write(low: Any, slot: Any, start: int, axes: Sequence[Axis], target: Any) -> Declined | None:
    """Copy the elements that `axes` walk over, in this order, to `target`, where they lie without gaps."""
    nbytes = element_bytes(slot.dtype)
    sizes, (strides,) = merge([n for n, _ in axes], [s for _, s in axes])
    if sizes and strides[-1] == 1:
        unit = common_width(nbytes, sizes[-1], start, *strides[:-1])
        sizes[-1] = sizes[-1] * nbytes // unit
        strides[:-1] = [s * nbytes // unit for s in strides[:-1]]
        start, nbytes = start * nbytes // unit, unit
        sizes, (strides,) = merge(sizes, strides)
    if len(sizes) > RANK:
        return TOO_MANY_AXES
    kind = width(nbytes)
    quick = sizes and strides[-1] in (0, 1, 2) and sizes[-1] >= SHORT  # rows that are written as vectors
    if len(sizes) > 1 and strides[-1] != 1 and 1 in strides and not quick:
        at = strides.index(1)
        order = [a for a in range(len(sizes) - 1) if a != at] + [at, len(sizes) - 1]
        out = dense(sizes)
        rows = [[values[a] for a in order] for values in (sizes, strides, out)]
        low.call(move.transpose_strided[kind], slot, target, start, low.const(table(*rows)))
    else:
        low.call(move.copy_strided[kind], slot, target, start, low.const(table(sizes, strides)))
    return None


def copy_whole(low: Any, source: Any, target: Any) -> None:
    """Copy a slot to another of the same size."""
    write(low, source, 0, [(source.size, 1)], target)


# ---------------------------------------------------------------- Reshape, Transpose, Expand, Tile, Slice, Split


def reshape(low: Any) -> None:
    """Output 0 is input 0 under another shape, elements in row-major order.

    What lies with its channels last stays so where batch and channels keep their axes: space alone is cut anew.
    """
    given, made = low.shape(0), low.out_shape()
    kept = len(given) > 2 and len(made) > 2 and given[:2] == made[:2]
    low.alias(low.input(0, resting(low, 0) if kept else PLAIN))


def identity(low: Any) -> Declined | None:
    """Output 0 is input 0."""
    return finish(low, view_of(low, 0))


def permute(low: Any, perm: Sequence[int]) -> Declined | None:
    """Output 0 is input 0 with its axes permuted."""
    view = view_of(low, 0)
    return finish(low, view.with_axes([view.axes[a] for a in perm], layout=PLAIN))


def stretch(low: Any, shape: Sequence[int]) -> Declined | None:
    """Output 0 is input 0 broadcast to a shape."""
    view = view_of(low, 0)
    if len(shape) != len(view.axes) and view.layout != PLAIN:
        view = view_of(low, 0, PLAIN)
    axes = [(1, 0)] * (len(shape) - len(view.axes)) + list(view.axes)
    return finish(low, view.with_axes([a if a[0] == n else (n, 0) for n, a in zip(shape, axes)]))


def repeat(low: Any, repeats: Sequence[int]) -> Declined | None:
    """Output 0 is input 0 repeated along each axis."""
    view = view_of(low, 0)
    if all(r == 1 for r in repeats):
        return finish(low, view)
    layout = view.layout if len(view.axes) > 2 else PLAIN
    axes = []
    for a in memory_order(len(view.axes), layout):
        axes += [(repeats[a], 0), view.axes[a]]
    return write(low, view.slot, 0, axes, low.output(0, layout))


def cut(view: View, ranges: Sequence[tuple[int, int, int, int]]) -> View:
    """A part of a view: (axis, first index, step, count) for each axis that is cut."""
    axes, start = list(view.axes), view.start
    for axis, first, step, count in ranges:
        start += first * axes[axis][1]
        axes[axis] = (count, axes[axis][1] * step)
    return view.with_axes(axes, start)


# ---------------------------------------------------------------- Concat


def _joint_layout(low: Any, count: int, rank: int) -> str:
    """The layout in which most of the bytes lie already."""
    if rank < 3:
        return PLAIN
    sizes = {PLAIN: 0, CHANNELS_LAST: 0}
    for i in range(count):
        if low.value(i) is None:
            sizes[resting(low, i)] += math.prod(low.shape(i))
    return CHANNELS_LAST if sizes[CHANNELS_LAST] > sizes[PLAIN] else PLAIN


def join(low: Any, axis: int) -> Declined | None:
    """Output 0 is all inputs end to end along an axis."""
    count, rank = len(low.node.inputs), len(low.out_shape())
    if count == 1:
        return finish(low, view_of(low, 0))
    layout = _joint_layout(low, count, rank)
    order = memory_order(rank, layout)
    at = order.index(axis)
    slots = [low.input(i, layout) for i in range(count)]
    target = low.output(0, layout)
    rows = math.prod(target.shape[:at])
    runs = [slot.nbytes // rows for slot in slots]
    unit = next(u for u in (4, 2, 1) if not any(r % u for r in runs))
    if all(r == 8 for r in runs):
        unit = 8
    runs, step = [r // unit for r in runs], target.nbytes // rows // unit
    kernel, most = concat.concat_rows[width(unit)], concat.CONCAT_INPUTS
    for first in range(0, count, most):
        some = range(first, min(first + most, count))
        lengths = [runs[k] for k in some] + [0] * (most - len(some))
        given = [slots[k] for k in some] + [None] * (most - len(some))
        start, part = sum(runs[:first]), target
        if rows == 1:  # each call writes memory of its own: no barrier stands between them
            part, start = target.view((sum(lengths) * unit // element_bytes(target.dtype),), start * unit), 0
        low.call(kernel, *given, part, *lengths, rows, step, start)
    return None


# ---------------------------------------------------------------- reading by a table for each axis

#: longest tables: of axes read as they are, and of two axes merged so that the last one has one long run
WHOLE_LIMIT, MERGE_LIMIT = 1 << 20, 1 << 16


def longest_run(places: np.ndarray) -> tuple[int, int]:
    """(first, count) of the longest stretch in which each place is the one before plus 1, and none is negative."""
    breaks = np.flatnonzero((np.diff(places) != 1) | (places[:-1] < 0)) + 1
    edges = np.concatenate([[0], breaks, [len(places)]])
    lengths = np.diff(edges)
    best = int(lengths.argmax())
    return (int(edges[best]), int(lengths[best])) if places[edges[best]] >= 0 else (0, 0)


def even_steps(places: np.ndarray) -> tuple[int, int, int] | None:
    """(first, step, count) of places that are evenly spaced, with no -1 among them; else None."""
    steps = np.diff(places)
    if (places < 0).any() or (steps.size and (steps != steps[0]).any()):
        return None
    return int(places[0]), int(steps[0]) if steps.size else 1, len(places)


def _flat(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Offsets of two axes as one; negative where either is."""
    both = outer[:, None] + inner
    return np.where((outer[:, None] < 0) | (inner < 0), -1, both).reshape(-1)


def pick(low: Any, places: Sequence[np.ndarray | None], value: Any = None) -> Declined | None:
    """Output 0 reads input 0 at `places` on each axis (None: as it is), and `value` where a place is -1.

    `value` is a slot of one element of the same type; it may be None where no place is -1.
    """
    view = view_of(low, 0)
    even = {a: even_steps(p) for a, p in enumerate(places) if p is not None}
    if None not in even.values():
        return finish(low, cut(view, [(a, *steps) for a, steps in even.items() if steps is not None]))
    layout = view.layout if len(view.axes) > 2 else PLAIN
    lists: list[np.ndarray] = []
    whole: list[bool] = []
    for a in memory_order(len(view.axes), layout):
        n, stride = view.axes[a]
        given = places[a]
        same = given is None or (len(given) == n and (given == np.arange(n)).all())
        offsets = np.arange(n) * stride if given is None or same else np.where(given < 0, -1, given * stride)
        if lists and same and whole[-1] and len(lists[-1]) * n <= WHOLE_LIMIT:
            lists[-1] = _flat(lists[-1], offsets)
        elif len(offsets) != 1 or offsets[0] != 0 or not same:
            lists.append(offsets)
            whole.append(bool(same))
    lists = lists or [np.zeros(1, np.int64)]
    if len(lists) > 1 and len(lists[-1]) * len(lists[-2]) <= MERGE_LIMIT:
        merged = _flat(lists[-2], lists[-1])
        if longest_run(merged)[1] * 2 >= len(merged):
            lists[-2:] = [merged]
    if len(lists) > RANK:
        return TOO_MANY_AXES
    target = low.output(0, layout)
    nbytes, run = element_bytes(view.slot.dtype), len(lists[-1])
    filled = any((line < 0).any() for line in lists)
    if not filled and longest_run(lists[-1]) == (0, run) and lists[-1][0] == 0:
        unit = common_width(nbytes, run, *(int(np.gcd.reduce(line)) for line in lists[:-1]))
        lists = [line * nbytes // unit for line in lists[:-1]] + [np.arange(run * nbytes // unit)]
        nbytes = unit
    last = lists[-1]
    doubled = len(last) > 2 and (last == last[0] + np.arange(len(last)) // 2).all() and last[0] >= 0
    words = take.take_table(lists, (take.DOUBLED, 0) if doubled else longest_run(last))
    low.call(take.take_axes[width(nbytes)], view.slot, value or view.slot, target, low.const(words))
    return None
