"""Pad and CenterCropPad: more or fewer elements at the borders of some axes.

Padding by copies of the data (reflect, edge, wrap) is one `take` along each axis; where padding is negative the
data is cropped first. Padding by a constant copies the part of the data that lands inside the output.
"""

from __future__ import annotations

import numpy as np

from minifer.dtypes import to_numpy
from minifer.errors import ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Declined, Op, deferred, register
from minifer.ops.shapes import integers, wrap_axes

cut, finish, pick, view_of = deferred("lower_move", "cut", "finish", "pick", "view_of")

_MODES = ("constant", "reflect", "edge")


def _pairs(rank, pads, axes, fail):
    """(begin, end) for every axis, from the layout [begins..., ends...] over `axes` (None: all)."""
    pads = integers(pads)
    axes = range(rank) if axes is None else wrap_axes(integers(axes), rank, fail)
    if len(pads) != 2 * len(axes):
        raise fail(f"pads has {len(pads)} numbers, and {len(axes)} axes need {2 * len(axes)}")
    pairs = [(0, 0)] * rank
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :]):
        pairs[axis] = (begin, end)
    return pairs


def _padded(shape, pairs, fail):
    out = tuple(d + b + e if isinstance(d, int) else d if b == e == 0 else None for d, (b, e) in zip(shape, pairs))
    if any(isinstance(d, int) and d < 0 for d in out):
        raise fail(f"pads {list(pairs)} remove more than shape {list(shape)} has")
    return out


def _place(x, shape, begins, fill):
    """`x` placed at `begins` (negative: cropped) of an array of `shape` that is else full of `fill`."""
    y = np.full(shape, fill, x.dtype)
    source: list = []
    target: list = []
    for have, size, begin in zip(x.shape, shape, begins):
        first, last = max(begin, 0), max(min(begin + have, size), max(begin, 0))
        target.append(slice(first, last))
        source.append(slice(first - begin, last - begin))
    y[tuple(target)] = x[tuple(source)]
    return y


def _source(size, begin, end, mode):
    """For each place of a padded axis the place it copies from."""
    first, stop = max(0, -begin), size - max(0, -end)  # what negative padding leaves
    length, at = stop - first, np.arange(min(-begin, 0), stop - first + max(end, 0))
    if at.size and length < 1:
        raise ShapeError(f"an axis of size {size} leaves nothing to pad from in mode {mode}")
    if mode == "edge":
        at = at.clip(0, length - 1)
    elif mode == "wrap":
        at = at % max(length, 1)
    else:
        period = max(2 * (length - 1), 1)
        at = at % period
        at = np.minimum(at, period - at) if length > 1 else np.zeros_like(at)
    return at + first


def _zero(dtype):
    return np.array("", object) if dtype.kind == "O" else np.zeros((), dtype)


def _check_mode(mode, modes, fail):
    if mode not in modes:
        raise fail(f"mode {mode!r} is not one of {', '.join(modes)}")


def _pad_by(x, pads, fill, axes, mode, modes):
    _check_mode(mode, modes, ShapeError)
    pairs = _pairs(x.ndim, pads, axes, ShapeError)
    shape = _padded(x.shape, pairs, ShapeError)
    if mode == "constant":
        if fill.size != 1:
            raise ShapeError(f"constant_value has {fill.size} elements, and needs one")
        return _place(x, shape, [b for b, _ in pairs], fill.reshape(()))
    for axis, (begin, end) in enumerate(pairs):
        if begin or end:
            x = np.take(x, _source(x.shape[axis], begin, end, mode), axis)
    return x


def _pad(x, pads, constant_value=None, axes=None, *, mode="constant"):
    fill = _zero(x.dtype) if constant_value is None else constant_value
    return _pad_by(x, pads, fill, axes, mode, (*_MODES, "wrap"))


def _pad_18(x, pads, constant_value=None, axes=None, *, mode="constant"):
    _check_mode(mode, _MODES, ShapeError)
    return _pad(x, pads, constant_value, axes, mode=mode)


def _pad_11(x, pads, constant_value=None, *, mode="constant"):
    return _pad_18(x, pads, constant_value, mode=mode)


def _pad_2(x, *, pads, mode="constant", value=0.0):
    return _pad_by(x, pads, np.array(value).astype(x.dtype), None, mode, _MODES)


def _pad_1(x, *, paddings, mode="constant", value=0.0):
    return _pad_2(x, pads=paddings, mode=mode, value=value)


def _infer_padded(call, pads, axes):
    shape, modes = call.shape(0), (*_MODES, "wrap") if call.node.version >= 19 else _MODES
    _check_mode(call.attr("mode", "constant"), modes, call.fail)
    if shape is None:
        return TensorType(call.dtype(0))
    return TensorType(call.dtype(0), _padded(shape, _pairs(len(shape), pads, axes, call.fail), call.fail))


def _infer_pad(call):
    pads, axes, shape = call.value(1), call.value(3), call.shape(0)
    if pads is not None and (axes is not None or not call.has(3)):
        return _infer_padded(call, pads, axes)
    if shape is None:
        return TensorType(call.dtype(0))
    touched = range(len(shape)) if axes is None else wrap_axes(integers(axes), len(shape), call.fail)
    return TensorType(call.dtype(0), tuple(None if i in touched else d for i, d in enumerate(shape)))


def _infer_pad_attribute(call):
    name = "pads" if call.node.version >= 2 else "paddings"
    if name not in call.node.attrs:
        raise call.fail(f"attribute {name} is missing")
    return _infer_padded(call, call.attr(name), None)


def _constant_source(size, begin, end):
    """For each place of an axis padded by a constant the place it copies from, or -1."""
    at = np.arange(-begin, size + end)
    return np.where((at < 0) | (at >= size), -1, at)


def _lower_pairs(low, pairs, mode, fill):
    """Pad by (begin, end) for each axis; `fill` makes the slot of the constant."""
    shape = low.shape(0)
    if all(begin <= 0 and end <= 0 for begin, end in pairs):
        ranges = [(a, -begin, 1, n + begin + end) for a, (n, (begin, end)) in enumerate(zip(shape, pairs))]
        return finish(low, cut(view_of(low, 0), ranges))
    places: list = []
    for n, (begin, end) in zip(shape, pairs):
        if begin == end == 0:
            places.append(None)
        elif mode == "constant":
            places.append(_constant_source(n, begin, end))
        else:
            places.append(_source(n, begin, end, mode))
    return pick(low, places, fill() if mode == "constant" else None)


def _lower_pad(low):
    pads, axes = low.value(1), low.value(3) if low.has(3) else None
    if pads is None or (low.has(3) and axes is None):
        return Declined("the padding is not known before the run")

    def fill():
        return low.input(2) if low.has(2) else low.const(_zero(to_numpy(low.dtype(0))).reshape(1))

    return _lower_pairs(low, _pairs(len(low.shape(0)), pads, axes, ShapeError), low.attr("mode", "constant"), fill)


def _lower_pad_attribute(low):
    pads = low.attr("pads" if low.node.version >= 2 else "paddings")

    def fill():
        return low.const(np.array([low.attr("value", 0.0)]).astype(to_numpy(low.dtype(0))))

    return _lower_pairs(low, _pairs(len(low.shape(0)), pads, None, ShapeError), low.attr("mode", "constant"), fill)


register(Op("Pad", since=1, infer=_infer_pad_attribute, reference=_pad_1, lower=_lower_pad_attribute))
register(Op("Pad", since=2, infer=_infer_pad_attribute, reference=_pad_2, lower=_lower_pad_attribute))
register(Op("Pad", since=11, infer=_infer_pad, reference=_pad_11, lower=_lower_pad))
register(Op("Pad", since=18, infer=_infer_pad, reference=_pad_18, lower=_lower_pad))
register(Op("Pad", since=19, infer=_infer_pad, reference=_pad, lower=_lower_pad))


def _centred(shape, sizes, axes, fail):
    """The output shape of CenterCropPad."""
    sizes = integers(sizes)
    axes = range(len(shape)) if axes is None else wrap_axes(axes, len(shape), fail)
    if len(sizes) != len(axes) or any(s < 0 for s in sizes):
        raise fail(f"shape {list(sizes)} must give a size for each of {len(axes)} axes")
    out = list(shape)
    for axis, size in zip(axes, sizes):
        out[axis] = size
    return tuple(out)


def _center_crop_pad(x, shape, *, axes=None):
    out = _centred(x.shape, shape, axes, ShapeError)
    return _place(x, out, _begins(x.shape, out), _zero(x.dtype))


def _infer_center_crop_pad(call):
    shape, sizes, axes = call.shape(0), call.value(1), call.attr("axes")
    if shape is None:
        return TensorType(call.dtype(0))
    if sizes is not None:
        return TensorType(call.dtype(0), _centred(shape, sizes, axes, call.fail))
    touched = range(len(shape)) if axes is None else wrap_axes(axes, len(shape), call.fail)
    return TensorType(call.dtype(0), tuple(None if i in touched else d for i, d in enumerate(shape)))


def _begins(shape, out):
    """Padding before each axis of CenterCropPad: an odd difference leaves the extra element behind."""
    return [(need - have) // 2 if need > have else -((have - need) // 2) for have, need in zip(shape, out)]


def _lower_center_crop_pad(low):
    shape, out = low.shape(0), low.out_shape()
    pairs = [(begin, need - have - begin) for have, need, begin in zip(shape, out, _begins(shape, out))]
    return _lower_pairs(low, pairs, "constant", lambda: low.const(_zero(to_numpy(low.dtype(0))).reshape(1)))


register(
    Op("CenterCropPad", since=18, infer=_infer_center_crop_pad, reference=_center_crop_pad,
       lower=_lower_center_crop_pad)
)  # fmt: skip
