"""The memory that the runner and its callers share: which word of a run block, a mailbox and a record holds what.

It stands apart from the runner so that a program which runs kernels built earlier need not import what builds them.
"""

from __future__ import annotations

# words of a run block; what threads write at the same time stands on cache lines of its own
TABLE, RECORDS, BASES, STATUS, FAILED, PITCH = 0, 1, 2, 3, 4, 5
DONE, FINISHED = 8, 16
CLAIMS = 24  # where the claims begin: PITCH words for each thread, one for each record
LINE_WORDS = 8  # of a cache line

# words of a mailbox
STATE, TID, COUNT = 0, 1, 2
BOX_WORDS = 8
# A larger state is the address of the run that the worker is to take part in: whoever takes an order back must mean its
# own, for a worker may have finished that one and been given another since
ASLEEP, WAKING, IDLE, CLAIMED, BUSY, STOP = 0, 1, 2, 3, 4, 5

# words of a record: the kernel's entry point, its argument record, how it runs (below), the step's number
RECORD_WORDS = 4
BARRIER = 1  # bit of the third word: it waits for all records before it
HALVING = 2  # bit: a thread's pieces are a half of its part, a quarter and so on, and not equal
PIECES = 4  # from this bit on: pieces for each thread

# The last argument of a kernel's entry, its share: nthreads, and from these bits on pieces and slot
SHARE_PIECES, SHARE_SLOT = 24, 44


def share_word(nthreads: int, pieces: int, slot: int) -> int:
    """A share: piece tid of nthreads, of a step that is cut into so many pieces, run by thread `slot`."""
    return nthreads | pieces << SHARE_PIECES | slot << SHARE_SLOT


def pitch(records: int) -> int:
    """Words of claims of one thread: whole cache lines."""
    return -(-records // LINE_WORDS) * LINE_WORDS


def run_words(records: int, threads: int) -> int:
    """Words of a run block."""
    return CLAIMS + threads * pitch(records)
