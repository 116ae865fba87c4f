"""MaxRoiPool and RoiAlign: pooling over regions of interest of a feature map."""

from __future__ import annotations

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Op, register


def _regions(x, rois, columns, fail):
    """ShapeError unless `x` is (N, C, H, W) and `rois` (count, columns); shapes may have unknown sizes."""
    if len(x) != 4:
        raise fail(f"the feature map must have rank 4, and has {len(x)}")
    if len(rois) != 2 or (isinstance(rois[1], int) and rois[1] != columns):
        raise fail(f"rois must have shape [count, {columns}], and have {list(rois)}")


def _images(index, count):
    """Batch indices as int64; InputError where one lies outside the batch."""
    index = index.astype(np.int64)
    if ((index < 0) | (index >= count)).any():
        raise InputError(f"batch indices {index.tolist()} lead outside a batch of {count}")
    return index


def _boxes(rois, spatial_scale):
    """Regions on the scale of the feature map, in single precision or wider: 5 * 0.7f must stay 3.5."""
    wide = rois if rois.dtype == np.float64 else rois.astype(np.float32)
    if not np.isfinite(wide).all():
        raise InputError("rois hold values that are not finite")
    return wide * wide.dtype.type(spatial_scale)


# --- MaxRoiPool


def _pooled(pooled_shape, fail):
    if len(pooled_shape) != 2 or min(pooled_shape) < 1:
        raise fail(f"pooled_shape {list(pooled_shape)} must be two positive sizes")
    return tuple(pooled_shape)


def _bins(first, last, count, size):
    """(start, stop) of the cells along one axis of a region that covers pixels `first` to `last`.

    Cells round outwards, so that neighbours may share a pixel (Girshick, Fast R-CNN, 2015).
    """
    length = max(last - first + 1, 1)
    for i in range(count):
        start, stop = first + i * length // count, first - (-(i + 1) * length // count)
        yield min(max(start, 0), size), min(max(stop, 0), size)


def _max_roi_pool(x, rois, *, pooled_shape, spatial_scale=1.0):
    _regions(x.shape, rois.shape, 5, ShapeError)
    height, width = _pooled(pooled_shape, ShapeError)
    boxes = _boxes(rois, spatial_scale)[:, 1:]
    index = _images(rois[:, 0], x.shape[0])
    corners = (np.sign(boxes) * np.floor(np.abs(boxes) + 0.5)).astype(np.int64)  # halves away from zero
    y = np.zeros((len(rois), x.shape[1], height, width), x.dtype)
    for r, (left, top, right, bottom) in enumerate(corners.tolist()):
        for i, (y0, y1) in enumerate(_bins(top, bottom, height, x.shape[2])):
            for j, (x0, x1) in enumerate(_bins(left, right, width, x.shape[3])):
                if y1 > y0 and x1 > x0:
                    y[r, :, i, j] = x[index[r], :, y0:y1, x0:x1].max(axis=(1, 2))
    return y


def _infer_max_roi_pool(call):
    x, rois, pooled = call.shape(0), call.shape(1), call.attr("pooled_shape", ())
    _regions(x or (None,) * 4, rois or (None, 5), 5, call.fail)
    return TensorType(call.dtype(0), (rois[0] if rois else None, x[1] if x else None, *_pooled(pooled, call.fail)))


register(Op("MaxRoiPool", since=1, infer=_infer_max_roi_pool, reference=_max_roi_pool))

# --- RoiAlign


def _samples(start, cell, count, per_cell, size):
    """Low place, high place and weight of the high one, each (count * per_cell,), and which samples count.

    Samples lie evenly in the cells. One more than a pixel outside counts as zero, a nearer one as the border.
    """
    at = start + (np.arange(count * per_cell) + 0.5) * (cell / per_cell)
    valid = (at >= -1) & (at <= size)
    at = np.where(valid, at, 0).clip(0, size - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low, valid


def _align(image, rows, columns, out, mode):
    """Pool one region: `image` (C, H, W); rows and columns as `_samples` gives them."""
    (y0, y1, fy, in_y), (x0, x1, fx, in_x) = rows, columns
    weights = [np.outer(a, b) for a in (1 - fy, fy) for b in (1 - fx, fx)]
    corners = [image[:, a[:, None], b] for a in (y0, y1) for b in (x0, x1)]
    parts = [np.where(np.outer(in_y, in_x), w * c, 0.0) for w, c in zip(weights, corners)]
    # The largest of the weighted corners, not of their sum, is what opset 10 fixed for mode max.
    joined = np.sum(parts, axis=0) if mode == "avg" else np.maximum.reduce(parts)
    cells = joined.reshape(len(image), out[0], len(y0) // out[0], out[1], len(x0) // out[1])
    return cells.mean(axis=(2, 4)) if mode == "avg" else cells.max(axis=(2, 4))


def _roi_align(
    x, rois, batch_indices, *, coordinate_transformation_mode="half_pixel", mode="avg", output_height=1,
    output_width=1, sampling_ratio=0, spatial_scale=1.0,
):  # fmt: skip
    _regions(x.shape, rois.shape, 4, ShapeError)
    _check_align(mode, coordinate_transformation_mode, (output_height, output_width), sampling_ratio, InputError)
    if batch_indices.shape != rois.shape[:1]:
        raise ShapeError(f"batch_indices must have shape {list(rois.shape[:1])}, and have {list(batch_indices.shape)}")
    index, out = _images(batch_indices, x.shape[0]), (output_height, output_width)
    half = coordinate_transformation_mode == "half_pixel"
    boxes = _boxes(rois, spatial_scale)
    boxes = boxes - boxes.dtype.type(0.5) if half else boxes
    y = np.zeros((len(rois), x.shape[1], *out), x.dtype)
    if 0 in x.shape:
        return y
    for r, (left, top, right, bottom) in enumerate(boxes):
        lines = []
        for start, end, count, size in ((top, bottom, out[0], x.shape[2]), (left, right, out[1], x.shape[3])):
            length = end - start if half else max(end - start, end.dtype.type(1))
            per_cell = sampling_ratio or int(np.ceil(length / count))
            lines.append(_samples(start, length / count, count, per_cell, size) if per_cell > 0 else None)
        rows, columns = lines
        if rows and columns:
            y[r] = _align(x[index[r]].astype(np.float64), rows, columns, out, mode).astype(x.dtype)
    return y


def _check_align(mode, coordinates, out, sampling_ratio, fail):
    if mode not in ("avg", "max"):
        raise fail(f"mode {mode!r} is neither avg nor max")
    if coordinates not in ("half_pixel", "output_half_pixel"):
        raise fail(f"coordinate_transformation_mode {coordinates!r} is neither half_pixel nor output_half_pixel")
    if min(out) < 1 or sampling_ratio < 0:
        raise fail(f"output {list(out)} must be positive, and sampling_ratio {sampling_ratio} not negative")


def _roi_align_10(x, rois, batch_indices, *, mode="avg", output_height=1, output_width=1, sampling_ratio=0,
                  spatial_scale=1.0):  # fmt: skip
    return _roi_align(
        x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", mode=mode,
        output_height=output_height, output_width=output_width, sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )  # fmt: skip


def _infer_roi_align(call):
    x, rois, index = call.shape(0), call.shape(1), call.shape(2)
    _regions(x or (None,) * 4, rois or (None, 4), 4, call.fail)
    out = call.attr("output_height", 1), call.attr("output_width", 1)
    coordinates = call.attr("coordinate_transformation_mode", "half_pixel")
    _check_align(call.attr("mode", "avg"), coordinates, out, call.attr("sampling_ratio", 0), call.fail)
    counts = [s[0] for s in (rois, index) if s]
    if len({c for c in counts if isinstance(c, int)}) > 1:
        raise call.fail("rois and batch_indices must be equally many")
    count = next((c for c in counts if isinstance(c, int)), counts[0] if counts else None)
    return TensorType(call.dtype(0), (count, x[1] if x else None, *out))


register(Op("RoiAlign", since=10, infer=_infer_roi_align, reference=_roi_align_10))
register(Op("RoiAlign", since=16, infer=_infer_roi_align, reference=_roi_align))
