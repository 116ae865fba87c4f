"""What elementwise kernels share: how work is split over threads, and how broadcasting is described.

A broadcasting kernel gets a table (i64) in rows of RANK numbers (see odometer.py): the sizes of the result, then the
strides of each operand in elements, 0 where it is repeated. The result is dense. On the last axis a stride is
0 or 1, and at most one operand has 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minifer.kernels.odometer import RANK
from minifer.kernels.simd import share

#: elements that one thread takes at a time; a multiple of all vector sizes
PIECE = 4096


def piece_count(n):
    """How many pieces share n elements."""
    return (n + PIECE - 1) // PIECE


def piece_start(n, tid, nthreads):
    """Where thread `tid`'s run of n elements begins: whole pieces, so that little work stays on one thread."""
    return min(n, share(piece_count(n), tid, nthreads) * PIECE)


# ---------------------------------------------------------------- tables, made while planning


def broadcast_table(sizes: Sequence[int], *strides: Sequence[int]) -> np.ndarray | None:
    """The table for a result of `sizes` and operands of these strides; None where more than RANK axes remain.

    Axes of size 1 are left out, and neighbours that all operands run through as one are joined.
    """
    axes = [[size, *steps] for size, *steps in zip(sizes, *strides) if size != 1]
    joined: list[list[int]] = []
    for axis in axes:
        if joined and all(outer == inner * axis[0] for outer, inner in zip(joined[-1][1:], axis[1:])):
            joined[-1] = [joined[-1][0] * axis[0], *axis[1:]]
        else:
            joined.append(axis)
    if not joined:
        joined = [[1] * (1 + len(strides))]
    if len(joined) > RANK:
        return None
    table = np.zeros((1 + len(strides), RANK), np.int64)
    table[0] = 1
    table[:, RANK - len(joined) :] = np.array(joined, np.int64).T
    return table


def dense_strides(shape: Sequence[int]) -> list[int]:
    """Row-major strides in elements, 0 for axes of size 1: such an axis is repeated where the result has more."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step if size != 1 else 0)
        step *= size
    return strides[::-1]


# ---------------------------------------------------------------- examples


def broadcast_example(rng, size, operands):
    """(table, shapes of the operands) of a random broadcast."""
    while True:
        rank = int(rng.integers(1, 5))
        shape = [int(n) for n in rng.integers(1, 4, rank)]
        shape[-1] = int(rng.integers(1, 12 * size))
        shapes = [[n if rng.random() < 0.7 else 1 for n in shape] for _ in range(operands)]
        result = [max(column) for column in zip(*shapes)]
        table = broadcast_table(result, *(dense_strides(s) for s in shapes))
        if table is not None and table[0, -1] >= 1:
            return table, result, shapes


def strided_view(x, sizes, strides):
    """The elements x[sum of index times stride] as an array of shape `sizes`."""
    return np.lib.stride_tricks.as_strided(x.reshape(-1), sizes, np.asarray(strides) * x.itemsize)
