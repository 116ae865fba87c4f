"""Pooling: AveragePool, MaxPool, LpPool, their Global forms, MaxUnpool and LRN.

A maximum or a sum over a box is taken axis by axis: k1 + k2 steps a window instead of k1 * k2.
Shapes: x (N, C, D1..Dn), y (N, C, o1..on). 16-bit floats are summed in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import Fail, integers
from minifer.ops.window import (
    Window,
    need_rank,
    per_axis,
    slide,
    split_pads,
    tap_range,
    taps_inside,
    wide,
    window_of_call,
)

lower_lrn = deferred("lower_norm", "lower_lrn")
lower_average_pool, lower_max_pool = deferred("lower_pool", "lower_average_pool", "lower_max_pool")
lower_global_lp_pool, lower_global_pool = deferred(
    "lower_reduce", "lower_global_lp_pool", "lower_global_pool",
)  # fmt: skip

# --- the sliding reductions ---


def _reduce_axis(x: np.ndarray, window: Window, i: int, ufunc, fill) -> np.ndarray:
    """Reduce every window along spatial axis `i` with ufunc (maximum or add); `fill` stands outside the data."""
    axis, out = 2 + i, int(window.out[i])  # type: ignore[arg-type]
    taps = [tap_range(window, i, t, x.shape[axis]) for t in taps_inside(window, i, x.shape[axis])]
    y = np.full((*x.shape[:axis], out, *x.shape[axis + 1 :]), fill, x.dtype)
    ahead = (slice(None),) * axis
    for places, source in taps:
        part = y[ahead + (places,)]
        ufunc(part, x[ahead + (source,)], out=part)
    return y


def _reduce_windows(x: np.ndarray, window: Window, ufunc, fill) -> np.ndarray:
    for i in range(len(window.kernel)):
        if window.kernel[i] > 1 or window.strides[i] > 1 or window.out[i] != x.shape[2 + i]:
            x = _reduce_axis(x, window, i, ufunc, fill)
    return x


def _counts(window: Window, spatial: Sequence[int], include_pad: int) -> np.ndarray:
    """(o1..on) how many elements each window averages: those inside the data, or inside data and padding."""
    total = np.ones((), np.int64)
    for i, size in enumerate(spatial):
        begin, end = window.pads[i]
        places = np.arange(window.out[i]) * window.strides[i] - begin  # type: ignore[arg-type]
        bounds = (-begin, size + end) if include_pad else (0, size)
        first, stop = (np.clip(-((places - b) // window.dilations[i]), 0, window.kernel[i]) for b in bounds)
        total = np.multiply.outer(total, stop - first)
    return np.maximum(total, 1)  # a window that meets padding alone averages to zero


def _infer_pool(call: Call) -> TensorType:
    """(N, C, o...) in the input's element type."""
    x, kernel = call.shape(0), call.attr("kernel_shape")
    if not kernel:
        raise call.fail("the attribute kernel_shape is missing")
    if x is None:
        return TensorType(call.dtype(0), (None,) * (2 + len(kernel)))
    if len(x) < 3:
        raise call.fail(f"the input has rank {len(x)}; (batch, channels, spatial...) of rank 3 or more is needed")
    return TensorType(call.dtype(0), x[:2] + window_of_call(call, x[2:], kernel).out)


def _window(x, kernel_shape, **options) -> Window:
    need_rank(x, 3, "the input")
    return slide(ShapeError, x.shape[2:], kernel_shape, **options)


# --- AveragePool ---


def average_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=None, pads=None, strides=None
):
    """AveragePool of a float tensor; sums in float32 or wider."""
    window = _window(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    total = _reduce_windows(wide(x), window, np.add, 0)
    return (total / _counts(window, x.shape[2:], count_include_pad).astype(total.dtype)).astype(x.dtype)


register(Op("AveragePool", since=1, infer=_infer_pool, reference=average_pool, lower=lower_average_pool))


# --- MaxPool ---


def _lowest(dtype: np.dtype):
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def max_pool(x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, pads=None, strides=None):
    """The maxima alone, of a float or integer tensor."""
    window = _window(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    data = x if x.dtype.kind in "iu" else wide(x)
    return _reduce_windows(data, window, np.maximum, _lowest(data.dtype)).astype(x.dtype, copy=False)


def _max_pool(
    x, *, ctx, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, pads=None, storage_order=0, strides=None
):
    options = dict(strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode)
    if not ctx.wants(1):
        return max_pool(x, kernel_shape=kernel_shape, **options)
    data = x if x.dtype.kind in "iu" else wide(x)
    y, index = _max_with_index(data, _window(x, kernel_shape, **options), storage_order)
    return y.astype(x.dtype, copy=False), index


def _max_with_index(x: np.ndarray, window: Window, storage_order: int) -> tuple[np.ndarray, np.ndarray]:
    """Maxima and their positions in the flat (N, C, D...) input; the first of equals, as the window runs, wins.

    With storage_order 1 the spatial part of a position is counted column-major.
    """
    spatial = x.shape[2:]
    out: tuple[int, ...] = window.out  # type: ignore[assignment]
    best = np.full((*x.shape[:2], *out), _lowest(x.dtype), x.dtype)
    index = np.full(best.shape, -1, np.int64)
    order = "F" if storage_order else "C"
    position = np.arange(math.prod(spatial)).reshape(spatial, order=order)  # type: ignore[call-overload]
    for tap in itertools.product(*(taps_inside(window, i, size) for i, size in enumerate(spatial))):
        ranges = [tap_range(window, i, t, spatial[i]) for i, t in enumerate(tap)]
        places = (...,) + tuple(r[0] for r in ranges)
        source = tuple(r[1] for r in ranges)
        candidate, old, where = x[(...,) + source], best[places], index[places]
        take = (candidate > old) | (where < 0) | (np.isnan(candidate) & ~np.isnan(old))
        np.copyto(old, candidate, where=take)
        np.copyto(where, np.broadcast_to(position[source], where.shape), where=take)
    plane = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(spatial)) * math.prod(spatial)
    return best, np.where(index < 0, 0, index) + plane


def _infer_max_pool(call: Call) -> list[TensorType]:
    y = _infer_pool(call)
    return [y, TensorType("int64", y.shape)]


register(Op("MaxPool", since=1, infer=_infer_max_pool, reference=_max_pool, lower=lower_max_pool))


# --- LpPool ---


def _check_p(p: float) -> None:
    if not p > 0:
        raise InputError(f"p = {p}; a norm needs p above 0")


def _lp_pool(x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, p=2, pads=None, strides=None):
    _check_p(p)
    window = _window(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    total = _reduce_windows(np.abs(wide(x)) ** p, window, np.add, 0)
    return (total ** (1 / p)).astype(x.dtype)


register(Op("LpPool", since=1, infer=_infer_pool, reference=_lp_pool))


# --- Global pools ---


def _infer_global(call: Call) -> TensorType:
    x = call.shape(0)
    if x is None:
        return TensorType(call.dtype(0))
    if len(x) < 2:
        raise call.fail(f"the input has rank {len(x)}; (batch, channels, spatial...) is needed")
    return TensorType(call.dtype(0), x[:2] + (1,) * (len(x) - 2))


def _flat(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """x as (N, C, everything) in a type to compute in, and the shape of the result."""
    need_rank(x, 2, "the input")
    return wide(x).reshape(*x.shape[:2], math.prod(x.shape[2:])), (*x.shape[:2], *(1,) * (x.ndim - 2))


def _global_average_pool(x):
    flat, shape = _flat(x)
    mean = flat.sum(axis=2) / flat.dtype.type(flat.shape[2])
    return mean.reshape(shape).astype(x.dtype, copy=False)


def _global_max_pool(x):
    flat, shape = _flat(x)
    return flat.max(axis=2, initial=-np.inf).reshape(shape).astype(x.dtype, copy=False)


def _global_lp_pool(x, *, p=2):
    _check_p(p)
    flat, shape = _flat(x)
    return ((np.abs(flat) ** p).sum(axis=2) ** (1 / p)).reshape(shape).astype(x.dtype, copy=False)


for _name, _reference, _lower in (
    ("GlobalAveragePool", _global_average_pool, lower_global_pool.of("MEAN")),
    ("GlobalMaxPool", _global_max_pool, lower_global_pool.of("MAX")),
    ("GlobalLpPool", _global_lp_pool, lower_global_lp_pool),
):
    register(Op(_name, since=1, infer=_infer_global, reference=_reference, lower=_lower))


# --- MaxUnpool ---


def _unpooled(fail: Fail, spatial: Sequence[Dim], kernel_shape, strides, pads) -> tuple[Dim, ...]:
    """The spatial shape that a MaxPool with these attributes most plainly came from."""
    rank = len(spatial)
    kernel = per_axis(kernel_shape, rank, "kernel_shape", 1, fail)
    steps = per_axis(strides, rank, "strides", 1, fail)
    begin, end = split_pads(pads, rank, fail)
    out: list[Dim] = []
    for size, k, s, b, e in zip(spatial, kernel, steps, begin, end):
        full = (size - 1) * s + k - b - e if isinstance(size, int) else None
        if full is not None and full < 0:
            raise fail(f"pads {list(pads)} crop more than there is: an axis would have size {full}")
        out.append(full)
    return tuple(out)


def _max_unpool(x, indices, output_shape=None, *, kernel_shape, pads=None, strides=None):
    need_rank(x, 3, "the input")
    if indices.shape != x.shape:
        raise ShapeError(f"indices have shape {list(indices.shape)} and the input {list(x.shape)}; they must be equal")
    spatial = _unpooled(ShapeError, x.shape[2:], kernel_shape, strides, None if output_shape is not None else pads)
    full: tuple[int, ...] = x.shape[:2] + spatial
    size = math.prod(full)
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise InputError(f"indices run from {indices.min()} to {indices.max()}; they must lie in [0, {size})")
    y = np.zeros(size, x.dtype)
    y[indices.reshape(-1)] = x.reshape(-1)
    y = y.reshape(full)
    if output_shape is None:
        return y
    shape = integers(output_shape)
    if len(shape) != x.ndim or min(shape) < 0 or shape[:2] != x.shape[:2]:
        raise ShapeError(f"output_shape {list(shape)} does not fit the input's {list(x.shape)}")
    # indices count in the shape that the attributes imply; the rest of a larger output stays zero
    out = np.zeros(shape, x.dtype)
    common = tuple(slice(0, min(a, b)) for a, b in zip(shape, full))
    out[common] = y[common]
    return out


def _infer_max_unpool(call: Call) -> TensorType:
    x, kernel = call.shape(0), call.attr("kernel_shape")
    if not kernel:
        raise call.fail("the attribute kernel_shape is missing")
    rank = 2 + len(kernel)
    if x is not None and len(x) != rank:
        raise call.fail(f"the input has rank {len(x)} and kernel_shape {list(kernel)} asks for {rank}")
    if call.has(2):
        shape = call.value(2)
        return TensorType(call.dtype(0), (None,) * rank if shape is None else integers(shape))
    if x is None:
        return TensorType(call.dtype(0), (None,) * rank)
    spatial = _unpooled(call.fail, x[2:], kernel, call.attr("strides"), call.attr("pads"))
    return TensorType(call.dtype(0), x[:2] + spatial)


register(Op("MaxUnpool", since=9, infer=_infer_max_unpool, reference=_max_unpool))


# --- LRN ---


def _lrn(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    need_rank(x, 2, "the input")
    if size < 1:
        raise InputError(f"size {size} is below 1")
    data, channels = wide(x), x.shape[1]
    square = data * data
    total = np.zeros_like(square)
    first, last = max(-((size - 1) // 2), 1 - channels), min(size // 2, channels - 1)
    for shift in range(first, last + 1):  # channel c sums c + shift, as far as there are channels
        low, high = max(0, -shift), min(channels, channels - shift)
        total[:, low:high] += square[:, low + shift : high + shift]
    return (data / (bias + (alpha / size) * total) ** beta).astype(x.dtype, copy=False)


def _infer_lrn(call: Call) -> TensorType:
    x = call.tensor(0)
    if x.rank is not None and x.rank < 2:
        raise call.fail(f"the input has rank {x.rank}; (batch, channels, ...) is needed")
    if call.attr("size", 0) < 1:
        raise call.fail("the attribute size is missing or below 1")
    return x


register(Op("LRN", since=1, infer=_infer_lrn, reference=_lrn, lower=lower_lrn))
