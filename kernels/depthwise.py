"""Depthwise convolution on channels-last tensors: every channel has a filter of its own.

There is no sum over channels, so the vector lanes run along them: a lane holds one channel, and the sum over taps stays
in a register. With stride 1 seven neighbouring pixels are computed at once: a weight and a column of the input are then
loaded once for up to seven products. Other strides take four vectors of channels of one pixel at a time.
Geometry as in conv.py (GROUPS = CHANNELS = FILTERS); float32.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.activation import activate
from minifer.kernels.conv import (
    BATCH,
    CHANNELS,
    DILATION_D,
    DILATION_H,
    DILATION_W,
    IN_D,
    IN_H,
    IN_W,
    OUT_D,
    OUT_H,
    OUT_W,
    PAD_D,
    PAD_H,
    PAD_W,
    STRIDE_D,
    STRIDE_H,
    STRIDE_W,
    TAPS_D,
    TAPS_H,
    TAPS_W,
    activation_reference,
    geometry,
)
from minifer.kernels.simd import lanes, share, vfma, vload, vload_part, vsplat, vstore, vstore_part
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64

STRIP = 7  # pixels; a divisor of the widths that image networks have (7, 14, 28, 56, 112)


def pack_weights(weight: np.ndarray) -> np.ndarray:
    """ONNX weights (channels, 1, *taps) as (taps, channels), taps in row-major order."""
    return np.ascontiguousarray(weight.reshape(weight.shape[0], -1).T)


def depthwise_reference(x, weight, bias, residual, y, g, code, first, second, has_bias, has_residual):
    """The same by the definition, in float64."""
    size, out, taps, stride, pad, dilation = (tuple(int(v) for v in g[i : i + 3]) for i in range(4, 22, 3))
    n, c = int(g[BATCH]), int(g[CHANNELS])
    source = x.reshape(n, *size, c).astype(np.float64)
    w = weight.reshape(*taps, c).astype(np.float64)
    result, magnitude = np.zeros((n, *out, c)), np.zeros((n, *out, c))
    for o in np.ndindex(*out):
        for t in np.ndindex(*taps):
            at = tuple(o[i] * stride[i] + t[i] * dilation[i] - pad[i] for i in range(3))
            if all(0 <= at[i] < size[i] for i in range(3)):
                result[(slice(None), *o)] += source[(slice(None), *at)] * w[t]
                magnitude[(slice(None), *o)] += abs(source[(slice(None), *at)] * w[t])
    if has_bias:
        result, magnitude = result + bias, magnitude + abs(bias)
    if has_residual:
        result, magnitude = result + residual, magnitude + abs(residual)
    return {"y": (activation_reference(result, code, first, second), np.maximum(magnitude, 1))}


def depthwise_example(rng, size):
    c = int(rng.integers(1, 12 * size))
    taps = [1, int(rng.integers(1, 4)), int(rng.integers(1, 4))]
    stride, dilation = ([1, *(int(rng.integers(1, 3)) for _ in range(2))] for _ in range(2))
    pad = [0, *(int(rng.integers(0, t)) for t in taps[1:])]
    inside = [1, *((t - 1) * d + 1 + int(rng.integers(0, 9)) for t, d in zip(taps[1:], dilation[1:]))]
    out = [(i + 2 * p - (t - 1) * d - 1) // s + 1 for i, p, t, d, s in zip(inside, pad, taps, dilation, stride)]
    n = int(rng.integers(1, 3))
    shape = (n, *out, c)
    return {
        "x": rng.standard_normal((n, *inside, c)).astype("f"),
        "weight": pack_weights(rng.standard_normal((c, 1, *taps)).astype("f")),
        "bias": rng.standard_normal(c).astype("f"),
        "residual": rng.standard_normal(shape).astype("f"),
        "y": np.full(shape, np.nan, "f"),
        "g": geometry(n, c, c, c, inside, out, taps, stride, pad, dilation),
        "code": int(rng.integers(0, 2)),
        "first": 0.25,
        "second": 6.0,
        "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)),
    }


@kernel(reference=depthwise_reference, example=depthwise_example, outputs=("y",), tolerance=2e-6)
def depthwise(
    x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, g: ptr_i64,
    code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = activate(depthwise convolution of x + bias + residual).

    x: (batch, depth, height, width, channels); weight: (taps, channels); bias: (channels,); residual, y: (batch, out
    depth, out height, out width, channels). 2 * results * taps FLOPs. Work is split over output rows.
    """
    out_w, stride_w, pad_w = g[OUT_W], g[STRIDE_W], g[PAD_W]
    rows = g[BATCH] * g[OUT_D] * g[OUT_H]
    vectors = g[CHANNELS] // lanes(x) * lanes(x)
    rolling = stride_w == 1 and g[DILATION_W] == 1
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        oh = row % g[OUT_H]
        rest = row // g[OUT_H]
        d0 = rest % g[OUT_D] * g[STRIDE_D] - g[PAD_D]
        h0 = oh * g[STRIDE_H] - g[PAD_H]
        image = x + rest // g[OUT_D] * (g[IN_D] * g[IN_H] * g[IN_W] * g[CHANNELS])
        at = row * out_w * g[CHANNELS]
        for ow in range(0, out_w, STRIP):
            count = min(STRIP, out_w - ow)
            w0 = ow * stride_w - pad_w
            corner = at + ow * g[CHANNELS]
            if rolling:
                for c in range(0, vectors, lanes(x)):
                    rolling_strip(image, weight, bias, residual, y, g, d0, h0, w0, corner + c, c, count,
                                  code, first, second, has_bias, has_residual)  # fmt: skip
            else:
                for i in range(count):
                    one_pixel(image, weight, bias, residual, y, g, d0, h0, w0 + i * stride_w, corner + i * g[CHANNELS],
                              vectors, code, first, second, has_bias, has_residual)  # fmt: skip
            if vectors < g[CHANNELS]:
                for i in range(count):
                    last_channels(image, weight, bias, residual, y, g, d0, h0, w0 + i * stride_w,
                                  corner + i * g[CHANNELS], vectors,
                                  code, first, second, has_bias, has_residual)  # fmt: skip


def column(line, w, width, channels):
    """The vector at column w of a line of pixels; zeros outside of it."""
    if w >= 0 and w < width:
        return vload(line, w * channels)
    return vsplat(f32, 0)


def rolling_strip(image, weight, bias, residual, y, g, d0, h0, w0, at, c, count,
                  code, first, second, has_bias, has_residual):  # fmt: skip
    """One vector of channels of STRIP neighbouring pixels, stride 1: a tap further on, all but one column is there
    already. Seven sums keep both multipliers busy."""
    channels, width = g[CHANNELS], g[IN_W]
    start = vload(bias, c) if has_bias != 0 else vsplat(f32, 0)
    s0, s1, s2, s3, s4, s5, s6 = start, start, start, start, start, start, start
    for kd in range(g[TAPS_D]):
        d = d0 + kd * g[DILATION_D]
        for kh in range(g[TAPS_H]):
            h = h0 + kh * g[DILATION_H]
            if d >= 0 and d < g[IN_D] and h >= 0 and h < g[IN_H]:
                line = image + ((d * g[IN_H] + h) * width * channels + c)
                q = weight + ((kd * g[TAPS_H] + kh) * g[TAPS_W] * channels + c)
                x0 = column(line, w0, width, channels)
                x1 = column(line, w0 + 1, width, channels)
                x2 = column(line, w0 + 2, width, channels)
                x3 = column(line, w0 + 3, width, channels)
                x4 = column(line, w0 + 4, width, channels)
                x5 = column(line, w0 + 5, width, channels)
                for kw in range(g[TAPS_W]):
                    x6 = column(line, w0 + kw + 6, width, channels)
                    k = vload(q, kw * channels)
                    s0, s1, s2, s3 = vfma(x0, k, s0), vfma(x1, k, s1), vfma(x2, k, s2), vfma(x3, k, s3)
                    s4, s5, s6 = vfma(x4, k, s4), vfma(x5, k, s5), vfma(x6, k, s6)
                    x0, x1, x2, x3, x4, x5 = x1, x2, x3, x4, x5, x6
    for _ in range(count):
        total = s0
        if has_residual != 0:
            total = total + vload(residual, at)
        vstore(y, at, activate(total, code, first, second))
        at += channels
        s0, s1, s2, s3, s4, s5 = s1, s2, s3, s4, s5, s6


def one_pixel(image, weight, bias, residual, y, g, d0, h0, w0, corner, vectors,
              code, first, second, has_bias, has_residual):  # fmt: skip
    """One pixel, `vectors` channels, four vectors at a time; taps outside of the input are left out."""
    channels, step = g[CHANNELS], g[DILATION_W]
    w = lanes(image)
    # taps inside the line: w0 + kw * step in [0, width)
    kw_from = (0 - w0 + step - 1) // step if w0 < 0 else 0
    kw_to = min(g[TAPS_W], (g[IN_W] - 1 - w0) // step + 1)
    c = 0
    while c < vectors:
        # the last group of four may overlap the one before: the same sums are written again
        if c + 4 * w > vectors and vectors >= 4 * w:
            c = vectors - 4 * w
        wide = c + 4 * w <= vectors
        zero = vsplat(f32, 0)
        s0 = vload(bias, c) if has_bias != 0 else zero
        s1, s2, s3 = zero, zero, zero
        if wide and has_bias != 0:
            s1, s2, s3 = vload(bias, c + w), vload(bias, c + 2 * w), vload(bias, c + 3 * w)
        for kd in range(g[TAPS_D]):
            d = d0 + kd * g[DILATION_D]
            for kh in range(g[TAPS_H]):
                h = h0 + kh * g[DILATION_H]
                if d >= 0 and d < g[IN_D] and h >= 0 and h < g[IN_H]:
                    p = image + (((d * g[IN_H] + h) * g[IN_W] + w0) * channels + c)
                    q = weight + ((kd * g[TAPS_H] + kh) * g[TAPS_W] * channels + c)
                    for kw in range(kw_from, kw_to):
                        a, b = p + kw * step * channels, q + kw * channels
                        s0 = vfma(vload(a, 0), vload(b, 0), s0)
                        if wide:
                            s1 = vfma(vload(a, w), vload(b, w), s1)
                            s2 = vfma(vload(a, 2 * w), vload(b, 2 * w), s2)
                            s3 = vfma(vload(a, 3 * w), vload(b, 3 * w), s3)
        at = corner + c
        if has_residual != 0:
            s0 = s0 + vload(residual, at)
            if wide:
                s1 = s1 + vload(residual, at + w)
                s2 = s2 + vload(residual, at + 2 * w)
                s3 = s3 + vload(residual, at + 3 * w)
        vstore(y, at, activate(s0, code, first, second))
        if wide:
            vstore(y, at + w, activate(s1, code, first, second))
            vstore(y, at + 2 * w, activate(s2, code, first, second))
            vstore(y, at + 3 * w, activate(s3, code, first, second))
        c += 4 * w if wide else w


def last_channels(image, weight, bias, residual, y, g, d0, h0, w0, corner, c,
                  code, first, second, has_bias, has_residual):  # fmt: skip
    """The channels of one pixel that do not fill a vector."""
    channels = g[CHANNELS]
    n = channels - c
    total = vload_part(bias, c, n) if has_bias != 0 else vsplat(f32, 0)
    for kd in range(g[TAPS_D]):
        d = d0 + kd * g[DILATION_D]
        for kh in range(g[TAPS_H]):
            h = h0 + kh * g[DILATION_H]
            if d >= 0 and d < g[IN_D] and h >= 0 and h < g[IN_H]:
                line = (d * g[IN_H] + h) * g[IN_W]
                q = weight + ((kd * g[TAPS_H] + kh) * g[TAPS_W] * channels + c)
                for kw in range(g[TAPS_W]):
                    at = w0 + kw * g[DILATION_W]
                    if at >= 0 and at < g[IN_W]:
                        v = vload_part(image, (line + at) * channels + c, n)
                        total = vfma(v, vload_part(q, kw * channels, n), total)
    if has_residual != 0:
        total = total + vload_part(residual, corner + c, n)
    vstore_part(y, corner + c, activate(total, code, first, second), n)
