"""The arena: where each temporary lies in one block of memory. A pure function on intervals.

Offline placement, greedy by size (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
2020): take the largest buffer first and put it at the lowest offset where no buffer that lives at the same
time is in the way.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

ALIGNMENT = 64  # bytes: one cache line, and any vector
MORE = 1.25  # of the least memory that is found what place_shared may take
FEW = 500  # buffers up to which a plain loop is quicker than NumPy's calls; places at most that share middles


def place(intervals: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets for buffers given as (first step, last step, bytes), and the bytes needed in all.

    Two buffers whose step ranges (both ends included) meet never overlap in memory.
    """
    sizes = [(size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT for _, _, size in intervals]
    order = sorted(range(len(intervals)), key=lambda i: (-sizes[i], i))
    offsets = (_lowest if len(intervals) <= FEW else _lowest_of_many)(order, intervals, sizes)
    return offsets, max((start + taken for start, taken in zip(offsets, sizes)), default=0)


def place_shared(intervals: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """As `place`, for a run by several threads: buffers that take turns in a place have their middle in common.

    Threads share most work by rows, so that the lower half of a buffer is one core's and the upper half another's. With
    buffers of different size at the same begin, a core would write what another has in its cache, which takes long.
    Measured, two cores of a Granite Rapids: 0.90 of the time for EfficientNet-Lite0, 0.95 for MobileNetV2, 0.98 for
    ResNet-50, with 1.07 to 1.17 of the memory. More than MORE of it is not spent.
    """
    compact = place(intervals)
    taken: list[list[tuple[int, int]]] = []  # of each place the steps at which it is in use, in order
    widths: list[int] = []
    chosen = [0] * len(intervals)
    for i in sorted(range(len(intervals)), key=lambda i: (-intervals[i][2], i)):
        first, last, size = intervals[i]
        chosen[i] = next((k for k, spans in enumerate(taken) if _is_free(spans, first, last)), len(taken))
        if chosen[i] == len(taken):
            if sum(widths) > MORE * compact[1] or len(taken) > FEW:
                return compact
            taken.append([])
            widths.append(-(-size // (2 * ALIGNMENT)) * 2 * ALIGNMENT)
        insort(taken[chosen[i]], (first, last))
    starts = [0, *accumulate(widths)]
    if starts[-1] > MORE * compact[1]:
        return compact
    middles = [start + width // 2 for start, width in zip(starts, widths)]
    halves = [-(-size // (2 * ALIGNMENT)) * ALIGNMENT for _, _, size in intervals]
    return [middles[number] - half for number, half in zip(chosen, halves)], starts[-1]


def _is_free(spans: Sequence[tuple[int, int]], first: int, last: int) -> bool:
    """Whether none of the spans, which are in order and apart, meets another."""
    at = bisect_left(spans, (first, first))
    return (at == len(spans) or spans[at][0] > last) and (at == 0 or spans[at - 1][1] < first)


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
