"""Concatenation: rows of several tensors end to end. By element width; exact."""

import numpy as np

from minifer.kernels.move import PIECE, WIDTHS, copy_run, noise
from minifer.kernels.simd import share
from minifer.kernels.spec import i64, kernel, ptr

#: inputs that one call of `concat_rows` joins
CONCAT_INPUTS = 4


def concat_rows_example(rng, size, T):
    rows, *n = (int(v) for v in rng.integers(0, 7 * size, 5))
    start, rest = (int(v) for v in rng.integers(0, 4, 2))
    arrays = {f"x{i}": noise(rng, T, rows, n[i]) for i in range(4)}
    y = noise(rng, T, rows, start + sum(n) + rest)
    lengths = {f"n{i}": n[i] for i in range(4)}
    return {**arrays, "y": y, **lengths, "rows": rows, "y_step": y.shape[1], "start": start}


def concat_rows_reference(x0, x1, x2, x3, y, n0, n1, n2, n3, rows, y_step, start):
    y = y.copy()
    y[:, start : start + n0 + n1 + n2 + n3] = np.concatenate([x0, x1, x2, x3], 1)
    return {"y": y}


def copy_part(x, y, n, low, high):
    """Of a run of n elements that stands at y, copy those whose place is in [low, high)."""
    first = max(low, 0)
    last = min(high, n)
    if first < last:
        copy_run(x + first, y + first, last - first)


@kernel(reference=concat_rows_reference, example=concat_rows_example, tolerance=0, over={"T": WIDTHS})
def concat_rows(
    x0: ptr("T"), x1: ptr("T"), x2: ptr("T"), x3: ptr("T"), y: ptr("T"),
    n0: i64, n1: i64, n2: i64, n3: i64, rows: i64, y_step: i64, start: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[r, start:] = x0[r], x1[r], x2[r], x3[r] end to end. xi: (rows, ni), ni may be 0; y: (rows, y_step)."""
    total = n0 + n1 + n2 + n3
    pieces = (total + PIECE - 1) // PIECE
    a, b, c = n0, n0 + n1, n0 + n1 + n2
    for unit in range(share(rows * pieces, tid, nthreads), share(rows * pieces, tid + 1, nthreads)):
        row = unit // pieces
        low = unit % pieces * PIECE
        high = min(low + PIECE, total)
        target = y + (row * y_step + start)
        copy_part(x0 + row * n0, target, n0, low, high)
        copy_part(x1 + row * n1, target + a, n1, low - a, high - a)
        copy_part(x2 + row * n2, target + b, n2, low - b, high - b)
        copy_part(x3 + row * n3, target + c, n3, low - c, high - c)
