"""Conv as kernel calls: depthwise, or implicit GEMM, both on channels-last tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import ShapeError
from minifer.kernels import conv, conv_transpose, depthwise, gemm
from minifer.kernels.simd import NR
from minifer.ops.lower_fused import conv_tail
from minifer.ops.registry import CHANNELS_LAST, Declined
from minifer.ops.window import Window, slide

#: input channels up to which a row of taps is better read as one run, from a copy with the padding written out
FEW_CHANNELS = 8


def three(values: Sequence[Any], fill: int) -> tuple[int, ...]:
    """One to three numbers as depth, height, width."""
    return (fill,) * (3 - len(values)) + tuple(values)


def lower_conv(low: Any) -> Declined | None:
    """float32 Conv with known weights, in one to three dimensions."""
    x_shape, w_shape = low.shape(0), low.shape(1)
    rank = len(x_shape) - 2
    if low.dtype(0) != "float32":
        return Declined(f"no convolution kernel for {low.dtype(0)}")
    if not 1 <= rank <= 3:
        return Declined(f"no convolution kernel for {rank} spatial dimensions")
    if low.value(1) is None or (low.has(2) and low.value(2) is None):
        return Declined("the weights are not constant")
    window = slide(
        ShapeError, x_shape[2:], low.attr("kernel_shape") or w_shape[2:], strides=low.attr("strides"),
        dilations=low.attr("dilations"), pads=low.attr("pads"), auto_pad=low.attr("auto_pad", "NOTSET"),
    )  # fmt: skip
    groups, channels, filters = low.attr("group", 1), x_shape[1], w_shape[0]
    if groups == channels == filters and groups > 1:
        _depthwise(low, window, channels)
        return None
    pointwise = groups == 1 and {*window.kernel, *window.strides} == {1} and not any(map(any, window.pads))
    if pointwise:
        _pointwise(low, filters)
    else:
        _implicit_gemm(low, window, x_shape, filters, groups)
    return None


def lower_conv_transpose(low: Any, window: Window) -> Declined | None:
    """float32 ConvTranspose with known weights, in one to three dimensions."""
    x_shape, w_shape = low.shape(0), low.shape(1)
    rank, groups = len(x_shape) - 2, low.attr("group", 1)
    if low.dtype(0) != "float32" or not 1 <= rank <= 3:
        return Declined(f"no transposed convolution kernel for {low.dtype(0)} in {rank} spatial dimensions")
    if low.value(1) is None or (low.has(2) and low.value(2) is None):
        return Declined("the weights are not constant")
    batch, channels, filters = x_shape[0], x_shape[1], w_shape[1] * groups
    g = conv.geometry(
        batch, channels, filters, groups, three(x_shape[2:], 1), three(window.out, 1), three(window.kernel, 1),
        three(window.strides, 1), three([b for b, _ in window.pads], 0), three(window.dilations, 1),
    )  # fmt: skip
    x = low.input(0, CHANNELS_LAST)
    weight = low.pack(1, ("transposed", groups, int(NR)), lambda w: conv_transpose.pack_transposed(w, groups))
    (bias, residual), numbers = _tail(low, filters)
    y = low.output(0, CHANNELS_LAST)
    zeros = low.const(np.zeros(channels, np.float32))
    table = low.scratch(8 * low.threads * conv_transpose.scratch_words(g), "int64")
    low.call(conv_transpose.conv_transpose, x, weight, bias, residual, y, zeros, table, low.const(g), *numbers)
    return None


def _tail(low: Any, filters: int) -> tuple[Any, ...]:
    """The epilogue's arguments: (bias slot, residual slot), (code, first, second, has_bias, has_residual)."""
    tail = conv_tail(low) or low.epilogue(channel_axis=1)
    bias = tail.bias
    if low.has(2):
        own = np.asarray(low.value(2), np.float32)
        bias = own if bias is None else own + bias
    residual = tail.residual_slot(low, CHANNELS_LAST)
    slots = (low.const(bias) if bias is not None else None, residual)
    return slots, (tail.code, tail.first, tail.second, int(bias is not None), int(residual is not None))


def _depthwise(low: Any, window: Window, channels: int) -> None:
    batch = low.shape(0)[0]
    g = conv.geometry(
        batch, channels, channels, channels, three(low.shape(0)[2:], 1), three(window.out, 1), three(window.kernel, 1),
        three(window.strides, 1), three([b for b, _ in window.pads], 0), three(window.dilations, 1),
    )  # fmt: skip
    x = low.input(0, CHANNELS_LAST)
    weight = low.pack(1, "depthwise", depthwise.pack_weights)
    (bias, residual), numbers = _tail(low, channels)
    y = low.output(0, CHANNELS_LAST)
    low.call(depthwise.depthwise, x, weight, bias, residual, y, low.const(g), *numbers)


def _pointwise(low: Any, filters: int) -> None:
    """A 1x1 convolution is a matrix product as it stands: pixels by channels times channels by filters."""
    shape = low.shape(0)
    rows, channels = shape[0] * int(np.prod(shape[2:], dtype=np.int64)), shape[1]
    x = low.input(0, CHANNELS_LAST)
    weight = low.pack(1, ("gemm", int(NR)), lambda w: gemm.pack(w.reshape(filters, channels).T))
    (bias, residual), numbers = _tail(low, filters)
    y = low.output(0, CHANNELS_LAST)
    code, first, second, has_bias, has_residual = numbers
    sizes = (rows, filters, channels, channels, filters)
    low.call(gemm.gemm, x, weight, y, bias, residual, *sizes, has_bias, has_residual, code, first, second)


def _implicit_gemm(low: Any, window: Window, x_shape: tuple[int, ...], filters: int, groups: int) -> None:
    batch, channels = x_shape[:2]
    size = three(x_shape[2:], 1)
    begin, end = three([b for b, _ in window.pads], 0), three([e for _, e in window.pads], 0)
    taps, strides, dilations = three(window.kernel, 1), three(window.strides, 1), three(window.dilations, 1)
    merged = groups == 1 and dilations[2] == 1 and taps[2] > 1 and channels <= FEW_CHANNELS
    if merged and any((*begin, *end)):
        x, size = _with_halo(low, batch, channels, size, begin, end)
        begin = (0, 0, 0)
    else:
        x = low.input(0, CHANNELS_LAST)
    g = conv.geometry(
        batch, channels, filters, groups, size, three(window.out, 1), taps, strides, begin, dilations, merged=merged
    )
    weight = low.pack(1, ("conv", groups, int(NR)), lambda w: conv.pack_weights(w, groups))
    (bias, residual), numbers = _tail(low, filters)
    y = low.output(0, CHANNELS_LAST)
    zeros = low.const(np.zeros(int(g[conv.RUN]) * groups, np.float32))
    table = low.scratch(8 * low.threads * conv.scratch_words(g), "int64")
    low.call(conv.conv, x, weight, bias, residual, y, zeros, table, low.const(g), *numbers)


def _with_halo(low: Any, batch: int, channels: int, size, begin, end) -> tuple[Any, tuple[int, ...]]:
    """The input channels last with its padding written out; read in the order that it has."""
    padded = tuple(s + b + e for s, b, e in zip(size, begin, end))
    last = CHANNELS_LAST in low.layouts(0)
    x = low.input(0, CHANNELS_LAST) if last else low.input(0)
    count = batch * channels * padded[0] * padded[1] * padded[2]
    halo = low.scratch(4 * count, "float32")
    # elements from one pixel, channel and image to the next in the source
    area = size[0] * size[1] * size[2]
    pixel, channel = (channels, 1) if last else (1, area)
    low.call(conv.halo, x, halo, batch, channels, *size, *padded, *begin, pixel, channel)
    return halo, padded
