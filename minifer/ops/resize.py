"""Resize and Upsample.

Resizing is separable: each axis in turn becomes a weighted sum of `taps` places of the input,

    y[o] = sum_t weight[o, t] * x[place[o, t]]

with one tap for nearest, two for linear, four for cubic, and more where a filter is stretched to avoid aliasing.
Where an output element lies is computed from `width`, the length that the axis would have before it is cut to
an integer (a scale of 0.6 makes 4 to 2.4, which becomes 2). It is rounded to float32, in which scales are given,
so that a scale of one third counts as the exact fraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from minifer.dtypes import to_numpy
from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Declined, Op, deferred, register
from minifer.ops.shapes import integers, wrap_axes
from minifer.record import Record

pick = deferred("lower_move", "pick")
identity_or_resample = deferred("lower_resize", "identity_or_resample")

_COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_half_pixel_for_nn", "tf_crop_and_resize",
)  # fmt: skip
_NEAREST: dict[str, Callable] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_POLICIES = {"stretch": None, "not_larger": min, "not_smaller": max}
_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "cubic": "cubic"}


class _Line(Record):
    """One axis: its length before, the length wanted (maybe a fraction), the length after, the part read."""

    axis: int
    size: int
    width: float
    out: int
    start: float = 0.0
    end: float = 1.0

    @property
    def same(self) -> bool:
        """True where nothing changes along the axis."""
        return self.size == self.width == self.out and (self.start, self.end) == (0.0, 1.0)


# --- lengths


def _scaled(size, scale, fail, span=1.0):
    """(width, length) of an axis of `size` under a scale."""
    if not (math.isfinite(scale) and scale > 0):
        raise fail(f"scale {scale} is not a positive number")
    if not isinstance(size, int):
        return (size, size) if scale == 1 and span == 1 else (None, None)
    width = float(np.float32(size) * np.float32(scale) * np.float32(span))
    return width, math.floor(width)


def _fitted(dims, sizes, policy, fail):
    """(width, length) of each axis for wanted sizes under an aspect ratio policy."""
    if any(s < 0 for s in sizes):
        raise fail(f"sizes {list(sizes)} hold a negative size")
    choose = _POLICIES[policy]
    if choose is None:
        return [(float(s), s) for s in sizes]
    if not all(isinstance(d, int) for d in dims):
        return [(None, None)] * len(dims)
    if 0 in dims:
        raise fail("an empty axis has no aspect ratio to keep")
    scale = choose(Fraction(s, d) for s, d in zip(sizes, dims))
    return [(float(scale * d), math.floor(scale * d + Fraction(1, 2))) for d in dims]


def _given(values):
    """None for an omitted input; an empty tensor means the same (Resize-11 knows no other way)."""
    return None if values is None or np.size(values) == 0 else np.asarray(values).reshape(-1)


def _lengths(dims, scales, sizes, spans, policy, fail):
    """(width, length) of each resized axis."""
    if policy not in _POLICIES:
        raise fail(f"keep_aspect_ratio_policy {policy!r} is not one of {', '.join(_POLICIES)}")
    scales, sizes = _given(scales), _given(sizes)
    if scales is not None and sizes is not None:
        raise fail("give scales or sizes, and not both")
    given = sizes if scales is None else scales
    if given is None and dims:
        raise fail("neither scales nor sizes is given")
    if given is not None and len(given) != len(dims):
        raise fail(f"{len(given)} {'sizes' if scales is None else 'scales'} are given for {len(dims)} axes")
    if given is None:
        return []
    if sizes is not None:
        return _fitted(dims, integers(sizes), policy, fail)
    return [_scaled(d, float(s), fail, span) for d, s, span in zip(dims, scales, spans)]


def _region(roi, coordinates, count, fail):
    """(start, end) for each resized axis; only tf_crop_and_resize reads the input roi."""
    if coordinates != "tf_crop_and_resize":
        return [(0.0, 1.0)] * count
    roi = _given(roi)
    if roi is None or len(roi) != 2 * count:
        raise fail(f"tf_crop_and_resize needs a roi of {2 * count} numbers: starts, then ends")
    return [(float(a), float(b)) for a, b in zip(roi[:count], roi[count:])]


# --- places and weights


def _coordinates(line, mode):
    """Where each output element of an axis lies in the input (float64)."""
    x = np.arange(line.out, dtype=np.float64)
    if mode == "asymmetric":
        return x * line.size / line.width
    if mode == "align_corners":
        return x * (line.size - 1) / (line.width - 1) if line.width != 1 else np.zeros_like(x)
    if mode == "tf_crop_and_resize":
        last = line.size - 1
        if line.out <= 1:
            return np.full_like(x, 0.5 * (line.start + line.end) * last)
        return line.start * last + x * (line.end - line.start) * last / (line.out - 1)
    if mode == "pytorch_half_pixel" and line.out <= 1:
        return np.zeros_like(x)
    centre = (x + 0.5) * line.size / line.width
    if mode == "tf_half_pixel_for_nn":
        return centre
    if mode == "half_pixel_symmetric":
        centre += (line.size - line.out * line.size / line.width) / 2
    return centre - 0.5


def _triangle(t):
    return np.maximum(0.0, 1.0 - np.abs(t))


def cubic_kernel(t, a):
    """The cubic convolution kernel with coefficient `a` (Keys 1981)."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _taps(at, line, mode, cubic_coeff_a, exclude_outside, antialias):
    """Places (out, taps), clamped to the axis, and their weights."""
    reach = 2 if mode == "cubic" else 1
    stretch = max(1.0, line.size / line.width) if antialias else 1.0
    first = math.floor(-reach * stretch) + 1
    base = np.floor(at)
    place = base[:, None] + np.arange(first, 2 - first)
    offset = (place - at[:, None]) / stretch
    weight = cubic_kernel(offset, cubic_coeff_a) if mode == "cubic" else _triangle(offset)
    if exclude_outside:
        weight = np.where((place < 0) | (place >= line.size), 0.0, weight)
    if exclude_outside or antialias:
        weight = weight / weight.sum(axis=1, keepdims=True)
    return place.clip(0, line.size - 1).astype(np.int64), weight


def _weighted(x, axis, place, weight):
    tail = (1,) * (x.ndim - axis - 1)
    out = np.zeros(x.shape[:axis] + (len(place),) + x.shape[axis + 1 :], x.dtype)
    for tap in range(place.shape[1]):
        out += np.take(x, place[:, tap], axis) * weight[:, tap].reshape(-1, *tail)
    return out


def from_float64(y, dtype):
    """Float64 results in the element type of the input: integers saturate, and are cut as a cast would."""
    if dtype.kind not in "iu":
        return y.astype(dtype)
    limits = np.iinfo(dtype)
    whole = np.trunc(np.round(y, 9))  # rounding first: 2.9999999999 is a 3
    small = np.iinfo(np.int32)
    if limits.min >= small.min and limits.max <= small.max:
        return whole.clip(limits.min, limits.max).astype(dtype)
    top = whole >= float(limits.max)
    return np.where(top, limits.max, whole.clip(limits.min, None).astype(dtype)).astype(dtype)


def _interpolate(x, lines, mode, coordinates, nearest, cubic_coeff_a, exclude_outside, antialias):
    wide = x if mode == "nearest" else x.astype(np.float64)
    for line in lines:
        if line.same:
            continue
        at = _coordinates(line, coordinates)
        if mode == "nearest":
            wide = np.take(wide, nearest(line, at).clip(0, line.size - 1).astype(np.int64), line.axis)
        else:
            wide = _weighted(wide, line.axis, *_taps(at, line, mode, cubic_coeff_a, exclude_outside, antialias))
    return wide if mode == "nearest" else from_float64(wide, x.dtype)


def _outside(lines, rank):
    """True for output elements that tf_crop_and_resize reads outside the input."""
    mask = np.zeros((1,) * rank, bool)
    for line in lines:
        at = _coordinates(line, "tf_crop_and_resize")
        row = (at < 0) | (at > line.size - 1)
        mask = mask | row.reshape([-1 if i == line.axis else 1 for i in range(rank)])
    return mask


def _check(x, lines, mode):
    if mode != "nearest" and (x.dtype.kind in "ObcSU"):
        raise InputError(f"mode {mode} needs numbers, and the input is {x.dtype}; only nearest takes any type")
    for line in lines:
        if line.out and not line.size:
            raise ShapeError(f"axis {line.axis} is empty and cannot be resized to {line.out}")


def _mode(mode, fail):
    if mode not in _MODES:
        raise fail(f"mode {mode!r} is not one of nearest, linear, cubic")
    return _MODES[mode]


def _known_modes(coordinates, nearest, fail):
    if coordinates not in _COORDINATES:
        raise fail(f"coordinate_transformation_mode {coordinates!r} is not one of {', '.join(_COORDINATES)}")
    if nearest not in _NEAREST:
        raise fail(f"nearest_mode {nearest!r} is not one of {', '.join(_NEAREST)}")


# --- Resize-11 and later


def _resize(
    x, roi=None, scales=None, sizes=None, *, antialias=0, axes=None, coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75, exclude_outside=0, extrapolation_value=0.0, keep_aspect_ratio_policy="stretch",
    mode="nearest", nearest_mode="round_prefer_floor",
):  # fmt: skip
    kind, coordinates = _mode(mode, InputError), coordinate_transformation_mode
    _known_modes(coordinates, nearest_mode, InputError)
    lines = _resize_lines(x.shape, roi, scales, sizes, axes, coordinates, keep_aspect_ratio_policy)
    _check(x, lines, kind)
    if x.size == 0 or any(line.out == 0 for line in lines):
        return np.zeros(_resized_shape(x.shape, [v.axis for v in lines], [(0, v.out) for v in lines]), x.dtype)
    y = _interpolate(
        x, lines, kind, coordinates, lambda _, at: _NEAREST[nearest_mode](at), cubic_coeff_a, exclude_outside, antialias
    )
    if coordinates != "tf_crop_and_resize":
        return y
    return np.where(_outside(lines, x.ndim), np.array(extrapolation_value).astype(x.dtype), y).astype(x.dtype)


def _resize_lines(shape, roi, scales, sizes, axes, coordinates, policy):
    """The axes that Resize-11 and later change."""
    axes = range(len(shape)) if axes is None else wrap_axes(axes, len(shape))
    region = _region(roi, coordinates, len(axes), ShapeError)
    dims, spans = [shape[a] for a in axes], [end - start for start, end in region]
    lengths = _lengths(dims, scales, sizes, spans, policy, ShapeError)
    return [_Line(a, d, *length, *part) for a, d, length, part in zip(axes, dims, lengths, region)]


def _resized_shape(shape, axes, lengths):
    out = list(shape)
    for axis, (_, length) in zip(axes, lengths):
        out[axis] = length
    return tuple(out)


def _infer_resize(call):
    _mode(call.attr("mode", "nearest"), call.fail)
    shape = call.shape(0)
    if shape is None:
        return TensorType(call.dtype(0))
    axes = call.attr("axes")
    axes = range(len(shape)) if axes is None else wrap_axes(axes, len(shape), call.fail)
    coordinates = call.attr("coordinate_transformation_mode", "half_pixel")
    _known_modes(coordinates, call.attr("nearest_mode", "round_prefer_floor"), call.fail)
    crop = coordinates == "tf_crop_and_resize"
    scales, sizes = (_input(call, i) for i in (2, 3))
    if scales is _UNKNOWN or sizes is _UNKNOWN or (crop and sizes is None and call.value(1) is None):
        return TensorType(call.dtype(0), tuple(None if i in axes else d for i, d in enumerate(shape)))
    spans = [1.0] * len(axes)
    if crop and sizes is None:
        spans = [end - start for start, end in _region(call.value(1), coordinates, len(axes), call.fail)]
    policy = call.attr("keep_aspect_ratio_policy", "stretch")
    lengths = _lengths([shape[a] for a in axes], scales, sizes, spans, policy, call.fail)
    return TensorType(call.dtype(0), _resized_shape(shape, axes, lengths))


_UNKNOWN = object()


def _input(call, i):
    """The value of a list input, None where it is omitted or empty, _UNKNOWN where it is known only at run time."""
    if not call.has(i) or call.shape(i) == (0,):
        return None
    return _UNKNOWN if call.value(i) is None else _given(call.value(i))


def _lower_nearest(low, lines, coordinates, nearest, extrapolation=0.0):
    places = [None] * len(low.shape(0))
    for line in lines:
        if not line.same:
            at = _coordinates(line, coordinates)
            place = nearest(line, at).clip(0, line.size - 1).astype(np.int64)
            if coordinates == "tf_crop_and_resize":
                place = np.where((at < 0) | (at > line.size - 1), -1, place)
            places[line.axis] = place
    return pick(low, places, low.const(np.array([extrapolation]).astype(to_numpy(low.dtype(0)))))


def _lower_lines(low, lines, kind, coordinates, cubic_coeff_a=0.0, exclude_outside=0, antialias=0):
    """Linear and cubic modes: the changed axes with their taps."""
    if coordinates == "tf_crop_and_resize":
        return Declined("no kernel for tf_crop_and_resize in linear and cubic mode")
    changed = {}
    for line in lines:
        if not line.same:
            at = _coordinates(line, coordinates)
            changed[line.axis] = _taps(at, line, kind, cubic_coeff_a, exclude_outside, antialias)
    return identity_or_resample(low, changed)


def _lower_resize(low):
    roi, scales, sizes = (low.value(i) if low.has(i) else None for i in (1, 2, 3))
    coordinates = low.attr("coordinate_transformation_mode", "half_pixel")
    if any(low.has(i) and low.value(i) is None and low.shape(i) != (0,) for i in (2, 3)):
        return Declined("the size is not known before the run")
    if coordinates == "tf_crop_and_resize" and roi is None:
        return Declined("the roi is not known before the run")
    policy = low.attr("keep_aspect_ratio_policy", "stretch")
    lines = _resize_lines(low.shape(0), roi, scales, sizes, low.attr("axes"), coordinates, policy)
    kind = _mode(low.attr("mode", "nearest"), InputError)
    if kind == "nearest":
        nearest = _NEAREST[low.attr("nearest_mode", "round_prefer_floor")]
        return _lower_nearest(
            low, lines, coordinates, lambda _, at: nearest(at), low.attr("extrapolation_value", 0.0)
        )  # fmt: skip
    return _lower_lines(
        low, lines, kind, coordinates, low.attr("cubic_coeff_a", -0.75), low.attr("exclude_outside", 0),
        low.attr("antialias", 0),
    )  # fmt: skip


register(Op("Resize", since=11, infer=_infer_resize, reference=_resize, lower=_lower_resize))

# --- Resize-10 and Upsample: asymmetric coordinates, nearest takes the place before (after, when shrinking)


def _before(line, at):
    return np.floor(at) if line.width >= line.size else np.ceil(at)


def _simple_lines(shape, scales, smallest):
    lengths = _scaled_lengths(shape, scales, smallest, ShapeError)
    return [_Line(axis, size, *length) for axis, (size, length) in enumerate(zip(shape, lengths))]


def _simple(x, scales, mode, smallest):
    lines = _simple_lines(x.shape, scales, smallest)
    kind = _mode(mode, InputError)
    _check(x, lines, kind)
    if x.size == 0 or any(line.out == 0 for line in lines):
        return np.zeros([line.out for line in lines], x.dtype)
    return _interpolate(x, lines, kind, "asymmetric", _before, 0.0, 0, 0)


def _scaled_lengths(shape, scales, smallest, fail):
    scales = [float(s) for s in np.asarray(scales).reshape(-1)]
    if len(scales) != len(shape):
        raise fail(f"{len(scales)} scales are given for {len(shape)} axes")
    if any(s < smallest for s in scales):
        raise fail(f"scales {scales} must be {smallest} or more")
    return [_scaled(d, s, fail) for d, s in zip(shape, scales)]


def _infer_simple(call, scales):
    shape = call.shape(0)
    _mode(call.attr("mode", "nearest"), call.fail)
    if shape is None:
        return TensorType(call.dtype(0), None if scales is None else (None,) * np.size(scales))
    if scales is None:
        return TensorType(call.dtype(0), (None,) * len(shape))
    smallest = 1 if call.node.op == "Upsample" else 0
    return TensorType(call.dtype(0), tuple(n for _, n in _scaled_lengths(shape, scales, smallest, call.fail)))


def _resize_10(x, scales, *, mode="nearest"):
    return _simple(x, scales, mode, 0)


def _upsample(x, scales, *, mode="nearest"):
    return _simple(x, scales, mode, 1)


def _upsample_7(x, *, scales, mode="nearest"):
    return _upsample(x, scales, mode=mode)


def _upsample_1(x, *, height_scale, width_scale, mode="nearest"):
    return _upsample(x, (1.0, 1.0, height_scale, width_scale), mode=mode)


def _infer_upsample_1(call):
    scales = call.attr("height_scale"), call.attr("width_scale")
    if None in scales:
        raise call.fail("attributes height_scale and width_scale are needed")
    return _infer_simple(call, (1.0, 1.0, *scales))


def _lower_simple(low, scales, smallest):
    if scales is None:
        return Declined("the scales are not known before the run")
    lines, kind = _simple_lines(low.shape(0), scales, smallest), _mode(low.attr("mode", "nearest"), InputError)
    if kind == "nearest":
        return _lower_nearest(low, lines, "asymmetric", _before)
    return _lower_lines(low, lines, kind, "asymmetric")


def _lower_resize_10(low):
    return _lower_simple(low, low.value(1), 0)


def _lower_upsample_1(low):
    return _lower_simple(low, (1.0, 1.0, low.attr("height_scale"), low.attr("width_scale")), 1)


def _lower_upsample_7(low):
    return _lower_simple(low, low.attr("scales"), 1)


def _lower_upsample(low):
    return _lower_simple(low, low.value(1), 1)


def _infer_second(call):
    return _infer_simple(call, call.value(1))


def _infer_upsample_7(call):
    return _infer_simple(call, call.attr("scales"))


for _name, _since, _infer, _reference, _lower in (
    ("Resize", 10, _infer_second, _resize_10, _lower_resize_10),
    ("Upsample", 1, _infer_upsample_1, _upsample_1, _lower_upsample_1),
    ("Upsample", 7, _infer_upsample_7, _upsample_7, _lower_upsample_7),
    ("Upsample", 9, _infer_second, _upsample, _lower_upsample),
):
    register(Op(_name, _since, infer=_infer, reference=_reference, lower=_lower))
