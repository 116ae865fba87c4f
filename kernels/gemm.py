"""Matrix product C = A @ B (+ bias, clamped), float32, with B packed into panels.

The micro-kernel keeps an MR x NR tile of C in registers and adds one outer product per step of k; the layers around
it keep a block of B in the second-level cache while all rows of A go by, and MR rows of A in the first while they meet
the block (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, with A and B exchanged).
Meanwhile the cache is told what comes next: the next block of B, then the next rows of A (a fifth of the time where
weights come from memory or rows are many). A is read where it lies: row pointers need no packing. k is split only where
A's rows are so long that the cache does not hold them: elsewhere C is written once and never read.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.activation import CLAMP, activate_rows, activation_reference
from minifer.kernels.simd import (
    BLOCK,
    MR,
    NR,
    SHORT,
    UNROLL,
    prefetch,
    rows_strided,
    share,
    tile_add,
    tile_bias,
    tile_clamp,
    tile_outer,
    tile_outer4,
    tile_store,
    tile_zero,
    tile_zero_row,
    tile_zero_short,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32

#: floats of a cache line
LINE = 16
#: steps of k that make a part worth while
LEAST_STEPS = 512
#: panels that are read side by side for a lone row
TOGETHER = 4
#: parts of a panel's rows that threads share, at most, and about the rows that one has at least
PARTS, LEAST_ROWS = 4, 24


def panels(n: int) -> int:
    """Panels that n columns of B need."""
    return -(-n // NR)


def pack(b: np.ndarray) -> np.ndarray:
    """B (k, n) packed by NumPy: (panels, k, NR), zeros behind the last column. For weights, at load time."""
    k, n = b.shape
    packed = np.zeros((panels(n), k, NR), b.dtype)
    whole = n // NR
    packed[:whole] = b[:, : whole * NR].reshape(k, whole, NR).transpose(1, 0, 2)
    if n % NR:
        packed[whole, :, : n % NR] = b[:, whole * NR :]
    return packed


# ---------------------------------------------------------------- product


def gemm_example(rng, size):
    m, n, k = (int(v) for v in rng.integers(0, 5 * size, 3))
    if rng.random() < 0.2:
        k = int(rng.integers(BLOCK // (2 * NR), BLOCK // NR))  # one panel is a block
        m, n = min(m, 8), min(n, 17)
    lda, ldc, ldr = (size + int(rng.integers(0, 3)) for size in (k, n, n))
    return {
        "a": rng.standard_normal((m, lda)).astype(np.float32),
        "b": pack(rng.standard_normal((k, n)).astype(np.float32)),
        "c": np.full((m, ldc), np.nan, np.float32),
        "bias": rng.standard_normal(n).astype(np.float32),
        "residual": rng.standard_normal((m, ldr)).astype(np.float32),
        "m": m, "n": n, "k": k, "lda": lda, "ldc": ldc, "ldr": ldr, "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)), "code": int(rng.integers(0, 2)), "first": 0.25,
        "second": np.inf if rng.random() < 0.5 else 6.0,
    }  # fmt: skip


def gemm_reference(a, b, c, bias, residual, m, n, k, lda, ldc, ldr, has_bias, has_residual, code, first, second):
    wide_a = a[:, :k].astype(np.float64)
    wide_b = b.transpose(1, 0, 2).reshape(k, b.shape[0] * NR)[:, :n].astype(np.float64)
    offset = bias.astype(np.float64) * has_bias + residual[:, :n].astype(np.float64) * has_residual
    expected, magnitude = c.astype(np.float64), np.ones(c.shape)
    total = wide_a @ wide_b + offset
    expected[:, :n] = activation_reference(total, code, first, second)
    magnitude[:, :n] = np.abs(wide_a) @ np.abs(wide_b) + np.abs(offset) + 1
    return {"c": (expected, magnitude)}


def accumulate(acc, rows, first, b, k):
    """acc + sum over p < k of rows[:, first + p] times b[p, :]; b: a packed panel (k, NR)."""
    p = 0
    while UNROLL == 4 and p + 4 <= k:
        acc = tile_outer4(acc, rows, first + p, b + p * NR)
        p += 4
    while p < k:
        acc = tile_outer(acc, rows, first + p, b + p * NR)
        p += 1
    return acc


def accumulate_ahead(acc, rows, b, k, ahead, lines):
    """accumulate from the rows' first column, while the cache fetches what lies at `ahead`.

    That is as many cache lines as make up a quarter of a panel's size (lines = 1) or half of it (lines = 2).
    """
    p = 0
    while UNROLL == 4 and p + 4 <= k:
        prefetch(ahead, p * (NR // 4 * lines))
        if lines == 2:
            prefetch(ahead, p * (NR // 4 * lines) + NR)
        acc = tile_outer4(acc, rows, p, b + p * NR)
        p += 4
    while p < k:
        if UNROLL == 1:
            prefetch(ahead, p * (NR // 4 * lines))
        acc = tile_outer(acc, rows, p, b + p * NR)
        p += 1
    return acc


def fetch_rows(first, step, count):
    """Tell the cache that NR elements of each of these rows will be read."""
    for r in range(count):
        for line in range(0, NR, LINE):
            prefetch(first, r * step + line)


def next_rows(left):
    """Rows of the next tile where `left` are left: two short tiles take less work than a whole one and a sliver."""
    if left <= SHORT or (left > MR and left <= 2 * SHORT):
        return min(left, SHORT)
    return min(left, MR)


def many_rows(m, weights):
    """Whether threads should rather share m rows of A than columns of B, of so many elements.

    Who works on the same rows as in the step before finds them in its own cache, and not in that of another core, which
    may be far away. But each then reads all of B.
    """
    return m >= 512 or (m >= 192 and weights <= 1 << 19)


def block_size(total, largest, multiple):
    """Size of equal blocks, each a multiple of `multiple` and at most about `largest`, that cover `total`."""
    count = max(1, (total + largest - 1) // largest)
    size = max(1, (total + count - 1) // count)
    return (size + multiple - 1) // multiple * multiple


@kernel(reference=gemm_reference, example=gemm_example, outputs=("c",), tolerance=3e-7)
def gemm(
    a: ptr_f32, b: ptr_f32, c: ptr_f32, bias: ptr_f32, residual: ptr_f32, m: i64, n: i64, k: i64, lda: i64, ldc: i64,
    ldr: i64, has_bias: i64, has_residual: i64, code: i64, first: f32, second: f32, pieces: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """C[i, j] = activate(sum_p A[i, p] B[p, j] + bias[j] + residual[i, j]).

    A: (m, k), stride lda; B: packed; C: (m, n), stride ldc; residual: (m, n), stride ldr, may be C itself.

    2 m n k FLOPs. Threads share rows if there are many, else panels of columns and parts of panels. Error <= 3e-7 *
    (sum_p |A B| + |bias| + 1), more by sqrt(k) units in the worst case; the order of the sum depends on k alone. bias
    and residual are read where has_bias and has_residual are not 0; code, first, second: see activation.py.
    """
    strips, count = (m + MR - 1) // MR, (n + NR - 1) // NR
    if m == 1:
        groups = (count + TOGETHER - 1) // TOGETHER
        j, end = share(groups, tid, nthreads) * TOGETHER * NR, share(groups, tid + 1, nthreads) * TOGETHER * NR
        row_product(a, b, c, bias, residual, j, min(n, end), n, k, has_bias, has_residual, code, first, second)
        return
    by_rows = many_rows(m, n * k) or count < pieces
    # work is shared in parts of a panel's rows: the smallest pieces, for which others wait, should be small
    parts = max(1, min(PARTS, m // LEAST_ROWS))
    units = strips if by_rows else count * parts
    unit, stop = share(units, tid, nthreads), share(units, tid + 1, nthreads)
    while unit < stop:
        panel, part, following = unit // parts, unit % parts, stop
        i, end_i, j, end_j = 0, m, panel * NR, min(n, stop // parts * NR)
        if by_rows:
            i, end_i, j, end_j = unit * MR, min(m, stop * MR), 0, n
        elif part == 0 and stop - unit >= parts:  # whole panels
            following = stop // parts * parts
        else:
            following = min(stop, (panel + 1) * parts)
            i = share(strips, part, parts) * MR
            end_i = min(m, share(strips, part + following - unit, parts) * MR)
            end_j = min(n, j + NR)
        block_product(
            a, b, c, bias, residual, m, n, k, lda, ldc, ldr, has_bias, has_residual, code, first, second, i, end_i, j,
            end_j,
        )  # fmt: skip
        unit = following


def block_product(
    a, b, c, bias, residual, m, n, k, lda, ldc, ldr, has_bias, has_residual, code, first, second, first_row, last_row,
    first_column, last_column,
):  # fmt: skip
    """The product for some rows and whole panels of columns."""
    # rows that are too long for the cache go by parts of k, with sums kept in C, so that they meet all columns there;
    # judged by all rows, as the residual then comes first, whatever part of the rows this is
    parts = k * m // (2 * BLOCK) + 1 if UNROLL == 1 and m * LEAST_STEPS <= 2 * BLOCK else 1
    part_size = ((k + parts - 1) // parts + 3) // 4 * 4
    # few rows stay in the cache: then small blocks, because nobody fetches the first one ahead
    size = BLOCK // 16 if UNROLL == 1 and m * part_size <= 2 * BLOCK else BLOCK
    group = max(1, size // (max(part_size, 1) * NR)) * NR
    for part in range(parts):
        before = part * part_size
        steps, last = min(part_size, k - before), part + 1 == parts
        residual_now, residual_last = has_residual if parts > 1 and part == 0 else 0, has_residual if parts == 1 else 0
        for block in range(first_column, last_column, group):
            end = min(block + group, last_column)
            i, turn = first_row, 0
            while i < last_row:
                valid = next_rows(last_row - i)
                rows = rows_strided(a + (i * lda + before), lda, valid)
                # each of the first four tiles fetches a quarter of the next block; few rows leave the memory no time
                fetch_block = turn < 4 and end < n and last_row - first_row > 15
                quarter, next_tile = group * k + turn * (steps // 4 * NR), a + ((i + valid) * lda + before)
                for j in range(block, end, NR):
                    panel, columns = b + (j * k + before * NR), min(NR, n - j)
                    target, offset = c + (i * ldc + j), residual + (i * ldr + j)
                    ahead = panel + quarter if fetch_block else next_tile + min(j - block, 2 * NR) * (steps // 4)
                    if has_residual != 0:
                        fetch_rows(offset, ldr, valid)
                    ends = (
                        target, bias + j, offset, ldc, ldr, valid, columns, has_bias, residual_last, code, first,
                        second,
                    )  # fmt: skip
                    if valid <= SHORT:
                        tile_product(tile_zero_short(), rows, panel, steps, ahead, part, last, residual_now, ends)
                    else:
                        tile_product(tile_zero(), rows, panel, steps, ahead, part, last, residual_now, ends)
                i += valid
                turn += 1


def row_product(a, b, c, bias, residual, j, stop, n, k, has_bias, has_residual, code, first, second):
    """The product for a lone row, columns j to `stop`. B is read once, so memory is the limit: four panels are read
    side by side, because the memory answers several streams faster than one."""
    rows = rows_strided(a, k, 1)
    size = k * NR
    while j + TOGETHER * NR <= stop:
        panel = b + j * k
        acc0, acc1, acc2, acc3 = tile_zero_row(), tile_zero_row(), tile_zero_row(), tile_zero_row()
        p = 0
        while UNROLL == 4 and p + 4 <= k:
            acc0 = tile_outer4(acc0, rows, p, panel + p * NR)
            acc1 = tile_outer4(acc1, rows, p, panel + (size + p * NR))
            acc2 = tile_outer4(acc2, rows, p, panel + (2 * size + p * NR))
            acc3 = tile_outer4(acc3, rows, p, panel + (3 * size + p * NR))
            p += 4
        while p < k:
            acc0 = tile_outer(acc0, rows, p, panel + p * NR)
            acc1 = tile_outer(acc1, rows, p, panel + (size + p * NR))
            acc2 = tile_outer(acc2, rows, p, panel + (2 * size + p * NR))
            acc3 = tile_outer(acc3, rows, p, panel + (3 * size + p * NR))
            p += 1
        row_end(acc0, c, bias, residual, j, n, has_bias, has_residual, code, first, second)
        row_end(acc1, c, bias, residual, j + NR, n, has_bias, has_residual, code, first, second)
        row_end(acc2, c, bias, residual, j + 2 * NR, n, has_bias, has_residual, code, first, second)
        row_end(acc3, c, bias, residual, j + 3 * NR, n, has_bias, has_residual, code, first, second)
        j += 4 * NR
    while j < stop:
        acc = accumulate(tile_zero_row(), rows, 0, b + j * k, k)
        row_end(acc, c, bias, residual, j, n, has_bias, has_residual, code, first, second)
        j += NR


def row_end(acc, c, bias, residual, j, n, has_bias, has_residual, code, first, second):
    """finish for the columns from j of a lone row."""
    columns = min(NR, n - j)
    finish(acc, c + j, bias + j, residual + j, n, n, 1, columns, has_bias, has_residual, code, first, second)


def tile_product(zero, rows, panel, steps, ahead, part, last, residual_now, ends):
    """A tile of the product for a part of k; `ends`: the arguments of finish."""
    target, bias, residual, ldc, ldr, valid, columns, has_bias, has_residual, code, first, second = ends
    acc = resume(zero, part, target, residual, ldc, ldr, valid, columns, residual_now)
    acc = accumulate_ahead(acc, rows, panel, steps, ahead, 1)
    pause_or_finish(
        acc, last, target, bias, residual, ldc, ldr, valid, columns, has_bias, has_residual, code, first, second
    )


def resume(acc, part, target, residual, ldc, ldr, valid, columns, has_residual):
    """A tile of zeros as the sums of the parts of k before this one, which `target` keeps; with the residual."""
    if part > 0:
        acc = tile_add(acc, target, ldc, valid, columns)
    if has_residual != 0:
        acc = tile_add(acc, residual, ldr, valid, columns)
    return acc


def pause_or_finish(
    acc, last, target, bias, residual, ldc, ldr, valid, columns, has_bias, has_residual, code, first, second
):
    """Keep the sums where parts of k follow; else `finish`."""
    if last:
        finish(acc, target, bias, residual, ldc, ldr, valid, columns, has_bias, has_residual, code, first, second)
    else:
        tile_store(target, ldc, acc, valid, columns)


def finish(acc, target, bias, residual, ldc, ldr, valid, columns, has_bias, has_residual, code, first, second):
    """What comes behind the product, and the store."""
    if has_bias != 0:
        acc = tile_bias(acc, bias, columns)
    if has_residual != 0:
        acc = tile_add(acc, residual, ldr, valid, columns)
    if code == CLAMP:
        acc = tile_clamp(acc, first, second)
    tile_store(target, ldc, acc, valid, columns)
    if code != CLAMP:
        activate_rows(target, ldc, valid, columns, code, first, second)
