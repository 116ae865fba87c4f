"""Sums of embeddings: for each token the rows of its word, its position and its segment."""

from __future__ import annotations

import numpy as np

from minifer.kernels.gather import OUT_OF_RANGE, index_at
from minifer.kernels.simd import cast, lanes, share, vload_part, vstore_part
from minifer.kernels.spec import i32, i64, kernel, ptr_f32, ptr_i32, ptr_u8


def embed_sum_example(rng, size):
    batch, length, hidden = (int(n) for n in rng.integers(1, (4, 2 * size + 1, 12 * size)))
    has_places, has_segments = int(rng.integers(0, 3)), int(rng.integers(0, 2))
    sizes = (9, length + 2, 3)
    dtype = np.dtype(rng.choice(["int32", "int64"]))
    ids = [rng.integers(0, n, (batch, length)) for n in sizes]
    if rng.random() < 0.2:
        ids[rng.integers(0, 3)].reshape(-1)[0] = rng.choice([-1, 99])
    words, places, segments = (v.astype(dtype).view("u1") for v in ids)
    tables = [rng.standard_normal((n, hidden)).astype("f") for n in sizes]
    return {
        "words": words, "places": places, "segments": segments, "word": tables[0], "position": tables[1],
        "segment": tables[2], "y": np.full((batch, length, hidden), np.nan, "f"), "batch": batch, "length": length,
        "hidden": hidden, "word_rows": sizes[0], "position_rows": sizes[1], "segment_rows": sizes[2],
        "index_bytes": dtype.itemsize, "has_places": has_places, "has_segments": has_segments,
    }  # fmt: skip


def embed_sum_reference(
    words, places, segments, word, position, segment, y, batch, length, hidden, word_rows, position_rows, segment_rows,
    index_bytes, has_places, has_segments,
):  # fmt: skip
    def rows(ids):
        return ids.view(f"i{index_bytes}").astype("i8").reshape(batch, length)

    at = rows(places) if has_places == EACH else np.arange(length)[None] + np.zeros((batch, 1), "i8")
    at = rows(places)[:1] + np.zeros((batch, 1), "i8") if has_places == SHARED else at
    used = [(rows(words), word), (at, position)] + ([(rows(segments), segment)] if has_segments else [])
    if any(((ids < 0) | (ids >= len(table))).any() for ids, table in used):
        return {"status": OUT_OF_RANGE}
    return {"y": sum(table.astype("d")[ids] for ids, table in used)}


#: has_places: positions count up from 0, are the same for each entry of the batch, or are given for each token
COUNTED, SHARED, EACH = 0, 1, 2


@kernel(reference=embed_sum_reference, example=embed_sum_example, tolerance=2e-7)
def embed_sum(
    words: ptr_u8, places: ptr_u8, segments: ptr_u8, word: ptr_f32, position: ptr_f32, segment: ptr_f32, y: ptr_f32,
    batch: i64, length: i64, hidden: i64, word_rows: i64, position_rows: i64, segment_rows: i64, index_bytes: i64,
    has_places: i64, has_segments: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[b, i] = word[words[b, i]] + position[places[b, i]] + segment[segments[b, i]].

    The ids are int32 or int64 (index_bytes); places: see COUNTED; segments are read where has_segments is not 0. The
    tables are (rows, hidden), y: (batch, length, hidden). Status 1 where an id is out of range.
    """
    units = batch * length
    status = 0
    for unit in range(share(units, tid, nthreads), share(units, tid + 1, nthreads)):
        at, kind = unit % length, 0
        if has_places != COUNTED:
            at = index_at(cast(places, i64), cast(places, i32), index_bytes, at if has_places == SHARED else unit)
        if has_segments != 0:
            kind = index_at(cast(segments, i64), cast(segments, i32), index_bytes, unit)
        name = index_at(cast(words, i64), cast(words, i32), index_bytes, unit)
        if min(name, min(at, kind)) < 0 or name >= word_rows or at >= position_rows or kind >= max(segment_rows, 1):
            status = OUT_OF_RANGE
        else:
            first, second, third = word + name * hidden, position + at * hidden, segment + kind * hidden
            for i in range(0, hidden, lanes(y)):
                n = hidden - i
                total = vload_part(first, i, n) + vload_part(second, i, n)
                if has_segments != 0:
                    total = total + vload_part(third, i, n)
                vstore_part(y, unit * hidden + i, total, n)
    return status


def count_ones_example(rng, size):
    batch, length = int(rng.integers(1, 5)), int(rng.integers(1, 9 * size))
    x = rng.integers(0, 3, (batch, length)).astype("i4")
    return {"x": x, "y": np.full(batch, -1, "i4"), "batch": batch, "length": length, "has": int(rng.random() < 0.8)}


def count_ones_reference(x, y, batch, length, has):
    return {"y": (x == 1).sum(axis=1) * has}


@kernel(reference=count_ones_reference, example=count_ones_example, tolerance=0)
def count_ones(x: ptr_i32, y: ptr_i32, batch: i64, length: i64, has: i64, tid: i64, nthreads: i64):
    """y[b] = how many of x[b] are 1, or 0 where `has` is 0 and x is not read. x: (batch, length), y: (batch,)."""
    for b in range(share(batch, tid, nthreads), share(batch, tid + 1, nthreads)):
        count = 0
        if has != 0:
            for i in range(length):
                count += 1 if x[b * length + i] == 1 else 0
        y[b] = count
