"""The arena: where each temporary lies in one block of memory. A pure function on intervals.

Offline placement, greedy by size (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
2020): take the largest buffer first and put it at the lowest offset where no buffer that lives at the same
time is in the way.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64  # bytes: one cache line, and any vector
FEW = 500  # buffers up to which a plain loop is quicker than NumPy's calls


def place(intervals: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets for buffers given as (first step, last step, bytes), and the bytes needed in all.

    Two buffers whose step ranges (both ends included) meet never overlap in memory.
    """
    sizes = [(size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT for _, _, size in intervals]
    order = sorted(range(len(intervals)), key=lambda i: (-sizes[i], i))
    offsets = (_lowest if len(intervals) <= FEW else _lowest_of_many)(order, intervals, sizes)
    return offsets, max((start + taken for start, taken in zip(offsets, sizes)), default=0)


def _lowest(order: Sequence[int], intervals: Sequence[tuple[int, int, int]], sizes: Sequence[int]) -> list[int]:
    """The lowest free offset of each buffer, taken in this order."""
    offsets = [0] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []  # start, end, first and last step of what is placed, by rising start
    for i in order:
        (first, last, _), size = intervals[i], sizes[i]
        start = 0  # the lowest place behind what was looked at so far
        for low, high, begin, end in placed:
            if begin <= last and end >= first:
                if low - start >= size:
                    break
                if high > start:
                    start = high
        offsets[i] = start
        insort(placed, (start, start + size, first, last))
    return offsets


def _lowest_of_many(order: Sequence[int], intervals: Sequence[tuple[int, int, int]], sizes: Sequence[int]) -> list[int]:
    """The same, looking at all that is placed at once."""
    offsets = [0] * len(sizes)
    placed = np.zeros((4, len(sizes)), np.int64)  # first and last step, start and end of what is placed, as above
    for done, i in enumerate(order):
        (first, last, _), size = intervals[i], sizes[i]
        near = placed[:, :done]
        near = near[2:, (near[0] <= last) & (near[1] >= first)]
        free = np.maximum.accumulate(np.concatenate([[0], near[1]]))  # where a gap before each would begin
        fits = near[0] - free[:-1] >= size
        start = offsets[i] = int(free[fits.argmax() if fits.any() else -1])
        at = int(np.searchsorted(placed[2, :done], start))
        placed[:, at + 1 : done + 1] = placed[:, at:done]
        placed[:, at] = first, last, start, start + size
    return offsets


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
