"""What attention is told about which keys there are: masks as biases, lengths as spans.

The kernels of attention.py know one form of each: a float32 bias that is added to the scores, and for each batch entry
a span (number of keys, position of the first query among them). These kernels make them from the forms that models use.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.gather import index_at
from minifer.kernels.simd import cast, lanes, share, vconvert, viota, vload_n, vselect, vsplat, vstore, vstore_part
from minifer.kernels.spec import f32, i32, i64, kernel, ptr, ptr_f32, ptr_i32, ptr_i64, ptr_u8, u8

#: the status of a kernel that met a count out of range
BAD_COUNT = 2


def flag_bias_example(rng, size, T):
    n = int(rng.integers(0, 9 * size))
    return {"x": rng.integers(0, 2, n).astype(T.dtype), "y": np.full(n, np.nan, "f"), "n": n, "fill": -1e4}


def flag_bias_reference(x, y, n, fill):
    return {"y": np.where(x > 0, 0, fill)}


@kernel(reference=flag_bias_reference, example=flag_bias_example, tolerance=0, over={"T": (u8, i32)}, group="flags")
def flag_bias(x: ptr("T"), y: ptr_f32, n: i64, fill: f32, tid: i64, nthreads: i64):
    """y[i] = 0 where x[i] > 0, else fill. x, y: (n,)."""
    w = lanes(y)
    whole = n // w
    for b in range(share(whole, tid, nthreads), share(whole, tid + 1, nthreads)):
        flags = vconvert(vload_n(x, b * w, lanes(y)), i32)
        vstore(y, b * w, vselect(flags > 0, vsplat(y, 0), vsplat(y, fill)))
    if tid == nthreads - 1:
        for i in range(whole * w, n):
            y[i] = f32(0) if x[i] > 0 else fill


def range_bias_example(rng, size):
    batch, keys, has_start = int(rng.integers(1, 4)), int(rng.integers(1, 8 * size)), int(rng.integers(0, 2))
    ends = rng.integers(-1, keys + 2, batch)
    starts = rng.integers(-1, keys + 2, batch)
    return {
        "ends": ends.astype("i4"), "starts": starts.astype("i4"), "y": np.full((batch, keys), np.nan, "f"),
        "batch": batch, "keys": keys, "has_start": has_start, "fill": -1e4,
    }  # fmt: skip


def range_bias_reference(ends, starts, y, batch, keys, has_start, fill):
    at = np.arange(keys)
    show = (at < ends[:, None]) & ((at >= starts[:, None]) | (not has_start))
    return {"y": np.where(show, 0, fill)}


@kernel(reference=range_bias_reference, example=range_bias_example, tolerance=0, group="flags")
def range_bias(
    ends: ptr_i32, starts: ptr_i32, y: ptr_f32, batch: i64, keys: i64, has_start: i64, fill: f32,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """y[b, j] = 0 where starts[b] <= j < ends[b], else fill. ends, starts: (batch,), y: (batch, keys).

    starts is read where has_start is not 0.
    """
    w = lanes(y)
    for b in range(share(batch, tid, nthreads), share(batch, tid + 1, nthreads)):
        end, start = ends[b], 0
        if has_start != 0:
            start = starts[b]
        for j in range(0, keys, w):
            at = viota(i32) + j
            bias = vselect((at >= start) & (at < end), vsplat(y, 0), vsplat(y, fill))
            vstore_part(y, b * keys + j, bias, keys - j)


def spans_example(rng, size):
    batch, limit, more = int(rng.integers(1, 3 * size)), int(rng.integers(4, 9 * size)), int(rng.integers(0, 2))
    counts = rng.integers(0, limit + 1 - more, batch)
    if rng.random() < 0.2:
        counts[rng.integers(batch)] = rng.choice([-1 - more, limit + 1])
    dtype = np.dtype(rng.choice(["int32", "int64"]))
    return {
        "counts": counts.astype(dtype).view("u1"), "spans": np.full((batch, 2), -1, "i8"), "batch": batch,
        "index_bytes": dtype.itemsize, "more": more, "queries": int(rng.integers(1, limit)), "limit": limit,
        "floor": int(rng.choice([0, -100])),
    }  # fmt: skip


def spans_reference(counts, spans, batch, index_bytes, more, queries, limit, floor):
    known = counts.view(f"i{index_bytes}").astype("i8") + more
    if ((known < more) | (known > limit)).any():
        return {"status": BAD_COUNT}
    return {"spans": np.stack([known, np.maximum(known - queries, floor)], axis=1)}


@kernel(reference=spans_reference, example=spans_example, outputs=("spans",), tolerance=0, group="spans")
def spans_of(
    counts: ptr_u8, spans: ptr_i64, batch: i64, index_bytes: i64, more: i64, queries: i64, limit: i64, floor: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """spans[b] = (c, max(c - queries, floor)) with c = counts[b] + more. counts: (batch,) int32 or int64 (index_bytes).

    Status 2 where a count is negative or c above limit.
    """
    wide, narrow = cast(counts, i64), cast(counts, i32)
    status = 0
    for b in range(share(batch, tid, nthreads), share(batch, tid + 1, nthreads)):
        known = index_at(wide, narrow, index_bytes, b)
        if known < 0 or known > limit - more:
            status = BAD_COUNT
            known = 0
        known += more
        spans[2 * b] = known
        spans[2 * b + 1] = max(known - queries, floor)
    return status
