"""Softmax and LogSoftmax along the middle axis of a tensor seen as (outer, n, inner).

y = e**(x - m) / s with m the largest x and s the sum of the exponentials; the logarithm of that is (x - m) - log(s).
Rows (inner = 1) are read once for m, once for s and once to divide, from the first cache; columns lie side by
side in vector lanes. About twenty operations an element.
"""

import numpy as np

from minifer.kernels.mathfn import log
from minifer.kernels.simd import (
    bitcast,
    f16_to_f32,
    f32,
    f32_to_f16,
    f64,
    hmax,
    hsum,
    i32,
    lanes,
    like,
    share,
    vconvert,
    vfma,
    viota,
    vload,
    vload_part,
    vmax_quick,
    vselect,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import i64, kernel, ptr_f32
from minifer.kernels.sums import first_lanes

#: vectors added in float32 before they are added to the float64 total
BLOCK = 64

_LOG2_E = 1.4426950408889634
#: adding it leaves the nearest integer plus 127 in the low bits of the sum: the exponent of its power of two
_ROUND = 12582912.0 + 127.0


def exp_below_zero(x):
    """e**x for x <= 0: 2**n * 2**f with x * log2(e) = n + f, and a minimax polynomial for 2**f (error 9e-8).

    Exactly 1 for 0 and 0 below -87.7. Relative error 2e-7, and 1.3e-8 * |x| from the rounded log2(e): far from 0 the
    result is too small for that to matter in a sum with e**0.
    """
    x = vmax_quick(-88.0, x)
    shifted = vfma(x, _LOG2_E, _ROUND)
    f = vfma(x, _LOG2_E, like(x, _ROUND) - shifted)
    p = vfma(f, 1.3264727656228735e-3, 9.671512697326579e-3)
    p = vfma(p, f, 5.550733742292467e-2)
    p = vfma(p, f, 2.4022242084576167e-1)
    p = vfma(p, f, 6.931469775997103e-1)
    p = vfma(p, f, 1.0)
    return p * bitcast(bitcast(shifted, i32) << 23, f32)


def largest(x, n):
    """The largest of n numbers, in every lane; a NaN may be passed over (the sum then is NaN)."""
    w = lanes(x)
    low = vsplat(f32, -float("inf"))
    a, b, c, d = low, low, low, low
    i = 0
    while i + 4 * w <= n:
        a = vmax_quick(a, vload(x, i))
        b = vmax_quick(b, vload(x, i + w))
        c = vmax_quick(c, vload(x, i + 2 * w))
        d = vmax_quick(d, vload(x, i + 3 * w))
        i += 4 * w
    while i + w <= n:
        a = vmax_quick(a, vload(x, i))
        i += w
    b = vmax_quick(b, vselect(viota(f32) < f32(n - i), vload_part(x, i, n - i), low))
    top = vmax_quick(vmax_quick(a, b), vmax_quick(c, d))
    return vsplat(f32, hmax(vselect(top == top, top, low)))


def softmax_reference(x, y, outer, n, inner, logarithm):
    block = x.reshape(outer, n, inner).astype("d")
    shifted = block - block.max(1, keepdims=True)
    total = np.exp(shifted).sum(1, keepdims=True)
    result = shifted - np.log(total) if logarithm else np.exp(shifted) / total
    return {"y": result.reshape(y.shape)}


def softmax_example(rng, size):
    outer, n, inner = (int(v) for v in rng.integers(1, (4, 40 * size, 9 * size)))
    inner = 1 if rng.random() < 0.5 else inner
    x = (rng.standard_normal((outer, n, inner)) * 10).astype("f")
    if rng.random() < 0.3:
        x[rng.random(x.shape) < 0.2] = -np.inf
    y = np.full_like(x, 7)
    return {"x": x, "y": y, "outer": outer, "n": n, "inner": inner, "logarithm": int(rng.integers(2))}


@kernel(reference=softmax_reference, example=softmax_example, tolerance=1e-6)
def softmax(x: ptr_f32, y: ptr_f32, outer: i64, n: i64, inner: i64, logarithm: i64, tid: i64, nthreads: i64):
    """y[o, :, j] = softmax (or its logarithm) of x[o, :, j]; x, y: (outer, n, inner). Error 1e-6, relative."""
    if inner == 1:
        for o in range(share(outer, tid, nthreads), share(outer, tid + 1, nthreads)):
            softmax_row(x + o * n, y + o * n, n, logarithm)
        return
    w = lanes(x)
    pieces = (inner + w - 1) // w
    for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
        first = unit % pieces * w
        at = unit // pieces * n * inner + first
        softmax_columns(x + at, y + at, n, inner, min(w, inner - first), logarithm)


def softmax_row(x, y, n, logarithm):
    """One row; y holds the exponentials in between."""
    w = lanes(x)
    top = largest(x, n)
    wide = vconvert(vsplat(f32, 0), f64)
    i = 0
    while i + w <= n:
        stop = min(n, i + BLOCK * w)
        a, b = vsplat(f32, 0), vsplat(f32, 0)
        while i + 2 * w <= stop:
            p = exp_below_zero(vload(x, i) - top)
            q = exp_below_zero(vload(x, i + w) - top)
            vstore(y, i, p)
            vstore(y, i + w, q)
            a, b = a + p, b + q
            i += 2 * w
        if i + w <= stop:
            p = exp_below_zero(vload(x, i) - top)
            vstore(y, i, p)
            a = a + p
            i += w
        wide = wide + vconvert(a + b, f64)
    if i < n:
        p = exp_below_zero(vload_part(x, i, n - i) - top)
        vstore_part(y, i, p, n - i)
        wide = wide + vconvert(first_lanes(p, n - i), f64)
    total = vsplat(f32, f32(hsum(wide)))
    if logarithm != 0:
        lost = log(total)
        for k in range(0, n - w + 1, w):
            vstore(y, k, vload(x, k) - top - lost)
        vstore_part(y, i, vload_part(x, i, n - i) - top - lost, n - i)
    else:
        factor = vsplat(f32, 1) / total
        for k in range(0, n - w + 1, w):
            vstore(y, k, vload(y, k) * factor)
        vstore_part(y, i, vload_part(y, i, n - i) * factor, n - i)


def softmax_columns(x, y, n, step, count, logarithm):
    """One vector of columns, of which `count` lanes exist."""
    top = vload_part(x, 0, count)
    for i in range(1, n):
        top = vmax_quick(top, vload_part(x, i * step, count))
    part = vsplat(f32, 0)
    wide = vconvert(part, f64)
    for i in range(n):
        p = exp_below_zero(vload_part(x, i * step, count) - top)
        vstore_part(y, i * step, p, count)
        part = part + p
        if i % BLOCK == BLOCK - 1:
            wide = wide + vconvert(part, f64)
            part = vsplat(f32, 0)
    total = vconvert(wide + vconvert(part, f64), f32)
    if logarithm != 0:
        lost = log(total)
        for i in range(n):
            vstore_part(y, i * step, vload_part(x, i * step, count) - top - lost, count)
    else:
        factor = vsplat(f32, 1) / total
        for i in range(n):
            vstore_part(y, i * step, vload_part(y, i * step, count) * factor, count)


# ---------------------------------------------------------------- float16, with each step rounded to it


def half_reference(x, y, outer, n, inner):
    block = x.reshape(outer, n, inner).astype(np.float16)
    e = np.exp((block - block.max(1, keepdims=True)).astype("d")).astype(np.float16).astype("d")
    total = e.sum(1, keepdims=True)
    rounded = total.astype(np.float16).astype("d")
    result = e / np.where(np.isinf(rounded), total, rounded)
    return {"y": result.reshape(y.shape)}


def half_example(rng, size):
    arguments = softmax_example(rng, size)
    del arguments["logarithm"]
    arguments["x"] = (arguments["x"] / 4).astype(np.float16).astype("f")
    return arguments


def as_half(v):
    """f32 lanes rounded to what float16 holds."""
    return f16_to_f32(f32_to_f16(v))


@kernel(reference=half_reference, example=half_example, tolerance=1e-3, group="half")
def softmax_half(x: ptr_f32, y: ptr_f32, outer: i64, n: i64, inner: i64, tid: i64, nthreads: i64):
    """softmax of float16 numbers held as f32: differences, exponentials and their sum are each rounded to float16.

    A sum too large for float16 stays as it is. The quotient is left to the cast that follows. Error: one unit of
    float16, where an exponential lies next to the middle of two.
    """
    w = lanes(x)
    pieces = (inner + w - 1) // w
    for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
        first = unit % pieces * w
        at = unit // pieces * n * inner + first
        if inner == 1:
            top = largest(x + at, n)
            wide = vconvert(vsplat(f32, 0), f64)
            for i in range(0, n, w):
                e = as_half(exp_below_zero(as_half(vload_part(x, at + i, n - i) - top)))
                vstore_part(y, at + i, e, n - i)
                wide = wide + vconvert(first_lanes(e, n - i), f64)
            total = half_or_all(vsplat(f32, f32(hsum(wide))))
            for i in range(0, n, w):
                vstore_part(y, at + i, vload_part(y, at + i, n - i) / total, n - i)
        else:
            count = min(w, inner - first)
            top = vload_part(x, at, count)
            for i in range(1, n):
                top = vmax_quick(top, vload_part(x, at + i * inner, count))
            wide = vconvert(vsplat(f32, 0), f64)
            for i in range(n):
                e = as_half(exp_below_zero(as_half(vload_part(x, at + i * inner, count) - top)))
                vstore_part(y, at + i * inner, e, count)
                wide = wide + vconvert(e, f64)
            total = half_or_all(vconvert(wide, f32))
            for i in range(n):
                vstore_part(y, at + i * inner, vload_part(y, at + i * inner, count) / total, count)


def half_or_all(total):
    """total rounded to float16, or itself where that overflows."""
    rounded = as_half(total)
    return vselect(rounded == float("inf"), total, rounded)
