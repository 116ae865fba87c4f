"""The plan runner: walks a table of kernel calls, on one thread or several in step.

All threads walk the same table (single program, multiple data); each kernel takes its share by (tid, nthreads).
Threads meet at a barrier only before a record that asks for it, that is where data flows between threads.

A worker thread owns a mailbox and spins on its state for a while; `serve` then returns, and the thread sleeps
outside. `launch` claims the workers that are awake, so a call never waits for one that sleeps, and callers
on several threads share the workers without a lock: whoever claims one first has it.

A record is four words: entry address, argument record address, barrier flag, step number.
"""

from __future__ import annotations

from minifer.kernels.runner_layout import (
    ARRIVED,
    ASLEEP,
    BASES,
    BOX_WORDS,
    CLAIMED,
    COUNT,
    FAILED,
    FINISHED,
    GO,
    IDLE,
    PHASE,
    RECORD_WORDS,
    RECORDS,
    RUN,
    STATE,
    STATUS,
    STOP,
    TABLE,
    TID,
    WAKING,
)
from minifer.kernels.simd import (
    address_of,
    as_ptr,
    atomic_add,
    atomic_cas,
    atomic_load,
    atomic_store,
    call_entry,
    pause,
)
from minifer.kernels.spec import i64, native, ptr_i64

SPINS_BEFORE_YIELD = 4000


def relax(turn: i64, give_way: i64) -> i64:
    """One turn of a spin loop; gives the core away (`give_way` is the address of sched_yield, or 0) now and then."""
    pause()
    if turn >= SPINS_BEFORE_YIELD:
        if give_way != 0:
            call_entry(give_way, 0, 0, 0, 0)
        return 0
    return turn + 1


def barrier(run: ptr_i64, nthreads: i64, give_way: i64) -> None:
    """Wait until all threads of the run are here. The last one opens the next phase."""
    phase = atomic_load(run, PHASE)
    if atomic_add(run, ARRIVED, 1) == nthreads - 1:
        atomic_store(run, ARRIVED, 0)
        atomic_store(run, PHASE, phase + 1)
    else:
        turn = 0
        while atomic_load(run, PHASE) == phase:
            turn = relax(turn, give_way)


def walk(run: ptr_i64, tid: i64, nthreads: i64, give_way: i64) -> None:
    """Call every kernel of the table; the first status that is not 0 is kept with its step number."""
    record = as_ptr(run[TABLE], i64)
    bases = run[BASES]
    for _ in range(run[RECORDS]):
        if nthreads > 1 and record[2] != 0:
            barrier(run, nthreads, give_way)
        status = call_entry(record[0], record[1], bases, tid, nthreads)
        if status != 0 and atomic_cas(run, STATUS, 0, status) == 0:
            run[FAILED] = record[3]
        record = record + RECORD_WORDS


@native
def serve(box: ptr_i64, spins: i64, give_way: i64) -> i64:
    """A worker's loop. Returns 0 when it has spun `spins` turns without work (then ASLEEP), 1 when told to stop."""
    turn = 0
    waited = 0
    while True:
        state = atomic_load(box, STATE)
        if state == GO:
            run = as_ptr(box[RUN], i64)
            walk(run, box[TID], box[COUNT], give_way)
            atomic_store(box, STATE, IDLE)
            atomic_add(run, FINISHED, 1)
            turn = 0
            waited = 0
        elif state == STOP:
            return 1
        else:
            turn = relax(turn, give_way)
            waited += 1
            if waited > spins:
                if atomic_cas(box, STATE, IDLE, ASLEEP) == IDLE:
                    return 0
                waited = 0


@native
def launch(run: ptr_i64, boxes: ptr_i64, count: i64, helpers: i64, patience: i64, give_way: i64) -> i64:
    """Run the table in `run` on this thread and up to `helpers` of `count` workers; returns the status.

    A worker that is just waking is waited for up to `patience` turns. STATUS, FAILED, ARRIVED and FINISHED
    must be 0 on entry.
    """
    team = 1
    mine = 0
    for w in range(count):
        if team > helpers:
            break
        box = boxes + w * BOX_WORDS
        turn = 0
        while turn < patience and atomic_load(box, STATE) == WAKING:
            pause()
            turn += 1
        if atomic_cas(box, STATE, IDLE, CLAIMED) == IDLE:
            box[TID] = team
            team += 1
            mine |= 1 << w
    for w in range(count):
        if (mine >> w) & 1 != 0:
            box = boxes + w * BOX_WORDS
            box[RUN] = address_of(run)
            box[COUNT] = team
            atomic_store(box, STATE, GO)
    walk(run, 0, team, give_way)
    turn = 0
    while atomic_load(run, FINISHED) != team - 1:
        turn = relax(turn, give_way)
    return run[STATUS]
