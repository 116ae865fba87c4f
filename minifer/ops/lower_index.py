"""Gather and Scatter in their forms, OneHot, TensorScatter and ReverseSequence as kernel calls.

Indices that are known while planning and evenly spaced make a Gather a slice, which often costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.kernels import gather, scatter
from minifer.kernels.odometer import RANK
from minifer.ops.lower_move import (
    TOO_MANY_AXES,
    common_width,
    copy_whole,
    cut,
    dense,
    element_bytes,
    even_steps,
    finish,
    merge,
    table,
    view_of,
    width,
)
from minifer.ops.registry import PLAIN, Declined
from minifer.ops.shapes import wrap_axis

#: element types of index tensors that kernels read, with their size
INDEX_BYTES = {"int32": 4, "int64": 8}


def _size(dims: Sequence[int]) -> int:
    return math.prod(dims)


def _no_index(low: Any, i: int) -> Declined | None:
    """Why input `i` cannot be read as indices, if so."""
    if low.dtype(i) in INDEX_BYTES:
        return None
    return Declined(f"no kernel for indices of type {low.dtype(i)}")


# ---------------------------------------------------------------- gather


def _progression(index: np.ndarray, size: int) -> tuple[int, int] | None:
    """(first, step) of known indices that are evenly spaced and in range."""
    flat = index.reshape(-1).astype(np.int64)
    if ((flat < -size) | (flat >= size)).any():
        return None
    even = even_steps(flat % size)
    return None if even is None else even[:2]


def lower_gather(low: Any) -> Declined | None:
    """Gather: a slice where the indices are known and evenly spaced, else rows by index."""
    shape, index_shape = low.shape(0), low.shape(1)
    axis = wrap_axis(low.attr("axis", 0), len(shape))
    known = low.value(1)
    even = None if known is None else _progression(np.asarray(known), shape[axis])
    if even is not None:
        return _gather_slice(low, axis, even, index_shape)
    if (declined := _no_index(low, 1)) is not None:
        return declined
    nbytes, run = element_bytes(low.dtype(0)), _size(shape[axis + 1 :])
    unit = common_width(nbytes, run)
    low.call(
        gather.gather_rows[width(unit)], low.input(0), low.input(1), low.output(0), _size(shape[:axis]), shape[axis],
        _size(index_shape), run * nbytes // unit, INDEX_BYTES[low.dtype(1)],
    )  # fmt: skip
    return None


def _gather_slice(low: Any, axis: int, even: tuple[int, int], index_shape: Sequence[int]) -> Declined | None:
    first, step = even
    view = cut(view_of(low, 0), [(axis, first, step, _size(index_shape))])
    stride = view.axes[axis][1]
    middle = [(n, s * stride) for n, s in zip(index_shape, dense(index_shape))]
    layout = view.layout if len(index_shape) == 1 else PLAIN
    return finish(low, view.with_axes([*view.axes[:axis], *middle, *view.axes[axis + 1 :]], layout=layout))


def lower_gather_elements(low: Any) -> Declined | None:
    """GatherElements."""
    if (declined := _no_index(low, 1)) is not None:
        return declined
    shape, sizes = low.shape(0), low.shape(1)
    axis = wrap_axis(low.attr("axis", 0), len(shape))
    strides = dense(shape)
    step, strides[axis] = strides[axis], 0
    merged, (x_strides, _) = merge(sizes, strides, dense(sizes))
    if len(merged) > RANK:
        return TOO_MANY_AXES
    low.call(
        gather.gather_elements[width(element_bytes(low.dtype(0)))], low.input(0), low.input(1), low.output(0),
        low.const(table(merged, x_strides)), shape[axis], step, INDEX_BYTES[low.dtype(1)],
    )  # fmt: skip
    return None


def lower_gather_nd(low: Any) -> Declined | None:
    """GatherND."""
    if (declined := _no_index(low, 1)) is not None:
        return declined
    shape, index_shape, batch = low.shape(0), low.shape(1), low.attr("batch_dims", 0)
    depth = index_shape[-1]
    sizes, nbytes, run = shape[batch : batch + depth], element_bytes(low.dtype(0)), _size(shape[batch + depth :])
    if depth > RANK:
        return Declined(f"index tuples of {depth} numbers are longer than {RANK}")
    unit = common_width(nbytes, run)
    low.call(
        gather.gather_nd[width(unit)], low.input(0), low.input(1), low.output(0), low.const(gather.tuple_table(sizes)),
        _size(shape[:batch]), _size(sizes), _size(index_shape[batch:-1]), depth, run * nbytes // unit,
        INDEX_BYTES[low.dtype(1)],
    )  # fmt: skip
    return None


def lower_reverse_sequence(low: Any) -> Declined | None:
    """ReverseSequence."""
    if low.dtype(1) != "int64":
        return Declined(f"no kernel for lengths of type {low.dtype(1)}")
    shape, time = low.shape(0), low.attr("time_axis", 0)
    steps, batch = shape[time], shape[1 - time]
    nbytes, run = element_bytes(low.dtype(0)), _size(shape[2:])
    unit = common_width(nbytes, run)
    time_step, batch_step = (batch, 1) if time == 0 else (1, steps)
    low.call(
        gather.reverse_rows[width(unit)], low.input(0), low.input(1), low.output(0), steps, batch,
        run * nbytes // unit, time_step, batch_step,
    )  # fmt: skip
    return None


# ---------------------------------------------------------------- scatter


def _joining(low: Any) -> tuple[int, Declined | None]:
    """The reduction's code, and why no kernel does it for this element type, if so."""
    reduction, dtype = low.attr("reduction", "none"), low.dtype(0)
    code = scatter.REDUCTIONS[reduction]
    if code != scatter.NONE and dtype not in JOINED:
        return code, Declined(f"no kernel for reduction {reduction} of {dtype}")
    return code, _no_index(low, 1)


#: element types that updates are joined in, with the name of the kernel instance
JOINED = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}


def lower_scatter_elements(low: Any) -> Declined | None:
    """ScatterElements and Scatter: a copy of the data, then the updates."""
    code, declined = _joining(low)
    if declined is not None:
        return declined
    shape, sizes = low.shape(0), list(low.shape(1))
    axis = wrap_axis(low.attr("axis", 0), len(shape))
    strides, y_strides = dense(sizes), dense(shape)
    index_step, step, count = strides[axis], y_strides[axis], sizes[axis]
    sizes[axis] = 1
    merged, rows = merge(sizes, strides, y_strides)
    if len(merged) > RANK:
        return TOO_MANY_AXES
    target = low.output(0)
    copy_whole(low, low.input(0), target)
    arguments = (
        low.input(1), low.input(2), target, low.const(table(merged, *rows)), count, index_step, shape[axis], step,
        INDEX_BYTES[low.dtype(1)],
    )  # fmt: skip
    if code == scatter.NONE:
        low.call(scatter.scatter_elements[width(element_bytes(low.dtype(0)))], *arguments)
    else:
        low.call(scatter.scatter_elements_join[JOINED[low.dtype(0)]], *arguments, code)
    return None


def lower_scatter_nd(low: Any) -> Declined | None:
    """ScatterND: a copy of the data, then the updates."""
    code, declined = _joining(low)
    if declined is not None:
        return declined
    shape, index_shape = low.shape(0), low.shape(1)
    depth = index_shape[-1]
    if depth > RANK:
        return Declined(f"index tuples of {depth} numbers are longer than {RANK}")
    nbytes, run, sizes = element_bytes(low.dtype(0)), _size(shape[depth:]), shape[:depth]
    unit = common_width(nbytes, run) if code == scatter.NONE else nbytes
    target = low.output(0)
    copy_whole(low, low.input(0), target)
    arguments = (
        low.input(1), low.input(2), target, low.const(gather.tuple_table(sizes)), _size(sizes),
        _size(index_shape[:-1]), depth, run * nbytes // unit, INDEX_BYTES[low.dtype(1)],
    )  # fmt: skip
    if code == scatter.NONE:
        low.call(scatter.scatter_nd[width(unit)], *arguments)
    else:
        low.call(scatter.scatter_nd_join[JOINED[low.dtype(0)]], *arguments, code)
    return None


def lower_tensor_scatter(low: Any) -> Declined | None:
    """TensorScatter: a copy of the cache, then runs of the update."""
    shape, update = low.shape(0), low.shape(1)
    at = wrap_axis(low.attr("axis", -2), len(shape))
    if low.has(2) and low.dtype(2) != "int64":
        return Declined(f"no kernel for write_indices of type {low.dtype(2)}")
    nbytes, run = element_bytes(low.dtype(0)), _size(shape[at + 1 :])
    unit = common_width(nbytes, run)
    target = low.output(0)
    copy_whole(low, low.input(0), target)
    first = low.input(2) if low.has(2) else low.const(np.zeros(shape[0], np.int64))
    low.call(
        scatter.write_rows[width(unit)], first, low.input(1), target, shape[0], _size(shape[1:at]), update[at],
        shape[at], run * nbytes // unit, int(low.attr("mode", "linear") == "circular"),
    )  # fmt: skip
    return None


def lower_one_hot(low: Any, negative: bool) -> Declined | None:
    """OneHot; `negative`: indices from -depth on count from the end."""
    if (declined := _no_index(low, 0)) is not None:
        return declined
    shape, out = low.shape(0), low.out_shape()
    axis = wrap_axis(low.attr("axis", -1), len(out))
    depth = out[axis]
    low.call(
        scatter.one_hot[width(element_bytes(low.dtype(2)))], low.input(0), low.input(2), low.output(0),
        _size(shape[:axis]), depth, _size(shape[axis:]), -depth if negative else 0, INDEX_BYTES[low.dtype(0)],
    )  # fmt: skip
    return None
