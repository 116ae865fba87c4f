"""Reductions over axes, ArgMax and ArgMin, running sums and products, LpNormalization, MeanVarianceNormalization.

The Reduce operators name their axes by an attribute at first and by an input since opset 18 (ReduceSum since 13).
Floats are accumulated in float64 and rounded once; integers wrap around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.cast import convert
from minifer.ops.numeric import (
    FLOATS,
    NUMBERS,
    check_count,
    check_type,
    kind_of,
    narrow,
    normal_axis,
    require,
    widen,
)
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import axis_of

lower_arg, lower_running = deferred("lower_choose", "lower_arg", "lower_running")
lower_lp_norm, lower_mean_variance_norm = deferred("lower_norm", "lower_lp_norm", "lower_mean_variance_norm")
lower_reduce = deferred("lower_reduce", "lower_reduce")

Axes = tuple[int, ...]
_INDICES = ("int32", "int64")


# What is reduced: functions of (array, axes), keeping the axes. Floats come as float64, integers as they are.


def _sum(x, axes):
    return x.sum(axis=axes, keepdims=True, dtype=x.dtype)


def _product(x, axes):
    return x.prod(axis=axes, keepdims=True, dtype=x.dtype)


def _lowest(x):
    """The value that a maximum over nothing has."""
    return -np.inf if x.dtype.kind == "f" else False if x.dtype.kind == "b" else np.iinfo(x.dtype).min


def _highest(x):
    """The value that a minimum over nothing has."""
    return np.inf if x.dtype.kind == "f" else True if x.dtype.kind == "b" else np.iinfo(x.dtype).max


def _max(x, axes):
    return x.max(axis=axes, keepdims=True, initial=_lowest(x))


def _min(x, axes):
    return x.min(axis=axes, keepdims=True, initial=_highest(x))


def _mean(x, axes):
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    if x.dtype.kind == "f":
        return _sum(x, axes) / count if count else np.full(_sum(x, axes).shape, np.nan)
    total = _sum(x.astype(np.uint64 if x.dtype.kind == "u" else np.int64), axes)
    whole = np.abs(total) // total.dtype.type(max(count, 1))
    return whole if x.dtype.kind == "u" else np.sign(total) * whole


def _l2(x, axes):
    return np.sqrt(_sum(np.square(x.astype(np.float64)), axes))


def _log_sum(x, axes):
    return np.log(_sum(x.astype(np.float64), axes))


def _log_sum_exp(x, axes):
    x = x.astype(np.float64)
    top = _max(x, axes)
    shift = np.where(np.isfinite(top), top, 0)
    return np.log(_sum(np.exp(x - shift), axes)) + shift


def _reduced(x: np.ndarray, axes: Axes, keepdims: int, function: Callable) -> np.ndarray:
    """Apply a reduction over axes and return to the element type of `x`."""
    wide = widen(x)
    wide = wide.astype(np.float64) if wide.dtype.kind == "f" else wide
    y = np.asarray(function(wide, axes))
    if not keepdims:
        y = y.reshape([d for i, d in enumerate(x.shape) if i not in axes])
    return convert(y, kind_of(x)) if y.dtype.kind != x.dtype.kind else narrow(y, x.dtype)


def _normal_axes(axes: Sequence[int] | np.ndarray | None, rank: int, noop: int) -> Axes:
    """The axes to reduce: non-negative, no duplicates. No axes mean all of them, or none where `noop`."""
    if axes is None or len(axes) == 0:
        return () if noop else tuple(range(rank))
    normal = tuple(normal_axis(int(a), rank) for a in axes)
    if len(set(normal)) < len(normal):
        raise InputError(f"axes {tuple(int(a) for a in axes)} name an axis twice")
    return normal


def _by_attribute(function, allowed):
    def reference(x, *, axes=None, keepdims=1):
        require(x, allowed)
        return _reduced(x, _normal_axes(axes, x.ndim, 0), keepdims, function)

    return reference


def _by_input(function, allowed):
    def reference(x, axes=None, *, keepdims=1, noop_with_empty_axes=0):
        require(x, allowed)
        if axes is not None:
            require(axes, _INDICES, "axes")
        if axes is not None and axes.ndim != 1:
            raise ShapeError(f"axes must be a vector, got shape {axes.shape}")
        return _reduced(x, _normal_axes(axes, x.ndim, noop_with_empty_axes), keepdims, function)

    return reference


def _checked_axes(call: Call, axes: Sequence[int] | np.ndarray | None, rank: int) -> set[int]:
    if axes is None or len(axes) == 0:
        return set() if call.attr("noop_with_empty_axes", 0) else set(range(rank))
    normal = {axis_of(call, int(a), rank) for a in axes}
    if len(normal) < len(axes):
        raise call.fail(f"axes {tuple(int(a) for a in axes)} name an axis twice")
    return normal


def _reduced_shape(shape: tuple[Dim, ...], axes: set[int], keepdims: int) -> tuple[Dim, ...]:
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _types_by_attribute(allowed):
    def infer(call: Call) -> Type:
        check_count(call, 1, 1)
        kind = check_type(call, 0, allowed)
        keepdims = call.attr("keepdims", 1)
        if kind.shape is None:
            return TensorType(kind.dtype, () if not keepdims and not call.attr("axes") else None)
        axes = _checked_axes(call, call.attr("axes"), len(kind.shape))
        return TensorType(kind.dtype, _reduced_shape(kind.shape, axes, keepdims))

    return infer


def _types_by_input(allowed):
    def infer(call: Call) -> Type:
        check_count(call, 1, 2)
        kind = check_type(call, 0, allowed)
        shape, keepdims = kind.shape, call.attr("keepdims", 1)
        if call.has(1):
            check_type(call, 1, _INDICES)
        if shape is None:
            return TensorType(kind.dtype, None)
        if not call.has(1) or call.value(1) is not None:
            axes = call.value(1) if call.has(1) else None
            if axes is not None and axes.ndim != 1:
                raise call.fail("axes must be a vector")
            return TensorType(kind.dtype, _reduced_shape(shape, _checked_axes(call, axes, len(shape)), keepdims))
        if keepdims:
            return TensorType(kind.dtype, (None,) * len(shape))
        count = (call.shape(1) or (None,))[0]
        if isinstance(count, int) and 0 < count <= len(shape):
            return TensorType(kind.dtype, (None,) * (len(shape) - count))
        return TensorType(kind.dtype, None)

    return infer


def _arg(pick):
    """ArgMax or ArgMin, from np.argmax or np.argmin."""

    def reference(x, *, axis=0, keepdims=1, select_last_index=0):
        require(x, NUMBERS)
        axis = normal_axis(axis, x.ndim)
        if not x.shape[axis]:
            raise InputError(f"axis {axis} of shape {x.shape} is empty")
        wide = widen(x)
        if select_last_index:
            y = x.shape[axis] - 1 - pick(np.flip(wide, axis), axis=axis)
        else:
            y = pick(wide, axis=axis)
        y = np.asarray(y, np.int64)
        return np.expand_dims(y, axis) if keepdims else y

    return reference


def _without_last_index(reference):
    def old(x, *, axis=0, keepdims=1):
        return reference(x, axis=axis, keepdims=keepdims)

    return old


def _arg_types(call: Call) -> Type:
    check_count(call, 1, 1)
    shape = check_type(call, 0, NUMBERS).shape
    if shape is None:
        return TensorType("int64", None)
    axis = axis_of(call, call.attr("axis", 0), len(shape))
    if shape[axis] == 0:
        raise call.fail(f"axis {axis} is empty")
    return TensorType("int64", _reduced_shape(shape, {axis}, call.attr("keepdims", 1)))


def _axis_input(axis: np.ndarray, rank: int) -> int:
    require(axis, _INDICES, "the axis")
    if axis.size != 1:
        raise ShapeError(f"axis must be a scalar, got shape {axis.shape}")
    return normal_axis(int(axis.reshape(-1)[0]), rank)


def _running(accumulate, neutral):
    """CumSum or CumProd, from np.cumsum or np.cumprod."""

    def reference(x, axis, *, exclusive=0, reverse=0):
        require(x, NUMBERS)
        axis = _axis_input(axis, x.ndim)
        wide = widen(x)
        if reverse:
            wide = np.flip(wide, axis)
        if exclusive:
            first = np.full_like(np.take(wide, [], axis), neutral, shape=_with_size(wide.shape, axis, 1))
            wide = np.concatenate([first, wide], axis).take(range(x.shape[axis]), axis)
        y = accumulate(wide, axis=axis, dtype=np.float64 if wide.dtype.kind == "f" else wide.dtype)
        return narrow(np.flip(y, axis) if reverse else y, x.dtype)

    return reference


def _with_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return shape[:axis] + (size,) + shape[axis + 1 :]


def _running_types(call: Call) -> Type:
    check_count(call, 2, 2)
    kind = check_type(call, 0, NUMBERS)
    check_type(call, 1, _INDICES)
    axis = call.value(1)
    if axis is not None and kind.shape is not None:
        if axis.size != 1:
            raise call.fail("axis must be a scalar")
        axis_of(call, int(axis.reshape(-1)[0]), len(kind.shape))
    return kind


def _lp_normalization(x, *, axis=-1, p=2):
    require(x, FLOATS)
    if p not in (1, 2):
        raise InputError(f"p is {p}; it must be 1 or 2")
    wide = widen(x).astype(np.float64)
    axes = (normal_axis(axis, x.ndim),)
    norm = _sum(np.abs(wide), axes) if p == 1 else _l2(wide, axes)
    return narrow(np.where(norm == 0, 0, wide / np.where(norm == 0, 1, norm)), x.dtype)


def _lp_normalization_types(call: Call) -> Type:
    kind = check_type(call, 0, FLOATS)
    if call.attr("p", 2) not in (1, 2):
        raise call.fail(f"p is {call.attr('p')}; it must be 1 or 2")
    if kind.shape is not None:
        axis_of(call, call.attr("axis", -1), len(kind.shape))
    return kind


def _mean_variance_normalization(x, *, axes=(0, 2, 3)):
    """(x - mean) / (deviation + 1e-9); the small term is in the specification's function body alone."""
    require(x, FLOATS)
    wide = widen(x).astype(np.float64)
    over = _normal_axes(axes, x.ndim, 0)
    centred = wide - _mean(wide, over)
    return narrow(centred / (np.sqrt(_mean(np.square(centred), over)) + 1e-9), x.dtype)


def _mean_variance_normalization_types(call: Call) -> Type:
    kind = check_type(call, 0, FLOATS)
    if kind.shape is not None:
        _checked_axes(call, call.attr("axes", (0, 2, 3)), len(kind.shape))
    return kind


_ORDERED = (*NUMBERS, "bool")
for _name, _function, _kind, _allowed, _input_since in (
    ("ReduceSum", _sum, "SUM", NUMBERS, 13),
    ("ReduceMean", _mean, "MEAN", NUMBERS, 18),
    ("ReduceMax", _max, "MAX", _ORDERED, 18),
    ("ReduceMin", _min, "MIN", _ORDERED, 18),
    ("ReduceProd", _product, "PRODUCT", NUMBERS, 18),
    ("ReduceL1", lambda x, axes: _sum(np.abs(x), axes), "L1", NUMBERS, 18),
    ("ReduceL2", _l2, "L2", NUMBERS, 18),
    ("ReduceLogSum", _log_sum, "LOG_SUM", NUMBERS, 18),
    ("ReduceLogSumExp", _log_sum_exp, "LOG_SUM_EXP", NUMBERS, 18),
    ("ReduceSumSquare", lambda x, axes: _sum(np.square(x), axes), "SUM_OF_SQUARES", NUMBERS, 18),
):
    _kernel = lower_reduce.of(_kind)
    _types, _reduce = _types_by_attribute(_allowed), _by_attribute(_function, _allowed)
    register(Op(_name, since=1, infer=_types, reference=_reduce, lower=_kernel))
    _types, _reduce = _types_by_input(_allowed), _by_input(_function, _allowed)
    register(Op(_name, since=_input_since, infer=_types, reference=_reduce, lower=_kernel))

for _name, _pick in (("ArgMax", np.argmax), ("ArgMin", np.argmin)):
    _reference, _lower = _arg(_pick), partial(lower_arg, minimum=_name == "ArgMin")
    register(Op(_name, since=1, infer=_arg_types, reference=_without_last_index(_reference), lower=_lower))
    register(Op(_name, since=12, infer=_arg_types, reference=_reference, lower=_lower))

for _name, _since, _reference, _product_wanted in (
    ("CumSum", 11, _running(np.cumsum, 0), False), ("CumProd", 26, _running(np.cumprod, 1), True),
):  # fmt: skip
    _lower = partial(lower_running, product=_product_wanted)
    register(Op(_name, _since, infer=_running_types, reference=_reference, lower=_lower))
register(
    Op("LpNormalization", since=1, infer=_lp_normalization_types, reference=_lp_normalization, lower=lower_lp_norm)
)
register(
    Op(
        "MeanVarianceNormalization",
        since=9,
        infer=_mean_variance_normalization_types,
        reference=_mean_variance_normalization,
        lower=lower_mean_variance_norm,
    )
)
