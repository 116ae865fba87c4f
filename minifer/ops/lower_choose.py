"""Where, Trilu, TopK, ArgMax, ArgMin, CumSum and CumProd as kernel calls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minifer.kernels import choose, extreme, move, running, top_k
from minifer.kernels.odometer import RANK
from minifer.ops.lower_move import (
    TOO_MANY_AXES,
    Axis,
    element_bytes,
    memory_order,
    merge,
    resting,
    table,
    view_of,
    width,
)
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined
from minifer.ops.shapes import wrap_axis


def _size(dims: Any) -> int:
    return math.prod(dims)


# ---------------------------------------------------------------- Where, Trilu


def _where_layout(low: Any) -> str:
    """Channels-last where all inputs of the output's shape lie so."""
    full = [i for i in range(3) if low.shape(i) == low.out_shape() and low.value(i) is None]
    rank = len(low.out_shape())
    return CHANNELS_LAST if rank > 2 and full and all(resting(low, i) == CHANNELS_LAST for i in full) else PLAIN


def _broadcast_axes(low: Any, i: int, layout: str) -> list[Axis]:
    """Input `i`, in a layout, along the axes of the output; stride 0 where it is repeated."""
    out, shape = low.out_shape(), low.shape(i)
    axes = [(1, 0)] * (len(out) - len(shape)) + list(view_of(low, i, layout).axes)
    return [(n, stride if have == n else 0) for n, (have, stride) in zip(out, axes)]


def lower_where(low: Any) -> Declined | None:
    """Where, all inputs broadcast."""
    layout, rank = _where_layout(low), len(low.out_shape())
    order = memory_order(rank, layout)
    layouts = [layout if len(low.shape(i)) == rank else PLAIN for i in range(3)]
    operands = [_broadcast_axes(low, i, layouts[i]) for i in range(3)]
    sizes = [low.out_shape()[a] for a in order]
    merged, strides = merge(sizes, *([axes[a][1] for a in order] for axes in operands))
    if len(merged) > RANK:
        return TOO_MANY_AXES
    if merged and any(s[-1] not in (0, 1) for s in strides):
        merged, strides = [*merged, 1], [[*s, 0] for s in strides]
        if len(merged) > RANK:
            return TOO_MANY_AXES
    slots = [low.input(i, layouts[i]) for i in range(3)]
    kernel = choose.where[width(element_bytes(low.dtype(1)))]
    low.call(kernel, *slots, low.output(0, layout), low.const(table(merged, *strides)))
    return None


def lower_trilu(low: Any) -> Declined | None:
    """Trilu."""
    *batch, rows, columns = low.shape(0)
    diagonal = low.input(1) if low.has(1) else low.const(np.zeros(1, np.int64))
    low.call(
        choose.trilu[width(element_bytes(low.dtype(0)))], low.input(0), diagonal, low.output(0), _size(batch), rows,
        columns, int(low.attr("upper", 1)),
    )  # fmt: skip
    return None


# ---------------------------------------------------------------- lines along an axis

NUMBERS = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}
COMPARED = {**NUMBERS, "int8": "i8", "uint8": "u8"}


def _lines(shape: Any, axis: int) -> tuple[int, int, int]:
    """(outer, n, inner): sizes before, on and behind an axis."""
    return _size(shape[:axis]), shape[axis], _size(shape[axis + 1 :])


def lower_top_k(low: Any) -> Declined | None:
    """TopK, always sorted."""
    kind = NUMBERS.get(low.dtype(0))
    if kind is None:
        return Declined(f"no kernel for {low.dtype(0)}")
    shape = low.shape(0)
    axis = wrap_axis(low.attr("axis", -1), len(shape))
    outer, n, inner = _lines(shape, axis)
    wanted = 0 if low.wants(0) else 1
    k = low.out_shape(wanted)[axis]
    count = outer * k * inner
    values = low.output(0) if low.wants(0) else low.scratch(count * element_bytes(low.dtype(0)), low.dtype(0))
    indices = low.output(1) if low.wants(1) else low.scratch(count * 8, "int64")
    largest = int(low.attr("largest", 1))
    low.call(top_k.top_k[kind], low.input(0), values, indices, outer, n, inner, k, largest)
    return None


#: lines of fewer elements are better searched side by side
LONG_LINE = 64


def lower_arg(low: Any, minimum: bool) -> Declined | None:
    """ArgMax and ArgMin. Many short lines are transposed first, so that vectors run across them."""
    kind = COMPARED.get(low.dtype(0))
    if kind is None:
        return Declined(f"no kernel for {low.dtype(0)}")
    shape = low.shape(0)
    axis = wrap_axis(low.attr("axis", 0), len(shape))
    layout = resting(low, 0) if axis == 1 and len(shape) > 2 and shape[1] >= LONG_LINE else PLAIN
    source = low.input(0, layout)
    outer, n, inner = _lines(source.shape, len(shape) - 1 if layout == CHANNELS_LAST else axis)
    if inner == 1 and 1 < n < LONG_LINE <= outer:
        turned = low.scratch(source.nbytes, source.dtype)
        low.call(move.transpose_matrices[width(element_bytes(source.dtype))], source, turned, 1, outer, n)
        source, outer, inner = turned, 1, outer
    last = int(low.attr("select_last_index", 0))
    low.call(extreme.arg_extreme[kind], source, low.output(0), outer, n, inner, int(minimum), last)
    return None


def lower_running(low: Any, product: bool) -> Declined | None:
    """CumSum and CumProd along a known axis."""
    kind = NUMBERS.get(low.dtype(0))
    if kind is None or low.value(1) is None:
        return Declined(f"no kernel for {low.dtype(0)}" if kind is None else "the axis is not known before the run")
    shape = low.shape(0)
    axis = wrap_axis(int(np.asarray(low.value(1)).reshape(-1)[0]), len(shape))
    flags = int(low.attr("exclusive", 0)), int(low.attr("reverse", 0))
    low.call(running.RUNNING[kind], low.input(0), low.output(0), *_lines(shape, axis), int(product), *flags)
    return None
