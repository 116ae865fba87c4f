"""Operators that rearrange the elements of images, matrices and sequences.

DepthToSpace, SpaceToDepth, Col2Im, Trilu, ReverseSequence.
"""

from __future__ import annotations

import math
from itertools import product as every

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Op, deferred, register
from minifer.ops.shapes import integers, product

lower_trilu = deferred("lower_choose", "lower_trilu")
lower_reverse_sequence = deferred("lower_index", "lower_reverse_sequence")
memory_order, view_of, write = deferred("lower_move", "memory_order", "view_of", "write")

# --- DepthToSpace, SpaceToDepth

# Where the six axes (batch, channels and blocks, rows, columns) go.
_TO_SPACE = {"DCR": (0, 3, 4, 1, 5, 2), "CRD": (0, 1, 4, 2, 5, 3)}
_TO_DEPTH = {"DCR": (0, 3, 5, 1, 2, 4), "CRD": (0, 1, 3, 5, 2, 4)}


def _divided(dim, by, what, fail):
    if by < 1:
        raise fail(f"blocksize {by} must be 1 or more")
    if not isinstance(dim, int):
        return dim if by == 1 else None
    if dim % by:
        raise fail(f"{what} {dim} does not divide by {by}")
    return dim // by


def _image(shape, fail):
    if len(shape) != 4:
        raise fail(f"the input must have rank 4 (batch, channels, height, width), and has {len(shape)}")
    return shape


def _order(orders, mode, fail):
    if mode not in orders:
        raise fail(f"mode {mode!r} is neither DCR nor CRD")
    return orders[mode]


def _space_shape(shape, block, fail):
    n, c, h, w = _image(shape, fail)
    return (
        n,
        _divided(c, block * block if block > 0 else block, "channel count", fail),
        product((h, block)),
        product((w, block)),
    )


def _depth_shape(shape, block, fail):
    n, c, h, w = _image(shape, fail)
    h, w = _divided(h, block, "height", fail), _divided(w, block, "width", fail)
    return n, product((c, block * block)), h, w


def _depth_to_space(x, *, blocksize, mode="DCR"):
    order, shape = _order(_TO_SPACE, mode, InputError), _space_shape(x.shape, blocksize, ShapeError)
    depth = (blocksize, blocksize, shape[1]) if mode == "DCR" else (shape[1], blocksize, blocksize)
    return x.reshape(x.shape[0], *depth, *x.shape[2:]).transpose(order).reshape(shape)


def _space_to_depth(x, *, blocksize, mode="DCR"):
    order, shape = _order(_TO_DEPTH, mode, InputError), _depth_shape(x.shape, blocksize, ShapeError)
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return split.transpose(order).reshape(shape)


def _infer_blocks(rule):
    def infer(call):
        shape, block = call.shape(0), call.attr("blocksize")
        _order(_TO_SPACE, call.attr("mode", "DCR"), call.fail)
        if block is None:
            raise call.fail("attribute blocksize is missing")
        return TensorType(call.dtype(0), rule(shape or (None,) * 4, block, call.fail))

    return infer


def _depth_to_space_1(x, *, blocksize):
    return _depth_to_space(x, blocksize=blocksize)


def _space_to_depth_1(x, *, blocksize):
    return _space_to_depth(x, blocksize=blocksize)


def _split_axis(axis, *sizes):
    """An axis of a view as several, the first one the slowest; sizes may hold one -1."""
    n, stride = axis
    rest = int(np.prod([s for s in sizes if s != -1]))
    out = []
    for size in reversed([n // rest if s == -1 else s for s in sizes]):
        out.append((size, stride))
        stride *= size
    return out[::-1]


def _lower_blocks(low, split, order, groups):
    """Write the split axes in a permuted order, in the layout of the input. `groups` are the output's axes in it."""
    view = view_of(low, 0)
    axes = split(view.axes, low.attr("blocksize"))
    moved = [axes[a] for a in order]
    grouped = [[moved[a] for a in group] for group in groups]
    walk = [axis for a in memory_order(4, view.layout) for axis in grouped[a]]
    return write(low, view.slot, 0, walk, low.output(0, view.layout))


def _lower_depth_to_space(low):
    mode = low.attr("mode", "DCR")

    def split(axes, block):
        n, c, h, w = axes
        depth = (block, block, -1) if mode == "DCR" else (-1, block, block)
        return [n, *_split_axis(c, *depth), h, w]

    return _lower_blocks(low, split, _TO_SPACE[mode], ((0,), (1,), (2, 3), (4, 5)))


def _lower_space_to_depth(low):
    def split(axes, block):
        n, c, h, w = axes
        return [n, c, *_split_axis(h, -1, block), *_split_axis(w, -1, block)]

    return _lower_blocks(low, split, _TO_DEPTH[low.attr("mode", "DCR")], ((0,), (1, 2, 3), (4,), (5,)))


for _name, _since, _rule, _reference, _lower in (
    ("DepthToSpace", 1, _space_shape, _depth_to_space_1, _lower_depth_to_space),
    ("DepthToSpace", 11, _space_shape, _depth_to_space, _lower_depth_to_space),
    ("SpaceToDepth", 1, _depth_shape, _space_to_depth_1, _lower_space_to_depth),
    ("SpaceToDepth", 28, _depth_shape, _space_to_depth, _lower_space_to_depth),
):
    register(Op(_name, _since, infer=_infer_blocks(_rule), reference=_reference, lower=_lower))

# --- Col2Im


def _block_counts(image, block, dilations, pads, strides, fail):
    """How many blocks fit along each axis of the padded image."""
    rank = len(image)
    if not len(block) == len(dilations) == len(strides) == rank or len(pads) != 2 * rank or not rank:
        raise fail(f"block_shape, dilations, strides and half of pads must have {rank} numbers, as image_shape has")
    if min(image) < 0 or min(*block, *dilations, *strides) < 1 or min(pads) < 0:
        raise fail("sizes, dilations and strides must be positive, and pads not negative")
    counts = []
    for i in range(rank):
        room = image[i] + pads[i] + pads[rank + i] - dilations[i] * (block[i] - 1) - 1
        if room < 0:
            raise fail(f"a block of {list(block)} does not fit into the padded image {list(image)}")
        counts.append(room // strides[i] + 1)
    return counts


def _col2im_plan(shape, image, block, dilations, pads, strides, fail):
    """(image, block, dilations, pads, strides, counts, channels) with the defaults filled in and checked."""
    image, block = integers(image), integers(block)
    dilations, strides = (v or (1,) * len(image) for v in (dilations, strides))
    pads = pads or (0,) * (2 * len(image))
    counts = _block_counts(image, block, dilations, pads, strides, fail)
    if len(shape) != 3:
        raise fail(f"the input must have rank 3 (batch, channels x block, blocks), and has {len(shape)}")
    if isinstance(shape[2], int) and shape[2] != product(counts):
        raise fail(f"the input has {shape[2]} blocks, and the image has room for {product(counts)}")
    taps = math.prod(block)
    if isinstance(shape[1], int) and shape[1] % taps:
        raise fail(f"{shape[1]} rows do not divide by the {taps} elements of a block")
    channels = shape[1] // taps if isinstance(shape[1], int) else None
    return image, block, dilations, pads, strides, counts, channels


def _col2im(x, image_shape, block_shape, *, dilations=(), pads=(), strides=()):
    plan = _col2im_plan(x.shape, image_shape, block_shape, dilations, pads, strides, ShapeError)
    image, block, dilations, pads, strides, counts, channels = plan
    rank, wide = len(image), np.float64 if x.dtype.kind in "fV" else x.dtype
    padded = [n + pads[i] + pads[rank + i] for i, n in enumerate(image)]
    out = np.zeros((x.shape[0], channels, *padded), wide)
    columns = x.reshape(x.shape[0], channels, *block, *counts)
    every_image = (slice(None), slice(None))
    for tap in every(*map(range, block)):
        first = [t * d for t, d in zip(tap, dilations)]
        place = tuple(slice(f, f + (c - 1) * s + 1, s) for f, c, s in zip(first, counts, strides))
        out[every_image + place] += columns[every_image + tap]
    inner = tuple(slice(pads[i], pads[i] + n) for i, n in enumerate(image))
    return out[every_image + inner].astype(x.dtype)


def _infer_col2im(call):
    image, block, shape = call.value(1), call.value(2), call.shape(0) or (None,) * 3
    if image is not None and block is not None:
        dilations, pads, strides = (call.attr(name, ()) for name in ("dilations", "pads", "strides"))
        *_, channels = _col2im_plan(shape, image, block, dilations, pads, strides, call.fail)
        return TensorType(call.dtype(0), (shape[0], channels, *integers(image)))
    rank = call.shape(1)
    if rank is None or len(rank) != 1 or not isinstance(rank[0], int):
        return TensorType(call.dtype(0))
    spatial = (None,) * rank[0] if image is None else integers(image)
    return TensorType(call.dtype(0), (shape[0], None, *spatial))


register(Op("Col2Im", since=18, infer=_infer_col2im, reference=_col2im))

# --- Trilu, ReverseSequence


def _trilu(x, k=None, *, upper=1):
    if x.ndim < 2:
        raise ShapeError(f"the input must have rank 2 or more, and has {x.ndim}")
    if k is not None and k.size != 1:
        raise ShapeError(f"k must be one number, and has {k.size}")
    diagonal = 0 if k is None else int(k.reshape(()))
    row, column = np.ogrid[: x.shape[-2], : x.shape[-1]]
    keep = column - row >= diagonal if upper else column - row <= diagonal
    return np.where(keep, x, np.zeros((), x.dtype)).astype(x.dtype)


def _infer_trilu(call):
    shape = call.shape(0)
    if shape is not None and len(shape) < 2:
        raise call.fail(f"the input must have rank 2 or more, and has {len(shape)}")
    if call.has(1) and call.tensor(1).concrete and product(call.tensor(1).dims) != 1:
        raise call.fail(f"k must be one number, and has shape {list(call.tensor(1).dims)}")
    return call.tensor(0)


register(Op("Trilu", since=14, infer=_infer_trilu, reference=_trilu, lower=lower_trilu))


def _reverse_sequence(x, sequence_lens, *, batch_axis=1, time_axis=0):
    if x.ndim < 2 or {batch_axis, time_axis} != {0, 1}:
        raise ShapeError(f"batch_axis {batch_axis} and time_axis {time_axis} must be 0 and 1 of rank 2 or more")
    steps, batch = x.shape[time_axis], x.shape[batch_axis]
    if sequence_lens.shape != (batch,):
        raise ShapeError(f"sequence_lens must have shape [{batch}], and has {list(sequence_lens.shape)}")
    if ((sequence_lens < 0) | (sequence_lens > steps)).any():
        raise InputError(f"sequence_lens must lie in [0, {steps}], and are {sequence_lens.tolist()}")
    step, length = np.arange(steps)[:, None], sequence_lens[None, :]
    source = np.where(step < length, length - 1 - step, step)
    if time_axis == 0:
        return x[source, np.arange(batch)[None, :]]
    return x[np.arange(batch)[:, None], source.T]


def _infer_reverse_sequence(call):
    shape = call.shape(0)
    axes = call.attr("batch_axis", 1), call.attr("time_axis", 0)
    if set(axes) != {0, 1} or (shape is not None and len(shape) < 2):
        raise call.fail(f"batch_axis {axes[0]} and time_axis {axes[1]} must be 0 and 1 of rank 2 or more")
    lengths = call.shape(1)
    if lengths is not None and len(lengths) != 1:
        raise call.fail("sequence_lens must be a 1-D tensor")
    batch = None if shape is None else shape[axes[0]]
    if lengths and isinstance(lengths[0], int) and isinstance(batch, int) and lengths[0] != batch:
        raise call.fail(f"sequence_lens has {lengths[0]} lengths for a batch of {batch}")
    return call.tensor(0)


register(
    Op("ReverseSequence", since=10, infer=_infer_reverse_sequence, reference=_reverse_sequence,
       lower=lower_reverse_sequence)
)  # fmt: skip
