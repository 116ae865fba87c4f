"""Linear and cubic resizing as kernel calls: one pass along each axis that changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minifer.kernels import resize
from minifer.ops.lower_move import element_bytes, identity, memory_order, resting
from minifer.ops.registry import Declined

#: element types that are resampled, with the name of the kernel instance
RESAMPLED = {"float32": "f32", "float64": "f64"}

#: rows of fewer elements are blended one by one, which is about so many times slower
SHORT_ROW, SLOWER = 8, 6

#: try all orders of so many axes
MOST_ORDERS = 4

#: for an axis: places (out, taps) in the input, and their weights
Taps = tuple[np.ndarray, np.ndarray]


def identity_or_resample(low: Any, changed: Mapping[int, Taps]) -> Declined | None:
    """Output 0 is input 0 resampled along the axes in `changed`, in the layout that the input has."""
    if not changed:
        return identity(low)
    kind = RESAMPLED.get(low.dtype(0))
    if kind is None:
        return Declined(f"no kernel for interpolation of {low.dtype(0)}")
    layout = resting(low, 0)
    order = memory_order(len(low.shape(0)), layout)
    shape = [low.shape(0)[a] for a in order]
    slot, nbytes = low.input(0, layout), element_bytes(low.dtype(0))
    passes = _passes(shape, {order.index(a): taps for a, taps in changed.items()})
    for number, (axis, (places, weights)) in enumerate(passes, 1):
        outer, inner = (int(np.prod(part, dtype=np.int64)) for part in (shape[:axis], shape[axis + 1 :]))
        size, shape[axis] = shape[axis], len(places)
        count = int(np.prod(shape, dtype=np.int64))
        target = low.output(0, layout) if number == len(passes) else low.scratch(count * nbytes, low.dtype(0))
        tables = low.const(places.astype(np.int64)), low.const(weights.astype(slot.dtype))
        low.call(
            resize.resample[kind], slot, target, *tables, outer, size, len(places), inner, places.shape[1]
        )  # fmt: skip
        slot = target
    return None


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
