"""Conv, ConvInteger and QLinearConv (ConvTranspose, DeformConv and CausalConvWithState have files of their own).

The references copy windows into columns and multiply matrices (one BLAS call per image and group, in blocks that
bound the memory), or, where every channel is convolved alone, add up one shifted product per kernel tap.
Shapes: x (N, C, D1..Dn), w (M, C/group, k1..kn), y (N, M, o1..on).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from minifer.errors import ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import Fail
from minifer.ops.window import Window, slide, wide, window_of_call

lower_conv, rows_of_conv = deferred("lower_conv", "lower_conv", "rows_of_conv")

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
    return kernel_of(fail, w, kernel_shape)


def kernel_of(fail: Fail, w: Sequence[Dim], kernel_shape: Sequence[int] | None) -> tuple[Dim, ...]:
    """The kernel's spatial shape, from the weight and the attribute, which must agree."""
    kernel = tuple(w[2:])
    if kernel_shape:
        clash = any(isinstance(a, int) and a != b for a, b in zip(kernel, kernel_shape))
        if len(kernel_shape) != len(kernel) or clash:
            raise fail(f"kernel_shape {list(kernel_shape)} differs from the weight's {list(kernel)}")
        return tuple(kernel_shape)
    return kernel


def known(dims: Sequence[Dim]) -> bool:
    """True where all sizes are numbers."""
    return all(isinstance(d, int) for d in dims)


def may_equal(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """False where two shapes are certainly different; unknown sizes and symbols may be anything."""
    return len(a) == len(b) and not any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in zip(a, b))


def check_bias(fail: Fail, bias: Sequence[Dim] | None, channels: Dim) -> None:
    """Raise unless the bias is omitted or may have shape [channels]."""
    if bias is None:
        return
    if not may_equal(bias, (channels,)):
        raise fail(f"the bias has shape {list(bias)}; [{channels}] is needed")


def conv_shape(call: Call, x: int, w: int, bias: int | None) -> tuple[Dim, ...] | None:
    """Output shape of a convolution whose input, weight and bias are the node's inputs x, w, bias."""
    data, weight = call.shape(x), call.shape(w)
    if weight is None or data is None:
        if data is None and weight is None:
            return None
        return (*(data or (None,))[:1], *(weight or (None,))[:1], *[None] * (len(data or weight or ()) - 2))
    kernel = _check_weight(call.fail, data, weight, call.attr("group", 1), call.attr("kernel_shape"))
    check_bias(call.fail, call.shape(bias) if bias is not None and call.has(bias) else None, weight[0])
    spatial: tuple[Dim, ...] = (None,) * len(kernel)
    if known(kernel):
        spatial = window_of_call(call, data[2:], kernel).out  # type: ignore[arg-type]
    return data[0], weight[0], *spatial


def conv_window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad) -> Window:
    """The window of a convolution of arrays, checked."""
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


def add_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """y (N, M, o...) with bias (M,) added in place."""
    if bias is not None:
        check_bias(ShapeError, bias.shape, y.shape[1])
        y += bias.reshape(-1, *(1,) * (y.ndim - 2))
    return y


# --- Conv ---


def conv_reference(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
):
    """Conv: float tensors of one dtype; 16-bit floats are summed in float32."""
    window = conv_window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad)
    y = convolve(wide(x), wide(w), window, group)
    return add_bias(y, None if b is None else wide(b)).astype(x.dtype, copy=False)


def infer_conv(call: Call) -> TensorType:
    """Type rule of Conv: (N, M, o...) in the input's element type."""
    return TensorType(call.dtype(0), conv_shape(call, 0, 1, 2))


register(Op("Conv", since=1, infer=infer_conv, reference=conv_reference, lower=lower_conv, rows=rows_of_conv))


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
    window = conv_window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad)
    # through int64, so that a sum beyond 32 bits wraps instead of being undefined
    return integer_convolution(x, w, x_zero_point, w_zero_point, window, group).astype(np.int64).astype(np.int32)


register(
    Op(
        "ConvInteger",
        since=10,
        infer=lambda call: TensorType("int32", conv_shape(call, 0, 1, None)),
        reference=_conv_integer,
        lower=deferred("lower_integer", "lower_conv_integer"),
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
    window = conv_window(x, w, group, kernel_shape, strides, dilations, pads, auto_pad)
    total = integer_convolution(x, w, x_zero_point, w_zero_point, window, group)
    total = add_bias(total, None if b is None else b.astype(np.float64))
    if w_scale.size != 1 and w_scale.shape != (w.shape[0],):
        raise ShapeError(f"w_scale has shape {list(w_scale.shape)}; a scalar or [{w.shape[0]}] is needed")
    scale = _scalar(x_scale, "x_scale") * w_scale.reshape(-1) / _scalar(y_scale, "y_scale")
    return requantize(total, scale.reshape(-1, *(1,) * (x.ndim - 2)), _scalar(y_zero_point, "y_zero_point"))


register(
    Op(
        "QLinearConv",
        since=10,
        infer=lambda call: TensorType(call.dtype(7), conv_shape(call, 0, 3, 8)),
        reference=_qlinear_conv,
        lower=deferred("lower_integer", "lower_qlinear_conv"),
    )
)
