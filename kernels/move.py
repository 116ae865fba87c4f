"""Moving elements without looking at them: matrix transposition, strided copies, fills.

Elements are moved by width, so four instances (u8, u16, u32, u64) serve all element types.
"""

from minifer.kernels.simd import lanes, share, u8, u16, u32, u64, vload_n, vstore, vzip_high, vzip_low
from minifer.kernels.spec import i64, kernel, ptr

WIDTHS = (u8, u16, u32, u64)

# ---------------------------------------------------------------- transposition of matrices

#: A panel is the work of one thread at a time: PANEL_ROWS x PANEL_COLUMNS of x. Its columns become that many
#: rows of y which are written in step, so their lines stay in the first cache until they are full.
PANEL_ROWS, PANEL_COLUMNS = 256, 16


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


def transpose_block(x, x_step, y, y_step):
    """A square block of `block_size(x)`."""
    if lanes(x) >= 16:
        transpose_8x8(x, x_step, y, y_step)
    else:
        transpose_4x4(x, x_step, y, y_step)


def transpose_panel(x, x_step, y, y_step, rows, columns):
    """y[c * y_step + r] = x[r * x_step + c] for r < rows, c < columns."""
    block = 8 if lanes(x) >= 16 else 4
    whole_rows = rows // block * block
    whole_columns = columns // block * block
    for r in range(0, whole_rows, block):
        for c in range(0, whole_columns, block):
            transpose_block(x + (r * x_step + c), x_step, y + (c * y_step + r), y_step)
    for r in range(whole_rows):
        for c in range(whole_columns, columns):
            y[c * y_step + r] = x[r * x_step + c]
    for c in range(columns):
        for r in range(whole_rows, rows):
            y[c * y_step + r] = x[r * x_step + c]


def transpose_example(rng, size, T):
    batch, rows, columns = (int(n) for n in rng.integers(1, (4, 9 * size + 2, 5 * size + 2)))
    x = rng.integers(0, 256, (batch, rows, columns * T.dtype.itemsize)).astype("u1").view(T.dtype)
    return {"x": x, "y": x.transpose(0, 2, 1).copy() ^ 1, "batch": batch, "rows": rows, "columns": columns}


def transpose_reference(x, y, batch, rows, columns):
    return {"y": x.reshape(batch, rows, columns).transpose(0, 2, 1).reshape(y.shape)}


@kernel(reference=transpose_reference, example=transpose_example, tolerance=0, over={"T": WIDTHS})
def transpose_matrices(x: ptr("T"), y: ptr("T"), batch: i64, rows: i64, columns: i64, tid: i64, nthreads: i64):
    """y[b, c, r] = x[b, r, c]. x: (batch, rows, columns), y: (batch, columns, rows). Exact; 2 widths moved an element."""
    down = (rows + PANEL_ROWS - 1) // PANEL_ROWS
    across = (columns + PANEL_COLUMNS - 1) // PANEL_COLUMNS
    panels = batch * down * across
    for panel in range(share(panels, tid, nthreads), share(panels, tid + 1, nthreads)):
        c = panel % across * PANEL_COLUMNS
        r = panel // across % down * PANEL_ROWS
        base = panel // across // down * rows * columns
        source = x + (base + r * columns + c)
        target = y + (base + c * rows + r)
        transpose_panel(source, columns, target, rows, min(PANEL_ROWS, rows - r), min(PANEL_COLUMNS, columns - c))
