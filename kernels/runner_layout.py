"""The memory that the runner and its callers share: which word of a run block, a mailbox and a record holds what.

It stands apart from the runner so that a program which runs kernels built earlier need not import what builds them.
"""

from __future__ import annotations

# words of a run block; what threads write at the same time stands on cache lines of its own
TABLE, RECORDS, BASES, STATUS, FAILED = 0, 1, 2, 3, 4
ARRIVED, PHASE, FINISHED = 8, 16, 24
RUN_WORDS = 32

# words of a mailbox
STATE, RUN, TID, COUNT = 0, 1, 2, 3
BOX_WORDS = 8
ASLEEP, WAKING, IDLE, CLAIMED, GO, STOP = 0, 1, 2, 3, 4, 5

RECORD_WORDS = 4
