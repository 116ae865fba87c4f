"""Convolutions: Conv, ConvTranspose, ConvInteger, QLinearConv, DeformConv and CausalConvWithState.

The references copy windows into columns and multiply matrices (one BLAS call per image and group, in blocks that
bound the memory), or, where every channel is convolved alone, add up one shifted product per kernel tap.
Shapes: x (N, C, D1..Dn), w (M, C/group, k1..kn), y (N, M, o1..on).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.lower_conv import lower_conv, lower_conv_transpose
from minifer.ops.registry import Call, Declined, Op, register
from minifer.ops.shapes import Fail
from minifer.ops.window import AUTO_PADS, Window, per_axis, slide, split_pads, wide, window_of_call

_COLUMN_BYTES = 8 << 20  # a block of columns is kept below this


# --- shapes ---


def _check_weight(
    fail: Fail, x: Sequence[Dim], w: Sequence[Dim], group: int, kernel_shape: Sequence[int] | None
) -> tuple[Dim, ...]:
    """The kernel's spatial shape; raises where x, w, group and kernel_shape contradict each other."""
    if len(x) < 3:
        raise fail(f"the input has rank {len(x)}; (batch, channels, spatial...) of rank 3 or more is needed")
    if len(w) != len(x):
        raise fail(f"the weight has rank {len(w)} and the input {len(x)}; they must be equal")
    if group < 1:
        raise fail(f"group {group} is below 1")
    if isinstance(x[1], int) and isinstance(w[1], int) and x[1] != w[1] * group:
        raise fail(f"the input has {x[1]} channels, but weight and group ask for {w[1]} x {group}")
    if isinstance(w[0], int) and w[0] % group:
        raise fail(f"{w[0]} output channels do not divide into {group} groups")
    return _kernel(fail, w, kernel_shape)


def _kernel(fail: Fail, w: Sequence[Dim], kernel_shape: Sequence[int] | None) -> tuple[Dim, ...]:
    """The kernel's spatial shape, from the weight and the attribute, which must agree."""
    kernel = tuple(w[2:])
    if kernel_shape:
        clash = any(isinstance(a, int) and a != b for a, b in zip(kernel, kernel_shape))
        if len(kernel_shape) != len(kernel) or clash:
            raise fail(f"kernel_shape {list(kernel_shape)} differs from the weight's {list(kernel)}")
        return tuple(kernel_shape)
    return kernel


def _known(dims: Sequence[Dim]) -> bool:
    return all(isinstance(d, int) for d in dims)


def _may_equal(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """False where two shapes are certainly different; unknown sizes and symbols may be anything."""
    return len(a) == len(b) and not any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in zip(a, b))


def _check_bias(fail: Fail, bias: Sequence[Dim] | None, channels: Dim) -> None:
    if bias is None:
        return
    if not _may_equal(bias, (channels,)):
        raise fail(f"the bias has shape {list(bias)}; [{channels}] is needed")


def _conv_shape(call: Call, x: int, w: int, bias: int | None) -> tuple[Dim, ...] | None:
    """Output shape of a convolution whose input, weight and bias are the node's inputs x, w, bias."""
    data, weight = call.shape(x), call.shape(w)
    if weight is None or data is None:
        if data is None and weight is None:
            return None
        return (*(data or (None,))[:1], *(weight or (None,))[:1], *[None] * (len(data or weight or ()) - 2))
    kernel = _check_weight(call.fail, data, weight, call.attr("group", 1), call.attr("kernel_shape"))
    _check_bias(call.fail, call.shape(bias) if bias is not None and call.has(bias) else None, weight[0])
    spatial: tuple[Dim, ...] = (None,) * len(kernel)
    if _known(kernel):
        spatial = window_of_call(call, data[2:], kernel).out  # type: ignore[arg-type]
    return data[0], weight[0], *spatial


def _window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad) -> Window:
    kernel = _check_weight(ShapeError, x.shape, w.shape, group, kernel_shape)
    options = dict(strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    return slide(ShapeError, x.shape[2:], kernel, **options)  # type: ignore[arg-type]


# --- the convolution itself ---


def pad_spatial(x: np.ndarray, pads: Sequence[tuple[int, int]], value=0) -> np.ndarray:
    """x (N, C, D...) with `value` around its spatial axes; x itself where no padding is asked for."""
    if not any(itertools.chain.from_iterable(pads)):
        return x
    out = np.full((*x.shape[:2], *(d + b + e for d, (b, e) in zip(x.shape[2:], pads))), value, x.dtype)
    inner = tuple(slice(b, b + d) for d, (b, _) in zip(x.shape[2:], pads))
    out[(...,) + inner] = x
    return out


def _windows(x: np.ndarray, window: Window) -> np.ndarray:
    """A view (N, C, k1..kn, o1..on) of padded x: every window without a copy."""
    steps = x.strides[2:]
    inner = tuple(s * d for s, d in zip(steps, window.dilations))
    outer = tuple(s * d for s, d in zip(steps, window.strides))
    shape = (*x.shape[:2], *window.kernel, *window.out)
    return np.lib.stride_tricks.as_strided(x, shape, (*x.strides[:2], *inner, *outer), writeable=False)


def convolve(x: np.ndarray, w: np.ndarray, window: Window, group: int = 1) -> np.ndarray:
    """y (N, M, o...) in the dtype of x (float32 or float64): the sum of products, no bias."""
    batch, channels = x.shape[:2]
    out_channels, depth = w.shape[:2]
    out: tuple[int, ...] = window.out  # type: ignore[assignment]
    y = np.zeros((batch, out_channels, *out), x.dtype)
    if not y.size or not w.size:
        return y
    x = pad_spatial(x, window.pads)
    if depth == 1 and group == channels and group > 1:
        return _depthwise(x, w, window, y)
    weight = w.reshape(group, out_channels // group, -1)
    if math.prod(window.kernel) == math.prod(window.strides) == 1:
        flat = x.reshape(batch, group, depth, -1)
        return np.matmul(weight, flat, out=y.reshape(batch, group, out_channels // group, -1)).reshape(y.shape)
    views = _windows(x, window)
    block = max(1, _COLUMN_BYTES * out[0] // max(1, views.nbytes // batch))  # output rows at a time
    every = (slice(None),) * (1 + len(out))  # channels and taps
    for n, start in itertools.product(range(batch), range(0, out[0], block)):
        rows = slice(start, start + block)
        columns = views[n][every + (rows,)].reshape(group, weight.shape[2], -1)
        y[n, :, rows] = np.matmul(weight, columns).reshape(y[n, :, rows].shape)
    return y


def _depthwise(x: np.ndarray, w: np.ndarray, window: Window, y: np.ndarray) -> np.ndarray:
    """Each input channel alone gives M/C output channels: one shifted product per tap, added into y."""
    batch, channels = x.shape[:2]
    rank = len(window.kernel)
    split = y.reshape(batch, channels, -1, *y.shape[2:])
    weight = w.reshape(channels, -1, *window.kernel)
    for tap in itertools.product(*map(range, window.kernel)):
        view = x[(...,) + tap_slices(tap, window)]
        split += view[:, :, None] * weight[(...,) + tap].reshape(channels, -1, *(1,) * rank)
    return y


def tap_slices(tap: Sequence[int], window: Window) -> tuple[slice, ...]:
    """The spatial slices of the padded input that one kernel tap meets, in all places of the window."""
    return tuple(
        slice(t * d, t * d + (o - 1) * s + 1 if o else t * d, s)  # type: ignore[operator]
        for t, d, s, o in zip(tap, window.dilations, window.strides, window.out)
    )


def _add_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is not None:
        _check_bias(ShapeError, bias.shape, y.shape[1])
        y += bias.reshape(-1, *(1,) * (y.ndim - 2))
    return y


# --- Conv ---


def conv_reference(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
):
    """Conv: float tensors of one dtype; 16-bit floats are summed in float32."""
    window = _window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad)
    y = convolve(wide(x), wide(w), window, group)
    return _add_bias(y, None if b is None else wide(b)).astype(x.dtype, copy=False)


def infer_conv(call: Call) -> TensorType:
    """Type rule of Conv: (N, M, o...) in the input's element type."""
    return TensorType(call.dtype(0), _conv_shape(call, 0, 1, 2))


register(Op("Conv", since=1, infer=infer_conv, reference=conv_reference, lower=lower_conv))


# --- ConvTranspose ---


def _transpose_axis(fail: Fail, i: int, size: Dim, extent: int, step: int, more: int, pad, want: Dim, auto_pad: str):
    """(output size, cropped before, cropped behind) of one axis of a transposed convolution."""
    if want is None and not auto_pad.startswith("SAME"):
        if not isinstance(size, int):
            return size if step == 1 and extent - 1 + more == sum(pad) else None, *pad
        out = step * (size - 1) + more + extent - sum(pad) if size else 0
        if out < 0:
            raise fail(f"pads {pad} on spatial axis {i} crop more than the {out + sum(pad)} that there is")
        return out, *pad
    if not isinstance(size, int):
        return (want if want is not None else size if step == 1 else None), None, None
    out = want if isinstance(want, int) else size * step
    total = max(0, step * (size - 1) + more + extent - out)
    small, large = total // 2, total - total // 2
    return (out, small, large) if auto_pad == "SAME_UPPER" else (out, large, small)


def _transpose_window(
    fail: Fail, spatial, kernel, *, strides, dilations, pads, auto_pad, output_padding, output_shape
) -> Window:
    """The window of a transposed convolution; its `out` is the output's spatial shape, its pads are cropped off."""
    rank = len(spatial)
    kernel = per_axis(kernel, rank, "kernel_shape", 1, fail)
    strides = per_axis(strides, rank, "strides", 1, fail)
    dilations = per_axis(dilations, rank, "dilations", 1, fail)
    more = per_axis(output_padding, rank, "output_padding", 0, fail)
    if auto_pad not in AUTO_PADS:
        raise fail(f"auto_pad '{auto_pad}' is not one of {', '.join(AUTO_PADS)}")
    begin, end = split_pads(pads if auto_pad == "NOTSET" and not output_shape else None, rank, fail)
    want: Sequence[Dim] = (None,) * rank
    if output_shape:
        shape = output_shape[2:] if len(output_shape) == rank + 2 else output_shape  # old exporters give all axes
        want = per_axis(shape, rank, "output_shape", 0, fail)
    axes = []
    for i in range(rank):
        extent = (kernel[i] - 1) * dilations[i] + 1
        axes.append(
            _transpose_axis(fail, i, spatial[i], extent, strides[i], more[i], (begin[i], end[i]), want[i], auto_pad)
        )
    outs, befores, behinds = zip(*axes)
    return Window(kernel, strides, dilations, befores, behinds, outs)


def _check_transpose(fail: Fail, x: Sequence[Dim], w: Sequence[Dim], group: int) -> None:
    if len(x) < 3:
        raise fail(f"the input has rank {len(x)}; (batch, channels, spatial...) of rank 3 or more is needed")
    if len(w) != len(x):
        raise fail(f"the weight has rank {len(w)} and the input {len(x)}; they must be equal")
    if group < 1:
        raise fail(f"group {group} is below 1")
    if isinstance(x[1], int) and isinstance(w[0], int) and x[1] != w[0]:
        raise fail(f"the input has {x[1]} channels and the weight {w[0]}; they must be equal")
    if isinstance(w[0], int) and w[0] % group:
        raise fail(f"{w[0]} input channels do not divide into {group} groups")


def conv_transpose(x: np.ndarray, w: np.ndarray, window: Window, group: int) -> np.ndarray:
    """y (N, M, o...): every input element adds its multiple of the kernel into the output."""
    batch, channels = x.shape[:2]
    spatial = x.shape[2:]
    per_group = w.shape[1]
    out: tuple[int, ...] = window.out  # type: ignore[assignment]
    y = np.zeros((batch, per_group * group, *out), x.dtype)
    if not y.size or not x.size:
        return y
    # the canvas is wide enough for every product and for the part of it that is kept
    reach = [
        (d - 1) * s + (k - 1) * g + 1 for d, s, k, g in zip(spatial, window.strides, window.kernel, window.dilations)
    ]
    canvas_shape = tuple(max(r, b + o) for r, (b, _), o in zip(reach, window.pads, out))
    kept = tuple(slice(b, b + o) for (b, _), o in zip(window.pads, out))
    weight = w.reshape(group, channels // group, -1).transpose(0, 2, 1)
    for n in range(batch):
        columns = np.matmul(weight, x[n].reshape(group, channels // group, -1))
        columns = columns.reshape(per_group * group, *window.kernel, *spatial)
        canvas = np.zeros((per_group * group, *canvas_shape), x.dtype)
        for tap in itertools.product(*map(range, window.kernel)):
            place = tuple(
                slice(t * g, t * g + (d - 1) * s + 1, s)
                for t, g, d, s in zip(tap, window.dilations, spatial, window.strides)
            )
            canvas[(slice(None),) + place] += columns[(slice(None),) + tap]
        y[n] = canvas[(slice(None),) + kept]
    return y


def _conv_transpose_reference(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None,
    output_shape=None, pads=None, strides=None,
):  # fmt: skip
    _check_transpose(ShapeError, x.shape, w.shape, group)
    kernel = _kernel(ShapeError, w.shape, kernel_shape)
    window = _transpose_window(
        ShapeError, x.shape[2:], kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad,
        output_padding=output_padding, output_shape=output_shape,
    )  # fmt: skip
    y = conv_transpose(wide(x), wide(w), window, group)
    return _add_bias(y, None if b is None else wide(b)).astype(x.dtype, copy=False)


def _infer_conv_transpose(call: Call) -> TensorType:
    x, w, group = call.shape(0), call.shape(1), call.attr("group", 1)
    if x is None or w is None:
        return TensorType(call.dtype(0))
    _check_transpose(call.fail, x, w, group)
    kernel = _kernel(call.fail, w, call.attr("kernel_shape"))
    channels = w[1] * group if isinstance(w[1], int) else (w[1] if group == 1 else None)
    _check_bias(call.fail, call.shape(2) if call.has(2) else None, channels)
    spatial: tuple[Dim, ...] = (None,) * len(kernel)
    if _known(kernel):
        names = ("strides", "dilations", "pads", "output_padding", "output_shape")
        options = {name: call.attr(name) for name in names}
        window = _transpose_window(call.fail, x[2:], kernel, auto_pad=call.attr("auto_pad", "NOTSET"), **options)
        spatial = window.out
    return TensorType(call.dtype(0), (x[0], channels, *spatial))


def _lower_conv_transpose(low: Any) -> Declined | None:
    names = ("strides", "dilations", "pads", "output_padding", "output_shape")
    kernel = _kernel(ShapeError, low.shape(1), low.attr("kernel_shape"))
    options = {name: low.attr(name) for name in names}
    window = _transpose_window(
        ShapeError, low.shape(0)[2:], kernel, auto_pad=low.attr("auto_pad", "NOTSET"), **options
    )
    return lower_conv_transpose(low, window)


register(
    Op(
        "ConvTranspose",
        since=1,
        infer=_infer_conv_transpose,
        reference=_conv_transpose_reference,
        lower=_lower_conv_transpose,
    )
)


# --- quantised ---


def _zero_point(value: np.ndarray | None, channels: int, rank: int, name: str) -> np.ndarray | float:
    """A zero point or scale that broadcasts against (M, C/group, k...): a scalar, or one per output channel."""
    if value is None:
        return 0.0
    if value.size == 1:
        return value.astype(np.float64).reshape(())
    if value.shape != (channels,):
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar or [{channels}] is needed")
    return value.astype(np.float64).reshape(-1, *(1,) * (rank - 1))


def integer_convolution(x, w, x_zero, w_zero, window: Window, group: int) -> np.ndarray:
    """The exact sums as float64 (products of 8-bit values stay far below 2**53)."""
    if x_zero is not None and x_zero.size != 1:
        raise ShapeError(f"x_zero_point has shape {list(x_zero.shape)}; a scalar is needed")
    data = x.astype(np.float64) - (0.0 if x_zero is None else float(x_zero.reshape(())))
    weight = w.astype(np.float64) - _zero_point(w_zero, w.shape[0], w.ndim, "w_zero_point")
    return convolve(data, weight, window, group)


def _conv_integer(
    x, w, x_zero_point=None, w_zero_point=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None,
    pads=None, strides=None,
):  # fmt: skip
    window = _window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad)
    # through int64, so that a sum beyond 32 bits wraps instead of being undefined
    return integer_convolution(x, w, x_zero_point, w_zero_point, window, group).astype(np.int64).astype(np.int32)


register(
    Op(
        "ConvInteger",
        since=10,
        infer=lambda call: TensorType("int32", _conv_shape(call, 0, 1, None)),
        reference=_conv_integer,
    )
)


def requantize(total: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """round(total * scale) + zero, ties to even, saturated to the zero point's integer type."""
    limits = np.iinfo(zero.dtype)
    y = np.rint(total.astype(np.float32) * scale) + zero.reshape(()).astype(np.float32)
    return np.clip(y, limits.min, limits.max).astype(zero.dtype)


def _scalar(value: np.ndarray, name: str) -> np.ndarray:
    if value.size != 1:
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar is needed")
    return value.reshape(())


def _qlinear_conv(
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, b=None, *, auto_pad="NOTSET",
    dilations=None, group=1, kernel_shape=None, pads=None, strides=None,
):  # fmt: skip
    window = _window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad)
    total = integer_convolution(x, w, x_zero_point, w_zero_point, window, group)
    total = _add_bias(total, None if b is None else b.astype(np.float64))
    if w_scale.size != 1 and w_scale.shape != (w.shape[0],):
        raise ShapeError(f"w_scale has shape {list(w_scale.shape)}; a scalar or [{w.shape[0]}] is needed")
    scale = _scalar(x_scale, "x_scale") * w_scale.reshape(-1) / _scalar(y_scale, "y_scale")
    return requantize(total, scale.reshape(-1, *(1,) * (x.ndim - 2)), _scalar(y_zero_point, "y_zero_point"))


register(
    Op(
        "QLinearConv",
        since=10,
        infer=lambda call: TensorType(call.dtype(7), _conv_shape(call, 0, 3, 8)),
        reference=_qlinear_conv,
    )
)


# --- DeformConv ---


def _deform_shapes(fail: Fail, offset, mask, window: Window, batch: Dim, channels: Dim, groups: int) -> None:
    """Check the shapes of offset (N, G*taps*n, o...) and mask (N, G*taps, o...)."""
    taps, rank = math.prod(window.kernel), len(window.kernel)
    if groups < 1 or (isinstance(channels, int) and channels % groups):
        raise fail(f"{channels} input channels do not divide into offset_group {groups}")
    for name, shape, width in (("offset", offset, groups * taps * rank), ("mask", mask, groups * taps)):
        want = (batch, width, *window.out)
        if shape is not None and not _may_equal(shape, want):
            raise fail(f"{name} has shape {list(shape)}; {list(want)} is needed")


def _sample(x: np.ndarray, where: Sequence[np.ndarray]) -> np.ndarray:
    """Linear interpolation of x (N, G, C/G, D...) at coordinates `where`, n arrays (N, G, o...); zero outside.

    Returns (N, G, C/G, o...).
    """
    spatial = x.shape[3:]
    flat = x.reshape(*x.shape[:3], -1)
    out = np.zeros((*x.shape[:3], *where[0].shape[2:]), x.dtype)
    # far outside everything is zero, so coordinates may be clipped there; NaN counts as outside
    near = [np.where(np.isnan(p), -2.0, np.clip(p, -2, d + 1)) for p, d in zip(where, spatial)]
    low = [np.floor(p).astype(np.int64) for p in near]
    for corner in itertools.product((0, 1), repeat=len(spatial)):
        weight = np.ones(where[0].shape, x.dtype)
        index = np.zeros(where[0].shape, np.int64)
        for p, start, up, size in zip(near, low, corner, spatial):
            at = start + up
            share = p - start if up else 1 - (p - start)
            weight *= np.where((at >= 0) & (at < size), share, 0).astype(x.dtype)
            index = index * size + np.clip(at, 0, size - 1)
        picked = np.take_along_axis(flat, index.reshape(*index.shape[:2], 1, -1), axis=3)
        out += picked.reshape(out.shape) * weight[:, :, None]
    return out


def _deform_conv(
    x, w, offset, b=None, mask=None, *, dilations=None, group=1, kernel_shape=None, offset_group=1, pads=None,
    strides=None,
):  # fmt: skip
    window = _window(x, w, group, kernel_shape, strides, dilations, pads, "NOTSET")
    batch, channels = x.shape[:2]
    mask_shape = None if mask is None else mask.shape
    _deform_shapes(ShapeError, offset.shape, mask_shape, window, batch, channels, offset_group)
    rank = x.ndim - 2
    out: tuple[int, ...] = window.out  # type: ignore[assignment]
    both = (slice(None), slice(None))
    data = wide(x).reshape(batch, offset_group, channels // offset_group, *x.shape[2:])
    shift = wide(offset).reshape(batch, offset_group, *window.kernel, rank, *out)
    factor = None if mask is None else wide(mask).reshape(batch, offset_group, *window.kernel, *out)
    weight = wide(w).reshape(group, w.shape[0] // group, w.shape[1], *window.kernel)
    y = np.zeros((batch, group, w.shape[0] // group, math.prod(out)), data.dtype)
    if data.size and y.size:
        places = np.indices(out)
        for tap in itertools.product(*map(range, window.kernel)):
            where = [
                places[i] * window.strides[i] - window.begin[i] + tap[i] * window.dilations[i]
                + shift[both + tap + (i,)]
                for i in range(rank)
            ]  # fmt: skip
            sample = _sample(data, where)
            if factor is not None:
                sample = sample * factor[both + tap][:, :, None]
            y += np.matmul(weight[(...,) + tap], sample.reshape(batch, group, channels // group, -1))
    return _add_bias(y.reshape(batch, w.shape[0], *out), None if b is None else wide(b)).astype(x.dtype, copy=False)


def _infer_deform_conv(call: Call) -> TensorType:
    shape = _conv_shape(call, 0, 1, 3)
    x, w = call.shape(0), call.shape(1)
    if shape is not None and x is not None and w is not None:
        kernel = call.attr("kernel_shape") or w[2:]
        if _known(kernel):
            mask = call.shape(4) if call.has(4) else None
            window = window_of_call(call, x[2:], kernel)  # type: ignore[arg-type]
            _deform_shapes(call.fail, call.shape(2), mask, window, x[0], x[1], call.attr("offset_group", 1))
    return TensorType(call.dtype(0), shape)


register(Op("DeformConv", since=19, infer=_infer_deform_conv, reference=_deform_conv))


# --- CausalConvWithState ---

_ACTIVATIONS = ("none", "silu", "swish")


def _check_causal(fail: Fail, x: Sequence[Dim], w: Sequence[Dim], past: Sequence[Dim] | None, activation: str) -> None:
    if activation not in _ACTIVATIONS:
        raise fail(f"activation '{activation}' is not one of {', '.join(_ACTIVATIONS)}")
    if len(x) != 3 or len(w) != 3:
        raise fail(f"input and weight have ranks {len(x)} and {len(w)}; both must have 3")
    if isinstance(w[1], int) and w[1] != 1:
        raise fail(f"the weight has shape {list(w)}; (channels, 1, k) is needed")
    if isinstance(x[1], int) and isinstance(w[0], int) and x[1] != w[0]:
        raise fail(f"the input has {x[1]} channels and the weight {w[0]}; they must be equal")
    if isinstance(w[2], int) and w[2] < 1:
        raise fail("the kernel has no taps")
    if past is not None:
        want = (x[0], x[1], w[2] - 1 if isinstance(w[2], int) else None)
        if not _may_equal(past, want):
            raise fail(f"past_state has shape {list(past)}; {list(want)} is needed")


def _causal_conv(x, w, bias=None, past_state=None, *, activation="none"):
    _check_causal(ShapeError, x.shape, w.shape, None if past_state is None else past_state.shape, activation)
    batch, channels, length = x.shape
    taps = w.shape[2]
    past = np.zeros((batch, channels, taps - 1), x.dtype) if past_state is None else past_state
    line = np.concatenate([past, x], axis=2)
    data, weight = wide(line), wide(w)
    y = np.zeros((batch, channels, length), data.dtype)
    for t in range(taps):
        y += data[:, :, t : t + length] * weight[:, 0, t, None]
    _add_bias(y, None if bias is None else wide(bias))
    if activation != "none":
        y = y / (1 + np.exp(-y))
    return y.astype(x.dtype, copy=False), np.ascontiguousarray(line[:, :, length:])


def _infer_causal_conv(call: Call) -> list[TensorType]:
    x, w, dtype = call.shape(0), call.shape(1), call.dtype(0)
    if x is None or w is None:
        return [TensorType(dtype, x), TensorType(dtype)]
    past = call.shape(3) if call.has(3) else None
    _check_causal(call.fail, x, w, past, call.attr("activation", "none"))
    _check_bias(call.fail, call.shape(2) if call.has(2) else None, x[1])
    state = (x[0], x[1], w[2] - 1 if isinstance(w[2], int) else None)
    return [TensorType(dtype, x), TensorType(dtype, state)]


register(Op("CausalConvWithState", since=27, infer=_infer_causal_conv, reference=_causal_conv))
