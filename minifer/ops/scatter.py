"""Operators that write elements at given positions of a copy: Scatter*, TensorScatter, OneHot."""

from __future__ import annotations

from functools import partial

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.gather import check_elements, element_index, tuple_index
from minifer.ops.registry import Op, deferred, register
from minifer.ops.shapes import integers, wrap_axis

lower_one_hot, lower_scatter_elements, lower_scatter_nd, lower_tensor_scatter = deferred(
    "lower_index", "lower_one_hot", "lower_scatter_elements", "lower_scatter_nd", "lower_tensor_scatter",
)  # fmt: skip

_REDUCTIONS = {"none": None, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _write(data, index, updates, reduction):
    """A copy of `data` with `updates` put at `index`, or joined there one after another by `reduction`."""
    join = _REDUCTIONS[reduction]
    narrow = data.dtype.kind in "fV" and data.dtype.itemsize < 4
    out = data.astype(np.float32) if join and narrow else data.copy()
    if join is None:
        out[index] = updates
    else:
        join.at(out, index, updates.astype(out.dtype))
    return out.astype(data.dtype, copy=False)


def _check_reduction(reduction, known, fail):
    if reduction not in known:
        raise fail(f"reduction {reduction!r} is not one of {', '.join(known)}")


def _check_types(data, updates):
    if data.dtype != updates.dtype:
        raise ShapeError(f"data is {data.dtype} and updates are {updates.dtype}; they must be equal")


def _scatter_elements(data, indices, updates, *, axis=0, reduction="none"):
    _check_reduction(reduction, _REDUCTIONS, InputError)
    _check_types(data, updates)
    if indices.shape != updates.shape:
        raise ShapeError(f"indices {list(indices.shape)} and updates {list(updates.shape)} must have equal shapes")
    return _write(data, element_index(data.shape, indices, axis), updates, reduction)


def _scatter(data, indices, updates, *, axis=0):
    return _scatter_elements(data, indices, updates, axis=axis)


def _scatter_nd(data, indices, updates, *, reduction="none"):
    _check_reduction(reduction, _REDUCTIONS, InputError)
    _check_types(data, updates)
    index = tuple_index(data.shape, indices)
    need = indices.shape[:-1] + data.shape[indices.shape[-1] :]
    if updates.shape != need:
        raise ShapeError(f"updates must have shape {list(need)}, and have {list(updates.shape)}")
    return _write(data, index, updates, reduction)


def _scatter_nd_11(data, indices, updates):
    return _scatter_nd(data, indices, updates)


def _equal(call, have, need, what):
    """ShapeError where two shapes are known to differ."""
    if have is None or need is None:
        return
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(have, need))
    if len(have) != len(need) or clash:
        raise call.fail(f"{what} must have shape {list(need)}, and have {list(have)}")


def _infer_scatter(call):
    if call.dtype(0) != call.dtype(2):
        raise call.fail("data and updates must have the same element type")
    if call.node.version >= 16:
        _check_reduction(call.attr("reduction", "none"), _REDUCTIONS, call.fail)
    return call.tensor(0)


def _infer_scatter_elements(call):
    check_elements(call)
    _equal(call, call.shape(2), call.shape(1), "updates")
    return _infer_scatter(call)


def _infer_scatter_nd(call):
    shape, indices = call.shape(0), call.shape(1)
    if shape is not None and indices is not None:
        if not shape or not indices:
            raise call.fail("data and indices must have rank 1 or more")
        depth = indices[-1]
        if isinstance(depth, int):
            if not 1 <= depth <= len(shape):
                raise call.fail(f"the last axis of indices has size {depth}, outside [1, {len(shape)}]")
            _equal(call, call.shape(2), indices[:-1] + shape[depth:], "updates")
    return _infer_scatter(call)


for _name, _since, _reference in (
    ("Scatter", 9, _scatter), ("ScatterElements", 11, _scatter), ("ScatterElements", 16, _scatter_elements),
):  # fmt: skip
    register(Op(_name, _since, infer=_infer_scatter_elements, reference=_reference, lower=lower_scatter_elements))
register(Op("ScatterND", since=11, infer=_infer_scatter_nd, reference=_scatter_nd_11, lower=lower_scatter_nd))
register(Op("ScatterND", since=16, infer=_infer_scatter_nd, reference=_scatter_nd, lower=lower_scatter_nd))


def _sequence_axis(axis, rank, fail):
    at = wrap_axis(axis, rank, fail)
    if at == 0:
        raise fail("axis must not be the batch axis 0")
    return at


def _tensor_scatter(past_cache, update, write_indices=None, *, axis=-2, mode="linear"):
    _check_mode(mode, InputError)
    _check_types(past_cache, update)
    at, batch = _sequence_axis(axis, past_cache.ndim, ShapeError), past_cache.shape[0]
    rest, length = update.shape[:at] + update.shape[at + 1 :], past_cache.shape[at]
    if past_cache.shape[:at] + past_cache.shape[at + 1 :] != rest or update.shape[at] > length:
        shapes = f"{list(update.shape)} and {list(past_cache.shape)}"
        raise ShapeError(f"update and past_cache {shapes} may differ on axis {at} only, update being the shorter")
    first = np.zeros(batch, np.int64) if write_indices is None else write_indices
    if first.shape != (batch,):
        raise ShapeError(f"write_indices must have shape [{batch}], and have {list(first.shape)}")
    place = first[:, None] + np.arange(update.shape[at])
    if (first < 0).any() or (mode == "linear" and (place >= length).any()):
        raise InputError(f"write_indices {first.tolist()} lead outside the {length} places of the cache")
    out = past_cache.copy()
    target = np.moveaxis(out, at, 1)  # a view: writing to it writes to `out`
    target[np.arange(batch)[:, None], place % max(length, 1)] = np.moveaxis(update, at, 1)
    return out


def _check_mode(mode, fail):
    if mode not in ("linear", "circular"):
        raise fail(f"mode {mode!r} is neither linear nor circular")


def _infer_tensor_scatter(call):
    _check_mode(call.attr("mode", "linear"), call.fail)
    shape, update = call.shape(0), call.shape(1)
    if shape is not None:
        at = _sequence_axis(call.attr("axis", -2), len(shape), call.fail)
        if update is not None:
            need = shape[:at] + (update[at] if at < len(update) else None,) + shape[at + 1 :]
            _equal(call, update, need, "update")
        if call.has(2) and call.shape(2) is not None:
            _equal(call, call.shape(2), shape[:1], "write_indices")
    return call.tensor(0)


register(
    Op("TensorScatter", since=24, infer=_infer_tensor_scatter, reference=_tensor_scatter, lower=lower_tensor_scatter)
)


def _depth(depth, fail):
    count = integers(depth)
    if len(count) != 1 or count[0] < 0:
        raise fail(f"depth must be one number that is not negative, and is {list(count)}")
    return count[0]


def _one_hot_from(lowest):
    """OneHot; places from `lowest(depth)` to depth - 1 count, all others give a row of off values."""

    def one_hot(indices, depth, values, *, axis=-1):
        count, at = _depth(depth, ShapeError), wrap_axis(axis, indices.ndim + 1)
        if values.size != 2:
            raise ShapeError(f"values must be [off, on], and has {values.size} elements")
        whole = np.trunc(indices.astype(np.float64)) if indices.dtype.kind in "fV" else indices
        valid = (whole >= lowest(count)) & (whole < count)
        place = np.where(valid, whole, 0).astype(np.int64)
        place = np.expand_dims(np.where(valid, place % max(count, 1), -1), at)
        row = np.arange(count).reshape([-1 if i == at else 1 for i in range(indices.ndim + 1)])
        return values.reshape(2)[(place == row).astype(np.int64)]

    return one_hot


def _infer_one_hot(call):
    shape, values = call.shape(0), call.shape(2)
    if values is not None and (len(values) != 1 or (values[0] not in (2, None) and isinstance(values[0], int))):
        raise call.fail("values must have shape [2]: off, on")
    if shape is None:
        return TensorType(call.dtype(2))
    at = wrap_axis(call.attr("axis", -1), len(shape) + 1, call.fail)
    count = None if call.value(1) is None else _depth(call.value(1), call.fail)
    return TensorType(call.dtype(2), shape[:at] + (count,) + shape[at:])


for _since, _lowest, _negative in ((9, lambda depth: 0, False), (11, lambda depth: -depth, True)):
    register(
        Op("OneHot", since=_since, infer=_infer_one_hot, reference=_one_hot_from(_lowest),
           lower=partial(lower_one_hot, negative=_negative))
    )  # fmt: skip
