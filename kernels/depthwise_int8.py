"""Depthwise convolution of 8-bit integers: every channel has a filter of its own.

As depthwise.py, with the input widened as in integer.py: 16 bits, zero points taken off, the padding written out, and
room for a whole number of vectors of channels. Vector lanes run along channels; four neighbouring pixels share a load
of the weights. Sums are exact.
"""

import numpy as np

from minifer.kernels.conv import (
    BATCH,
    CHANNELS,
    DILATION_D,
    DILATION_H,
    DILATION_W,
    FILTERS,
    IN_D,
    IN_H,
    IN_W,
    OUT_D,
    OUT_H,
    OUT_W,
    STRIDE_D,
    STRIDE_H,
    STRIDE_W,
    TAPS_D,
    TAPS_H,
    TAPS_W,
    geometry,
)
from minifer.kernels.integer import bytes_finish, finish_example, finish_i32, finished_reference
from minifer.kernels.simd import lanes, share, vconvert, vload_n, vsplat
from minifer.kernels.spec import KernelSpec, Pointer, i8, i32, i64, kernel, ptr_f32, ptr_i16, ptr_i64, u8


def room(channels: int) -> int:
    """Channels of the widened input, and of the packed weights: filled up to whole vectors of sums."""
    return -(-channels // i32.lanes) * i32.lanes


def depthwise_geometry(batch, channels, in_size, out_size, taps, strides, dilations) -> np.ndarray:
    """The table: `in_size` has the padding in it, `channels` is as in the model."""
    return geometry(
        batch, room(channels), channels, 1, in_size, out_size, taps, strides, (0, 0, 0), dilations
    )  # fmt: skip


def pack_depthwise(weight: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """ONNX weights (channels, 1, *taps) less their zero points (one, or one per channel), as int16 (taps, room)."""
    channels = weight.shape[0]
    rows = weight.reshape(channels, -1).astype(np.int16) - zero.astype(np.int16).reshape(-1, 1)
    packed = np.zeros((rows.shape[1], room(channels)), np.int16)
    packed[:, :channels] = rows.T
    return packed


def depthwise_reference(x, weight, bias, factors, shift, y, g, has_bias, step):
    n, c = int(g[BATCH]), int(g[FILTERS])
    _, out, taps, stride, _, dilation = (tuple(int(v) for v in g[i : i + 3]) for i in range(4, 22, 3))
    w = weight.reshape(*taps, -1)[..., :c].astype(np.int64)
    total = np.zeros((n, *out, c), np.int64)
    for o in np.ndindex(*out):
        for t in np.ndindex(*taps):
            at = tuple(o[i] * stride[i] + t[i] * dilation[i] for i in range(3))
            total[(slice(None), *o)] += x[(slice(None), *at)][:, :c].astype(np.int64) * w[t]
    return {"y": finished_reference(total, y, bias, factors, shift, has_bias)}


def depthwise_example(rng, size, T):
    n, c = int(rng.integers(1, 3)), int(rng.integers(1, 9 * size))
    taps = [int(rng.integers(1, 4)) for _ in range(3)]
    stride, dilation = ([int(rng.integers(1, 3)) for _ in range(3)] for _ in range(2))
    inside = [(t - 1) * d + 1 + int(rng.integers(0, (3, 3, 9)[i])) for i, (t, d) in enumerate(zip(taps, dilation))]
    out = [(i - (t - 1) * d - 1) // s + 1 for i, t, d, s in zip(inside, taps, dilation, stride)]
    done = finish_example(rng, c, (n, *out, c), T)
    weight = rng.integers(-128, 128, (c, 1, *taps)).astype("i1")
    return {
        "x": rng.integers(-255, 256, (n, *inside, room(c))).astype("i2"),
        "weight": pack_depthwise(weight, rng.integers(-9, 9, c)),
        **{k: done[k] for k in ("bias", "factors", "shift", "y")},
        "g": depthwise_geometry(n, c, inside, out, taps, stride, dilation),
        "has_bias": done["has_bias"], "step": done["step"],
    }  # fmt: skip


def depthwise(T, Z, finish) -> KernelSpec:
    """Make the kernel with results of element type T; Z is the type of their zero point."""

    def numbers(p, i):
        """A vector of i32 from p[i:]."""
        return vconvert(vload_n(p, i, lanes(i32)), i32)

    def one(p, weight, g):
        """The sums of a vector of channels of one pixel; p: where its window begins."""
        total = vsplat(i32, 0)
        for kd in range(g[TAPS_D]):
            for kh in range(g[TAPS_H]):
                line = p + (kd * g[DILATION_D] * g[IN_H] + kh * g[DILATION_H]) * g[IN_W] * g[CHANNELS]
                q = weight + (kd * g[TAPS_H] + kh) * g[TAPS_W] * g[CHANNELS]
                for _ in range(g[TAPS_W]):
                    total = total + numbers(line, 0) * numbers(q, 0)
                    line = line + g[DILATION_W] * g[CHANNELS]
                    q = q + g[CHANNELS]
        return total

    def four(p, weight, g):
        """The same for four neighbouring pixels of the output."""
        s0, s1, s2, s3 = vsplat(i32, 0), vsplat(i32, 0), vsplat(i32, 0), vsplat(i32, 0)
        step = g[STRIDE_W] * g[CHANNELS]
        for kd in range(g[TAPS_D]):
            for kh in range(g[TAPS_H]):
                line = p + (kd * g[DILATION_D] * g[IN_H] + kh * g[DILATION_H]) * g[IN_W] * g[CHANNELS]
                q = weight + (kd * g[TAPS_H] + kh) * g[TAPS_W] * g[CHANNELS]
                for _ in range(g[TAPS_W]):
                    w = numbers(q, 0)
                    s0 = s0 + numbers(line, 0) * w
                    s1 = s1 + numbers(line, step) * w
                    s2 = s2 + numbers(line, 2 * step) * w
                    s3 = s3 + numbers(line, 3 * step) * w
                    line = line + g[DILATION_W] * g[CHANNELS]
                    q = q + g[CHANNELS]
        return s0, s1, s2, s3

    def body(
        x: ptr_i16, weight: ptr_i16, bias: Pointer(i32), factors: ptr_f32, shift: Pointer(Z), y: Pointer(T), g: ptr_i64,
        has_bias: i64, step: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y = finish(depthwise convolution of x).

        x: (batch, depth, height, width, room(channels)) with its padding; weight: see pack_depthwise; bias:
        (channels,), read where has_bias; factors: (channels,), or one for all where step is 0; shift: the zero point
        of y; y: (batch, out depth, out height, out width, channels). 2 * results * taps operations, exact but for the
        finish (see integer.py). Split over output rows.
        """
        channels, width = g[FILTERS], g[CHANNELS]
        rows = g[BATCH] * g[OUT_D] * g[OUT_H]
        for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
            rest = row // g[OUT_H]
            d = rest // g[OUT_D] * g[IN_D] + rest % g[OUT_D] * g[STRIDE_D]
            line = x + (d * g[IN_H] + row % g[OUT_H] * g[STRIDE_H]) * g[IN_W] * width
            ow = 0
            while ow < g[OUT_W]:
                count = 4 if ow + 4 <= g[OUT_W] else 1
                for c in range(0, channels, lanes(i32)):
                    p = line + (ow * g[STRIDE_W] * width + c)
                    at, n = (row * g[OUT_W] + ow) * channels + c, channels - c
                    if count == 4:
                        s0, s1, s2, s3 = four(p, weight + c, g)
                        finish(s0, y, at, n, c, bias, factors, shift, has_bias, step)
                        finish(s1, y, at + channels, n, c, bias, factors, shift, has_bias, step)
                        finish(s2, y, at + 2 * channels, n, c, bias, factors, shift, has_bias, step)
                        finish(s3, y, at + 3 * channels, n, c, bias, factors, shift, has_bias, step)
                    else:
                        finish(one(p, weight + c, g), y, at, n, c, bias, factors, shift, has_bias, step)
                ow += count

    def example(rng, size):
        return depthwise_example(rng, size, T)

    return kernel(
        reference=depthwise_reference, example=example, outputs=("y",), name=f"depthwise_{T}", group=f"{T}",
        tolerance=0,
    )(body)  # fmt: skip


depthwise_i32 = depthwise(i32, u8, finish_i32)
depthwise_u8 = depthwise(u8, u8, bytes_finish(u8))
depthwise_i8 = depthwise(i8, i8, bytes_finish(i8))
