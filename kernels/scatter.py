"""Writing elements at positions that stand in a tensor: Scatter in its forms, OneHot, caches.

Elements are moved by width, or joined with what stands there (sum, product, maximum, minimum) by type. Indices are as
in `gather`: checked before memory is touched, status 1 where one is out of range. A scatter may name a place twice:
the updates of a place are applied in order, by one thread.
"""

import numpy as np

from minifer.kernels.gather import (
    OUT_OF_RANGE,
    bad_index,
    index_at,
    index_values,
    random_indices,
    random_tuples,
    row_of,
    rows_named,
    tuple_table,
    wrapped,
)
from minifer.kernels.move import WIDTHS, copy_run, dense_strides, fill_run, noise, random_table
from minifer.kernels.odometer import RANK, odometer_at, odometer_offset, odometer_size
from minifer.kernels.simd import cast, lanes, share, vload, vmax, vmin, vstore
from minifer.kernels.spec import f32, f64, i32, i64, kernel, ptr, ptr_i64, ptr_u8

NONE, ADD, MULTIPLY, MAXIMUM, MINIMUM = 0, 1, 2, 3, 4
REDUCTIONS = {"none": NONE, "add": ADD, "mul": MULTIPLY, "max": MAXIMUM, "min": MINIMUM}
_NUMPY = {ADD: np.add, MULTIPLY: np.multiply, MAXIMUM: np.maximum, MINIMUM: np.minimum}
NUMBERS = (f32, f64, i32, i64)


def join(a, b, reduction):
    """a and b put together by a reduction; numbers or vectors. NaN wins in maximum and minimum."""
    if reduction == ADD:
        return a + b
    if reduction == MULTIPLY:
        return a * b
    if reduction == MAXIMUM:
        return vmax(a, b)
    return vmin(a, b)


def put(y, i, value, reduction):
    """y[i] = value, or y[i] joined with value."""
    y[i] = value if reduction == NONE else join(y[i], value, reduction)


def put_run(x, y, n, reduction):
    """`put` of x[i] at y[i] for i < n."""
    if reduction == NONE:
        copy_run(x, y, n)
    else:
        join_run(x, y, n, reduction)


def join_run(x, y, n, reduction):
    """y[i] = y[i] joined with x[i] for i < n."""
    w = lanes(x)
    whole = n // w * w
    for i in range(0, whole, w):
        vstore(y, i, join(vload(y, i), vload(x, i), reduction))
    for i in range(whole, n):
        y[i] = join(y[i], x[i], reduction)


def random_numbers(rng, T, *shape):
    """Numbers that stay finite when several are multiplied."""
    values = rng.uniform(-2, 2, shape) if T.dtype.kind == "f" else rng.integers(-9, 10, shape)
    return values.astype(T.dtype)


def scatter_nd_example(rng, size, T, draw=noise):
    count, depth = (int(n) for n in rng.integers(1, (5 * size, 4)))
    sizes, run = rng.integers(1, 4, depth), int(rng.integers(1, 6 * size))
    indices, index_bytes = random_tuples(rng, sizes, count)
    return {
        "indices": indices, "updates": draw(rng, T, count, run), "y": draw(rng, T, np.prod(sizes), run),
        "table": tuple_table(sizes), "rows": int(np.prod(sizes)), "count": count, "depth": depth, "run": run,
        "index_bytes": index_bytes,
    }  # fmt: skip


def scatter_nd_reference(indices, updates, y, table, rows, count, depth, run, index_bytes, reduction=NONE):
    named, bad = rows_named(indices, index_bytes, table, depth)
    if bad:
        return {"status": 1}
    y = y.copy()
    if reduction == NONE:
        y[named] = updates
    else:
        y = y.astype("d") if y.dtype.kind == "f" else y
        _NUMPY[reduction].at(y, named, updates)
    return {"y": y}


def scatter_rows(indices, updates, y, table, rows, count, depth, run, index_bytes, reduction, tid, nthreads):
    """The body of both kernels below. A thread reads all indices and writes the rows that are its own."""
    wide, narrow = cast(indices, i64), cast(indices, i32)
    first, end = share(rows, tid, nthreads), share(rows, tid + 1, nthreads)
    status = 0
    for i in range(count):
        row = row_of(wide, narrow, index_bytes, i * depth, table, depth)
        if row < 0:
            status = OUT_OF_RANGE
        elif first <= row < end:
            put_run(updates + i * run, y + row * run, run, reduction)
    return status


@kernel(reference=scatter_nd_reference, example=scatter_nd_example, tolerance=0, over={"T": WIDTHS})
def scatter_nd(
    indices: ptr_u8, updates: ptr("T"), y: ptr("T"), table: ptr_i64, rows: i64, count: i64, depth: i64, run: i64,
    index_bytes: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[row named by indices[i]] = updates[i], in order. y: (rows, run), in and out; indices: (count, depth).

    table: see `tuple_table`; the product of its sizes is `rows`.
    """
    return scatter_rows(indices, updates, y, table, rows, count, depth, run, index_bytes, NONE, tid, nthreads)


def scatter_nd_join_example(rng, size, T):
    return {**scatter_nd_example(rng, size, T, random_numbers), "reduction": int(rng.integers(1, 5))}


@kernel(reference=scatter_nd_reference, example=scatter_nd_join_example, tolerance=1e-5, over={"T": NUMBERS})
def scatter_nd_join(
    indices: ptr_u8, updates: ptr("T"), y: ptr("T"), table: ptr_i64, rows: i64, count: i64, depth: i64, run: i64,
    index_bytes: i64, reduction: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """As `scatter_nd`, each update joined with the row that stands there. Error: a rounding for each update."""
    return scatter_rows(indices, updates, y, table, rows, count, depth, run, index_bytes, reduction, tid, nthreads)


#: columns that one thread takes in a scatter of elements
COLUMNS = 64


def scatter_elements_example(rng, size, T, draw=noise):
    table = random_table(rng, size, 2)
    axis = int(rng.integers(RANK))
    shape = table[0].copy()
    have = shape + rng.integers(0, 2, RANK)
    table[1], table[2] = dense_strides(shape), dense_strides(have)
    indices, index_bytes = random_indices(rng, int(have[axis]), shape)
    table[0, axis] = 1
    return {
        "indices": indices, "updates": draw(rng, T, *shape), "y": draw(rng, T, *have), "table": table,
        "count": int(shape[axis]), "index_step": int(table[1, axis]), "size": int(have[axis]),
        "step": int(table[2, axis]), "index_bytes": index_bytes,
    }  # fmt: skip


def scatter_elements_reference(
    indices, updates, y, table, count, index_step, size, step, index_bytes, reduction=NONE
):  # fmt: skip
    values = index_values(indices, index_bytes)
    if bad_index(values, size):
        return {"status": 1}
    sizes = np.array(updates.shape)
    strides = np.where((table[1] == index_step) & (table[2] == step) & (table[0] == 1), 0, table[2])
    flat = (sum(np.ix_(*(np.arange(n) * s for n, s in zip(sizes, strides)))) + values % size * step).reshape(-1)
    out = y.reshape(-1).astype("d" if reduction and y.dtype.kind == "f" else y.dtype)
    if reduction == NONE:
        out[flat] = updates.reshape(-1)
    else:
        _NUMPY[reduction].at(out, flat, updates.reshape(-1))
    return {"y": out.reshape(y.shape)}


def scatter_lines(
    indices, updates, y, table, count, index_step, size, step, index_bytes, reduction, tid, nthreads
):  # fmt: skip
    """The body of both kernels below. A thread has whole lines along the axis."""
    wide, narrow = cast(indices, i64), cast(indices, i32)
    strides, y_strides = table + RANK, table + 2 * RANK
    pieces = (table[7] + COLUMNS - 1) // COLUMNS
    units = odometer_size(table) * table[6] * pieces
    status = 0
    for unit in range(share(units, tid, nthreads), share(units, tid + 1, nthreads)):
        row, first = unit // pieces, unit % pieces * COLUMNS
        place, r = odometer_at(row // table[6], table), row % table[6]
        source = odometer_offset(place, strides) + r * strides[6]
        target = odometer_offset(place, y_strides) + r * y_strides[6]
        for k in range(count):
            for j in range(first, min(first + COLUMNS, table[7])):
                i = source + j * strides[7] + k * index_step
                at = wrapped(index_at(wide, narrow, index_bytes, i), size)
                if at < 0:
                    status = OUT_OF_RANGE
                else:
                    put(y, target + j * y_strides[7] + at * step, updates[i], reduction)
    return status


@kernel(reference=scatter_elements_reference, example=scatter_elements_example, tolerance=0, over={"T": WIDTHS})
def scatter_elements(
    indices: ptr_u8, updates: ptr("T"), y: ptr("T"), table: ptr_i64, count: i64, index_step: i64, size: i64, step: i64,
    index_bytes: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[place . y_strides + index * step] = update, for `count` indices along the axis in order.

    table: (3, RANK) = sizes of the indices (1 on the axis), strides of indices and updates, strides of y. y: in, out;
    `size` is its length on the axis.
    """
    return scatter_lines(
        indices, updates, y, table, count, index_step, size, step, index_bytes, NONE, tid, nthreads
    )  # fmt: skip


def scatter_elements_join_example(rng, size, T):
    return {**scatter_elements_example(rng, size, T, random_numbers), "reduction": int(rng.integers(1, 5))}


@kernel(
    reference=scatter_elements_reference, example=scatter_elements_join_example, tolerance=1e-5, over={"T": NUMBERS}
)  # fmt: skip
def scatter_elements_join(
    indices: ptr_u8, updates: ptr("T"), y: ptr("T"), table: ptr_i64, count: i64, index_step: i64, size: i64, step: i64,
    index_bytes: i64, reduction: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """As `scatter_elements`, each update joined with what stands there. Error: a rounding for each update."""
    return scatter_lines(
        indices, updates, y, table, count, index_step, size, step, index_bytes, reduction, tid, nthreads
    )  # fmt: skip


def one_hot_example(rng, size, T):
    outer, depth, inner = (int(n) for n in rng.integers(1, (5 * size, 4 * size, 4)))
    indices = rng.integers(-depth - 2, depth + 2, (outer, inner)).astype(rng.choice(["int32", "int64"]))
    return {
        "indices": indices.view(np.uint8), "values": noise(rng, T, 2), "y": noise(rng, T, outer, depth, inner),
        "outer": outer, "depth": depth, "inner": inner, "lowest": int(rng.choice([0, -depth])),
        "index_bytes": indices.itemsize,
    }  # fmt: skip


def one_hot_reference(indices, values, y, outer, depth, inner, lowest, index_bytes):
    index = index_values(indices, index_bytes).reshape(outer, 1, inner)
    valid = (index >= lowest) & (index < depth)
    hot = valid & (index % depth == np.arange(depth).reshape(1, depth, 1))
    return {"y": values[hot.astype(int)]}


@kernel(reference=one_hot_reference, example=one_hot_example, tolerance=0, over={"T": WIDTHS})
def one_hot(
    indices: ptr_u8, values: ptr("T"), y: ptr("T"), outer: i64, depth: i64, inner: i64, lowest: i64, index_bytes: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """y[o, d, i] = values[1] where indices[o, i] is d (wrapped) and in [lowest, depth), else values[0]."""
    wide, narrow = cast(indices, i64), cast(indices, i32)
    for o in range(share(outer, tid, nthreads), share(outer, tid + 1, nthreads)):
        target = y + o * depth * inner
        fill_run(values, target, depth * inner)
        for i in range(inner):
            at = index_at(wide, narrow, index_bytes, o * inner + i)
            if lowest <= at < depth:
                target[wrapped(at, depth) * inner + i] = values[1]


def write_rows_example(rng, size, T):
    batch, middle, length, run = (int(n) for n in rng.integers(1, (4, 4, 4 * size, 4 * size)))
    steps = int(rng.integers(1, length + 1))
    first = rng.integers(0, length - steps + 1, batch)
    circular = int(rng.integers(2))
    if rng.random() < 0.3:
        first[0] = rng.choice([-1, length, 2 * length + 1])
    return {
        "first": first, "updates": noise(rng, T, batch, middle, steps, run),
        "y": noise(rng, T, batch, middle, length, run), "batch": batch, "middle": middle, "steps": steps,
        "length": length, "run": run, "circular": circular,
    }  # fmt: skip


def write_rows_reference(first, updates, y, batch, middle, steps, length, run, circular):
    place = first[:, None] + np.arange(steps)
    y = y.copy()
    if (first < 0).any() or (not circular and (place >= length).any()):
        return {"status": 1}
    for b in range(batch):
        y[b, :, place[b] % length] = updates[b].transpose(1, 0, 2)
    return {"y": y}


@kernel(reference=write_rows_reference, example=write_rows_example, tolerance=0, over={"T": WIDTHS})
def write_rows(
    first: ptr_i64, updates: ptr("T"), y: ptr("T"), batch: i64, middle: i64, steps: i64, length: i64, run: i64,
    circular: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[b, m, first[b] + s] = updates[b, m, s], s < steps <= length; modulo `length` where circular. y: in and out.

    updates: (batch, middle, steps, run), y: (batch, middle, length, run).
    """
    status = 0
    for unit in range(share(batch * middle, tid, nthreads), share(batch * middle, tid + 1, nthreads)):
        at = first[unit // middle]
        if at < 0 or (circular == 0 and at > length - steps):
            status = OUT_OF_RANGE
        else:
            at = at % length
            before = min(steps, length - at)
            source = updates + unit * steps * run
            target = y + unit * length * run
            copy_run(source, target + at * run, before * run)
            copy_run(source + before * run, target, (steps - before) * run)
    return status
