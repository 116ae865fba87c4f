"""Batched matrix product C = A @ B, float32, where B is no constant: a panel of it is packed when it is needed.

As gemm.py, but each thread copies the panel it works on (k rows of NR columns) into scratch of its own and then walks
all rows of A with it: the copy costs one move per 2 m FLOPs. Operands of a batch are found through a table of offsets,
so broadcasting costs nothing. B may have any strides: a transposed one needs no copy.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.gemm import accumulate
from minifer.kernels.simd import (
    MR,
    NR,
    lanes,
    rows_strided,
    share,
    tile_axpy,
    tile_scale,
    tile_store,
    tile_zero,
    vload,
    vload_part,
    vstore,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64


def matmul_reference(
    a, b, c, addend, offsets, scratch, batches, m, n, k, lda, b_row, b_column, alpha, beta, add_row, add_column
):
    expected, magnitude = np.zeros((batches, m, n)), np.zeros((batches, m, n))
    flat_a, flat_b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    rows, columns, inner = np.arange(m)[:, None], np.arange(n)[None, :], np.arange(k)
    for i in range(batches):
        left = flat_a[offsets[i, 0] + rows * lda + inner[None, :]]
        right = flat_b[offsets[i, 1] + inner[:, None] * b_row + columns * b_column]
        expected[i] = alpha * (left @ right)
        magnitude[i] = abs(alpha) * (abs(left) @ abs(right))
    if beta != 0:
        added = beta * addend.reshape(-1).astype(np.float64)[rows * add_row + columns * add_column]
        expected, magnitude = expected + added, magnitude + abs(added)
    return {"c": (expected.reshape(c.shape), magnitude.reshape(c.shape) + 1)}


def matmul_example(rng, size):
    batches, m, n, k = (int(v) for v in rng.integers(1, (4, 4 * size + 1, 5 * size + 1, 5 * size + 1)))
    transposed, row = bool(rng.integers(0, 2)), bool(rng.integers(0, 2))
    a, b = rng.standard_normal((batches, m, k)), rng.standard_normal((2, k, n))
    offsets = np.array([[i * m * k, (i % 2) * k * n] for i in range(batches)], np.int64)
    return {
        "a": a.astype("f"), "b": b.astype("f"), "c": np.full((batches, m, n), np.nan, "f"),
        "addend": rng.standard_normal((1 if row else m, n)).astype("f"), "offsets": offsets,
        "scratch": np.zeros(8 * k * int(NR), "f"), "batches": batches, "m": m, "n": n, "k": k, "lda": k,
        "b_row": 1 if transposed else n, "b_column": k if transposed else 1,
        "alpha": float(rng.choice([1.0, 0.5])), "beta": float(rng.choice([0.0, 2.0])),
        "add_row": 0 if row else n, "add_column": 1,
    }  # fmt: skip


@kernel(reference=matmul_reference, example=matmul_example, outputs=("c", "scratch"), tolerance=4e-7, coarse=True)
def matmul(
    a: ptr_f32, b: ptr_f32, c: ptr_f32, addend: ptr_f32, offsets: ptr_i64, scratch: ptr_f32,
    batches: i64, m: i64, n: i64, k: i64, lda: i64, b_row: i64, b_column: i64,
    alpha: f32, beta: f32, add_row: i64, add_column: i64, slot: i64, pieces: i64, tid: i64,
    nthreads: i64,
):  # fmt: skip
    """C[i] = alpha * A[i] @ B[i] + beta * addend, for each of `batches` products.

    A[i]: (m, k) with rows `lda` apart, at a + offsets[i, 0]; B[i][p, j] at
    b + offsets[i, 1] + p * b_row + j * b_column; C: (batches, m, n) contiguous;
    addend[r, j] at r * add_row + j * add_column (strides may be 0), read where beta != 0;
    scratch: k * NR floats per thread. 2 * batches * m * n * k FLOPs. Each sum runs in the order of k. Work is split
    over batches and panels of columns, or over rows where there are few of those.
    """
    panels = (n + NR - 1) // NR
    units = batches * panels
    by_unit = units >= pieces
    unit_from = share(units, tid, nthreads) if by_unit else 0
    unit_to = share(units, tid + 1, nthreads) if by_unit else units
    tiles = (m + MR - 1) // MR
    row_from = 0 if by_unit else share(tiles, tid, nthreads) * MR
    row_to = m if by_unit else min(m, share(tiles, tid + 1, nthreads) * MR)
    panel = scratch + slot * (k * NR)
    if row_from >= row_to:
        return
    for unit in range(unit_from, unit_to):
        i, j = unit // panels, unit % panels * NR
        columns = min(NR, n - j)
        copy_panel(panel, b + (offsets[2 * i + 1] + j * b_column), k, columns, b_row, b_column)
        left = a + offsets[2 * i]
        for r in range(row_from, row_to, MR):
            valid = min(MR, row_to - r)
            acc = accumulate(tile_zero(), rows_strided(left + r * lda, lda, valid), 0, panel, k)
            if alpha != 1:
                acc = tile_scale(acc, alpha)
            at = (i * m + r) * n + j
            if beta != 0 and add_column == 1:
                acc = tile_axpy(acc, beta, addend + (r * add_row + j), add_row, valid, columns)
            tile_store(c + at, n, acc, valid, columns)
            if beta != 0 and add_column == 0:
                for x in range(valid):
                    extra = beta * addend[(r + x) * add_row]
                    for y in range(columns):
                        c[at + x * n + y] += extra


def copy_panel(panel, b, k, columns, row, column):
    """The panel (k, NR) with `columns` columns of B and zeros behind them."""
    w = lanes(panel)
    if column == 1 and columns == NR:
        for p in range(k):
            for v in range(0, NR, w):
                vstore(panel, p * NR + v, vload(b, p * row + v))
    elif column == 1:
        for p in range(k):
            for v in range(0, NR, w):
                vstore(panel, p * NR + v, vload_part(b, p * row + v, columns - v))
    else:
        for p in range(k):
            for j in range(columns):
                panel[p * NR + j] = b[p * row + j * column]
            for j in range(columns, NR):
                panel[p * NR + j] = f32(0)
