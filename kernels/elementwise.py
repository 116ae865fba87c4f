"""What elementwise kernels share: how a run of elements is split over threads."""

from __future__ import annotations

from minifer.kernels.simd import share

#: elements that one thread takes at a time; a multiple of all vector sizes
PIECE = 4096


def piece_count(n):
    """How many pieces share n elements."""
    return (n + PIECE - 1) // PIECE


def piece_start(n, tid, nthreads):
    """Where thread `tid`'s run of n elements begins: whole pieces, so that little work stays on one thread."""
    return min(n, share(piece_count(n), tid, nthreads) * PIECE)
