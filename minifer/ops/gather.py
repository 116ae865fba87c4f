"""Operators that read elements at given positions: Gather, GatherElements, GatherND."""

from __future__ import annotations

import numpy as np

from minifer.dtypes import INTEGERS
from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Op, deferred, register
from minifer.ops.shapes import wrap_axis

lower_gather, lower_gather_elements, lower_gather_nd = deferred(
    "lower_index", "lower_gather", "lower_gather_elements", "lower_gather_nd",
)  # fmt: skip


def positions(indices, size):
    """Indices as non-negative int64; InputError unless all are in [-size, size)."""
    index = np.asarray(indices)
    if index.dtype.kind not in "iu":
        raise InputError(f"indices must be integers, not {index.dtype}")
    bad = (index < -size) | (index >= size)
    if bad.any():
        raise InputError(f"index {index[bad].flat[0]} is outside [-{size}, {size})")
    return np.where(index < 0, index + size, index).astype(np.int64)


def _gather(data, indices, *, axis=0):
    at = wrap_axis(axis, data.ndim)
    return np.asarray(np.take(data, positions(indices, data.shape[at]), at), data.dtype)


def _infer_gather(call):
    shape, indices = call.shape(0), call.shape(1)
    if call.dtype(1) not in INTEGERS:
        raise call.fail(f"indices must be integers, not {call.dtype(1)}")
    if shape is None:
        return TensorType(call.dtype(0))
    at = wrap_axis(call.attr("axis", 0), len(shape), call.fail)
    return TensorType(call.dtype(0), None if indices is None else shape[:at] + indices + shape[at + 1 :])


register(Op("Gather", since=1, infer=_infer_gather, reference=_gather, lower=lower_gather))


def element_index(shape, indices, axis):
    """The index tuple that GatherElements and ScatterElements use on a tensor of `shape`.

    Along `axis` it is `indices`, on all others the element's own place.
    """
    if indices.ndim != len(shape):
        raise ShapeError(f"indices have rank {indices.ndim}, the data rank {len(shape)}; they must be equal")
    at = wrap_axis(axis, len(shape))
    for i, (have, need) in enumerate(zip(shape, indices.shape)):
        if i != at and need > have:
            raise ShapeError(f"indices have size {need} on axis {i}, and the data only {have}")
    own = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    own[at] = positions(indices, shape[at])
    return tuple(own)


def check_elements(call):
    """ShapeError where ranks, axis or sizes of GatherElements and ScatterElements cannot fit."""
    shape, indices = call.shape(0), call.shape(1)
    if shape is None or indices is None:
        return
    if len(shape) != len(indices):
        raise call.fail("data and indices must have equal ranks")
    at = wrap_axis(call.attr("axis", 0), len(shape), call.fail)
    for i, (have, need) in enumerate(zip(shape, indices)):
        if i != at and isinstance(have, int) and isinstance(need, int) and need > have:
            raise call.fail(f"indices have size {need} on axis {i}, and the data only {have}")


def _gather_elements(data, indices, *, axis=0):
    return data[element_index(data.shape, indices, axis)]


def _infer_gather_elements(call):
    check_elements(call)
    return TensorType(call.dtype(0), call.shape(1))


register(
    Op("GatherElements", since=11, infer=_infer_gather_elements, reference=_gather_elements,
       lower=lower_gather_elements)
)  # fmt: skip


def tuple_index(shape, indices, batch=0):
    """The index tuple that GatherND and ScatterND use on a tensor of `shape`.

    The last axis of `indices` holds places on the axes from `batch` on; the first `batch` axes go side by side.
    """
    if not shape or not indices.ndim:
        raise ShapeError("data and indices must have rank 1 or more")
    depth = indices.shape[-1]
    if not 0 <= batch < min(len(shape), indices.ndim):
        raise ShapeError(f"batch_dims {batch} must be less than the ranks of data and indices")
    if not 1 <= depth <= len(shape) - batch:
        raise ShapeError(f"the last axis of indices has size {depth}, outside [1, {len(shape) - batch}]")
    if shape[:batch] != indices.shape[:batch]:
        raise ShapeError(f"the first {batch} sizes of data {list(shape)} and indices {list(indices.shape)} differ")
    own = np.ogrid[tuple(slice(n) for n in indices.shape[:-1])][:batch] if batch else ()
    return (*own, *(positions(indices[..., i], shape[batch + i]) for i in range(depth)))


def _gather_nd(data, indices, *, batch_dims=0):
    return np.asarray(data[tuple_index(data.shape, indices, batch_dims)], data.dtype)


def _infer_gather_nd(call):
    shape, indices, batch = call.shape(0), call.shape(1), call.attr("batch_dims", 0)
    if shape is None or indices is None:
        return TensorType(call.dtype(0))
    if not shape or not indices:
        raise call.fail("data and indices must have rank 1 or more")
    if not 0 <= batch < min(len(shape), len(indices)):
        raise call.fail(f"batch_dims {batch} must be less than the ranks of data and indices")
    for a, b in zip(shape[:batch], indices[:batch]):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            raise call.fail(f"the first {batch} sizes of data and indices must be equal")
    depth = indices[-1]
    if not isinstance(depth, int):
        return TensorType(call.dtype(0))
    if not 1 <= depth <= len(shape) - batch:
        raise call.fail(f"the last axis of indices has size {depth}, outside [1, {len(shape) - batch}]")
    return TensorType(call.dtype(0), indices[:-1] + shape[batch + depth :])


def _gather_nd_11(data, indices):
    return _gather_nd(data, indices)


register(Op("GatherND", since=11, infer=_infer_gather_nd, reference=_gather_nd_11, lower=lower_gather_nd))
register(Op("GatherND", since=12, infer=_infer_gather_nd, reference=_gather_nd, lower=lower_gather_nd))
