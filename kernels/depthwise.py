"""Depthwise convolution on channels-last tensors: every channel has a filter of its own.

There is no sum over channels, so the vector lanes run along them: a lane holds one channel, and the sum over taps stays
in a register. Four neighbouring pixels are computed at once, so that a weight is loaded once for four products.
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
    channels = g[CHANNELS]
    rows = g[BATCH] * g[OUT_D] * g[OUT_H]
    out_w, stride_w, pad_w = g[OUT_W], g[STRIDE_W], g[PAD_W]
    reach = (g[TAPS_W] - 1) * g[DILATION_W]
    # pixels whose taps all lie inside the row: [inner_from, inner_to)
    inner_from = min((pad_w + stride_w - 1) // stride_w, out_w)
    inner_to = max(min((g[IN_W] - 1 - reach + pad_w) // stride_w + 1, out_w), inner_from)
    if g[IN_W] - 1 - reach + pad_w < 0:
        inner_to = inner_from
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        oh = row % g[OUT_H]
        rest = row // g[OUT_H]
        d0 = rest % g[OUT_D] * g[STRIDE_D] - g[PAD_D]
        h0 = oh * g[STRIDE_H] - g[PAD_H]
        image = x + rest // g[OUT_D] * (g[IN_D] * g[IN_H] * g[IN_W] * channels)
        for ow in range(0, inner_from):
            pixels(image, weight, bias, residual, y, g, row, d0, h0, ow, 1, code, first, second, has_bias, has_residual)
        ow = inner_from
        while ow + 4 <= inner_to:
            pixels(image, weight, bias, residual, y, g, row, d0, h0, ow, 4, code, first, second, has_bias, has_residual)
            ow += 4
        while ow < out_w:
            pixels(image, weight, bias, residual, y, g, row, d0, h0, ow, 1, code, first, second, has_bias, has_residual)
            ow += 1


def pixels(image, weight, bias, residual, y, g, row, d0, h0, ow, count, code, first, second, has_bias, has_residual):
    """`count` (4 or 1) pixels of an output row from `ow` on, all channels. Four need all their taps inside the row."""
    channels = g[CHANNELS]
    w0 = ow * g[STRIDE_W] - g[PAD_W]
    corner = (row * g[OUT_W] + ow) * channels
    step = g[STRIDE_W] * channels
    w = lanes(image)
    c = 0
    while c + w <= channels and count == 4:
        start = vload(bias, c) if has_bias != 0 else vsplat(f32, 0)
        s0, s1, s2, s3 = start, start, start, start
        for kd in range(g[TAPS_D]):
            d = d0 + kd * g[DILATION_D]
            for kh in range(g[TAPS_H]):
                h = h0 + kh * g[DILATION_H]
                if d >= 0 and d < g[IN_D] and h >= 0 and h < g[IN_H]:
                    p = image + (((d * g[IN_H] + h) * g[IN_W] + w0) * channels + c)
                    q = weight + ((kd * g[TAPS_H] + kh) * g[TAPS_W] * channels + c)
                    for _ in range(g[TAPS_W]):
                        k = vload(q, 0)
                        s0 = vfma(vload(p, 0), k, s0)
                        s1 = vfma(vload(p, step), k, s1)
                        s2 = vfma(vload(p, 2 * step), k, s2)
                        s3 = vfma(vload(p, 3 * step), k, s3)
                        p = p + g[DILATION_W] * channels
                        q = q + channels
        at = corner + c
        if has_residual != 0:
            s0 = s0 + vload(residual, at)
            s1 = s1 + vload(residual, at + channels)
            s2 = s2 + vload(residual, at + 2 * channels)
            s3 = s3 + vload(residual, at + 3 * channels)
        vstore(y, at, activate(s0, code, first, second))
        vstore(y, at + channels, activate(s1, code, first, second))
        vstore(y, at + 2 * channels, activate(s2, code, first, second))
        vstore(y, at + 3 * channels, activate(s3, code, first, second))
        c += w
    while c < channels:
        for i in range(count):
            one_pixel(image, weight, bias, residual, y, g, d0, h0, w0 + i * g[STRIDE_W], corner + i * channels, c,
                      code, first, second, has_bias, has_residual)  # fmt: skip
        c += w


def one_pixel(image, weight, bias, residual, y, g, d0, h0, w0, corner, c, code, first, second, has_bias, has_residual):
    """Up to one vector of channels from `c` on, of one pixel; taps outside of the input are left out."""
    channels = g[CHANNELS]
    n = min(lanes(image), channels - c)
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
