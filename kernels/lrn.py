"""Local response normalisation: each number divided by a power of the squares around it, along the channels.

y = x / (bias + alpha / size * (sum of squares of `size` neighbouring channels)) ** beta (Krizhevsky, Sutskever and
Hinton 2012). One kernel for both layouts: vector lanes run over pixels, or over channels themselves.
"""

import numpy as np

from minifer.kernels.mathfn import exp, log
from minifer.kernels.simd import f32, lanes, like, share, vload, vload_part, vset, vsplat, vsqrt, vstore_part
from minifer.kernels.spec import i64, kernel, ptr_f32


def lrn_reference(x, y, outer, channels, inner, size, alpha, beta, bias):
    block = x.reshape(outer, channels, inner).astype("d")
    square, total = np.square(block), np.zeros(block.shape)
    for shift in range(-((size - 1) // 2), size // 2 + 1):
        for c in range(channels):
            if 0 <= c + shift < channels:
                total[:, c] += square[:, c + shift]
    return {"y": (block / (bias + alpha / size * total) ** beta).reshape(y.shape)}


def lrn_example(rng, size):
    outer, channels, inner = (int(v) for v in rng.integers(1, (4, 14 * size, 9 * size)))
    inner = 1 if rng.random() < 0.5 else inner
    x = (rng.standard_normal((outer, channels, inner)) * 3).astype("f")
    return {
        "x": x, "y": np.zeros_like(x), "outer": outer, "channels": channels, "inner": inner,
        "size": int(rng.integers(1, 8)), "alpha": 0.125, "beta": float(rng.choice([0.5, 0.75, 0.6])), "bias": 1.5,
    }  # fmt: skip


def power_below(s, beta):
    """s ** -beta for positive s."""
    if beta == f32(0.75):
        return like(s, 1.0) / vsqrt(s * vsqrt(s))
    if beta == f32(0.5):
        return like(s, 1.0) / vsqrt(s)
    return like(s, 1.0) / exp(log(s) * beta)


@kernel(reference=lrn_reference, example=lrn_example, tolerance=3e-6)
def lrn(
    x: ptr_f32, y: ptr_f32, outer: i64, channels: i64, inner: i64, size: i64, alpha: f32, beta: f32, bias: f32,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """x, y: (outer, channels, inner); the window of channel c is [c - (size - 1) // 2, c + size // 2], cut at the ends.

    size + 5 operations an element (and a logarithm and an exponential where beta is neither 0.75 nor 0.5).
    """
    w = lanes(x)
    below, above = (size - 1) // 2, size // 2
    factor = alpha / f32(size)
    lines = outer * (channels if inner > 1 else 1)
    for line in range(share(lines, tid, nthreads), share(lines, tid + 1, nthreads)):
        if inner > 1:
            c = line % channels
            low, high = max(0, c - below), min(channels - 1, c + above)
            for i in range(0, inner, w):
                total = vsplat(f32, 0)
                for k in range(low, high + 1):
                    v = vload_part(x, (line - c + k) * inner + i, inner - i)
                    total = total + v * v
                at = line * inner + i
                result = vload_part(x, at, inner - i) * power_below(total * factor + bias, beta)
                vstore_part(y, at, result, inner - i)
        else:
            row = x + line * channels
            for c in range(0, channels, w):
                total = vsplat(f32, 0)
                for shift in range(-below, above + 1):
                    v = shifted(row, c + shift, channels)
                    total = total + v * v
                result = vload_part(row, c, channels - c) * power_below(total * factor + bias, beta)
                vstore_part(y, line * channels + c, result, channels - c)


def shifted(row, start, n):
    """The vector at row[start:], with zeros for what lies outside of the row's n elements."""
    w = lanes(row)
    if start >= 0:
        return vload(row, start) if start + w <= n else vload_part(row, start, n - start)
    v = vsplat(f32, 0)
    for lane in range(-start, w):
        if start + lane < n:
            v = vset(v, lane, row[start + lane])
    return v
