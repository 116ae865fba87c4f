"""The plan runner: walks a table of kernel calls, on one thread or several in step.

All threads walk the same table (single program, multiple data). The work of a record is cut into pieces, equally many
for each thread; a kernel takes its share by (piece, pieces). A thread runs its own pieces first, from the front, so
that neighbouring records keep it on the same part of the data, and then what others have left of theirs, from the back
(work stealing: Blumofe and Leiserson, "Scheduling Multithreaded Computations by Work Stealing", 1999). So nobody waits
for a thread that has lost its core, unless it holds a piece. Where a kernel allows it, a thread's first piece is half
of its part, the next a quarter, and so on: large ones cost less, and at the end, where somebody waits, they are small
(guided self-scheduling: Polychronopoulos and Kuck, 1987). A record that needs what earlier ones made waits until all of
their pieces are done; others begin at once.

A worker thread owns a mailbox and spins on its state for a while; `serve` then returns, and the thread sleeps
outside. `launch` claims the workers that are awake or about to be, and begins: who comes late takes part from there on,
and who does not come at all is not waited for. Callers on several threads share the workers without a lock: whoever
claims one first has it.

The words of records, runs and mailboxes: see runner_layout.py.
"""

from __future__ import annotations

from minifer.kernels.runner_layout import (
    ASLEEP,
    BARRIER,
    BASES,
    BOX_WORDS,
    BUSY,
    CLAIMED,
    CLAIMS,
    COUNT,
    DONE,
    FAILED,
    FINISHED,
    HALVING,
    IDLE,
    PIECES,
    PITCH,
    RECORD_WORDS,
    RECORDS,
    STATE,
    STATUS,
    STOP,
    TABLE,
    TID,
    WAKING,
    share_word,
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


def wait_for(run: ptr_i64, pieces: i64, give_way: i64) -> None:
    """Wait until so many pieces of the run are done."""
    turn = 0
    while atomic_load(run, DONE) < pieces:
        turn = relax(turn, give_way)


def call(run: ptr_i64, record: ptr_i64, piece: i64, of: i64, pieces: i64, slot: i64) -> None:
    """Run a piece of a record, `of` of which make the whole; the first status that is not 0 is kept with its step."""
    status = call_entry(record[0], record[1], run[BASES], piece, share_word(of, pieces, slot))
    if status != 0 and atomic_cas(run, STATUS, 0, status) == 0:
        run[FAILED] = record[3]


def walk(run: ptr_i64, tid: i64, team: i64, give_way: i64) -> None:
    """Take part in every record of the table."""
    record = as_ptr(run[TABLE], i64)
    before = 0  # pieces of the records passed
    done = 0  # pieces that this thread has run, and told nobody
    for r in range(run[RECORDS]):
        if team == 1:
            call(run, record, 0, 1, 1, 0)
        else:
            each = record[2] // PIECES
            if record[2] & BARRIER != 0:
                if done > 0:
                    atomic_add(run, DONE, done)
                    done = 0
                wait_for(run, before, give_way)
            done += share_record(run, r, record, each, tid, team)
            before += each * team
        record = record + RECORD_WORDS
    if done > 0:
        atomic_add(run, DONE, done)


def share_record(run: ptr_i64, r: i64, record: ptr_i64, each: i64, tid: i64, team: i64) -> i64:
    """Run this thread's pieces of a record from the first on, then those of the others from the last on, as long as
    some are left; returns how many. A claim counts pieces taken from the front in its lower half, others in its upper.
    """
    count = 0
    for k in range(team):
        owner = tid + k if tid + k < team else tid + k - team
        claim = run + (CLAIMS + owner * run[PITCH] + r)
        step = 1 if k == 0 else 1 << 32
        taken = 0 if k == 0 else taken_of(atomic_load(claim, 0))
        while taken < each:
            old = atomic_add(claim, 0, step)
            taken = taken_of(old) + 1
            if taken <= each:
                piece = old & 0xFFFFFFFF if k == 0 else each - 1 - (old >> 32)
                of = each
                if record[2] & HALVING != 0:
                    piece, of = halved(piece, each)
                call(run, record, owner * of + piece, of * team, each * team, tid)
                count += 1
    return count


def halved(piece, each):
    """Which piece of how many equal ones of a thread's part: a half, a quarter, ...; the last two are alike."""
    of = 1 << (piece + 1 if piece + 1 < each else each - 1)
    return of - 2 if piece + 1 < each else of - 1, of


def taken_of(claim: i64) -> i64:
    """Pieces that a claim says are taken."""
    return (claim & 0xFFFFFFFF) + (claim >> 32)


@native
def serve(box: ptr_i64, spins: i64, give_way: i64) -> i64:
    """A worker's loop. Returns 0 when it has spun `spins` turns without work (then ASLEEP), 1 when told to stop."""
    turn = 0
    waited = 0
    atomic_cas(box, STATE, WAKING, IDLE)  # if nobody has given it an order meanwhile
    while True:
        state = atomic_load(box, STATE)
        if state > STOP and atomic_cas(box, STATE, state, BUSY) == state:
            run = as_ptr(state, i64)
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
def launch(run: ptr_i64, boxes: ptr_i64, count: i64, helpers: i64, give_way: i64) -> i64:
    """Run the table in `run` on this thread and up to `helpers` of `count` workers; returns the status.

    STATUS, FAILED, DONE, FINISHED and the claims must be 0 on entry.
    """
    team = 1
    mine = 0
    for w in range(count):
        if team > helpers:
            break
        box = boxes + w * BOX_WORDS
        state = atomic_load(box, STATE)
        if state in (IDLE, WAKING) and atomic_cas(box, STATE, state, CLAIMED) == state:
            box[TID] = team
            team += 1
            mine |= 1 << w
    for w in range(count):
        if (mine >> w) & 1 != 0:
            box = boxes + w * BOX_WORDS
            box[COUNT] = team
            atomic_store(box, STATE, address_of(run))
    walk(run, 0, team, give_way)
    here = 1
    for w in range(count):  # who has not begun by now is not needed
        if (mine >> w) & 1 != 0 and atomic_cas(boxes + w * BOX_WORDS, STATE, address_of(run), IDLE) == address_of(run):
            here += 1
    turn = 0
    while atomic_load(run, FINISHED) != team - here:
        turn = relax(turn, give_way)
    return run[STATUS]
