"""AffineGrid and GridSample: sampling an image at places that a tensor names."""

from __future__ import annotations

from itertools import product as every

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Op, register
from minifer.ops.resize import cubic_kernel, from_float64
from minifer.ops.shapes import integers

# --- AffineGrid


def _grid_shape(theta, size, fail):
    """The output shape of AffineGrid."""
    size = integers(size)
    spatial = len(size) - 2
    if spatial not in (2, 3) or any(s < 0 for s in size):
        raise fail(f"size {list(size)} must be (N, C, H, W) or (N, C, D, H, W)")
    if theta is not None:
        need = (size[0], spatial, spatial + 1)
        if len(theta) != 3 or any(isinstance(a, int) and a != b for a, b in zip(theta, need)):
            raise fail(f"theta must have shape {list(need)}, and has {list(theta)}")
    return (size[0], *size[2:], spatial)


def _ticks(count, align_corners):
    """`count` places evenly spaced in [-1, 1]: the borders' pixels centred on the ends, or just inside them."""
    if not align_corners:
        return (2 * np.arange(count) + 1) / max(count, 1) - 1
    return 2 * np.arange(count) / (count - 1) - 1 if count > 1 else np.zeros(count)


def _affine_grid(theta, size, *, align_corners=0):
    shape = _grid_shape(theta.shape, size, ShapeError)
    axes = [_ticks(n, align_corners) for n in shape[1:-1]]
    place = np.stack([*reversed(np.meshgrid(*axes, indexing="ij")), np.ones(shape[1:-1])], axis=-1)
    # n: batch, i: place within the image, a: coordinate (x first), k: homogeneous coordinate
    flat = np.einsum("nak,ik->nia", theta.astype(np.float64), place.reshape(-1, shape[-1] + 1))
    return flat.reshape(shape).astype(theta.dtype)


def _infer_affine_grid(call):
    theta, size = call.shape(0), call.value(1)
    if size is not None:
        return TensorType(call.dtype(0), _grid_shape(theta, size, call.fail))
    rank = call.shape(1)
    if rank is None or len(rank) != 1 or not isinstance(rank[0], int):
        return TensorType(call.dtype(0))
    if rank[0] not in (4, 5):
        raise call.fail(f"size must have 4 or 5 elements, and has {rank[0]}")
    return TensorType(call.dtype(0), (theta[0] if theta else None, *(None,) * (rank[0] - 2), rank[0] - 2))


register(Op("AffineGrid", since=20, infer=_infer_affine_grid, reference=_affine_grid))

# --- GridSample

_MODES = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}
_PADDING = ("zeros", "border", "reflection")
_CUBIC_A = -0.75


def _modes(mode, padding_mode, fail):
    if mode not in _MODES:
        raise fail(f"mode {mode!r} is not one of {', '.join(_MODES)}")
    if padding_mode not in _PADDING:
        raise fail(f"padding_mode {padding_mode!r} is not one of {', '.join(_PADDING)}")
    return _MODES[mode]


def _reflected(at, size, align_corners):
    """Places mirrored at the borders until they lie inside; borders are pixel centres or pixel edges."""
    low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
    if span <= 0:
        return np.zeros_like(at)
    turn = np.mod(at - low, 2 * span)
    return low + np.minimum(turn, 2 * span - turn)


def _inside(at, size, padding, align_corners):
    """Places after padding, and which of them count; those that do not are moved to 0."""
    if padding == "reflection":
        at = _reflected(at, size, align_corners)
    if padding == "zeros":
        valid = (at >= 0) & (at <= size - 1)
        return np.where(valid, at, 0), valid
    return np.nan_to_num(at).clip(0, size - 1), np.ones(at.shape, bool)


def _taps(at, size, mode, padding, align_corners):
    """[(place, weight or None, valid)] along one axis for sampling at `at`."""
    if mode != "cubic" and padding != "zeros":
        at, _ = _inside(at, size, padding, align_corners)
    if mode == "nearest":
        place, valid = _inside(np.rint(at), size, padding, align_corners)
        return [(place.astype(np.int64), None, valid)]
    base = np.floor(at)
    kernel = (lambda t: cubic_kernel(t, _CUBIC_A)) if mode == "cubic" else (lambda t: np.maximum(0.0, 1 - np.abs(t)))
    out = []
    for step in range(-1, 3) if mode == "cubic" else range(2):
        place, valid = _inside(base + step, size, padding, align_corners)
        out.append((place.astype(np.int64), np.nan_to_num(kernel(base + step - at)), valid))
    return out


def _places(grid, sizes, align_corners):
    """Coordinates in pixels for each spatial axis. `grid` names the innermost axis first; NaN counts as -1."""
    wide = grid.astype(np.float64)
    wide = np.where(np.isnan(wide), -1.0, wide)
    for i, size in enumerate(sizes):
        at = wide[..., len(sizes) - 1 - i]
        yield (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2


def _grid_sample(x, grid, *, align_corners=0, mode="linear", padding_mode="zeros"):
    kind = _modes(mode, padding_mode, InputError)
    shape, sizes = _sampled_shape(x.shape, grid.shape, ShapeError), x.shape[2:]
    if kind != "nearest" and x.dtype.kind in "ObcSU":
        raise InputError(f"mode {mode} needs numbers, and the input is {x.dtype}; only nearest takes any type")
    if 0 in shape:
        return np.zeros(shape, x.dtype)
    if 0 in sizes:
        raise ShapeError(f"an input of shape {list(x.shape)} has nothing to sample")
    at = _places(grid, sizes, align_corners)
    taps = [_taps(a, size, kind, padding_mode, align_corners) for a, size in zip(at, sizes)]
    batch = np.arange(x.shape[0]).reshape(-1, *(1,) * len(sizes))
    empty = np.array("" if x.dtype.kind == "O" else 0).astype(x.dtype)
    y = np.zeros((), np.float64)
    for tap in every(*taps):
        places, weights, valids = zip(*tap)
        valid = np.logical_and.reduce(valids)[:, None]
        index = (batch, slice(None), *places)
        found = np.moveaxis(x[index], -1, 1)  # (N, *out, C) -> (N, C, *out)
        if kind == "nearest":
            return np.where(valid, found, empty).astype(x.dtype)
        weight = np.prod(weights, axis=0)[:, None]
        y = y + np.where(valid, found.astype(np.float64) * weight, 0.0)
    return from_float64(y, x.dtype)


def _sampled_shape(x, grid, fail):
    """The output shape of GridSample; either input may have unknown dimensions."""
    if len(x) < 3 or len(grid) != len(x):
        raise fail(f"input and grid must have the same rank, 3 or more, and have {len(x)} and {len(grid)}")
    if isinstance(grid[-1], int) and grid[-1] != len(x) - 2:
        raise fail(f"grid has {grid[-1]} coordinates for {len(x) - 2} spatial axes")
    if isinstance(x[0], int) and isinstance(grid[0], int) and x[0] != grid[0]:
        raise fail(f"input and grid have batches of {x[0]} and {grid[0]}")
    return (x[0] if isinstance(x[0], int) or grid[0] is None else grid[0], x[1], *grid[1:-1])


def _grid_sample_16(x, grid, *, align_corners=0, mode="bilinear", padding_mode="zeros"):
    if x.ndim != 4:
        raise ShapeError(f"the input must have rank 4 before opset 20, and has {x.ndim}")
    return _grid_sample(x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


def _infer_grid_sample(call):
    shape, grid = call.shape(0), call.shape(1)
    _modes(call.attr("mode", "linear"), call.attr("padding_mode", "zeros"), call.fail)
    if shape is None and grid is None:
        return TensorType(call.dtype(0))
    shape = (None,) * len(grid) if shape is None else shape
    grid = (None,) * len(shape) if grid is None else grid
    if call.node.version < 20 and len(shape) != 4:
        raise call.fail(f"the input must have rank 4 before opset 20, and has {len(shape)}")
    return TensorType(call.dtype(0), _sampled_shape(shape, grid, call.fail))


register(Op("GridSample", since=16, infer=_infer_grid_sample, reference=_grid_sample_16))
register(Op("GridSample", since=20, infer=_infer_grid_sample, reference=_grid_sample))
