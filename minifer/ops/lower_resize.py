"""Linear and cubic resizing as kernel calls: one pass along each axis that changes.

A pass works on vectors across what lies behind its axis. So tensors of some channels are resized channels-last, and
the last axis of others is transposed to the front and back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minifer.kernels import move, resize
from minifer.ops.lower_move import element_bytes, identity, memory_order, resting, width
from minifer.ops.registry import CHANNELS_LAST, Declined

#: element types that are resampled, with the name of the kernel instance
RESAMPLED = {"float32": "f32", "float64": "f64"}

#: rows of fewer elements are no vectors; the last axis alone costs about so many times as much
SHORT_ROW, SLOWER = 8, 3

#: try all orders of so many axes
MOST_ORDERS = 4

#: for an axis: places (out, taps) in the input, and their weights
Taps = tuple[np.ndarray, np.ndarray]


def identity_or_resample(low: Any, changed: Mapping[int, Taps]) -> Declined | None:
    """Output 0 is input 0 resampled along the axes in `changed`."""
    if not changed:
        return identity(low)
    kind = RESAMPLED.get(low.dtype(0))
    if kind is None:
        return Declined(f"no kernel for interpolation of {low.dtype(0)}")
    shape = low.shape(0)
    layout = CHANNELS_LAST if len(shape) > 2 and shape[1] >= SHORT_ROW else resting(low, 0)
    order = memory_order(len(shape), layout)
    sizes = [shape[a] for a in order]
    slot = low.input(0, layout)
    passes = _passes(sizes, {order.index(a): taps for a, taps in changed.items()})
    for number, (axis, taps) in enumerate(passes, 1):
        after = [len(taps[0]) if a == axis else n for a, n in enumerate(sizes)]
        target = low.output(0, layout) if number == len(passes) else _scratch(low, math.prod(after))
        if math.prod(sizes[axis + 1 :]) == 1 and math.prod(sizes[:axis]) >= SHORT_ROW:
            _turned(low, kind, slot, target, math.prod(sizes[:axis]), sizes[axis], taps)
        else:
            _pass(low, kind, slot, target, math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :]), taps)
        slot, sizes = target, after
    return None


def _scratch(low: Any, count: int) -> Any:
    """Memory for so many elements of the input's type."""
    return low.scratch(count * element_bytes(low.dtype(0)), low.dtype(0))


def _pass(low: Any, kind: str, source: Any, target: Any, outer: int, size: int, inner: int, taps: Taps) -> None:
    """Resample (outer, size, inner) along its middle axis."""
    places, weights = taps
    tables = low.const(places.astype(np.int64)), low.const(weights.astype(source.dtype))
    low.call(resize.resample[kind], source, target, *tables, outer, size, len(places), inner, places.shape[1])


def _turned(low: Any, kind: str, source: Any, target: Any, rows: int, size: int, taps: Taps) -> None:
    """Resample the rows of a matrix (rows, size): transposed, so that vectors run across the rows, and back."""
    out, turn = len(taps[0]), move.transpose_matrices[width(element_bytes(low.dtype(0)))]
    columns, blended = _scratch(low, rows * size), _scratch(low, rows * out)
    low.call(turn, source, columns, 1, rows, size)
    _pass(low, kind, columns, blended, 1, size, rows, taps)
    low.call(turn, blended, target, 1, out, rows)


def _passes(shape: Sequence[int], changed: Mapping[int, Taps]) -> list[tuple[int, Taps]]:
    """The axes in the order of least work. Rows shorter than a vector are the slow ones."""

    def work(order: Sequence[int]) -> float:
        sizes, total = list(shape), 0.0
        for axis in order:
            places = changed[axis][0]
            sizes[axis] = len(places)
            slow = math.prod(sizes[axis + 1 :]) < SHORT_ROW
            total += math.prod(sizes) * (places.shape[1] + 1) * (SLOWER if slow else 1)
        return total

    orders = itertools.permutations(changed) if len(changed) <= MOST_ORDERS else [tuple(changed)]
    return [(axis, changed[axis]) for axis in min(orders, key=work)]
