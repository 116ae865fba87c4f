"""The arena: where each temporary lies in one block of memory. A pure function on intervals.

Offline placement, greedy by size (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
2020): take the largest buffer first and put it at the lowest offset where no buffer that lives at the same
time is in the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64  # bytes: one cache line, and any vector


def place(intervals: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets for buffers given as (first step, last step, bytes), and the bytes needed in all.

    Two buffers whose step ranges (both ends included) meet never overlap in memory.
    """
    count = len(intervals)
    offsets = [0] * count
    if not count:
        return offsets, 0
    first, last, size = (np.array(column, np.int64) for column in zip(*intervals))
    size = (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    start = np.zeros(count, np.int64)
    placed = np.zeros(count, bool)
    for i in sorted(range(count), key=lambda i: (-int(size[i]), i)):
        near = np.flatnonzero(placed & (first <= last[i]) & (last >= first[i]))
        near = near[np.argsort(start[near], kind="stable")]
        offset = 0
        for j in near:
            if start[j] - offset >= size[i]:
                break
            offset = max(offset, int(start[j] + size[j]))
        start[i] = offset
        placed[i] = True
    return [int(s) for s in start], int((start + size).max())


def lower_bound(intervals: Sequence[tuple[int, int, int]]) -> int:
    """The largest sum of bytes alive at one step: no placement needs less."""
    events: dict[int, int] = {}
    for begin, end, size in intervals:
        size = (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        events[begin] = events.get(begin, 0) + size
        events[end + 1] = events.get(end + 1, 0) - size
    alive = best = 0
    for step in sorted(events):
        alive += events[step]
        best = max(best, alive)
    return best
