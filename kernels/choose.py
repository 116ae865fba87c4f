"""Choosing between elements: Where, and the triangles of matrices. By element width; exact."""

import numpy as np

from minifer.kernels.move import WIDTHS, copy_line, copy_run, dense_strides, noise, random_table, strided_view
from minifer.kernels.odometer import RANK, odometer_at, odometer_next, odometer_offset, odometer_size
from minifer.kernels.simd import lanes, share, vload, vload_n, vselect, vsplat, vstore
from minifer.kernels.spec import i64, kernel, ptr, ptr_i64, ptr_u8


def where_example(rng, size, T):
    table, operands = random_table(rng, size, 3), []
    for row in range(1, 4):
        shape = [int(n) if rng.random() < 0.7 else 1 for n in table[0]]
        table[row] = np.where(np.array(shape) == 1, 0, dense_strides(shape))
        operands.append(noise(rng, T, *shape))
    condition = rng.integers(0, 2, operands[0].shape).astype(np.uint8)
    return {"condition": condition, "a": operands[1], "b": operands[2], "y": noise(rng, T, *table[0]), "table": table}


def where_reference(condition, a, b, y, table):
    views = [strided_view(v, 0, table[0], table[row]) for row, v in enumerate((condition, a, b), 1)]
    return {"y": np.where(views[0] != 0, views[1], views[2])}


def select_line(condition, a, a_step, b, b_step, y, n):
    """y[i] = a[i] where condition[i], else b[i]; a step of 0 means one element for all i."""
    w = lanes(y)
    fixed_a, fixed_b = vsplat(a, a[0]), vsplat(b, b[0])
    whole = n // w * w
    for i in range(0, whole, w):
        left = vload(a, i) if a_step != 0 else fixed_a
        right = vload(b, i) if b_step != 0 else fixed_b
        vstore(y, i, vselect(vload_n(condition, i, lanes(y)) != 0, left, right))
    for i in range(whole, n):
        y[i] = a[i * a_step] if condition[i] != 0 else b[i * b_step]


@kernel(reference=where_reference, example=where_example, tolerance=0, over={"T": WIDTHS})
def where(condition: ptr_u8, a: ptr("T"), b: ptr("T"), y: ptr("T"), table: ptr_i64, tid: i64, nthreads: i64):
    """y[place] = a[place . a_strides] where condition[place . c_strides], else b[place . b_strides]; y is dense.

    table: (4, RANK) = sizes, strides of condition, a, b; on the last axis each is 0 or 1.
    """
    c_strides, a_strides, b_strides = table + RANK, table + 2 * RANK, table + 3 * RANK
    rows, columns = table[6], table[7]
    total = odometer_size(table) * rows
    row = share(total, tid, nthreads)
    place = odometer_at(row // rows, table)
    r = row % rows
    for i in range(row, share(total, tid + 1, nthreads)):
        chosen = condition + (odometer_offset(place, c_strides) + r * c_strides[6])
        left = a + (odometer_offset(place, a_strides) + r * a_strides[6])
        right = b + (odometer_offset(place, b_strides) + r * b_strides[6])
        target = y + i * columns
        if c_strides[7] != 0:
            select_line(chosen, left, a_strides[7], right, b_strides[7], target, columns)
        elif chosen[0] != 0:
            copy_line(left, a_strides[7], target, columns)
        else:
            copy_line(right, b_strides[7], target, columns)
        r += 1
        if r == rows:
            r = 0
            place = odometer_next(place, table)


def trilu_example(rng, size, T):
    batch, rows, columns = (int(n) for n in rng.integers(1, (4, 4 * size + 1, 6 * size + 1)))
    diagonal = rng.integers(-rows - 2, columns + 3, 1)
    if rng.random() < 0.1:
        diagonal[0] = rng.choice([2**63 - 1, -(2**63)])
    return {
        "x": noise(rng, T, batch, rows, columns), "diagonal": diagonal, "y": noise(rng, T, batch, rows, columns),
        "batch": batch, "rows": rows, "columns": columns, "upper": int(rng.integers(2)),
    }  # fmt: skip


def trilu_reference(x, diagonal, y, batch, rows, columns, upper):
    distance = np.arange(columns) - np.arange(rows)[:, None]
    keep = distance >= diagonal[0] if upper else distance <= diagonal[0]
    return {"y": np.where(keep, x, np.zeros_like(x))}


def zero_run(y, n):
    """y[i] = 0 for i < n."""
    w = lanes(y)
    whole = n // w * w
    for i in range(0, whole, w):
        vstore(y, i, vsplat(y, 0))
    for i in range(whole, n):
        y[i] = 0


@kernel(reference=trilu_reference, example=trilu_example, tolerance=0, over={"T": WIDTHS})
def trilu(
    x: ptr("T"), diagonal: ptr_i64, y: ptr("T"), batch: i64, rows: i64, columns: i64, upper: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """x with zeros below its diagonal number diagonal[0] (upper = 1), or above it (0). x, y: (batch, rows, columns)."""
    k = max(min(diagonal[0], columns), -rows - 1)
    for i in range(share(batch * rows, tid, nthreads), share(batch * rows, tid + 1, nthreads)):
        source, target = x + i * columns, y + i * columns
        first = i % rows + k
        if upper != 0:
            cut = max(min(first, columns), 0)
            zero_run(target, cut)
            copy_run(source + cut, target + cut, columns - cut)
        else:
            cut = max(min(first + 1, columns), 0)
            copy_run(source, target, cut)
            zero_run(target + cut, columns - cut)
