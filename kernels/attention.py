"""Scaled dot product attention, float32, in one pass: softmax(q k^T * scale + bias) v, the scores never written out.

A unit of work is a block of queries of one head. It walks through its keys in blocks and keeps, for each query, the
largest score so far, the sum of the exponentials relative to it and the weighted sum of the values; a new largest score
rescales both sums (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
"FlashAttention", 2022). What a unit works on fits the second-level cache, whatever the number of keys.

Everything is held transposed, a query in each lane: scores are K q^T and results V^T p^T. So both products read K and V
where they lie, by row pointers, and the softmax has no sum across lanes. Few queries leave lanes empty: for
those see attention_decode.py.

Tensors are found by strides, so heads may lie one after another or side by side, or all three tensors in one. Heads of
keys may serve several heads of queries (Ainslie et al., "GQA", 2023). The numbers come in a table of integers, indexed
by the names below.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.gemm import block_size
from minifer.kernels.mathfn import exp_negative, tanh
from minifer.kernels.move import transpose_panel
from minifer.kernels.simd import (
    MR,
    NR,
    lanes,
    like,
    rows_strided,
    share,
    tile_add,
    tile_outer,
    tile_scale_columns,
    tile_store,
    tile_zero,
    viota,
    vload,
    vload_part,
    vmax_quick,
    vselect,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.softmax import exp_below_zero
from minifer.kernels.spec import f32, i32, i64, kernel, ptr_f32, ptr_i64

# indices into the geometry table
BATCH, HEADS, GROUPS, QUERIES, KEYS, SIZE, WIDTH = 0, 1, 2, 3, 4, 5, 6
LEFT, RIGHT = 7, 8  # how far behind and ahead of a query the keys that it sees may lie
HAS_BIAS, HAS_EXTRA, HAS_SINK = 9, 10, 11
Q, K, V, Y = 12, 16, 20, 24  # each: start, strides of batch, head and row; a row is contiguous
BIAS, EXTRA = 28, 33  # each: start, strides of batch, head, query and key; 0 where it is broadcast
HIDDEN_ZERO = 38  # whether a query that sees no key gives 0; else it gives NaN
GEOMETRY_WORDS = 39

#: a distance that no key reaches
FAR = 1 << 40
#: least queries of a unit; see query_block
QUERY_BLOCK = 144
#: most tiles of keys per step: so many keys and their values stay in the second-level cache
KEY_TILES = 11
INFINITY, NAN = float("inf"), float("nan")


def geometry(
    batch, heads, groups, queries, keys, size, width, *, q, k, v, y, bias=None, extra=None, sink=False, left=FAR,
    right=FAR, hidden_zero=True,
) -> np.ndarray:  # fmt: skip
    """The table. q, k, v, y: (start, batch, head, row); bias and extra: (start, batch, head, query, key) or None."""
    flags = [int(bias is not None), int(extra is not None), int(sink)]
    sizes = [batch, heads, groups, queries, keys, size, width, left, right]
    nothing = (0, 0, 0, 0, 0)
    added = (*(bias or nothing), *(extra or nothing))
    return np.array([*sizes, *flags, *q, *k, *v, *y, *added, int(hidden_zero)], np.int64)


def query_block():
    """Queries of a unit: whole panels of NR, and so whole vectors. No power of two: its rows would share few sets of a
    cache."""
    return (QUERY_BLOCK + NR - 1) // NR * NR


def scratch_floats(size: int, width: int) -> int:
    """Scratch that one thread needs: queries, results, scores, bias, three numbers per query; a block of values."""
    step, padded = KEY_TILES * int(MR), -(-width // int(MR)) * int(MR)
    return (size + padded + 2 * step + 3) * query_block() + step * padded + lanes(f32)


# ---------------------------------------------------------------- reference and example


def strided(array, base, sizes, strides):
    """array[base + sum of index times stride] as an array of `sizes`."""
    place = np.full(sizes, base, np.int64)
    for axis, (n, step) in enumerate(zip(sizes, strides)):
        place = place + (np.arange(n) * step).reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return array.reshape(-1)[place], place


def attention_reference(q, k, v, y, bias, extra, spans, sink, scratch, g, scale, softcap):
    """The same by the definition, in float64, with the scores written out."""
    batch, heads, groups, queries, keys, size, width = (int(n) for n in g[:7])
    repeat = heads // groups

    def tensor(array, at, heads, rows, columns):
        return strided(array, g[at], (batch, heads, rows, columns), (*g[at + 1 : at + 4], 1))

    wide_q = tensor(q, Q, heads, queries, size)[0].astype(np.float64)
    wide_k = np.repeat(tensor(k, K, groups, keys, size)[0].astype(np.float64), repeat, axis=1)
    wide_v = np.repeat(tensor(v, V, groups, keys, width)[0].astype(np.float64), repeat, axis=1)
    score = wide_q @ wide_k.swapaxes(2, 3) * scale
    if softcap != 0:
        score = np.tanh(score / softcap) * softcap
    for array, at, flag in ((bias, BIAS, HAS_BIAS), (extra, EXTRA, HAS_EXTRA)):
        if g[flag]:
            score = score + strided(array, g[at], score.shape, g[at + 1 : at + 5])[0]
    at = np.arange(keys)
    ahead = at - (spans.reshape(batch, 1, 1, 2)[..., 1:] + np.arange(queries)[:, None])
    see = (ahead <= g[RIGHT]) & (ahead >= -g[LEFT]) & (at < spans.reshape(batch, 1, 1, 2)[..., :1])
    score = np.where(see, score, -np.inf)
    top = score.max(axis=-1, keepdims=True, initial=-np.inf)
    if g[HAS_SINK]:
        top = np.maximum(top, sink.reshape(1, -1, 1, 1))
    top = np.where(top == -np.inf, 0, top)
    e = np.exp(score - top)
    total = e.sum(axis=-1, keepdims=True)
    if g[HAS_SINK]:
        total = total + np.exp(sink.reshape(1, -1, 1, 1) - top)
    weight = e / np.where(total == 0, 1, total)
    expected = y.astype(np.float64)
    magnitude = np.ones(expected.size)
    _, place = tensor(y, Y, heads, queries, width)
    hidden = np.where(total == 0, 0 if g[HIDDEN_ZERO] else np.nan, 0)
    expected.reshape(-1)[place] = weight @ np.where(see.any(axis=2)[..., None], wide_v, 0) + hidden
    magnitude[place] = 1 + weight @ abs(wide_v)
    return {"y": (expected, magnitude.reshape(expected.shape))}


def draw_bias(rng, batch, heads, queries, keys):
    """A bias that broadcasts along some axes: (array, (start, strides)); some entries are -inf."""
    shape = [n if rng.random() < 0.6 else 1 for n in (batch, heads, queries, keys)]
    values = rng.standard_normal(shape)
    values[rng.random(shape) < 0.2] = -np.inf
    steps = np.cumprod([1, *shape[:0:-1]])[::-1]
    return values.astype("f"), (0, *(int(s) if n > 1 else 0 for s, n in zip(steps, shape)))


def draw_attention(rng, queries, keys, floats):
    """Arguments for `queries` and `keys`; `floats` tells the scratch of a thread."""
    batch, groups, repeat = (int(n) for n in rng.integers(1, 3, 3))
    heads, size, width = groups * repeat, int(rng.integers(1, 12)), int(rng.integers(1, 12))
    drawn = {}

    def tensor(name, heads, rows, columns):
        """Heads one after another, or side by side; some numbers before the first."""
        start = int(rng.integers(0, 3))
        drawn[name] = rng.standard_normal(start + batch * heads * rows * columns).astype("f")
        if rng.random() < 0.5:
            return (start, heads * rows * columns, rows * columns, columns)
        return (start, rows * heads * columns, columns, heads * columns)

    strides = {
        "q": tensor("q", heads, queries, size), "k": tensor("k", groups, keys, size),
        "v": tensor("v", groups, keys, width), "y": tensor("y", heads, queries, width),
    }  # fmt: skip
    for name in ("bias", "extra"):
        drawn[name], where = draw_bias(rng, batch, heads, queries, keys)
        strides[name] = where if rng.random() < 0.4 else None
    left, right = (int(rng.integers(0, keys + 1)) if rng.random() < 0.3 else FAR for _ in range(2))
    sink = bool(rng.random() < 0.3)
    spans = np.array([[rng.integers(0, keys + 1), rng.integers(-3, keys + 1)] for _ in range(batch)], np.int64)
    if rng.random() < 0.6:
        spans[:, 0], spans[:, 1] = keys, keys - queries
        right = 0 if rng.random() < 0.5 else right
    rules = {"sink": sink, "left": left, "right": right, "hidden_zero": rng.random() < 0.5}
    g = geometry(batch, heads, groups, queries, keys, size, width, **strides, **rules)
    return {
        **drawn, "spans": spans, "sink": rng.standard_normal(heads).astype("f"),
        "scratch": np.zeros(5 * floats(size, width), "f"), "g": g, "scale": 1 / np.sqrt(size),
        "softcap": 2.0 if rng.random() < 0.2 else 0.0,
    }  # fmt: skip


def attention_example(rng, size):
    queries, keys = int(rng.integers(1, 8 * size)), int(rng.integers(1, 10 * size))
    if rng.random() < 0.2:
        queries, keys = int(rng.integers(1, 8)), int(rng.integers(KEY_TILES * MR - 3, 2 * KEY_TILES * MR + 9))
    elif rng.random() < 0.1:
        queries, keys = int(rng.integers(query_block() - 2, query_block() + 9)), int(rng.integers(1, 9))
    arguments = draw_attention(rng, queries, keys, scratch_floats)
    names = ("q", "k", "v", "y", "bias", "extra", "spans", "sink", "scratch", "g", "scale", "softcap")
    return {name: arguments[name] for name in names}


# ---------------------------------------------------------------- the kernel


@kernel(reference=attention_reference, example=attention_example, outputs=("y", "scratch"), tolerance=4e-6)
def attention(
    q: ptr_f32, k: ptr_f32, v: ptr_f32, y: ptr_f32, bias: ptr_f32, extra: ptr_f32, spans: ptr_i64, sink: ptr_f32,
    scratch: ptr_f32, g: ptr_i64, scale: f32, softcap: f32, slot: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[b, h, i] = sum_j w[j] v[b, h', j], w = softmax_j(cap(scale * q[b, h, i] . k[b, h', j]) + bias + extra).

    q: (batch, heads, queries, size), k: (batch, groups, keys, size), v: (batch, groups, keys, width), y as q with
    `width` columns; h' = h // (heads / groups). cap(x) = softcap * tanh(x / softcap), or x where softcap is 0.
    bias, extra: added to the scores, any of their axes broadcast. spans: (batch, 2) = (c, p): entry b has the keys
    below c, and query i stands at position p + i: it sees the keys from p + i - LEFT to p + i + RIGHT. sink: (heads,),
    a further score per head that takes its share of the softmax and gives nothing. A query that sees no key gives 0,
    or NaN where HIDDEN_ZERO is 0. scratch: scratch_floats(size, width) per thread; g: the geometry.

    2 (size + width) FLOPs per query and visible key. Error <= 4e-6 (1 + sum |w v|) for scores up to about 10; it grows
    with them, as that of any softmax. The order of the sums depends on nothing but the sizes.
    """
    heads, queries = g[HEADS], g[QUERIES]
    blocks = (queries + query_block() - 1) // query_block()
    units = g[BATCH] * heads * blocks
    size, width = g[SIZE], g[WIDTH]
    step = KEY_TILES * MR
    padded = (width + MR - 1) // MR * MR
    turned_q = scratch + slot * ((size + padded + 2 * step + 3) * query_block() + step * padded + lanes(q))
    result = turned_q + size * query_block()
    score = result + padded * query_block()
    work = score + step * query_block()
    state = work + step * query_block()
    block = state + 3 * query_block()
    for unit in range(share(units, tid, nthreads), share(units, tid + 1, nthreads)):
        first, head, b = unit % blocks * query_block(), unit // blocks % heads, unit // blocks // heads
        group = head // (heads // g[GROUPS])
        n = min(query_block(), queries - first)
        load_queries(q + place(g, Q, b, head, first), g[Q + 3], turned_q, size, n, scale)
        begin_state(state, sink, head, g[HAS_SINK])
        position = spans[2 * b + 1] + first
        start = max(0, position - g[LEFT])
        stop = min(min(g[KEYS], spans[2 * b]), position + n + g[RIGHT])
        stride = block_size(stop - start, step, MR)
        for j in range(start, stop, stride):
            count = min(stride, stop - j)
            scores(turned_q, k + place(g, K, b, group, j), g[K + 3], score, size, count, n)
            if softcap != 0:
                cap_scores(score, count, n, softcap)
            if g[HAS_BIAS] != 0:
                at = place(g, BIAS, b, head, first) + j * g[BIAS + 4]
                add_bias(score, bias + at, g[BIAS + 3], g[BIAS + 4], work, count, n)
            if g[HAS_EXTRA] != 0:
                at = place(g, EXTRA, b, head, first) + j * g[EXTRA + 4]
                add_bias(score, extra + at, g[EXTRA + 3], g[EXTRA + 4], work, count, n)
            if j + count - 1 > position + g[RIGHT] or j < position + n - 1 - g[LEFT]:
                hide(score, j - position, g[LEFT], g[RIGHT], count, n)
            weigh(score, state, count, n)
            pack_values(v + place(g, V, b, group, j), g[V + 3], block, width, count)
            gather_values(score, block, state, result, width, count, n, j > start)
        if start >= stop:
            clear(result, width * query_block())
        finish(result, state, y + place(g, Y, b, head, first), g[Y + 3], width, n, g[HIDDEN_ZERO])


def place(g, at, b, head, row):
    """Where a row of a tensor begins."""
    return g[at] + b * g[at + 1] + head * g[at + 2] + row * g[at + 3]


def clear(p, n):
    """p[i] = 0 for i < n, a multiple of the lanes."""
    for i in range(0, n, lanes(p)):
        vstore(p, i, vsplat(p, 0))


def load_queries(q, q_row, turned, size, n, scale):
    """turned[e, i] = scale * q[i, e]; 0 in the lanes without a query."""
    if n % NR != 0:
        clear(turned, size * query_block())
    transpose_panel(q, q_row, turned, query_block(), n, size)
    for i in range(0, size * query_block(), lanes(turned)):
        vstore(turned, i, vload(turned, i) * scale)


def begin_state(state, sink, head, has_sink):
    """State of each query: largest score, sum of exponentials, factor of the last rescaling."""
    top = sink[head] if has_sink != 0 else f32(-INFINITY)
    total = f32(1) if top > f32(-INFINITY) else f32(0)
    for i in range(0, query_block(), lanes(state)):
        vstore(state, i, vsplat(state, top))
        vstore(state, query_block() + i, vsplat(state, total))
        vstore(state, 2 * query_block() + i, vsplat(state, 1))


def product(acc, rows, step, b, k):
    """acc + sum over p < k of rows[:, p * step] times row p of b, whose rows lie query_block() apart."""
    p = 0
    while p + 4 <= k:
        acc = tile_outer(acc, rows, p * step, b + p * query_block())
        acc = tile_outer(acc, rows, (p + 1) * step, b + (p + 1) * query_block())
        acc = tile_outer(acc, rows, (p + 2) * step, b + (p + 2) * query_block())
        acc = tile_outer(acc, rows, (p + 3) * step, b + (p + 3) * query_block())
        p += 4
    while p < k:
        acc = tile_outer(acc, rows, p * step, b + p * query_block())
        p += 1
    return acc


def scores(turned_q, k, k_row, score, size, count, n):
    """score[j, i] = k[j] . q[i]."""
    for j in range(0, count, MR):
        rows = rows_strided(k + j * k_row, k_row, min(MR, count - j))
        for panel in range(0, n, NR):
            acc = product(tile_zero(), rows, 1, turned_q + panel, size)
            tile_store(score + (j * query_block() + panel), query_block(), acc, MR, NR)


def cap_scores(score, count, n, softcap):
    """score = softcap * tanh(score / softcap)."""
    for j in range(count):
        for i in range(j * query_block(), j * query_block() + n, lanes(score)):
            vstore(score, i, tanh(vload(score, i) / softcap) * softcap)


def add_bias(score, bias, row, key, work, count, n):
    """score[j, i] += bias[i * row + j * key]."""
    w = lanes(score)
    if row == 0:
        for j in range(count):
            same = vsplat(score, bias[j * key])
            for i in range(j * query_block(), j * query_block() + n, w):
                vstore(score, i, vload(score, i) + same)
        return
    if key == 1:
        transpose_panel(bias, row, work, query_block(), n, count)
    else:
        for j in range(count):
            for i in range(n):
                work[j * query_block() + i] = bias[i * row + j * key]
    for j in range(count):
        for i in range(j * query_block(), j * query_block() + n, w):
            vstore(score, i, vload(score, i) + vload(work, i))


def hide(score, ahead, left, right, count, n):
    """score[j, i] = -inf where key j, which lies `ahead` + j - i ahead of query i, is out of its sight."""
    w = lanes(score)
    for j in range(count):
        low = min(max(ahead + j - right, 0), query_block())
        high = min(max(ahead + j + left, -1), query_block())
        for i in range(0, n, w):
            query = viota(i32) + i
            x = vload(score, j * query_block() + i)
            seen = (query >= low) & (query <= high)
            vstore(score, j * query_block() + i, vselect(seen, x, like(x, -INFINITY)))


def weigh(score, state, count, n):
    """score = exp(score - largest so far), with the state brought up to date."""
    total_at, factor_at = query_block(), 2 * query_block()
    for i in range(0, n, lanes(state)):
        old = vload(state, i)
        top = highest(score + i, count, old)
        zero = like(top, 0)
        base = vselect(top == like(top, -INFINITY), zero, top)
        total = zero
        more = zero
        j = 0
        while j + 2 <= count:
            e = exp_below_zero(vload(score, j * query_block() + i) - base)
            f = exp_below_zero(vload(score, (j + 1) * query_block() + i) - base)
            vstore(score, j * query_block() + i, e)
            vstore(score, (j + 1) * query_block() + i, f)
            total = total + e
            more = more + f
            j += 2
        if j < count:
            e = exp_below_zero(vload(score, j * query_block() + i) - base)
            vstore(score, j * query_block() + i, e)
            total = total + e
        total = total + more
        factor = exp_negative(old - base)
        vstore(state, i, top)
        vstore(state, total_at + i, vload(state, total_at + i) * factor + total)
        vstore(state, factor_at + i, factor)


def highest(score, count, top):
    """The largest of `count` scores and `top` for a vector of queries, by four maxima that do not wait for another."""
    a, b, c, d = top, top, top, top
    j = 0
    while j + 4 <= count:
        line = score + j * query_block()
        a = vmax_quick(vload(line, 0), a)
        b = vmax_quick(vload(line, query_block()), b)
        c = vmax_quick(vload(line, 2 * query_block()), c)
        d = vmax_quick(vload(line, 3 * query_block()), d)
        j += 4
    while j < count:
        a = vmax_quick(vload(score, j * query_block()), a)
        j += 1
    return vmax_quick(vmax_quick(a, b), vmax_quick(c, d))


def pack_values(v, v_row, packed, width, count):
    """packed[f / MR, j, :] = v[j, f : f + MR], so that a tile reads one run; writes a little behind the end."""
    w = lanes(v)
    for j in range(count - 1):  # what a store writes too much, that of the next row writes again
        line, target = v + j * v_row, packed + j * MR
        f = 0
        while f + w <= width:
            vstore(target, f * count, vload(line, f))
            f += MR
        while f < width:
            vstore(target, f * count, vload_part(line, f, width - f))
            f += MR
    for f in range(0, width, MR):
        part = vload_part(v, (count - 1) * v_row + f, width - f)
        vstore_part(packed, f * count + (count - 1) * MR, part, MR)


def gather_values(score, packed, state, result, width, count, n, begun):
    """result[f, i] = factor[i] * result[f, i] + sum over j of v[j, f] * score[j, i]."""
    factor = state + 2 * query_block()
    for f in range(0, width, MR):
        rows = rows_strided(packed + f * count, 1, MR)
        for panel in range(0, n, NR):
            target = result + (f * query_block() + panel)
            acc = tile_zero()
            if begun:
                acc = tile_scale_columns(tile_add(acc, target, query_block(), MR, NR), factor + panel, NR)
            acc = product(acc, rows, MR, score + panel, count)
            tile_store(target, query_block(), acc, MR, NR)


def finish(result, state, y, y_row, width, n, hidden_zero):
    """y[i, f] = result[f, i] / total[i], or 0 (or NaN) where the total is 0."""
    hidden = f32(0) if hidden_zero != 0 else f32(NAN)
    for i in range(0, n, lanes(result)):
        total = vload(state, query_block() + i)
        inverse = vselect(total == like(total, 0), like(total, hidden), like(total, 1) / total)
        for f in range(i, i + width * query_block(), query_block()):
            vstore(result, f, vload(result, f) * inverse)
    transpose_panel(result, query_block(), y, y_row, width, n)
