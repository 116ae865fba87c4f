"""Operators that move elements without looking at them: Transpose, Expand, Tile, Concat, Split, Slice.

References return views where NumPy gives them for free (Transpose, Expand, Split, Slice).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Declined, Op, deferred, register
from minifer.ops.shapes import broadcast, integers, product, wrap_axes, wrap_axis

cut, finish, join, permute, repeat, stretch, view_of = deferred(
    "lower_move", "cut", "finish", "join", "permute", "repeat", "stretch", "view_of",
)  # fmt: skip

# --- Transpose


def _permutation(perm, rank, fail):
    if perm is None:
        return tuple(reversed(range(rank)))
    if sorted(perm) != list(range(rank)):
        raise fail(f"perm {list(perm)} is no permutation of the {rank} axes")
    return tuple(perm)


def _transpose(x, *, perm=None):
    return x.transpose(_permutation(perm, x.ndim, ShapeError))


def _infer_transpose(call):
    shape, perm = call.shape(0), call.attr("perm")
    if shape is None:
        return TensorType(call.dtype(0), None if perm is None else (None,) * len(perm))
    return TensorType(call.dtype(0), tuple(shape[i] for i in _permutation(perm, len(shape), call.fail)))


def _lower_transpose(low):
    return permute(low, _permutation(low.attr("perm"), len(low.shape(0)), ShapeError))


register(Op("Transpose", since=1, infer=_infer_transpose, reference=_transpose, lower=_lower_transpose))

# --- Expand, Tile


def _expand(x, shape):
    wanted = integers(shape)
    if any(d < 0 for d in wanted):
        raise ShapeError(f"shape {list(wanted)} has a negative size")
    try:
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, wanted))
    except ValueError:
        raise ShapeError(f"shape {list(x.shape)} does not broadcast with {list(wanted)}") from None


def _infer_expand(call):
    wanted, count = call.value(1), call.shape(1)
    if wanted is not None:
        sizes = integers(wanted)
        if any(d < 0 for d in sizes):
            raise call.fail(f"shape {list(sizes)} has a negative size")
        return TensorType(call.dtype(0), broadcast(call, call.shape(0), sizes))
    if count is None or len(count) != 1 or not isinstance(count[0], int):
        return TensorType(call.dtype(0))
    return TensorType(call.dtype(0), broadcast(call, call.shape(0), (None,) * count[0]))


def _lower_expand(low):
    if low.value(1) is None:
        return Declined("the shape is not known before the run, and must be checked")
    return stretch(low, low.out_shape())


register(Op("Expand", since=8, infer=_infer_expand, reference=_expand, lower=_lower_expand))


def _repeats(repeats, rank, fail):
    out = integers(repeats)
    if len(out) != rank or any(r < 0 for r in out):
        raise fail(f"repeats {list(out)} must be {rank} non-negative counts, one for each axis")
    return out


def _tile(x, repeats):
    return np.tile(x, _repeats(repeats, x.ndim, ShapeError))


def _infer_tile(call):
    shape, repeats = call.shape(0), call.value(1)
    if shape is not None and repeats is not None:
        counts = _repeats(repeats, len(shape), call.fail)
        return TensorType(call.dtype(0), tuple(product(pair) for pair in zip(shape, counts)))
    if shape is None:
        return TensorType(call.dtype(0), None if repeats is None else (None,) * len(integers(repeats)))
    return TensorType(call.dtype(0), (None,) * len(shape))


def _repeats_1(tiles, axis, rank, fail):
    """Tile-1 has one count and one axis, each a tensor of one element (of the data's own type)."""
    count, axis = (integers(v) for v in (tiles, axis))
    if len(count) != 1 or len(axis) != 1:
        raise fail("tiles and axis must each hold one number")
    at = wrap_axis(axis[0], rank, fail)
    return tuple(count[0] if i == at else 1 for i in range(rank))


def _tile_1(x, tiles, axis):
    return _tile(x, _repeats_1(tiles, axis, x.ndim, ShapeError))


def _infer_tile_1(call):
    shape = call.shape(0)
    if shape is None or call.value(1) is None or call.value(2) is None:
        return TensorType(call.dtype(0), None if shape is None else (None,) * len(shape))
    counts = _repeats(_repeats_1(call.value(1), call.value(2), len(shape), call.fail), len(shape), call.fail)
    return TensorType(call.dtype(0), tuple(product(pair) for pair in zip(shape, counts)))


def _lower_tile(low):
    return repeat(low, [n // have for n, have in zip(low.out_shape(), low.shape(0))])


register(Op("Tile", since=1, infer=_infer_tile_1, reference=_tile_1, lower=_lower_tile))
register(Op("Tile", since=6, infer=_infer_tile, reference=_tile, lower=_lower_tile))

# --- Concat


def _concat(*inputs, axis):
    if not inputs or any(x is None for x in inputs):
        raise InputError("Concat needs all of its inputs, and at least one")
    at = wrap_axis(axis, inputs[0].ndim)
    for x in inputs[1:]:
        rest, first = (list(v.shape[:at] + v.shape[at + 1 :]) for v in (x, inputs[0]))
        if x.ndim != inputs[0].ndim or rest != first:
            raise ShapeError(f"shapes {list(inputs[0].shape)} and {list(x.shape)} differ beyond axis {at}")
        if x.dtype != inputs[0].dtype:
            raise ShapeError(f"element types {inputs[0].dtype} and {x.dtype} differ")
    return np.concatenate(inputs, at)


def _concat_1(*inputs, axis=1):
    return _concat(*inputs, axis=axis)


def _agreed(call, dims):
    """The size that equal dimensions of several tensors have; ShapeError where they differ."""
    sizes = {d for d in dims if isinstance(d, int)}
    if len(sizes) > 1:
        raise call.fail(f"sizes {sorted(sizes)} must be equal outside the axis of concatenation")
    if sizes:
        return sizes.pop()
    return dims[0] if len(set(dims)) == 1 else next((d for d in dims if d is not None), None)


def _sum(dims):
    if all(isinstance(d, int) for d in dims):
        return sum(dims)
    return dims[0] if len(dims) == 1 else None


def _infer_concat_at(call, axis):
    types = [call.tensor(i) for i in range(len(call.node.inputs))]
    if not types:
        raise call.fail("there must be at least one input")
    if len({t.dtype for t in types}) > 1:
        raise call.fail("the element types of the inputs must be equal")
    shapes = [t.shape for t in types if t.shape is not None]
    if not shapes:
        return types[0]
    rank = len(shapes[0])
    if any(len(s) != rank for s in shapes):
        raise call.fail("the ranks of the inputs must be equal")
    at = wrap_axis(axis, rank, call.fail)
    out = [_agreed(call, dims) for dims in zip(*(s[:at] + (0,) + s[at + 1 :] for s in shapes))]
    along = [s[at] for s in shapes] if len(shapes) == len(types) else [None, None]
    out[at] = _sum(along)
    return TensorType(types[0].dtype, tuple(out))


def _infer_concat(call):
    if "axis" not in call.node.attrs:
        raise call.fail("attribute axis is missing")
    return _infer_concat_at(call, call.attr("axis"))


def _infer_concat_1(call):
    return _infer_concat_at(call, call.attr("axis", 1))


def _lower_concat(low):
    return join(low, wrap_axis(low.attr("axis", 1), len(low.out_shape())))


register(Op("Concat", since=1, infer=_infer_concat_1, reference=_concat_1, lower=_lower_concat))
register(Op("Concat", since=4, infer=_infer_concat, reference=_concat, lower=_lower_concat))

# --- Split


def _equal_parts(size, count, uneven, fail):
    """Sizes of `count` equal parts; from opset 18 on the last parts may be smaller (or empty)."""
    if count < 1:
        raise fail(f"{count} outputs are too few")
    if size % count and not uneven:
        raise fail(f"size {size} does not divide into {count} equal parts; give their sizes in split")
    part = -(-size // count)
    return tuple(min(part, max(size - part * i, 0)) for i in range(count))


def _parts(size, split, count, uneven, fail):
    """Sizes of the outputs of Split."""
    if split is None:
        return _equal_parts(size, count, uneven, fail)
    sizes = integers(split)
    if any(s < 0 for s in sizes) or sum(sizes) != size:
        raise fail(f"split {list(sizes)} must be sizes that sum up to {size}")
    if len(sizes) != count:
        raise fail(f"split {list(sizes)} gives {len(sizes)} parts for {count} outputs")
    return sizes


def _part_count(num_outputs, split, outputs, fail):
    if num_outputs is None:
        return outputs
    if split is not None:
        raise fail("give either the input split or the attribute num_outputs, and not both")
    if num_outputs != outputs:
        raise fail(f"num_outputs is {num_outputs}, and the node has {outputs} outputs")
    return num_outputs


def _split_into(x, split, count, axis, uneven=False):
    at = wrap_axis(axis, x.ndim)
    cuts = np.cumsum((0,) + _parts(x.shape[at], split, count, uneven, ShapeError))
    return tuple(x[(slice(None),) * at + (slice(a, b),)] for a, b in pairwise(cuts))


def _split_1(x, lengths=None, *, axis=0, split=None, ctx):
    return _split_into(x, split if lengths is None else lengths, ctx.outputs, axis)


def _split_2(x, *, axis=0, split=None, ctx):
    return _split_into(x, split, ctx.outputs, axis)


def _split_13(x, split=None, *, axis=0, ctx):
    return _split_into(x, split, ctx.outputs, axis)


def _split_18(x, split=None, *, axis=0, num_outputs=None, ctx):
    count = _part_count(num_outputs, split, ctx.outputs, ShapeError)
    return _split_into(x, split, count, axis, uneven=True)


def _infer_split(call):
    attr, value, outputs = call.attr("split"), call.value(1), len(call.node.outputs)
    split = attr if value is None else value
    count = _part_count(call.attr("num_outputs"), call.has(1) or None, outputs, call.fail)
    shape, dtype = call.shape(0), call.dtype(0)
    if shape is None:
        return [TensorType(dtype)] * outputs
    at = wrap_axis(call.attr("axis", 0), len(shape), call.fail)
    if call.has(1) and value is None:
        parts = (None,) * outputs
    elif isinstance(shape[at], int):
        parts = _parts(shape[at], split, count, call.node.version >= 18, call.fail)
    elif split is not None:
        parts = _parts(sum(integers(split)), split, count, False, call.fail)
    else:
        parts = shape[at : at + 1] if count == 1 else (None,) * outputs
    return [TensorType(dtype, shape[:at] + (p,) + shape[at + 1 :]) for p in parts]


def _lower_split(low):
    view = view_of(low, 0)
    at, first = wrap_axis(low.attr("axis", 0), len(view.axes)), 0
    sizes = _lower_sizes(low, view.shape[at])
    for i, count in enumerate(sizes):
        if low.wants(i):
            declined = finish(low, cut(view, [(at, first, 1, count)]), i)
            if declined is not None:
                return declined
        first += count
    return None


def _lower_sizes(low, size):
    attr, count = low.attr("split"), len(low.node.outputs)
    split = attr if low.value(1) is None else low.value(1)
    return _parts(size, split, count, low.node.version >= 18, ShapeError)


for _since, _reference in ((1, _split_1), (2, _split_2), (13, _split_13), (18, _split_18)):
    register(Op("Split", since=_since, infer=_infer_split, reference=_reference, lower=_lower_split))

# --- Slice


def _range(size, start, end, step, fail):
    """Effective start, step and number of elements of one axis (the clamping rules of Slice-13)."""
    if step == 0:
        raise fail("steps must not be 0")
    start, end = (v + size if v < 0 else v for v in (start, end))
    if step > 0:
        start, end = (min(max(v, 0), size) for v in (start, end))
        return start, step, max(0, -(-(end - start) // step))
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return start, step, max(0, -(-(start - end) // -step))


def _slice_plan(rank, starts, ends, axes, steps, fail):
    """(axis, start, end, step) for each sliced axis."""
    starts, ends = integers(starts), integers(ends)
    axes = range(len(starts)) if axes is None else integers(axes)
    steps = (1,) * len(starts) if steps is None else integers(steps)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        counts = f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps"
        raise fail(f"{counts} must be equally many")
    return list(zip(wrap_axes(axes, rank, fail), starts, ends, steps))


def _slice(x, starts, ends, axes=None, steps=None):
    index: list = [slice(None)] * x.ndim + [...]  # the ellipsis keeps rank 0 an array
    for axis, start, end, step in _slice_plan(x.ndim, starts, ends, axes, steps, ShapeError):
        first, step, count = _range(x.shape[axis], start, end, step, ShapeError)
        stop = first + step * count
        index[axis] = slice(first, stop if stop >= 0 else None, step) if count else slice(0, 0)
    return x[tuple(index)]


def _slice_1(x, *, starts, ends, axes=None):
    return _slice(x, starts, ends, axes)


def _sliced_size(size, start, end, step, fail):
    if isinstance(size, int):
        return _range(size, start, end, step, fail)[2]
    whole = step == 1 and start == 0 and end >= 2**31 - 1  # to the end of an unknown size
    reverse = step == -1 and (start == -1 or start >= 2**31 - 1) and end <= -(2**31) + 1
    return size if whole or reverse else None


def _infer_sliced(call, starts, ends, axes, steps):
    shape = call.shape(0)
    if shape is None:
        return TensorType(call.dtype(0))
    out = list(shape)
    for axis, start, end, step in _slice_plan(len(shape), starts, ends, axes, steps, call.fail):
        out[axis] = _sliced_size(shape[axis], start, end, step, call.fail)
    return TensorType(call.dtype(0), tuple(out))


def _infer_slice(call):
    shape, values = call.shape(0), [call.value(i) for i in range(5)]
    if all(v is not None or not call.has(i) for i, v in enumerate(values) if i):
        return _infer_sliced(call, *values[1:])
    if shape is None:
        return TensorType(call.dtype(0))
    count = call.shape(1)
    if values[3] is not None:
        cut = set(wrap_axes(integers(values[3]), len(shape), call.fail))
    elif not call.has(3) and count is not None and len(count) == 1 and isinstance(count[0], int):
        cut = set(range(count[0]))
    else:
        cut = set(range(len(shape)))
    return TensorType(call.dtype(0), tuple(None if i in cut else d for i, d in enumerate(shape)))


def _infer_slice_1(call):
    for name in ("starts", "ends"):
        if name not in call.node.attrs:
            raise call.fail(f"attribute {name} is missing")
    return _infer_sliced(call, call.attr("starts"), call.attr("ends"), call.attr("axes"), None)


def _lower_cut(low, starts, ends, axes, steps):
    view = view_of(low, 0)
    plan = _slice_plan(len(view.axes), starts, ends, axes, steps, ShapeError)
    ranges = [(axis, *_range(view.shape[axis], start, end, step, ShapeError)) for axis, start, end, step in plan]
    return finish(low, cut(view, ranges))


def _lower_slice(low):
    values = [low.value(i) for i in range(1, 5)]
    if any(v is None and low.has(i) for i, v in enumerate(values, 1)):
        return Declined("where to cut is not known before the run")
    return _lower_cut(low, *values)


def _lower_slice_1(low):
    return _lower_cut(low, low.attr("starts"), low.attr("ends"), low.attr("axes"), None)


register(Op("Slice", since=1, infer=_infer_slice_1, reference=_slice_1, lower=_lower_slice_1))
register(Op("Slice", since=10, infer=_infer_slice, reference=_slice, lower=_lower_slice))
