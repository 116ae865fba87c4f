"""Moving elements without looking at them: transposition and strided copies.

Elements are moved by width, so four instances (u8, u16, u32, u64) serve all element types. Results are exact. The
cost is memory traffic: each element is read once and written once.
"""

import numpy as np

from minifer.kernels.odometer import RANK, odometer_at, odometer_next, odometer_offset, odometer_size
from minifer.kernels.simd import (
    lanes,
    share,
    u8,
    u16,
    u32,
    u64,
    veven,
    vload,
    vload_n,
    vlow,
    vsplat,
    vstore,
    vzip_high,
    vzip_low,
)
from minifer.kernels.spec import i64, kernel, ptr, ptr_i64

WIDTHS = (u8, u16, u32, u64)

# ---------------------------------------------------------------- runs of elements

#: elements of one row that a thread copies at a time
PIECE = 8192


def copy_run(x, y, n):
    """y[i] = x[i] for i < n. The last vector overlaps the one before, so that no loop over a rest is needed."""
    w = lanes(x)
    if n >= w:
        for i in range(0, n - w, w):
            vstore(y, i, vload(x, i))
        vstore(y, n - w, vload(x, n - w))
    elif n >= 32:
        vstore(y, 0, vload_n(x, 0, 32))
        vstore(y, n - 32, vload_n(x, n - 32, 32))
    elif n >= 16:
        vstore(y, 0, vload_n(x, 0, 16))
        vstore(y, n - 16, vload_n(x, n - 16, 16))
    elif n >= 8:
        vstore(y, 0, vload_n(x, 0, 8))
        vstore(y, n - 8, vload_n(x, n - 8, 8))
    elif n >= 4:
        vstore(y, 0, vload_n(x, 0, 4))
        vstore(y, n - 4, vload_n(x, n - 4, 4))
    else:
        for i in range(n):
            y[i] = x[i]


def fill_run(x, y, n):
    """y[i] = x[0] for i < n."""
    w = lanes(x)
    value = vsplat(x, x[0])
    if n >= w:
        for i in range(0, n - w, w):
            vstore(y, i, value)
        vstore(y, n - w, value)
    elif 2 * n >= w:
        vstore(y, 0, vlow(value))
        vstore(y, n - w // 2, vlow(value))
    else:
        for i in range(n):
            y[i] = x[0]


def copy_even(x, y, n):
    """y[i] = x[2 * i] for i < n."""
    w = lanes(x)
    i = 0
    while i + w < n:
        vstore(y, i, veven(vload(x, 2 * i), vload(x, 2 * i + w)))
        i += w
    if i + w // 2 < n:
        v = vload(x, 2 * i)
        vstore(y, i, vlow(veven(v, v)))
        i += w // 2
    while i < n:
        y[i] = x[2 * i]
        i += 1


def copy_line(x, step, y, n):
    """y[i] = x[i * step] for i < n; step may be 0 or negative."""
    if step == 1:
        copy_run(x, y, n)
    elif step == 0:
        fill_run(x, y, n)
    elif step == 2:
        copy_even(x, y, n)
    else:
        for i in range(n):
            y[i] = x[i * step]


# ---------------------------------------------------------------- transposition

#: A panel is the work of one thread at a time: PANEL_ROWS x PANEL_COLUMNS of x. Its columns become that many
#: rows of y which are written in step, so their lines stay in the first cache until they are full.
PANEL_ROWS, PANEL_COLUMNS = 128, 16


def shuffle_4(r):
    """Four rows taken as one sequence: its halves interleaved."""
    a, b, c, d = r
    return vzip_low(a, c), vzip_high(a, c), vzip_low(b, d), vzip_high(b, d)


def shuffle_8(r):
    """Eight rows taken as one sequence: its halves interleaved."""
    a, b, c, d, e, f, g, h = r
    return (
        vzip_low(a, e), vzip_high(a, e), vzip_low(b, f), vzip_high(b, f),
        vzip_low(c, g), vzip_high(c, g), vzip_low(d, h), vzip_high(d, h),
    )  # fmt: skip


def transpose_4x4(x, x_step, y, y_step):
    """A block of 4 x 4 in registers. Interleaving halves rotates the bits of (row, column) by one: twice swaps them."""
    r = (vload_n(x, 0, 4), vload_n(x, x_step, 4), vload_n(x, 2 * x_step, 4), vload_n(x, 3 * x_step, 4))
    a, b, c, d = shuffle_4(shuffle_4(r))
    vstore(y, 0, a)
    vstore(y, y_step, b)
    vstore(y, 2 * y_step, c)
    vstore(y, 3 * y_step, d)


def transpose_8x8(x, x_step, y, y_step):
    """A block of 8 x 8 in registers, by three interleavings."""
    r = (
        vload_n(x, 0, 8), vload_n(x, x_step, 8), vload_n(x, 2 * x_step, 8), vload_n(x, 3 * x_step, 8),
        vload_n(x, 4 * x_step, 8), vload_n(x, 5 * x_step, 8), vload_n(x, 6 * x_step, 8), vload_n(x, 7 * x_step, 8),
    )  # fmt: skip
    a, b, c, d, e, f, g, h = shuffle_8(shuffle_8(shuffle_8(r)))
    vstore(y, 0, a)
    vstore(y, y_step, b)
    vstore(y, 2 * y_step, c)
    vstore(y, 3 * y_step, d)
    vstore(y, 4 * y_step, e)
    vstore(y, 5 * y_step, f)
    vstore(y, 6 * y_step, g)
    vstore(y, 7 * y_step, h)


def block_size(x):
    """Rows of a block in registers: 8 where elements have one or two bytes, else 4."""
    return 8 if lanes(x) > lanes(u32) else 4


def transpose_block(x, x_step, y, y_step):
    """A square block of `block_size(x)`."""
    if block_size(x) == 8:
        transpose_8x8(x, x_step, y, y_step)
    else:
        transpose_4x4(x, x_step, y, y_step)


def transpose_panel(x, x_step, y, y_step, rows, columns):
    """y[c * y_step + r] = x[r * x_step + c] for r < rows, c < columns. The last blocks overlap the ones before."""
    block = block_size(x)
    if rows >= block and columns >= block:
        for j in range(0, columns, block):
            c = min(j, columns - block)
            for i in range(0, rows, block):
                r = min(i, rows - block)
                transpose_block(x + (r * x_step + c), x_step, y + (c * y_step + r), y_step)
    elif rows == 3 and y_step == 3 and block == 4:
        interleave_3(x, x_step, y, columns)
    elif columns == 3 and x_step == 3 and block == 4:
        separate_3(x, y, y_step, rows)
    elif rows == 2 and y_step == 2:
        interleave_2(x, x_step, y, columns)
    else:
        for c in range(columns):
            for r in range(rows):
                y[c * y_step + r] = x[r * x_step + c]


def interleave_2(x, x_step, y, columns):
    """Two rows to pairs."""
    w = lanes(x)
    whole = columns // w * w
    for c in range(0, whole, w):
        a, b = vload(x, c), vload(x, x_step + c)
        vstore(y, 2 * c, vzip_low(a, b))
        vstore(y, 2 * c + w, vzip_high(a, b))
    for c in range(whole, columns):
        y[2 * c] = x[c]
        y[2 * c + 1] = x[x_step + c]


def interleave_3(x, x_step, y, columns):
    """Three rows to triples (planes to pixels). A store of four is mended by the next; the last ones are exact."""
    done = (columns - 1) // 4 * 4 if columns > 4 else 0
    for c in range(0, done, 4):
        a, b, d = vload_n(x, c, 4), vload_n(x, x_step + c, 4), vload_n(x, 2 * x_step + c, 4)
        first, second, third, fourth = shuffle_4(shuffle_4((a, b, d, d)))
        vstore(y, 3 * c, first)
        vstore(y, 3 * c + 3, second)
        vstore(y, 3 * c + 6, third)
        vstore(y, 3 * c + 9, fourth)
    for c in range(done, columns):
        for r in range(3):
            y[3 * c + r] = x[r * x_step + c]


def separate_3(x, y, y_step, rows):
    """Triples to three rows (pixels to planes). A load of four reads into the next triple: the last ones are single."""
    done = (rows - 1) // 4 * 4 if rows > 4 else 0
    for r in range(0, done, 4):
        p = x + 3 * r
        a, b, c, _ = shuffle_4(shuffle_4((vload_n(p, 0, 4), vload_n(p, 3, 4), vload_n(p, 6, 4), vload_n(p, 9, 4))))
        vstore(y, r, a)
        vstore(y, y_step + r, b)
        vstore(y, 2 * y_step + r, c)
    for r in range(done, rows):
        for c in range(3):
            y[c * y_step + r] = x[3 * r + c]


def panels_down(rows, columns):
    """How many panels share the rows: long ones where there are few columns."""
    most = PANEL_ROWS if columns > 8 else 8 * PANEL_ROWS
    return (rows + most - 1) // most


def panels_across(rows, columns):
    """How many panels share the columns: none is narrower than half of PANEL_COLUMNS, unless it is alone."""
    most = PANEL_COLUMNS if rows > 8 else 32 * PANEL_COLUMNS
    return max(1, (columns + most // 2) // most)


def noise(rng, T, *shape):
    """Random bits."""
    return rng.integers(0, 256, (int(np.prod(shape)), T.dtype.itemsize)).astype("u1").view(T.dtype).reshape(shape)


def transpose_example(rng, size, T):
    batch, rows, columns = (int(n) for n in rng.integers(1, (4, 9 * size + 2, 5 * size + 2)))
    thin = int(rng.integers(6))
    rows, columns = 2 + thin if thin < 2 else rows, 2 + thin // 3 if thin in (2, 3) else columns
    x = noise(rng, T, batch, rows, columns)
    return {"x": x, "y": noise(rng, T, batch, columns, rows), "batch": batch, "rows": rows, "columns": columns}


def transpose_reference(x, y, batch, rows, columns):
    return {"y": x.reshape(batch, rows, columns).transpose(0, 2, 1).reshape(y.shape)}


@kernel(reference=transpose_reference, example=transpose_example, tolerance=0, over={"T": WIDTHS})
def transpose_matrices(x: ptr("T"), y: ptr("T"), batch: i64, rows: i64, columns: i64, tid: i64, nthreads: i64):
    """y[b, c, r] = x[b, r, c]. x: (batch, rows, columns), y: (batch, columns, rows)."""
    down, across = panels_down(rows, columns), panels_across(rows, columns)
    panels = batch * down * across
    for panel in range(share(panels, tid, nthreads), share(panels, tid + 1, nthreads)):
        i, j = panel // across % down, panel % across
        r, c = share(rows, i, down), share(columns, j, across)
        base = panel // across // down * rows * columns
        source = x + (base + r * columns + c)
        target = y + (base + c * rows + r)
        transpose_panel(source, columns, target, rows, share(rows, i + 1, down) - r, share(columns, j + 1, across) - c)


def random_table(rng, size, operands):
    """A table of sizes with `operands` rows of zeros for strides."""
    table = np.ones((1 + operands, RANK), np.int64)
    table[0, RANK - int(rng.integers(0, RANK + 1)) :] = 0
    free = table[0] == 0
    table[0, free] = rng.integers(1, 4, int(free.sum()))
    table[0, -1] = rng.integers(1, (6 if rng.random() < 0.7 else 20) * size + 2)
    table[0, -2] = rng.integers(1, 2 * size + 2)
    table[1:] = 0
    return table


def dense_strides(shape):
    """Row-major strides in elements."""
    return np.cumprod([1, *shape[:0:-1]])[::-1]


def transpose_strided_example(rng, size, T):
    table = random_table(rng, size, 2)
    shape = [int(n) for n in table[0]]
    x_order, y_order = [*range(6), 7, 6], [*range(6), 6, 7]
    rng.shuffle(x_order[:6])
    for row, order in ((1, x_order), (2, y_order)):
        table[row, order] = dense_strides([shape[i] for i in order])
    return {"x": noise(rng, T, *shape), "y": noise(rng, T, *shape), "start": 0, "table": table}


def strided_view(x, start, shape, strides):
    """The elements x[start + sum of index times stride]; strides are in elements."""
    return np.lib.stride_tricks.as_strided(x.reshape(-1)[start:], shape, strides * x.itemsize)


def transpose_strided_reference(x, y, start, table):
    y = y.copy()
    strided_view(y, 0, table[0], table[2])[...] = strided_view(x, start, table[0], table[1])
    return {"y": y}


@kernel(reference=transpose_strided_reference, example=transpose_strided_example, tolerance=0, over={"T": WIDTHS})
def transpose_strided(x: ptr("T"), y: ptr("T"), start: i64, table: ptr_i64, tid: i64, nthreads: i64):
    """y[place . y_strides] = x[start + place . x_strides]. table: (3, RANK) = sizes, x_strides, y_strides.

    Axis 6 has stride 1 in x, axis 7 stride 1 in y: the two are transposed in registers.
    """
    x_strides, y_strides = table + RANK, table + 2 * RANK
    columns, rows, x_step, y_step = table[6], table[7], x_strides[7], y_strides[6]
    down, across = panels_down(rows, columns), panels_across(rows, columns)
    panels = down * across
    units = odometer_size(table) * panels
    first = share(units, tid, nthreads)
    panel = first % panels
    place = odometer_at(first // panels, table)
    for _ in range(first, share(units, tid + 1, nthreads)):
        i, j = panel // across, panel % across
        r, c = share(rows, i, down), share(columns, j, across)
        source = x + (start + odometer_offset(place, x_strides) + r * x_step + c)
        target = y + (odometer_offset(place, y_strides) + c * y_step + r)
        transpose_panel(source, x_step, target, y_step, share(rows, i + 1, down) - r, share(columns, j + 1, across) - c)
        panel += 1
        if panel == panels:
            panel = 0
            place = odometer_next(place, table)


# ---------------------------------------------------------------- copies


def copy_strided_example(rng, size, T):
    table = random_table(rng, size, 1)
    table[1] = rng.integers(-3, 4, RANK)
    if rng.integers(2):
        table[1, -1] = rng.integers(0, 2)
    ends = (table[0] - 1) * table[1]
    start = -int(ends[ends < 0].sum())
    x = noise(rng, T, start + int(ends[ends > 0].sum()) + 1)
    return {"x": x, "y": noise(rng, T, *table[0]), "start": start, "table": table}


def copy_strided_reference(x, y, start, table):
    return {"y": strided_view(x, start, table[0], table[1]).copy()}


@kernel(reference=copy_strided_reference, example=copy_strided_example, tolerance=0, over={"T": WIDTHS})
def copy_strided(x: ptr("T"), y: ptr("T"), start: i64, table: ptr_i64, tid: i64, nthreads: i64):
    """y[place] = x[start + place . strides]. table: (2, RANK) = sizes, strides (also 0, negative); y is dense."""
    strides = table + RANK
    rows, columns, down, step = table[6], table[7], strides[6], strides[7]
    pieces = (columns + PIECE - 1) // PIECE
    units = odometer_size(table) * rows * pieces
    first = share(units, tid, nthreads)
    piece, row = first % pieces, first // pieces
    r = row % rows
    place = odometer_at(row // rows, table)
    base = start + odometer_offset(place, strides)
    for _ in range(first, share(units, tid + 1, nthreads)):
        column = piece * PIECE
        source = x + (base + r * down + column * step)
        copy_line(source, step, y + (row * columns + column), min(PIECE, columns - column))
        piece += 1
        if piece == pieces:
            piece = 0
            row += 1
            r += 1
            if r == rows:
                r = 0
                place = odometer_next(place, table)
                base = start + odometer_offset(place, strides)
