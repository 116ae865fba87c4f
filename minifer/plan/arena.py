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
    placed = np.zeros((4, count), np.int64)  # first step, last step, start and end of what is placed, by rising start
    for done, i in enumerate(sorted(range(count), key=lambda i: (-int(size[i]), i))):
        near = placed[:, :done]
        near = near[2:, (near[0] <= last[i]) & (near[1] >= first[i])]
        free = np.maximum.accumulate(np.concatenate([[0], near[1]]))  # where a gap before each would begin
        fits = near[0] - free[:-1] >= size[i]
        start[i] = free[fits.argmax() if fits.any() else -1]
        at = int(np.searchsorted(placed[2, :done], start[i]))
        placed[:, at + 1 : done + 1] = placed[:, at:done]
        placed[:, at] = first[i], last[i], start[i], start[i] + size[i]
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
