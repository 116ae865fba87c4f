"""Resampling along one axis: each output row is a weighted sum of a few input rows."""

import numpy as np

from minifer.kernels.simd import lanes, share, vfma, vload, vstore
from minifer.kernels.spec import f32, f64, i64, kernel, ptr, ptr_i64

#: outputs that one thread makes at a time where rows are short
CHUNK = 64


def resample_example(rng, size, T):
    outer, have, out, inner = (int(v) for v in rng.integers(1, (4, 3 * size + 1, 4 * size + 1, 9 * size)))
    inner = inner if rng.random() < 0.6 else 1
    taps = int(rng.integers(1, 6))
    return {
        "x": rng.standard_normal((outer, have, inner)).astype(T.dtype), "y": np.zeros((outer, out, inner), T.dtype),
        "places": rng.integers(0, have, (out, taps)), "weights": rng.uniform(-1, 1, (out, taps)).astype(T.dtype),
        "outer": outer, "size": have, "out": out, "inner": inner, "taps": taps,
    }  # fmt: skip


def resample_reference(x, y, places, weights, outer, size, out, inner, taps):
    terms = x[:, places].astype("d") * weights[:, :, None]
    return {"y": (terms.sum(2), np.maximum(np.abs(terms).sum(2), 1))}


def blend_line(x, places, weights, taps, step, y, n):
    """y[i] = sum over t of weights[t] * x[places[t] * step + i] for i < n."""
    w = lanes(x)
    whole = n // w * w
    if taps == 2:
        a, b = x + places[0] * step, x + places[1] * step
        for i in range(0, whole, w):
            vstore(y, i, vfma(vload(b, i), weights[1], vload(a, i) * weights[0]))
    else:
        for i in range(0, whole, w):
            total = vload(x, places[0] * step + i) * weights[0]
            for t in range(1, taps):
                total = vfma(vload(x, places[t] * step + i), weights[t], total)
            vstore(y, i, total)
    for i in range(whole, n):
        y[i] = blend(x + i, places, weights, taps, step)


def blend(x, places, weights, taps, step):
    """The sum over t of weights[t] * x[places[t] * step]."""
    total = x[places[0] * step] * weights[0]
    for t in range(1, taps):
        total = vfma(x[places[t] * step], weights[t], total)
    return total


def blend_two(x, places, weights, inner, y, first, end):
    """Outputs first to end of a line by two taps."""
    for i in range(first, end):
        a, b = places[2 * i] * inner, places[2 * i + 1] * inner
        for j in range(inner):
            y[i * inner + j] = vfma(x[b + j], weights[2 * i + 1], x[a + j] * weights[2 * i])


def blend_four(x, places, weights, inner, y, first, end):
    """Outputs first to end of a line by four taps."""
    for i in range(first, end):
        p, w = places + 4 * i, weights + 4 * i
        a, b, c, d = p[0] * inner, p[1] * inner, p[2] * inner, p[3] * inner
        for j in range(inner):
            near = vfma(x[b + j], w[1], x[a + j] * w[0])
            y[i * inner + j] = vfma(x[d + j], w[3], vfma(x[c + j], w[2], near))


@kernel(reference=resample_reference, example=resample_example, tolerance=2e-6, over={"T": (f32, f64)})
def resample(
    x: ptr("T"), y: ptr("T"), places: ptr_i64, weights: ptr("T"), outer: i64, size: i64, out: i64, inner: i64,
    taps: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[o, i] = sum over t of weights[i, t] * x[o, places[i, t]]. x: (outer, size, inner), y: (outer, out, inner).

    places, weights: (out, taps), places in [0, size). 2 taps FLOPs an output; error: taps roundings.
    """
    if inner < lanes(x):
        chunks = (out + CHUNK - 1) // CHUNK
        for unit in range(share(outer * chunks, tid, nthreads), share(outer * chunks, tid + 1, nthreads)):
            o, first = unit // chunks, unit % chunks * CHUNK
            source, target = x + o * size * inner, y + o * out * inner
            end = min(first + CHUNK, out)
            if taps == 2:
                blend_two(source, places, weights, inner, target, first, end)
            elif taps == 4:
                blend_four(source, places, weights, inner, target, first, end)
            else:
                for i in range(first, end):
                    for j in range(inner):
                        target[i * inner + j] = blend(source + j, places + i * taps, weights + i * taps, taps, inner)
    else:
        for unit in range(share(outer * out, tid, nthreads), share(outer * out, tid + 1, nthreads)):
            o, i = unit // out, unit % out
            source, target = x + o * size * inner, y + unit * inner
            blend_line(source, places + i * taps, weights + i * taps, taps, inner, target, inner)
