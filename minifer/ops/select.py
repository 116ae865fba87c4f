"""Operators that choose elements by their values: Compress, NonZero, TopK, Unique, NonMaxSuppression.

Sizes of their outputs depend on data (but for TopK), so a plan ends a stage at them.
"""

from __future__ import annotations

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Op, deferred, register
from minifer.ops.shapes import integers, product, wrap_axis

lower_top_k = deferred("lower_choose", "lower_top_k")


def _compress(x, condition, *, axis=None):
    flat = x.reshape(-1) if axis is None else x
    at = 0 if axis is None else wrap_axis(axis, x.ndim)
    if condition.ndim != 1 or condition.size > flat.shape[at]:
        size = flat.shape[at]
        raise ShapeError(f"condition must be 1-D with at most {size} elements, and has shape {list(condition.shape)}")
    return np.take(flat, np.flatnonzero(condition), at)


def _infer_compress(call):
    shape, axis, condition = call.shape(0), call.attr("axis"), call.shape(1)
    if condition is not None and len(condition) != 1:
        raise call.fail("condition must be a 1-D tensor")
    count = None if call.value(1) is None else int(np.count_nonzero(call.value(1)))
    if axis is None:
        return TensorType(call.dtype(0), (count,))
    if shape is None:
        return TensorType(call.dtype(0))
    at = wrap_axis(axis, len(shape), call.fail)
    return TensorType(call.dtype(0), shape[:at] + (count,) + shape[at + 1 :])


register(Op("Compress", since=9, infer=_infer_compress, reference=_compress))


def _non_zero(x):
    found = np.nonzero(x.reshape(x.shape or (1,)))
    return np.array(found, np.int64) if x.ndim else np.zeros((0, len(found[0])), np.int64)


def _infer_non_zero(call):
    shape, value = call.shape(0), call.value(0)
    count = None if value is None else int(np.count_nonzero(value))
    return TensorType("int64", (None if shape is None else len(shape), count))


register(Op("NonZero", since=9, infer=_infer_non_zero, reference=_non_zero))

# --- TopK


def _count(k, fail):
    counts = integers(k)
    if len(counts) != 1 or counts[0] < 0:
        raise fail(f"k must be one number that is not negative, and is {list(counts)}")
    return counts[0]


def _sortable(x):
    """The same order in a type that NumPy sorts fast; NaN counts as the largest."""
    return x.astype(np.float32) if x.dtype.kind in "fV" and x.dtype.itemsize < 4 else x


def _top_k(x, k, *, axis=-1, largest=1, sorted=1):
    # Sorted in any case: with sorted=0 every order is allowed. Equal values: the lower index comes first.
    at = wrap_axis(axis, x.ndim)
    count, size, keys = _count(k, ShapeError), x.shape[at], _sortable(x)
    if count > size:
        raise ShapeError(f"k is {count}, and axis {at} has only {size} elements")
    if largest:  # descending and stable: ascending and stable, read from the back on both sides
        order = size - 1 - np.flip(np.argsort(np.flip(keys, at), axis=at, kind="stable"), at)
    else:
        order = np.argsort(keys, axis=at, kind="stable")
    index = np.take(order, np.arange(count), at).astype(np.int64)
    return np.take_along_axis(x, index, at), index


def _top_k_10(x, k, *, axis=-1):
    return _top_k(x, k, axis=axis)


def _top_k_1(x, *, k, axis=-1):
    return _top_k(x, k, axis=axis)


def _infer_top(call, k):
    shape = call.shape(0)
    if shape is None:
        return [TensorType(call.dtype(0)), TensorType("int64")]
    at = wrap_axis(call.attr("axis", -1), len(shape), call.fail)
    count = None if k is None else _count(k, call.fail)
    if count is not None and isinstance(shape[at], int) and count > shape[at]:
        raise call.fail(f"k is {count}, and axis {at} has only {shape[at]} elements")
    out = shape[:at] + (count,) + shape[at + 1 :]
    return [TensorType(call.dtype(0), out), TensorType("int64", out)]


def _infer_top_k_1(call):
    if "k" not in call.node.attrs:
        raise call.fail("attribute k is missing")
    return _infer_top(call, call.attr("k"))


def _infer_top_k(call):
    return _infer_top(call, call.value(1))


register(Op("TopK", since=1, infer=_infer_top_k_1, reference=_top_k_1, lower=lower_top_k))
register(Op("TopK", since=10, infer=_infer_top_k, reference=_top_k_10, lower=lower_top_k))
register(Op("TopK", since=11, infer=_infer_top_k, reference=_top_k, lower=lower_top_k))

# --- Unique


def _codes(x):
    """An int64 array in which equal elements have equal numbers, ordered as the elements are."""
    return np.unique(_sortable(x).reshape(-1), return_inverse=True)[1].reshape(x.shape).astype(np.int64)


def _unique(x, *, axis=None, sorted=1):
    at = 0 if axis is None else wrap_axis(axis, x.ndim)
    items = x.reshape(-1) if axis is None else x
    rows = np.moveaxis(_codes(items), at, 0)
    rows = rows.reshape(len(rows), int(np.prod(rows.shape[1:], dtype=np.int64)))
    rows = rows if rows.shape[1] else np.zeros((len(rows), 1), np.int64)  # without elements all are equal
    _, first, inverse, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse]
    return (np.take(items, first, at), *(v.astype(np.int64) for v in (first, inverse, counts)))


def _infer_unique(call):
    shape, axis = call.shape(0), call.attr("axis")
    one = TensorType("int64", (None,))
    if axis is None:
        return [TensorType(call.dtype(0), (None,)), one, TensorType("int64", (product(shape or (None,)),)), one]
    if shape is None:
        return [TensorType(call.dtype(0)), one, one, one]
    at = wrap_axis(axis, len(shape), call.fail)
    out = shape[:at] + (None,) + shape[at + 1 :]
    return [TensorType(call.dtype(0), out), one, TensorType("int64", (shape[at],)), one]


register(Op("Unique", since=11, infer=_infer_unique, reference=_unique))

# --- NonMaxSuppression


def _corners(boxes, center_point_box):
    """Low and high ends of boxes in either layout as rows (..., 4, boxes): low, low, high, high."""
    a, b = boxes[..., :2], boxes[..., 2:]
    ends = (a - b / 2, a + b / 2) if center_point_box else (np.minimum(a, b), np.maximum(a, b))
    return np.swapaxes(np.concatenate(ends, axis=-1), -1, -2)


def _overlap(box, others):
    """Intersection over union of `box` (5, 1) with `others` (5, n); 0 where either has no area.

    Rows are low, low, high, high end and area.
    """
    sides = np.maximum(np.minimum(box[2:4], others[2:4]) - np.maximum(box[:2], others[:2]), 0)
    common = sides[0] * sides[1]
    union = box[4] + others[4] - common
    real = (common > 0) & (box[4] > 0) & (others[4] > 0) & (union > 0)
    return np.where(real, common / np.where(real, union, 1), 0)


def _survivors(corners, scores, most, iou_threshold, score_threshold):
    """Indices of the boxes that stay, best score first (equal scores: lower index first)."""
    left = np.argsort(-scores, kind="stable")
    if score_threshold is not None:  # a box exactly at the threshold goes, as in every implementation of note
        left = left[scores[left] > score_threshold]
    boxes = corners[:, left]
    boxes = np.concatenate([boxes, np.prod(boxes[2:] - boxes[:2], axis=0, keepdims=True)])
    kept: list[int] = []
    while left.size and len(kept) < most:
        kept.append(left[0])
        apart = _overlap(boxes[:, :1], boxes[:, 1:]) <= iou_threshold
        left, boxes = left[1:][apart], boxes[:, 1:][:, apart]
    return kept


def _number(value, default, name):
    if value is None:
        return default
    if value.size != 1:
        raise ShapeError(f"{name} must be one number, and has {value.size}")
    return value.reshape(())[()]


def _non_max_suppression(
    boxes, scores, max_output_boxes_per_class=None, iou_threshold=None, score_threshold=None, *, center_point_box=0
):
    if boxes.ndim != 3 or scores.ndim != 3 or boxes.shape[2] != 4:
        raise ShapeError("boxes must have shape [batches, boxes, 4] and scores [batches, classes, boxes]")
    if (boxes.shape[0], boxes.shape[1]) != (scores.shape[0], scores.shape[2]):
        raise ShapeError(f"boxes {list(boxes.shape)} and scores {list(scores.shape)} differ in batches or boxes")
    most = int(_number(max_output_boxes_per_class, 0, "max_output_boxes_per_class"))
    iou, least = _number(iou_threshold, 0.0, "iou_threshold"), _number(score_threshold, None, "score_threshold")
    if not 0 <= iou <= 1:
        raise InputError(f"iou_threshold {iou} is outside [0, 1]")
    corners = _corners(boxes.astype(np.float32), center_point_box)
    out = [
        (b, c, box)
        for b in range(scores.shape[0])
        for c in range(scores.shape[1])
        for box in _survivors(corners[b], scores[b, c], most, iou, least)
    ]
    return np.array(out, np.int64).reshape(-1, 3)


def _infer_non_max_suppression(call):
    boxes, scores = call.shape(0), call.shape(1)
    if (boxes is not None and len(boxes) != 3) or (scores is not None and len(scores) != 3):
        raise call.fail("boxes must have shape [batches, boxes, 4] and scores [batches, classes, boxes]")
    return TensorType("int64", (None, 3))


register(Op("NonMaxSuppression", since=10, infer=_infer_non_max_suppression, reference=_non_max_suppression))
