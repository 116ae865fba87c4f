"""Matrix product C = A @ B (+ bias + residual, activated), float32, on the CPU's matrix registers (AMX).

These registers multiply bfloat16 only: 16 x 32 by 32 x 16 numbers in one instruction, at sixteen times the rate of
float32. A float32 has 24 bits, a bfloat16 eight: so each number is the sum of three, a = a0 + a1 + a2, exactly, and of
the nine products of parts those three that are below 2^-24 of the whole product are left out (Henry, Tang and Heinecke,
"Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019). Six products at
sixteen times the rate, added in float32: as accurate as the product of float32, and up to twice as fast.

A block of 32 x 32 results stays in the registers while k goes by. Both sides are split as they are needed: a block of
rows of A once, a panel of B for each block of rows, beside the products of the panel before. What has no three parts
(an infinity, what is no number, what becomes infinite when it is rounded) makes the results that it meets so, too;
these are computed again without the registers.
"""

from __future__ import annotations

import math

import numpy as np

from minifer.kernels.activation import CLAMP, activate_rows
from minifer.kernels.conv import (
    BATCH,
    CHANNELS,
    DILATION_D,
    FILTERS,
    IN_D,
    OUT_D,
    OUT_H,
    OUT_STEP,
    OUT_W,
    RESIDUAL_STEP,
    TAPS_D,
    TAPS_H,
    TAPS_W,
    conv_example,
    conv_reference,
    fill_table,
    geometry,
    pack_weights,
)
from minifer.kernels.gemm import (
    accumulate,
    block_size,
    finish,
    gemm_example,
    gemm_reference,
    many_rows,
)
from minifer.kernels.simd import (
    MATRIX,
    MR,
    NR,
    SIDE,
    THIRD,
    address_of,
    as_ptr,
    bitcast,
    cast,
    f32,
    lanes,
    matrix_close,
    matrix_load,
    matrix_open,
    matrix_product,
    matrix_store,
    matrix_zero,
    prefetch,
    rows_table,
    share,
    tile_store,
    tile_zero,
    tile_zero_row,
    u16,
    u32,
    vany,
    vload,
    vload_part,
    vmax_quick,
    vmin_quick,
    vodd,
    vselect,
    vsplat,
    vstore,
    vstore_part,
    vzip_odd,
)
from minifer.kernels.spec import i64, kernel, ptr_f32, ptr_i64

#: half a side; k of a step; words of a step of 32 rows or columns; floats of a block of results
HALF, DEPTH, STEP, BLOCK = SIDE // 2, 32, 3 * THIRD, SIDE * SIDE
#: pairs of rows of a panel's step; rows of A that are split in a turn; floats ahead that weights are fetched
PAIRS, TURN, AHEAD = 16, 6, 1024
#: the unit of what is done in a turn
FINE = 1 << 16
#: what the channels of a convolution are a multiple of
UNIT = 16
#: rows that are split at once, k at once, and panels that all parts of k meet one after the other: what is split, and
#: the sums, stay in the second-level cache
ROWS, DEEPEST, TOGETHER = 256, 512, 16


def depth_of(k):
    """How much of k is done at once."""
    parts = max(1, (k + DEEPEST - 1) // DEEPEST)
    return max(1, (k + parts * DEPTH - 1) // (parts * DEPTH)) * DEPTH


def part_of(m, n, k, pieces, tid, nthreads):
    """A thread's part of the results: rows from and to, columns from and to.

    Threads share strips of rows, or panels; what they do not share each splits for itself. To split a step of a strip
    or a panel takes about two thirds of what it takes to multiply one by the other.
    """
    strips, panels = (m + SIDE - 1) // SIDE, (n + NR - 1) // NR
    of_rows = (strips + pieces - 1) // pieces * (3 * panels + 2) + 2 * panels
    of_columns = (panels + pieces - 1) // pieces * (3 * strips + 2) + 2 * strips
    if many_rows(m, n * k) or of_rows <= of_columns:
        return share(strips, tid, nthreads) * SIDE, min(m, share(strips, tid + 1, nthreads) * SIDE), 0, n
    return 0, m, share(panels, tid, nthreads) * NR, min(n, share(panels, tid + 1, nthreads) * NR)


def scratch_words(m, n, k):
    """32-bit words of scratch memory for each thread."""
    blocks, panels = (min(m, ROWS) + SIDE - 1) // SIDE, (n + NR - 1) // NR
    depth = depth_of(k)
    sums = BLOCK * (2 if depth >= k else blocks * min(panels, TOGETHER))
    return 2 * ROWS + sums + STEP * (depth // DEPTH) * (blocks + 2)


def example(rng, size):
    arguments = gemm_example(rng, size)
    a = arguments["a"]
    if rng.random() < 0.3 and a.size:
        a[rng.integers(0, a.shape[0]), rng.integers(0, a.shape[1])] = rng.choice([np.inf, -np.inf, np.nan])
    words = scratch_words(arguments["m"], arguments["n"], arguments["k"])
    return arguments | {"scratch": np.zeros(words * 8, np.float32)}


def reference(scratch, **arguments):
    with np.errstate(invalid="ignore"):
        return gemm_reference(**arguments)


@kernel(reference=reference, example=example, outputs=("c", "scratch"), tolerance=3e-7, coarse=True)
def gemm_matrix(
    a: ptr_f32, b: ptr_f32, c: ptr_f32, bias: ptr_f32, residual: ptr_f32, scratch: ptr_f32, m: i64, n: i64, k: i64,
    lda: i64, ldc: i64, ldr: i64, has_bias: i64, has_residual: i64, code: i64, first: f32, second: f32,
    slot: i64, pieces: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """C[i, j] = activate(sum_p A[i, p] B[p, j] + bias[j] + residual[i, j]); arguments as of gemm.

    scratch: scratch_words for each thread. Where there are no matrix registers the register tile does it.

    12 m n k FLOPs of bfloat16. Threads share rows if there are many, else panels of columns. Error <= 3e-7 *
    (sum_p |A B| + |bias| + 1), more by sqrt(k) units in the worst case; parts below 2^-126 count as zero, so that
    numbers below 2^-105 lose their last bits. A row with infinite results takes the time of a row by itself.
    """
    i, end_i, j, end_j = part_of(m, n, k, pieces, tid, nthreads)
    if i >= end_i or j >= end_j:
        return
    mine = scratch + slot * scratch_words(m, n, k)
    table, mine = cast(mine, i64), mine + 2 * ROWS
    matrix_open()
    size = block_size(end_i - i, ROWS, SIDE)
    for row in range(size):
        table[row] = row * lda
    while i < end_i:
        rows = min(size, end_i - i)
        product_of_rows(
            a + i * lda, table, 0, k, b, c + i * ldc, bias, residual + i * ldr, mine, rows, n, k, ldc, ldr, has_bias,
            has_residual, code, first, second, j, end_j,
        )  # fmt: skip
        i += rows
    matrix_close()


def conv_words(pixels, filters, taps, channels):
    """32-bit words of scratch memory that conv_matrix needs for each thread."""
    return scratch_words(pixels, filters, taps * channels) + 2 * ROWS * (taps - 1)


def conv_arguments(rng, size):
    drawn = conv_example(rng, size)
    old, (in_gap, out_gap, gap) = drawn["g"], (int(v) for v in rng.integers(0, 3, 3))
    sizes = [tuple(int(v) for v in old[i : i + 3]) for i in range(IN_D, DILATION_D + 1, 3)]
    channels, filters, batch = 16 * int(rng.integers(1, 5)), int(rng.integers(1, 80)), int(old[BATCH])
    g = geometry(batch, channels, filters, 1, *sizes, gaps=(in_gap, out_gap, gap))
    inside, out, taps = sizes[:3]
    x = rng.standard_normal((batch, *inside, channels + in_gap)).astype("f")
    if rng.random() < 0.3:
        x[0, 0, 0, 0, 0] = rng.choice([np.inf, -np.inf, np.nan])
    words = conv_words(batch * math.prod(out), filters, math.prod(taps), channels)
    del drawn["table"]
    return drawn | {
        "g": g, "x": x, "weight": pack_weights(rng.standard_normal((filters, channels, *taps)).astype("f"), 1),
        "bias": rng.standard_normal(filters).astype("f"), "zeros": np.zeros(channels, "f"),
        "residual": rng.standard_normal((batch, *out, filters + gap)).astype("f"),
        "y": np.full((batch, *out, filters + out_gap), np.nan, "f"), "scratch": np.zeros(8 * words, "f"),
    }  # fmt: skip


def conv_expected(scratch, **arguments):
    with np.errstate(invalid="ignore"):
        return conv_reference(table=None, **arguments)


@kernel(reference=conv_expected, example=conv_arguments, outputs=("y", "scratch"), tolerance=2e-6, coarse=True)
def conv_matrix(
    x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, zeros: ptr_f32, scratch: ptr_f32,
    g: ptr_i64, code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64,
    slot: i64, pieces: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = activate(conv(x, weight) + bias + residual), one group; arguments as of conv.

    Channels are a multiple of UNIT. scratch: conv_words for each thread.

    12 * pixels * taps * channels * filters FLOPs of bfloat16. Each result is one sum in the order taps, channels.
    Error: as of gemm_matrix.
    """
    filters, run, taps = g[FILTERS], g[CHANNELS], g[TAPS_D] * g[TAPS_H] * g[TAPS_W]
    pixels, k = g[BATCH] * g[OUT_D] * g[OUT_H] * g[OUT_W], taps * run
    i, end_i, j, end_j = part_of(pixels, filters, k, pieces, tid, nthreads)
    if i >= end_i or j >= end_j:
        return
    # entries count from the lower of the two arrays that a row may lie in
    base = as_ptr(min(address_of(x), address_of(zeros)), f32)
    origin, nothing = (address_of(x) - address_of(base)) // 4, (address_of(zeros) - address_of(base)) // 4
    mine = scratch + slot * conv_words(pixels, filters, taps, run)
    table, mine = cast(mine, i64), mine + 2 * ROWS * taps
    matrix_open()
    size = block_size(end_i - i, ROWS, SIDE)
    while i < end_i:
        rows = min(size, end_i - i)
        fill_table(table, g, i, rows, g[TAPS_W], origin, nothing)
        product_of_rows(
            base, table, rows, run, weight, y + i * g[OUT_STEP], bias, residual + i * g[RESIDUAL_STEP], mine, rows,
            filters, k, g[OUT_STEP], g[RESIDUAL_STEP], has_bias, has_residual, code, first, second, j, end_j,
        )  # fmt: skip
        i += rows
    matrix_close()


def product_of_rows(
    x, table, pitch, run, b, c, bias, residual, scratch, m, n, k, ldc, ldr, has_bias, has_residual, code, first, second,
    j, end_j,
):  # fmt: skip
    """The product for m <= ROWS rows of A and the panels of B from column j to end_j.

    Element `run` * e + p of row i is x[table[e * pitch + i] + p].
    """
    run = max(1, run)
    if MATRIX == 0:
        product_by_tiles(
            x, table, pitch, run, b, c, bias, residual, m, n, k, ldc, ldr, has_bias, has_residual, code, first, second,
            j, end_j,
        )  # fmt: skip
        return
    together = n if depth_of(k) >= k else TOGETHER * NR
    for from_j in range(j, end_j, max(together, NR)):
        product_of_panels(
            x, table, pitch, run, b, c, bias, residual, scratch, m, n, k, ldc, ldr, has_bias, has_residual, code, first,
            second, from_j, min(end_j, from_j + together),
        )  # fmt: skip


def product_of_panels(
    x, table, pitch, run, b, c, bias, residual, scratch, m, n, k, ldc, ldr, has_bias, has_residual, code, first, second,
    j, end_j,
):  # fmt: skip
    """product_of_rows for no more panels than the sums of all parts of k have room for."""
    blocks, depth = (m + SIDE - 1) // SIDE, depth_of(k)
    steps, parts = depth // DEPTH, max(1, (k + depth - 1) // depth)
    panel = j // NR
    count = (end_j + NR - 1) // NR - panel
    # sums of a block and of the one before, or, where k goes by parts, of all; then the parts of rows and of two panels
    sums = scratch
    left = cast(sums + BLOCK * (2 if parts == 1 else blocks * count), u32)
    right = left + blocks * steps * STEP
    for part in range(parts):
        p0 = part * depth
        now = (min(depth, k - p0) + DEPTH - 1) // DEPTH
        turns, last = 6 * now, part + 1 == parts
        for s in range(now):
            p = p0 + s * DEPTH
            lower, upper, at_lower, at_upper = places(table, pitch, run, p)
            split_rows(left + s * STEP, x, lower, upper, at_lower, at_upper, k - p, 0, SIDE, min(SIDE, m))
        split_pairs(right, b + (panel * k + p0) * NR, k - p0, 0, PAIRS * now)
        done = 0
        for unit in range(count * blocks + last):
            # a block of results; beside its products the one before is ended, and what comes later is split
            q, i = unit // blocks, unit % blocks
            block = sums + (unit % 2 if parts == 1 else unit) * BLOCK
            ended = sums + ((unit + 1) % 2 if parts == 1 else unit - 1) * BLOCK
            ends = min(SIDE, m - (unit - 1) % blocks * SIDE) if last and unit > 0 else 0
            row, column = (unit - 1) % blocks * SIDE, (panel + (unit - 1) // blocks) * NR
            before, offset = table + row, bias + column
            panel_before, columns = b + column * k, min(NR, n - column)
            target, addend = c + (row * ldc + column), residual + (row * ldr + column)
            e = 0
            if q < count:
                here, other = right + q % 2 * (steps * STEP), right + (q + 1) % 2 * (steps * STEP)
                rows, following = left + i * steps * STEP, b + ((panel + q + 1) * k + p0) * NR
                pairs = PAIRS * now if q + 1 < count else 0  # of rows of the next panel, shared by all blocks
                below = min(SIDE, m - (i + 1) * SIDE) if q == 0 else 0  # rows of the next block
                done = 0 if i == 0 else done
                split_pace, end_pace = pace(pairs, blocks * turns), pace(ends, turns)
                # a block that is no more than half full takes half of the work
                shape = 6 if m - i * SIDE <= HALF else 12 if n - (panel + q) * NR <= HALF else 0
                if part == 0:
                    matrix_zero()
                else:
                    matrix_load(block, SIDE)
                for s in range(now):
                    p = p0 + s * DEPTH
                    lower, upper, at_lower, at_upper = places(table + (i + 1) * SIDE, pitch, run, p)
                    for r in range(6):
                        matrix_product(rows + s * STEP, here + s * STEP, r + shape)
                        if below > 0:
                            split_rows(
                                rows + (steps + s) * STEP, x, lower, upper, at_lower, at_upper, k - p, r * TURN,
                                min(SIDE, r * TURN + TURN), below,
                            )  # fmt: skip
                        turn = 6 * s + r + 1
                        upto = split_pace * (i * turns + turn) // FINE
                        split_pairs(other, following, k - p0, done, upto)
                        done, upto = upto, end_pace * turn // FINE
                        end_rows(
                            ended, e, upto, x, before, pitch, run, panel_before, target, offset, addend, k, ldc, ldr,
                            columns, has_bias, has_residual, code, first, second,
                        )  # fmt: skip
                        e = upto
                matrix_store(block)
            end_rows(
                ended, e, ends, x, before, pitch, run, panel_before, target, offset, addend, k, ldc, ldr, columns,
                has_bias, has_residual, code, first, second,
            )  # fmt: skip
            if code != CLAMP and ends > 0:
                activate_rows(target, ldc, ends, columns, code, first, second)


def product_by_tiles(
    x, table, pitch, run, b, c, bias, residual, m, n, k, ldc, ldr, has_bias, has_residual, code, first, second, j, end_j
):
    """product_of_rows where there are no matrix registers."""
    for column in range(j, end_j, NR):
        for i in range(0, m, MR):
            valid = min(MR, m - i)
            acc = tile_zero()
            for e in range(0, k, run):
                rows = rows_table(x, table + (e // run * pitch + i), valid)
                acc = accumulate(acc, rows, 0, b + (column * k + e * NR), run)
            finish(
                acc, c + (i * ldc + column), bias + column, residual + (i * ldr + column), ldc, ldr, valid,
                min(NR, n - column), has_bias, has_residual, code, first, second,
            )  # fmt: skip


def pace(amount, turns):
    """What of an amount each of some turns has to do, FINE times; after all turns it is done."""
    return (amount * FINE + turns - 1) // max(turns, 1)


def places(table, pitch, run, p):
    """Where elements p to p + 16 and p + 16 to p + 32 of a row lie: their places in the table, and behind these."""
    lower, upper = p // run, (p + lanes(f32)) // run
    return table + lower * pitch, table + upper * pitch, p - lower * run, p + lanes(f32) - upper * run


def split_pairs(out, b, left, start, stop):
    """The three parts of pairs of rows of a panel, from the pair `start` on; `left` rows are there, zeros behind."""
    size = lanes(f32)
    for i in range(start, stop):
        row, half = b + i * 2 * NR, out + (i // PAIRS * STEP + i % PAIRS * 16)
        for h in range(2):
            x, y = vsplat(f32, 0), vsplat(f32, 0)
            if 2 * i < left:
                x = vload(row, h * size)
            if 2 * i + 1 < left:
                y = vload(row, NR + h * size)
            prefetch(row, h * size + AHEAD)
            prefetch(row, NR + h * size + AHEAD)
            for part in range(3):
                bits, other = parted(x, part), parted(y, part)
                words = bitcast(vzip_odd(bitcast(bits, u16), bitcast(other, u16)), u32)
                vstore(half, h * 256 + part * THIRD, words)
                x, y = x - upper(bits), y - upper(other)


def split_rows(out, x, lower, upper_half, at_lower, at_upper, left, start, stop, valid):
    """The three parts of 32 elements of rows start to stop, of which `left` elements and `valid` rows are there.

    16 elements begin at x[lower[i] + at_lower], the others at x[upper_half[i] + at_upper].
    """
    size = lanes(f32)
    there = min(stop, valid)
    if left >= DEPTH:
        for i in range(start, there):
            near, far = x + (lower[i] + at_lower), x + (upper_half[i] + at_upper)
            prefetch(near, DEPTH)
            prefetch(far, DEPTH)
            split_row(out + i * 16, vload(near, 0), vload(far, 0))
    else:
        for i in range(start, there):
            v, w = vload_part(x + lower[i], at_lower, left), vsplat(f32, 0)
            if left > size:
                w = vload_part(x + upper_half[i], at_upper, left - size)
            split_row(out + i * 16, v, w)
    if there < stop:
        zero = vsplat(f32, 0)
        for i in range(max(start, valid), stop):
            split_row(out + i * 16, zero, zero)


def split_row(out, x, y):
    """The three parts of 32 elements of a row."""
    for part in range(3):
        bits, other = parted(x, part), parted(y, part)
        vstore(out, part * THIRD, bitcast(vodd(bitcast(bits, u16), bitcast(other, u16)), u32))
        x, y = x - upper(bits), y - upper(other)


def parted(x, part):
    """Bits whose upper half is the next part of x: the first is rounded, so that the rest has either sign, the second
    cut off, and the third all that is left, eight bits or fewer."""
    return bitcast(x, u32) + (0x8000 if part == 0 else 0)


def upper(bits):
    """The number whose bits are the upper halves of these."""
    return bitcast(bits & 0xFFFF0000, f32)


def end_rows(
    block, start, stop, x, table, pitch, run, b, target, bias, residual, k, ldc, ldr, columns, has_bias, has_residual,
    code, first, second,
):  # fmt: skip
    """What comes behind the product of some rows of a block, but for an activation that is no clamp, and the store."""
    size = lanes(f32)
    for i in range(start, stop):
        v, w = vload(block, i * SIDE), vload(block, i * SIDE + size)
        if vany((v - v != 0) | (w - w != 0)):  # infinite, or no number
            apart_mend(block + i * SIDE, x, table + i, pitch, run, b, k)
            v, w = vload(block, i * SIDE), vload(block, i * SIDE + size)
        if has_bias != 0:
            v, w = v + vload_part(bias, 0, columns), w + vload_part(bias, size, columns - size)
        if has_residual != 0:
            v = v + vload_part(residual, i * ldr, columns)
            w = w + vload_part(residual, i * ldr + size, columns - size)
        if code == CLAMP:
            v, w = vmin_quick(second, vmax_quick(first, v)), vmin_quick(second, vmax_quick(first, w))
        vstore_part(target, i * ldc, v, columns)
        vstore_part(target, i * ldc + size, w, columns - size)


def apart_mend(block, x, table, pitch, run, b, k):
    """Compute those of a row's results that are infinite or no numbers again, by the register tile."""
    acc = tile_zero_row()
    for e in range(0, k, run):
        acc = accumulate(acc, rows_table(x, table + e // run * pitch, 1), 0, b + e * NR, run)
    size = lanes(f32)
    v, w = vload(block, 0), vload(block, size)
    tile_store(block, NR, acc, 1, NR)
    vstore(block, 0, vselect(v - v == 0, v, vload(block, 0)))
    vstore(block, size, vselect(w - w == 0, w, vload(block, size)))
