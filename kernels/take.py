"""Reading a tensor by a table for each axis: padding in all modes, nearest-neighbour resizing. By width; exact."""

import numpy as np

from minifer.kernels.move import WIDTHS, copy_run, dense_strides, fill_run, noise
from minifer.kernels.odometer import RANK, odometer_at, odometer_next, odometer_size
from minifer.kernels.simd import lanes, share, vload, vstore, vzip_high, vzip_low
from minifer.kernels.spec import i64, kernel, ptr, ptr_i64

#: words before the axis tables: sizes, where each axis's table begins, then left, first and count of the last axis
TAKE_HEAD = 2 * RANK + 3

#: stands for `left` where the last axis repeats each element once
DOUBLED = -1


def take_table(places, run):
    """The table of `take_axes`.

    `places`: for each axis an int64 array of offsets in x (in elements), negative where the fill value stands.
    `run` = (left, count): on the last axis, the places left to left + count are consecutive elements. (DOUBLED, 0): on
    the last axis each place stands twice, and the next one is the next element.
    """
    left, count = run
    last = places[-1]
    if left == DOUBLED:
        head_run, last_list = (DOUBLED, int(last[0]), len(last)), last[:0]
    else:
        head_run = (left, int(last[left]) if count else 0, count)
        last_list = np.concatenate([last[:left], last[left + count :]])
    lists = [np.zeros(1, np.int64)] * (RANK - len(places)) + [np.asarray(p, np.int64) for p in places]
    lists[-1] = np.asarray(last_list, np.int64)
    head = np.zeros(TAKE_HEAD, np.int64)
    head[:RANK] = [len(p) for p in lists[:-1]] + [len(last)]
    head[RANK : 2 * RANK] = TAKE_HEAD + np.cumsum([0] + [len(p) for p in lists[:-1]])
    head[2 * RANK :] = head_run
    return np.concatenate([head, *lists])


def take_axes_example(rng, size, T):
    rank = int(rng.integers(1, 6))
    x_shape, shape = rng.integers(1, 5, rank), rng.integers(1, 6, rank)
    x_shape[-1], shape[-1] = rng.integers(1, 4 * size + 2), rng.integers(1, 6 * size + 2)
    steps = dense_strides([int(n) for n in x_shape])
    places = [rng.integers(0, have, n) * step for n, have, step in zip(shape, x_shape, steps)]
    places = [np.where(rng.random(len(p)) < 0.2, -1, p) for p in places]
    left = int(rng.integers(0, shape[-1] + 1))
    first = int(rng.integers(0, x_shape[-1]))
    count = int(min(shape[-1] - left, x_shape[-1] - first))
    places[-1][left : left + count] = first + np.arange(count)
    if rng.random() < 0.3 and shape[-1] <= 2 * x_shape[-1]:
        places[-1] = np.arange(shape[-1]) // 2
        left, count = DOUBLED, 0
    table = take_table(places, (left, count))
    return {"x": noise(rng, T, *x_shape), "value": noise(rng, T, 1), "y": noise(rng, T, *shape), "table": table}


def take_axes_reference(x, value, y, table):
    head, lists = table[: 2 * RANK].reshape(2, RANK), []
    left, first, count = table[2 * RANK : TAKE_HEAD]
    for axis, (n, at) in enumerate(head.T):
        line = table[at : at + n]
        if axis == RANK - 1 and left == DOUBLED:
            line = first + np.arange(n) // 2
        elif axis == RANK - 1:
            line = table[at : at + n - count]
            line = np.concatenate([line[:left], first + np.arange(count), line[left:]])
        lists.append(line)
    grid = np.ix_(*lists)
    inside = np.all(np.broadcast_arrays(*(g >= 0 for g in grid)), axis=0)
    found = np.where(inside, x.reshape(-1)[np.where(inside, sum(grid), 0)], value)
    return {"y": found.astype(x.dtype).reshape(y.shape)}


def double_run(x, y, n):
    """y[i] = x[i // 2] for i < n."""
    w = lanes(x)
    whole = n // (2 * w) * w
    for i in range(0, whole, w):
        v = vload(x, i)
        vstore(y, 2 * i, vzip_low(v, v))
        vstore(y, 2 * i + w, vzip_high(v, v))
    for i in range(2 * whole, n):
        y[i] = x[i // 2]


def take_line(x, value, y, line, left, first, count, columns):
    """One row of y: table, run, table."""
    for i in range(left):
        at = line[i]
        y[i] = value[0] if at < 0 else x[at]
    copy_run(x + first, y + left, count)
    for i in range(left + count, columns):
        at = line[i - count]
        y[i] = value[0] if at < 0 else x[at]


@kernel(reference=take_axes_reference, example=take_axes_example, tolerance=0, over={"T": WIDTHS})
def take_axes(x: ptr("T"), value: ptr("T"), y: ptr("T"), table: ptr_i64, tid: i64, nthreads: i64):
    """y[i, j, ...] = x[p0[i] + p1[j] + ...], or value[0] where any of the p is negative. y is dense.

    table: see `take_table`. Padding in all modes, nearest-neighbour resizing and reversal are of this form. A row that
    reads the same places as the one before is copied from it.
    """
    rows, columns = table[6], table[7]
    starts = table + RANK
    line = table + starts[7]
    left, first, count = table[2 * RANK], table[2 * RANK + 1], table[2 * RANK + 2]
    total = odometer_size(table) * rows
    row = share(total, tid, nthreads)
    r = row % rows
    place = odometer_at(row // rows, table)
    before = -1
    for i in range(row, share(total, tid + 1, nthreads)):
        a, b, c, d, e, f = place
        pa, pb, pc, pd = table[starts[0] + a], table[starts[1] + b], table[starts[2] + c], table[starts[3] + d]
        pe, pf, pr = table[starts[4] + e], table[starts[5] + f], table[starts[6] + r]
        source = pa + pb + pc + pd + pe + pf + pr
        target = y + i * columns
        if min(min(min(pa, pb), min(pc, pd)), min(min(pe, pf), pr)) < 0:
            fill_run(value, target, columns)
            source = -1
        elif source == before:
            copy_run(target - columns, target, columns)
        elif left == DOUBLED:
            double_run(x + (source + first), target, columns)
        else:
            take_line(x + source, value, target, line, left, first, count, columns)
        before = source
        r += 1
        if r == rows:
            r = 0
            place = odometer_next(place, table)
