"""One native call: a table of kernel steps, walked by the calling thread and its helpers."""

from __future__ import annotations

import numpy as np

from minifer.kernels import runner_layout as layout


def run_table(
    words: np.ndarray, bases: np.ndarray, threads: int, first: int = 0, count: int | None = None
) -> tuple[int, int] | None:
    """Run `count` records of a table from `first` on (all that follow: None) on memory at `bases`.

    Returns None, or (step number, status) of the first kernel that refused its data.
    """
    from minifer.runtime.pool import pool

    records = len(words) - first if count is None else count
    block = np.zeros(layout.run_words(records, threads) + layout.LINE_WORDS, np.int64)
    block = block[-address_of(block) % 64 // 8 :]
    address = address_of(block)
    block[layout.TABLE] = address_of(words) + first * layout.RECORD_WORDS * 8
    block[layout.RECORDS] = records
    block[layout.PITCH] = layout.pitch(records)
    block[layout.BASES] = address_of(bases)
    status = pool(threads).run(block, address, threads)
    return (int(block[layout.FAILED]), status) if status else None


def address_of(array: np.ndarray) -> int:
    """Where the elements of an array begin."""
    return array.__array_interface__["data"][0]
