"""Attention of few queries, as when a decoder writes one token after another; arguments and meaning as in attention.py.

With one query per head there is no matrix product: each key is met once per query, and the time is that of reading the
keys and values. So lanes run along the head here. Keys come in blocks, and all queries that share a head of
keys, those of the heads that it serves included, walk through a block before the next is read.
"""

from __future__ import annotations

from minifer.kernels.attention import (
    BATCH,
    BIAS,
    EXTRA,
    GROUPS,
    HAS_BIAS,
    HAS_EXTRA,
    HAS_SINK,
    HEADS,
    HIDDEN_ZERO,
    INFINITY,
    KEYS,
    LEFT,
    NAN,
    QUERIES,
    RIGHT,
    SIZE,
    WIDTH,
    K,
    Q,
    V,
    Y,
    attention_reference,
    clear,
    draw_attention,
    place,
)
from minifer.kernels.mathfn import exp_negative, tanh
from minifer.kernels.simd import (
    hmax,
    hsum,
    lanes,
    like,
    share,
    veven,
    vfma,
    vget,
    viota,
    vload,
    vload_part,
    vmax_quick,
    vodd,
    vselect,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import f32, i32, i64, kernel, ptr_f32, ptr_i64

#: keys of a block: a multiple of the lanes
KEY_BLOCK = 64


def scratch_floats(rows: int, width: int) -> int:
    """Scratch that one thread needs for `rows` queries that share a head of keys: scores, results, two numbers each."""
    return KEY_BLOCK + rows * (-(-width // f32.lanes) * f32.lanes + 2)


def attention_decode_example(rng, size):
    queries, keys = int(rng.integers(1, 4)), int(rng.integers(1, 30 * size))
    arguments = draw_attention(rng, queries, keys, lambda head, width: scratch_floats(2 * queries, width))
    names = ("q", "k", "v", "y", "bias", "extra", "spans", "sink", "scratch", "g", "scale", "softcap")
    return {name: arguments[name] for name in names}


@kernel(reference=attention_reference, example=attention_decode_example, outputs=("y", "scratch"), tolerance=4e-6)
def attention_decode(
    q: ptr_f32, k: ptr_f32, v: ptr_f32, y: ptr_f32, bias: ptr_f32, extra: ptr_f32, spans: ptr_i64, sink: ptr_f32,
    scratch: ptr_f32, g: ptr_i64, scale: f32, softcap: f32, slot: i64, pieces: i64, tid: i64,
    nthreads: i64,
):  # fmt: skip
    """As attention; scratch: scratch_floats(queries * heads / groups, width) per thread.

    Reads keys and values once per group of heads, or once per query where there are fewer groups than threads.
    """
    heads, groups, queries, width = g[HEADS], g[GROUPS], g[QUERIES], g[WIDTH]
    rows = heads // groups * queries
    padded = (width + lanes(q) - 1) // lanes(q) * lanes(q)
    own = scratch + slot * (KEY_BLOCK + rows * (padded + 2))
    pairs = g[BATCH] * groups
    split = 1 if pairs >= pieces else rows  # units of a pair
    units = pairs * split
    for unit in range(share(units, tid, nthreads), share(units, tid + 1, nthreads)):
        part, pair = unit % split, unit // split
        first, last = part * rows // split, (part + 1) * rows // split
        attend_rows(q, k, v, y, bias, extra, spans, sink, own, g, scale, softcap, pair, first, last, padded)


def attend_rows(q, k, v, y, bias, extra, spans, sink, own, g, scale, softcap, pair, first, last, padded):
    """The queries first <= r < last of those that share a head of keys; r = head in the group * queries + query."""
    groups, queries, size = g[GROUPS], g[QUERIES], g[SIZE]
    repeat = g[HEADS] // groups
    b, group = pair // groups, pair % groups
    score = own
    state = own + KEY_BLOCK
    result = state + 2 * (last - first)
    for r in range(last - first):
        top = sink[group * repeat + (first + r) // queries] if g[HAS_SINK] != 0 else f32(-INFINITY)
        state[2 * r] = top
        state[2 * r + 1] = f32(1) if top > f32(-INFINITY) else f32(0)
        clear(result + r * padded, padded)
    position = spans[2 * b + 1]
    known = min(g[KEYS], spans[2 * b])
    start = max(0, position - g[LEFT])
    stop = min(known, position + queries + g[RIGHT])
    for j in range(start, stop, KEY_BLOCK):
        keys, values = k + place(g, K, b, group, j), v + place(g, V, b, group, j)
        for r in range(last - first):
            head, i = group * repeat + (first + r) // queries, (first + r) % queries
            low = max(position + i - g[LEFT] - j, 0)
            count = min(min(KEY_BLOCK, stop - j), position + i + g[RIGHT] + 1 - j)
            if low < count:
                dots(q + place(g, Q, b, head, i), keys, g[K + 3], score, size, count, scale)
                if g[HAS_BIAS] != 0 or g[HAS_EXTRA] != 0 or softcap != 0 or low > 0:
                    adjust(score, count, low, softcap, bias, extra, g, b, head, i, j)
                factor = weigh_row(score, count, state + 2 * r)
                add_values(values, g[V + 3], score, count, result + r * padded, factor, g[WIDTH])
    for r in range(last - first):
        head, i = group * repeat + (first + r) // queries, (first + r) % queries
        total = state[2 * r + 1]
        hidden = f32(0) if g[HIDDEN_ZERO] != 0 else f32(NAN)
        inverse = hidden if total == f32(0) else f32(1) / total
        scale_row(result + r * padded, inverse, y + place(g, Y, b, head, i), g[WIDTH])


def pairwise(a, b):
    """The sums of neighbouring lanes of a, then of b."""
    return veven(a, b) + vodd(a, b)


def dots(q, k, k_row, score, size, count, scale):
    """score[j] = scale * (q . k[j]) for j < count, -inf behind to the next multiple of the lanes."""
    w = lanes(q)
    for j in range(0, count, w):
        last = count - 1 - j
        base = k + j * k_row
        sums = dots_8(q, base, k_row, size, last)
        if w == 16:
            sums = pairwise(sums, dots_8(q, base + 8 * k_row, k_row, size, last - 8) if last >= 8 else sums)
        sums = sums * scale
        if last < w - 1:
            sums = vselect(viota(i32) <= last, sums, like(sums, -INFINITY))
        vstore(score, j, sums)


def dots_8(q, k, k_row, size, last):
    """The products of q with eight keys, those behind number `last` being that one; each as lanes / 8 neighbouring
    lanes to be summed."""
    w = lanes(q)
    k1, k2, k3 = k + min(1, last) * k_row, k + min(2, last) * k_row, k + min(3, last) * k_row
    k4, k5, k6 = k + min(4, last) * k_row, k + min(5, last) * k_row, k + min(6, last) * k_row
    k7 = k + min(7, last) * k_row
    zero = vsplat(q, 0)
    a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
    e = 0
    while e + w <= size:
        x = vload(q, e)
        a0, a1 = vfma(x, vload(k, e), a0), vfma(x, vload(k1, e), a1)
        a2, a3 = vfma(x, vload(k2, e), a2), vfma(x, vload(k3, e), a3)
        a4, a5 = vfma(x, vload(k4, e), a4), vfma(x, vload(k5, e), a5)
        a6, a7 = vfma(x, vload(k6, e), a6), vfma(x, vload(k7, e), a7)
        e += w
    if e < size:
        n = size - e
        x = vload_part(q, e, n)
        a0, a1 = vfma(x, vload_part(k, e, n), a0), vfma(x, vload_part(k1, e, n), a1)
        a2, a3 = vfma(x, vload_part(k2, e, n), a2), vfma(x, vload_part(k3, e, n), a3)
        a4, a5 = vfma(x, vload_part(k4, e, n), a4), vfma(x, vload_part(k5, e, n), a5)
        a6, a7 = vfma(x, vload_part(k6, e, n), a6), vfma(x, vload_part(k7, e, n), a7)
    lower = pairwise(pairwise(a0, a1), pairwise(a2, a3))
    return pairwise(lower, pairwise(pairwise(a4, a5), pairwise(a6, a7)))


def bias_at(bias, g, at, b, head, i, j):
    """The biases of query i from key j on."""
    return bias + (place(g, at, b, head, i) + j * g[at + 4])


def adjust(score, count, low, softcap, bias, extra, g, b, head, i, j):
    """Softcap, biases, and -inf for the keys before `low`."""
    w = lanes(score)
    own, other = bias_at(bias, g, BIAS, b, head, i, j), bias_at(extra, g, EXTRA, b, head, i, j)
    for at in range(0, count, w):
        x = vload(score, at)
        if softcap != 0:
            x = tanh(x / softcap) * softcap
        if g[HAS_BIAS] != 0:
            x = x + (vload_part(own, at, count - at) if g[BIAS + 4] != 0 else vsplat(own, own[0]))
        if g[HAS_EXTRA] != 0:
            x = x + (vload_part(other, at, count - at) if g[EXTRA + 4] != 0 else vsplat(other, other[0]))
        x = vselect((viota(i32) >= low - at) & (viota(i32) < count - at), x, like(x, -INFINITY))
        vstore(score, at, x)


def weigh_row(score, count, state):
    """score = exp(score - largest so far); returns the factor that rescales what was summed before."""
    w = lanes(score)
    highest = vsplat(score, -INFINITY)
    for j in range(0, count, w):
        highest = vmax_quick(vload(score, j), highest)
    old = state[0]
    top = max(old, hmax(highest))
    base = f32(0) if top == f32(-INFINITY) else top
    total = vsplat(score, 0)
    for j in range(0, count, w):
        e = exp_negative(vload(score, j) - base)
        vstore(score, j, e)
        total = total + e
    factor = vget(exp_negative(vsplat(score, old - base)), 0)
    state[0] = top
    state[1] = vfma(state[1], factor, hsum(total))
    return factor


def add_values(v, v_row, weight, count, result, factor, width):
    """result = factor * result + sum over j of weight[j] * v[j]."""
    w = lanes(v)
    f = 0
    while f + 4 * w <= width:
        a, b = vload(result, f) * factor, vload(result, f + w) * factor
        c, d = vload(result, f + 2 * w) * factor, vload(result, f + 3 * w) * factor
        for j in range(count):
            row, p = v + (j * v_row + f), vsplat(v, weight[j])
            a, b = vfma(p, vload(row, 0), a), vfma(p, vload(row, w), b)
            c, d = vfma(p, vload(row, 2 * w), c), vfma(p, vload(row, 3 * w), d)
        vstore(result, f, a)
        vstore(result, f + w, b)
        vstore(result, f + 2 * w, c)
        vstore(result, f + 3 * w, d)
        f += 4 * w
    while f < width:
        n, zero = width - f, vsplat(v, 0)
        a, b, c, d = vload(result, f) * factor, zero, zero, zero
        j = 0
        while j + 4 <= count:  # sums that do not wait for one another
            row, own = v + (j * v_row + f), weight + j
            a = vfma(vsplat(v, own[0]), vload_part(row, 0, n), a)
            b = vfma(vsplat(v, own[1]), vload_part(row, v_row, n), b)
            c = vfma(vsplat(v, own[2]), vload_part(row, 2 * v_row, n), c)
            d = vfma(vsplat(v, own[3]), vload_part(row, 3 * v_row, n), d)
            j += 4
        while j < count:
            a = vfma(vsplat(v, weight[j]), vload_part(v, j * v_row + f, n), a)
            j += 1
        vstore(result, f, (a + b) + (c + d))
        f += w


def scale_row(x, factor, y, n):
    """y = factor * x."""
    for i in range(0, n, lanes(x)):
        vstore_part(y, i, vload(x, i) * factor, n - i)
