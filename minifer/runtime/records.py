"""From plan steps to the tables that the native runner walks."""

from __future__ import annotations

import functools
import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from minifer.kernels import runner_layout as runner
from minifer.kernels.spec import KernelSpec
from minifer.plan.plan import ABSOLUTE, KernelStep, Plan, PythonStep, Slot
from minifer.record import Record
from minifer.runtime.launch import run_table

#: bytes touched below which one thread is quicker than several that meet at barriers (some 0.2 ms of work)
SMALL_WORK = 1 << 21
#: pieces of a step for each thread, and the bytes touched from which on they are worth the trouble. A thread that falls
#: behind is helped with what it has not begun. The last of five are a sixteenth of its part each: with two threads on a
#: disturbed machine, networks take 2 to 4 % less than with four equal pieces
PIECES, FINE_WORK = 5, 1 << 18
#: the same for large steps, of half a millisecond or more: the last of six are a thirty-second
MORE_PIECES, LARGE_WORK = 6, 1 << 20


class Table(Record, frozen=False, eq=False):
    """Consecutive kernel steps as one table for the runner."""

    steps: tuple[KernelStep, ...]
    words: np.ndarray  # int64[steps, 4]
    arguments: np.ndarray  # int64, all argument records
    small: bool

    def run(self, bases: np.ndarray, threads: int, only: int | None = None) -> tuple[int, int] | None:
        """Run the table (or one step of it); returns None, or (step number, status) of the first refusal."""
        first, count = (0, None) if only is None else (only, 1)
        return run_table(self.words, bases, self.team(threads), first, count)

    def team(self, threads: int) -> int:
        """How many threads run the table where a run may use so many."""
        return 1 if self.small else threads


def ensure_kernels(plan: Plan) -> None:
    """Load the kernels of a plan, building those that are missing."""
    kernels = list(dict.fromkeys(s.kernel for s in plan.steps if isinstance(s, KernelStep)))
    if kernels:
        from minifer.codegen import library

        library.ensure(kernels)


def build_tables(plan: Plan) -> list[Table | PythonStep]:
    """The parts of a plan in order: a table for each run of kernel steps, Python steps between them."""
    parts: list[Table | PythonStep] = []
    pending: list[KernelStep] = []
    for step in plan.steps:
        if isinstance(step, KernelStep):
            pending.append(step)
            continue
        if pending:
            parts.append(_table(pending))
            pending = []
        parts.append(step)
    if pending:
        parts.append(_table(pending))
    return parts


def _table(steps: Sequence[KernelStep]) -> Table:
    from minifer.codegen import library

    records = [words_of(step, _place) for step in steps]
    arguments = np.array([w for r in records for w in r], np.int64)
    starts = np.cumsum([0] + [len(r) for r in records])[:-1]
    flags = barriers(steps)
    words = np.zeros((len(steps), runner.RECORD_WORDS), np.int64)
    place = arguments.ctypes.data
    for i, step in enumerate(steps):
        how = flags[i] * runner.BARRIER + step.kernel.halves * runner.HALVING + pieces(step) * runner.PIECES
        words[i] = (library.address(step.kernel), place + 8 * int(starts[i]), how, i)
    touched = sum(s.nbytes for step in steps for s in (*step.reads, *step.writes))
    return Table(tuple(steps), words, arguments, touched < SMALL_WORK)


def pieces(step: KernelStep) -> int:
    """Into how many pieces for each thread the work of a step is cut."""
    touched = sum(s.nbytes for s in (*step.reads, *step.writes))
    if step.kernel.coarse or touched < FINE_WORK:
        return 1
    return PIECES if touched < LARGE_WORK else MORE_PIECES


def words_of(step: KernelStep, address: Callable[[Slot | None], tuple[int, int]]) -> list[int]:
    """The argument record of a step; `address` gives the (base, offset) of a pointer."""
    words: list[int] = []
    for kind, value in zip(_kinds(step.kernel), step.arguments):
        if kind == "pointer":
            words += address(value if isinstance(value, Slot) else None)
        elif kind == "integer":
            words.append(int(value))
        else:
            words.append(struct.unpack("<q", struct.pack("<d", float(value)))[0])
    return words


@functools.cache
def _kinds(kernel: KernelSpec) -> tuple[str, ...]:
    """What the parameters of a kernel are."""
    return tuple(
        "pointer" if p.is_pointer else "integer" if p.type.integer else "float"  # type: ignore[union-attr]
        for p in kernel.parameters
    )


def _place(slot: Slot | None) -> tuple[int, int]:
    return (ABSOLUTE, 0) if slot is None else slot.address()


def barriers(steps: Sequence[KernelStep]) -> list[int]:
    """1 for each step that must wait: it reads what a step since the last barrier wrote, or writes what one touched."""
    flags = []
    read: dict[int, _Extents] = defaultdict(_Extents)
    written: dict[int, _Extents] = defaultdict(_Extents)
    for step in steps:
        reads = [_extent(s) for s in step.reads if s.buffer.kind != "const"]
        writes = [_extent(s) for s in step.writes]
        wait = any(written[base].meets(low, high) for base, low, high in (*reads, *writes))
        wait = wait or any(read[base].meets(low, high) for base, low, high in writes)
        flags.append(int(wait))
        if wait:
            read.clear()
            written.clear()
        for table, extents in ((read, reads), (written, writes)):
            for base, low, high in extents:
                table[base].add(low, high)
    return flags


class _Extents:
    """A set of bytes as disjoint intervals, in order."""

    def __init__(self) -> None:
        self.lows: list[int] = []
        self.highs: list[int] = []

    def meets(self, low: int, high: int) -> bool:
        """True where a byte from `low` to before `high` is in the set."""
        at = bisect_left(self.lows, high)
        return at > 0 and self.highs[at - 1] > low

    def add(self, low: int, high: int) -> None:
        """Put in the bytes from `low` to before `high`."""
        first, last = bisect_left(self.highs, low), bisect_right(self.lows, high)
        if first < last:  # it grows together with those it touches
            low, high = min(low, self.lows[first]), max(high, self.highs[last - 1])
        self.lows[first:last], self.highs[first:last] = [low], [high]


def _extent(slot: Slot) -> tuple[int, int, int]:
    base, offset = slot.address()
    return base, offset, offset + slot.nbytes
