"""What a decoder does to keys before attention: rotation by position, and filing in a cache.

Rotary position embedding: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021. The heads
of a tensor are found by strides, as in attention.py.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.attention import place, strided
from minifer.kernels.attention_mask import BAD_COUNT
from minifer.kernels.gather import OUT_OF_RANGE
from minifer.kernels.move import copy_run
from minifer.kernels.simd import (
    lanes,
    share,
    veven,
    vfma,
    vload_part,
    vodd,
    vsplat,
    vstore_part,
    vzip_high,
    vzip_low,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64

# indices into the table of a rotation
BATCH, HEADS, ROWS, SIZE, HALF, INTERLEAVED, LIMIT = 0, 1, 2, 3, 4, 5, 6
HAS_PLACES, PLACE_BATCH, PLACE_ROW, PLACE_STEP, CLAMPED = 7, 8, 9, 10, 11
X, Y = 12, 16  # each: start, strides of batch, head and row


def table(batch, heads, rows, size, half, interleaved, limit, x, y, places=None, clamped=False) -> np.ndarray:
    """The table. x, y: (start, batch, head, row). `limit`: rows of the caches.

    `places` = (batch, row, step) says which of them turns row r of entry b: places[b * batch + r * row] + r * step;
    None: the one at b * rows + r.
    """
    where = (0, 0, 0, 0) if places is None else (1, *places)
    sizes = (batch, heads, rows, size, half, int(interleaved), limit)
    return np.array([*sizes, *where, int(clamped), *x, *y], np.int64)


def rotary_reference(x, y, cos, sin, places, t):
    batch, heads, rows, size, half, interleaved, limit, has, by_batch, by_row, step, clamped = (int(n) for n in t[:12])
    at = np.arange(batch)[:, None] * rows + np.arange(rows)
    if has:
        r = np.arange(rows)
        at = places.reshape(-1)[np.arange(batch)[:, None] * by_batch + r * by_row] + r * step
    at = np.minimum(at, limit - 1) if clamped else at
    if ((at < 0) | (at >= limit)).any():
        return {"status": OUT_OF_RANGE}
    source = strided(x, t[X], (batch, heads, rows, size), (*t[X + 1 : X + 4], 1))[0].astype(np.float64)
    c, s = (v.astype(np.float64)[at][:, None] for v in (cos, sin))
    n = 2 * half
    first, second = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, half), slice(half, n))
    turned = source.copy()
    turned[..., first] = source[..., first] * c - source[..., second] * s
    turned[..., second] = source[..., second] * c + source[..., first] * s
    expected = y.astype(np.float64)
    where = strided(y, t[Y], (batch, heads, rows, size), (*t[Y + 1 : Y + 4], 1))[1]
    expected.reshape(-1)[where] = turned
    return {"y": (expected, np.full(y.shape, 6.0))}


def rotary_example(rng, size):
    batch, heads, rows = (int(n) for n in rng.integers(1, (4, 4, 3 * size)))
    half = int(rng.integers(1, 4 * size))
    width = 2 * half + int(rng.integers(0, 5))
    limit = batch * rows + int(rng.integers(0, 3))
    side = bool(rng.integers(0, 2))
    by_head = (0, heads * rows * width, rows * width, width)
    by_row = (0, heads * rows * width, width, heads * width)
    places = [None, (rows, 1, 0), (2, 0, 1), (0, 0, 1)][rng.integers(0, 4)]
    values = rng.integers(0, limit - rows + 1, (batch, max(rows, 2)))
    if rng.random() < 0.1:
        values.reshape(-1)[0] = -1
    t = table(
        batch, heads, rows, width, half, rng.integers(0, 2), limit, by_row if side else by_head, by_head, places,
        rng.integers(0, 2),
    )  # fmt: skip
    shape = (limit, half)
    return {
        "x": rng.standard_normal(batch * heads * rows * width).astype("f"),
        "y": np.full((batch, heads, rows, width), np.nan, "f"), "cos": rng.standard_normal(shape).astype("f"),
        "sin": rng.standard_normal(shape).astype("f"), "places": values, "t": t,
    }  # fmt: skip


@kernel(reference=rotary_reference, example=rotary_example, tolerance=3e-7)
def rotary(x: ptr_f32, y: ptr_f32, cos: ptr_f32, sin: ptr_f32, places: ptr_i64, t: ptr_i64, tid: i64, nthreads: i64):
    """Pairs (a, b) of the first 2 * HALF elements of a row become (a cos - b sin, b cos + a sin); the rest is copied.

    x, y: (batch, heads, rows, size); a pair is two neighbours (INTERLEAVED) or element i of either half. cos, sin:
    (limit, half), of which each row uses one (see `table`); with CLAMPED a place beyond the last is the last. Status 1
    where a place is out of range.
    """
    heads, rows = t[HEADS], t[ROWS]
    units = t[BATCH] * rows
    status = 0
    for unit in range(share(units, tid, nthreads), share(units, tid + 1, nthreads)):
        r, b = unit % rows, unit // rows
        at = unit
        if t[HAS_PLACES] != 0:
            at = places[b * t[PLACE_BATCH] + r * t[PLACE_ROW]] + r * t[PLACE_STEP]
        if t[CLAMPED] != 0:
            at = min(at, t[LIMIT] - 1)
        if at < 0 or at >= t[LIMIT]:
            status = OUT_OF_RANGE
        else:
            c, s = cos + at * t[HALF], sin + at * t[HALF]
            for head in range(heads):
                rotate_row(x + place(t, X, b, head, r), y + place(t, Y, b, head, r), c, s, t)
    return status


def rotate_row(x, y, c, s, t):
    """One head at one position."""
    half, size, w = t[HALF], t[SIZE], lanes(x)
    for i in range(0, half, w):
        n = half - i
        cosine, sine = vload_part(c, i, n), vload_part(s, i, n)
        if t[INTERLEAVED] != 0:
            low, high = vload_part(x, 2 * i, 2 * n), vload_part(x, 2 * i + w, 2 * n - w)
            a, b = veven(low, high), vodd(low, high)
            first, second = vfma(a, cosine, vsplat(x, 0) - b * sine), vfma(b, cosine, a * sine)
            vstore_part(y, 2 * i, vzip_low(first, second), 2 * n)
            vstore_part(y, 2 * i + w, vzip_high(first, second), 2 * n - w)
        else:
            a, b = vload_part(x, i, n), vload_part(x, half + i, n)
            vstore_part(y, i, vfma(a, cosine, vsplat(x, 0) - b * sine), n)
            vstore_part(y, half + i, vfma(b, cosine, a * sine), n)
    if 2 * half < size:
        copy_run(x + 2 * half, y + 2 * half, size - 2 * half)


# ---------------------------------------------------------------- the cache of keys and values


def extend_cache_reference(past, fresh, y, spans, where, batch, groups, past_rows, room, size):
    expected = np.zeros(y.shape)
    if (spans[:, 1] > past_rows).any():
        return {"status": BAD_COUNT}
    for b in range(batch):
        known, before = spans[b]
        expected[b, :, : min(past_rows, room)] = past[b, :, :room]
        rows = strided(fresh, where[0] + b * where[1], (groups, known - before, size), (where[2], where[3], 1))[0]
        expected[b, :, before:known] = rows
    return {"y": expected}


def extend_cache_example(rng, size):
    batch, groups, width = (int(n) for n in rng.integers(1, (4, 4, 5 * size)))
    length, room = int(rng.integers(1, 6)), int(rng.integers(6, 12))
    past_rows = int(rng.integers(0, room + 1))
    known = rng.integers(1, room + 1, batch)
    before = np.minimum(np.maximum(known - length, 0), past_rows)
    spans = np.stack([np.minimum(known, before + length), before], axis=1)
    if rng.random() < 0.1:
        spans[0, 1] = past_rows + 1
    where = (0, length * groups * width, width, groups * width)
    return {
        "past": rng.standard_normal((batch, groups, past_rows, width)).astype("f"),
        "fresh": rng.standard_normal((batch, length, groups, width)).astype("f"),
        "y": np.full((batch, groups, room, width), np.nan, "f"), "spans": spans, "where": np.array(where, "i8"),
        "batch": batch, "groups": groups, "past_rows": past_rows, "room": room, "size": width,
    }  # fmt: skip


@kernel(reference=extend_cache_reference, example=extend_cache_example, tolerance=0)
def extend_cache(
    past: ptr_f32, fresh: ptr_f32, y: ptr_f32, spans: ptr_i64, where: ptr_i64, batch: i64, groups: i64, past_rows: i64,
    room: i64, size: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[b, g, r] = fresh[b, g, r - p] for p <= r < c, else past[b, g, r], or 0 where the past has no such row.

    past: (batch, groups, past_rows, size), y: (batch, groups, room, size), spans: (batch, 2) = (c, p); fresh is found
    by `where`, its start and strides of batch, head and row. Status 2 where p is more than past_rows.
    """
    units = batch * groups
    held = min(past_rows, room)
    status = 0
    for unit in range(share(units, tid, nthreads), share(units, tid + 1, nthreads)):
        b, group = unit // groups, unit % groups
        known, before = min(spans[2 * b], room), max(spans[2 * b + 1], 0)
        if before > past_rows:
            status = BAD_COUNT
        else:
            target = y + unit * room * size
            copy_run(past + unit * past_rows * size, target, min(before, held) * size)
            for r in range(before, known):
                copy_run(fresh + place(where, 0, b, group, r - before), target + r * size, size)
            if known < held:
                copy_run(past + (unit * past_rows + known) * size, target + known * size, (held - known) * size)
            for i in range(max(known, held) * size, room * size):
                target[i] = f32(0)
    return status
