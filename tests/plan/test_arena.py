"""The arena: what lives at the same time never overlaps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifer.plan import arena

intervals = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 12), st.integers(0, 5000)).map(lambda t: (t[0], t[0] + t[1], t[2])),
    max_size=40,
)


@pytest.mark.parametrize("place", [arena.place, arena.place_shared])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(spans=intervals)
def test_no_two_live_buffers_overlap(place, spans):
    offsets, size = place(spans)
    placed = [(o, o + max(n, 1), f, l) for o, (f, l, n) in zip(offsets, spans)]
    for i, (low, high, first, last) in enumerate(placed):
        assert low % arena.ALIGNMENT == 0
        assert low + spans[i][2] <= size
        for other_low, other_high, other_first, other_last in placed[:i]:
            if first <= other_last and other_first <= last and high - low > 1 and other_high - other_low > 1:
                assert high <= other_low or other_high <= low


@settings(max_examples=200, deadline=None, derandomize=True)
@given(intervals)
def test_arena_is_no_smaller_than_the_lower_bound(spans):
    _, size = arena.place(spans)
    assert size >= arena.lower_bound(spans)


def test_buffers_that_take_turns_share_their_middle():
    """A chain of falling sizes in two places: the halves of each buffer are those of the one before."""
    spans = [(i, i + 1, 4096 - 512 * i) for i in range(6)]
    offsets, size = arena.place_shared(spans)
    middles = {start + length // 2 for start, (_, _, length) in zip(offsets, spans)}
    assert len(middles) == 2 and size == 4096 + 3584
    # where that took far more memory than need be, they lie as for one thread
    spans = [(0, 9, 100 * 64), *((i, i, 90 * 64) for i in range(4)), *((5, 5, 30 * 64) for _ in range(3))]
    assert arena.place_shared(spans) == arena.place(spans)


def test_chain_needs_two_buffers():
    """a -> b -> c -> d of equal size: two places suffice."""
    spans = [(i, i + 1, 1024) for i in range(10)]
    assert arena.place(spans)[1] == 2048 == arena.lower_bound(spans)


def test_offsets_are_those_of_greedy_by_size():
    """The largest first, each in the lowest gap that is free all its life."""
    spans = [(0, 2, 128), (1, 1, 256), (2, 4, 64), (3, 4, 192), (0, 0, 256), (5, 5, 0)]
    assert arena.place(spans) == ([256, 0, 192, 0, 0, 0], 384)
    assert arena.place([]) == ([], 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(intervals)
def test_many_buffers_are_placed_as_few_are(spans):
    few = arena.place(spans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "FEW", -1)
        assert arena.place(spans) == few
