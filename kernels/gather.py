"""Reading elements at positions that stand in a tensor: Gather in its forms, and reversed sequences.

Elements are moved by width. Index tensors are int32 or int64 (`index_bytes` 4 or 8); a negative index counts from the
end. Every index is checked before memory is touched: status 1 says that one was out of range.
"""

import numpy as np

from minifer.kernels.move import PIECE, WIDTHS, copy_run, dense_strides, noise, random_table
from minifer.kernels.odometer import RANK, odometer_at, odometer_next, odometer_offset, odometer_size
from minifer.kernels.simd import cast, share
from minifer.kernels.spec import i32, i64, kernel, ptr, ptr_i64, ptr_u8

#: the status of a kernel that met an index out of range
OUT_OF_RANGE = 1


def index_at(wide, narrow, index_bytes, i):
    """Element i of an index tensor, seen as int64 and as int32."""
    if index_bytes == 8:
        return wide[i]
    return narrow[i]


def wrapped(index, size):
    """The index counted from the start, or -1 where it is out of range."""
    at = index + size if index < 0 else index
    return at if 0 <= at < size else -1


def random_indices(rng, size, shape):
    """An index tensor as bytes, its int64 values, and its element size; now and then one index is bad."""
    values = rng.integers(-size, size, shape)
    if values.size and rng.random() < 0.1:
        values.reshape(-1)[rng.integers(values.size)] = rng.choice([size, -size - 1, -(2**31), 2**31 - 1])
    dtype = np.dtype(rng.choice(["int32", "int64"]))
    return values.astype(dtype).view(np.uint8), dtype.itemsize


def index_values(indices, index_bytes):
    """The int64 values of an index tensor given as bytes."""
    return indices.view(f"i{index_bytes}").astype(np.int64)


def bad_index(values, size):
    """1 where an index is out of range, else 0."""
    return int(((values < -size) | (values >= size)).any())


def gather_rows_example(rng, size, T):
    outer, have, run = (int(n) for n in rng.integers(1, (4, 3 * size + 1, 5 * size + 1)))
    run = run if rng.random() < 0.7 else 1
    count = int(rng.integers(1, 4 * size + 1))
    indices, index_bytes = random_indices(rng, have, count)
    return {
        "x": noise(rng, T, outer, have, run), "indices": indices, "y": noise(rng, T, outer, count, run),
        "outer": outer, "size": have, "count": count, "run": run, "index_bytes": index_bytes,
    }  # fmt: skip


def gather_rows_reference(x, indices, y, outer, size, count, run, index_bytes):
    values = index_values(indices, index_bytes)
    bad = bad_index(values, size)
    return {"status": 1} if bad else {"y": x[:, values]}


@kernel(reference=gather_rows_reference, example=gather_rows_example, tolerance=0, over={"T": WIDTHS})
def gather_rows(
    x: ptr("T"), indices: ptr_u8, y: ptr("T"), outer: i64, size: i64, count: i64, run: i64, index_bytes: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """y[o, i] = x[o, indices[i]]. x: (outer, size, run), indices: (count,), y: (outer, count, run)."""
    wide, narrow = cast(indices, i64), cast(indices, i32)
    if run == 1:
        status = 0
        for o in range(outer):
            source, target = x + o * size, y + o * count
            for i in range(share(count, tid, nthreads), share(count, tid + 1, nthreads)):
                at = wrapped(index_at(wide, narrow, index_bytes, i), size)
                if at < 0:
                    status = OUT_OF_RANGE
                else:
                    target[i] = source[at]
        return status
    return gather_runs(x, wide, narrow, y, outer, size, count, run, index_bytes, tid, nthreads)


def gather_runs(x, wide, narrow, y, outer, size, count, run, index_bytes, tid, nthreads):
    """The body of `gather_rows` for runs of more than one element."""
    pieces = (run + PIECE - 1) // PIECE
    units = outer * count * pieces
    first = share(units, tid, nthreads)
    piece, i, o = first % pieces, first // pieces % count, first // pieces // count
    status = 0
    for _ in range(first, share(units, tid + 1, nthreads)):
        row = wrapped(index_at(wide, narrow, index_bytes, i), size)
        if row < 0:
            status = OUT_OF_RANGE
        else:
            start = piece * PIECE
            source = x + ((o * size + row) * run + start)
            copy_run(source, y + ((o * count + i) * run + start), min(PIECE, run - start))
        piece += 1
        if piece == pieces:
            piece = 0
            i += 1
            if i == count:
                i = 0
                o += 1
    return status


def gather_elements_example(rng, size, T):
    table = random_table(rng, size, 1)
    axis = int(rng.integers(RANK))
    have = table[0] + rng.integers(0, 2, RANK)
    table[1] = dense_strides(have)
    step, table[1, axis] = int(table[1, axis]), 0
    indices, index_bytes = random_indices(rng, int(have[axis]), table[0])
    return {
        "x": noise(rng, T, *have), "indices": indices, "y": noise(rng, T, *table[0]), "table": table,
        "size": int(have[axis]), "step": step, "index_bytes": index_bytes,
    }  # fmt: skip


def gather_elements_reference(x, indices, y, table, size, step, index_bytes):
    values = index_values(indices, index_bytes)
    if bad_index(values, size):
        return {"status": 1}
    place = sum(np.ix_(*(np.arange(n) * s for n, s in table.T)))
    return {"y": x.reshape(-1)[place + values % size * step]}


@kernel(reference=gather_elements_reference, example=gather_elements_example, tolerance=0, over={"T": WIDTHS})
def gather_elements(
    x: ptr("T"), indices: ptr_u8, y: ptr("T"), table: ptr_i64, size: i64, step: i64, index_bytes: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """y[place] = x[place . strides + indices[place] * step]. table: (2, RANK) = sizes of indices and y, strides of x.

    Along the axis that is indexed, of length `size` in x, the table has stride 0.
    """
    wide, narrow = cast(indices, i64), cast(indices, i32)
    strides = table + RANK
    rows, columns, down, right = table[6], table[7], strides[6], strides[7]
    total = odometer_size(table) * rows
    row = share(total, tid, nthreads)
    place = odometer_at(row // rows, table)
    r = row % rows
    status = 0
    for i in range(row, share(total, tid + 1, nthreads)):
        base = odometer_offset(place, strides) + r * down
        for j in range(columns):
            at = wrapped(index_at(wide, narrow, index_bytes, i * columns + j), size)
            if at < 0:
                status = OUT_OF_RANGE
            else:
                y[i * columns + j] = x[base + j * right + at * step]
        r += 1
        if r == rows:
            r = 0
            place = odometer_next(place, table)
    return status


def tuple_table(sizes):
    """The table of the kernels that take index tuples: sizes of the indexed axes, then their strides in rows."""
    table = np.zeros((2, RANK), np.int64)
    table[0, : len(sizes)], table[1, : len(sizes)] = sizes, dense_strides(sizes)
    return table


def random_tuples(rng, sizes, *shape):
    """Index tuples as bytes (one index may be bad) and their element size."""
    columns = [rng.integers(-n, n, shape) for n in sizes]
    values = np.stack(columns, -1)
    if values.size and rng.random() < 0.1:
        values.reshape(-1)[rng.integers(values.size)] = rng.choice([2**31 - 1, -(2**31)])
    dtype = np.dtype(rng.choice(["int32", "int64"]))
    return values.astype(dtype).view(np.uint8), dtype.itemsize


def row_of(wide, narrow, index_bytes, i, table, depth):
    """The row that the index tuple at element i names, or -1."""
    row = 0
    for k in range(depth):
        at = wrapped(index_at(wide, narrow, index_bytes, i + k), table[k])
        row = -1 if at < 0 or row < 0 else row + at * table[RANK + k]
    return row


def rows_named(indices, index_bytes, table, depth):
    """NumPy: the row of each tuple, and 1 where an index is out of range."""
    values = index_values(indices, index_bytes).reshape(-1, depth)
    sizes, strides = table[:, :depth]
    return (values % sizes) @ strides, int(((values < -sizes) | (values >= sizes)).any())


def gather_nd_example(rng, size, T):
    batch, count, depth = (int(n) for n in rng.integers(1, (4, 5 * size, 4)))
    sizes, run = rng.integers(1, 4, depth), int(rng.integers(1, 6 * size))
    indices, index_bytes = random_tuples(rng, sizes, batch, count)
    return {
        "x": noise(rng, T, batch, np.prod(sizes), run), "indices": indices, "y": noise(rng, T, batch, count, run),
        "table": tuple_table(sizes), "batch": batch, "rows": int(np.prod(sizes)), "count": count, "depth": depth,
        "run": run, "index_bytes": index_bytes,
    }  # fmt: skip


def gather_nd_reference(x, indices, y, table, batch, rows, count, depth, run, index_bytes):
    named, bad = rows_named(indices, index_bytes, table, depth)
    return {"status": 1} if bad else {"y": x[np.arange(batch)[:, None], named.reshape(batch, count)]}


@kernel(reference=gather_nd_reference, example=gather_nd_example, tolerance=0, over={"T": WIDTHS})
def gather_nd(
    x: ptr("T"), indices: ptr_u8, y: ptr("T"), table: ptr_i64, batch: i64, rows: i64, count: i64, depth: i64, run: i64,
    index_bytes: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[b, i] = x[b, row named by indices[b, i]]. x: (batch, rows, run), indices: (batch, count, depth).

    table: see `tuple_table`; the product of its sizes is `rows`.
    """
    wide, narrow = cast(indices, i64), cast(indices, i32)
    status = 0
    for i in range(share(batch * count, tid, nthreads), share(batch * count, tid + 1, nthreads)):
        row = row_of(wide, narrow, index_bytes, i * depth, table, depth)
        if row < 0:
            status = OUT_OF_RANGE
        else:
            copy_run(x + (i // count * rows + row) * run, y + i * run, run)
    return status


def reverse_rows_example(rng, size, T):
    steps, batch, run = (int(n) for n in rng.integers(1, (5 * size, 5, 4 * size)))
    lengths = rng.integers(0, steps + 1, batch)
    if rng.random() < 0.1:
        lengths[0] = rng.choice([-1, steps + 1])
    by_time = bool(rng.integers(2))
    shape = (steps, batch, run) if by_time else (batch, steps, run)
    return {
        "x": noise(rng, T, *shape), "lengths": lengths, "y": noise(rng, T, *shape), "steps": steps, "batch": batch,
        "run": run, "time_step": batch if by_time else 1, "batch_step": 1 if by_time else steps,
    }  # fmt: skip


def reverse_rows_reference(x, lengths, y, steps, batch, run, time_step, batch_step):
    if ((lengths < 0) | (lengths > steps)).any():
        return {"status": 1}
    x, out = x.reshape(-1, run), np.empty((steps * batch, run), x.dtype)
    for b in range(batch):
        for t in range(steps):
            source = lengths[b] - 1 - t if t < lengths[b] else t
            out[t * time_step + b * batch_step] = x[source * time_step + b * batch_step]
    return {"y": out.reshape(y.shape)}


@kernel(reference=reverse_rows_reference, example=reverse_rows_example, tolerance=0, over={"T": WIDTHS})
def reverse_rows(
    x: ptr("T"), lengths: ptr_i64, y: ptr("T"), steps: i64, batch: i64, run: i64, time_step: i64, batch_step: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """The first lengths[b] of `steps` rows of each sequence b in reverse order, the rest as they are.

    Row t of sequence b begins at (t * time_step + b * batch_step) * run in both x and y.
    """
    status = 0
    for unit in range(share(steps * batch, tid, nthreads), share(steps * batch, tid + 1, nthreads)):
        t, b = unit // batch, unit % batch
        n = lengths[b]
        if n < 0 or n > steps:
            status = OUT_OF_RANGE
        else:
            source = n - 1 - t if t < n else t
            at = b * batch_step
            copy_run(x + (source * time_step + at) * run, y + (t * time_step + at) * run, run)
    return status
