"""The pool and the runner: tables of kernels on one thread and several, from several callers, after sleep and fork."""

from __future__ import annotations

import os
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from minifer.ir import Node
from minifer.kernels import move, runner, runner_layout, simd
from minifer.plan.plan import Buffer, KernelStep, Plan, Slot
from minifer.runtime.pool import SPINS, Pool, pool
from minifer.runtime.records import barriers, build_tables

ROWS, COLUMNS = 300, 500


def _slot(base: int, rows: int, columns: int) -> Slot:
    return Slot(Buffer("array", rows * columns * 4, base=base), "int32", (rows, columns))


def _table(length: int):
    """x -> transposed -> back -> ... `length` times, through two arrays; every step needs the one before."""
    a, b = _slot(2, ROWS, COLUMNS), _slot(3, COLUMNS, ROWS)
    steps = []
    for i in range(length):
        source, target = (a, b) if i % 2 == 0 else (b, a)
        rows, columns = source.shape
        node = Node("Transpose", ("x",), ("y",))
        steps.append(
            KernelStep(move.transpose_matrices["u32"], (source, target, 1, rows, columns), node, (source,), (target,))
        )
    return build_tables(Plan(tuple(steps), bases=4))[0]


def _run(table, threads: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(ROWS * COLUMNS, dtype=np.int32).reshape(ROWS, COLUMNS)
    y = np.zeros((COLUMNS, ROWS), np.int32)
    bases = np.array([0, 0, x.ctypes.data, y.ctypes.data], np.int64)
    assert table.run(bases, threads) is None
    return x, y


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_dependent_steps_run_in_order(threads):
    table = _table(7)
    expected = np.arange(ROWS * COLUMNS, dtype=np.int32).reshape(ROWS, COLUMNS)
    for _ in range(20):
        x, y = _run(table, threads)
        assert np.array_equal(x, expected) and np.array_equal(y, expected.T)


def test_every_dependent_step_has_a_barrier():
    assert [int(w) & runner_layout.BARRIER for w in _table(5).words[:, 2]] == [0, 1, 1, 1, 1]


def test_only_kernels_of_the_package_get_unequal_pieces(monkeypatch):
    """Who splits n items into runs of (n + nthreads - 1) // nthreads would miss some."""
    assert {int(w) & runner_layout.HALVING for w in _table(3).words[:, 2]} == {runner_layout.HALVING}
    monkeypatch.setattr(move.transpose_matrices["u32"].body, "__module__", "mine")
    assert {int(w) & runner_layout.HALVING for w in _table(3).words[:, 2]} == {0}


def test_independent_steps_have_none():
    node = Node("Transpose", ("x",), ("y",))
    source = _slot(2, 4, 4)
    steps = [KernelStep(move.transpose_matrices["u32"], (), node, (source,), (_slot(3 + i, 4, 4),)) for i in range(3)]
    assert barriers(steps) == [0, 0, 0]


@pytest.mark.parametrize("halving", [0, runner_layout.HALVING])
@pytest.mark.parametrize(("each", "team", "present"), [(1, 2, 1), (4, 2, 1), (4, 3, 2), (1, 1, 1), (3, 3, 3)])
def test_whoever_is_there_runs_every_piece_once(each, team, present, halving, monkeypatch):
    """The runner in plain Python: the threads of a team that never come are not missed."""
    ran = []
    monkeypatch.setitem(simd.ENTRIES, 1, lambda args, bases, piece, share: ran.append((args, piece, share)) or 0)
    monkeypatch.setattr(runner, "as_ptr", lambda table, element: simd.Ptr(words.reshape(-1)))
    lock = threading.Lock()

    def atomic_add(p, i, v):
        with lock:
            return simd.atomic_add(p, i, v)

    monkeypatch.setattr(runner, "atomic_add", atomic_add)
    records = 5
    how = each * runner_layout.PIECES + halving
    words = np.array([[1, r, how + (runner_layout.BARRIER if r % 2 else 0), r] for r in range(records)], np.int64)
    block = np.zeros(runner_layout.run_words(records, team), np.int64)
    block[runner.RECORDS], block[runner.PITCH] = records, runner_layout.pitch(records)
    walkers = [threading.Thread(target=runner.walk, args=(simd.Ptr(block), t, team, 0)) for t in range(present)]
    for walker in walkers:
        walker.start()
    for walker in walkers:
        walker.join(30)
        assert not walker.is_alive()
    pieces = 1 if team == 1 else each * team
    mask = (1 << runner_layout.SHARE_PIECES) - 1
    count = {piece: 2 ** min(piece + 1, each - 1) if halving else each for piece in range(each)}
    expected = {Fraction(1, team * of) for of in count.values()} if team > 1 else {Fraction(1)}
    for r in range(records):  # the pieces lie side by side, from 0 to 1
        parts = sorted((Fraction(p, share & mask), Fraction(p + 1, share & mask)) for s, p, share in ran if s == r)
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])] and parts[-1][1] == 1
        assert {stop - start for start, stop in parts} == expected
    shares = [runner_layout.share_word(0, pieces, slot) for slot in range(team)]
    assert {share & ~mask for _, _, share in ran} <= set(shares)
    if team > 1:
        assert block[runner.DONE] == records * pieces


def test_an_order_of_another_caller_is_not_taken_back(monkeypatch):
    """The only worker did its part of this run, and has an order for another one before the caller looks."""
    boxes = np.zeros(runner_layout.BOX_WORDS, np.int64)
    boxes[runner.STATE] = runner.IDLE
    words = np.array([[1, 0, runner_layout.PIECES, 0]], np.int64)  # one record, one piece for each thread
    block = np.zeros(runner_layout.run_words(1, 2), np.int64)
    block[runner.TABLE], block[runner.RECORDS], block[runner.PITCH] = words.ctypes.data, 1, runner_layout.pitch(1)
    other = block.ctypes.data + 8  # stands for the address of the other run

    def piece(*_):
        assert boxes[runner.STATE] in (block.ctypes.data, other)
        boxes[runner.STATE], block[runner.FINISHED] = other, 1
        return 0

    def relax(turn, give_way):
        assert turn < 1000, "waits for a worker that was done before"
        return turn + 1

    monkeypatch.setattr(runner, "relax", relax)
    monkeypatch.setitem(simd.ENTRIES, 1, piece)
    assert runner.launch(simd.Ptr(block), simd.Ptr(boxes), 1, 1, 0) == 0
    assert boxes[runner.STATE] == other


def test_callers_on_many_threads_share_the_workers():
    table, errors = _table(5), []

    def work():
        for _ in range(30):
            x, y = _run(table, 2)
            if not np.array_equal(x, y.T):
                errors.append("wrong result")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive()
    assert not errors


def test_workers_sleep_when_idle_and_wake_again():
    table = _table(3)
    _run(table, 2)
    _await_sleep(pool(2))
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05
    x, y = _run(table, 2)
    assert np.array_equal(x, y.T)


def _await_sleep(workers: Pool) -> None:
    states, deadline = workers._states, time.monotonic() + 10
    while (states != runner.ASLEEP).any() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (states == runner.ASLEEP).all(), f"still awake after {SPINS} turns"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no choice of CPUs on this system")
def test_who_sleeps_wakes_on_another_cpu_and_may_then_run_anywhere(monkeypatch):
    table, told = _table(3), []
    cpus = os.sched_getaffinity(0)
    _run(table, 2)
    _await_sleep(pool(2))
    worker = pool(2)._ids[0]
    assert os.sched_getaffinity(worker) == cpus
    tell = os.sched_setaffinity
    monkeypatch.setattr(os, "sched_setaffinity", lambda who, where: (told.append((who, where)), tell(who, where)))
    monkeypatch.setattr(pool(2), "_current_cpu", lambda: min(cpus))
    x, y = _run(table, 2)
    assert np.array_equal(x, y.T)
    _await_sleep(pool(2))  # it has been awake
    assert told == ([(worker, cpus - {min(cpus)}), (0, cpus)] if len(cpus) > 1 else [])
    assert os.sched_getaffinity(worker) == cpus


def test_a_system_that_lets_nobody_choose_cpus_does_no_harm(monkeypatch):
    def refuse(*_):
        raise OSError("not here")

    table = _table(3)
    _run(table, 2)
    _await_sleep(pool(2))
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    x, y = _run(table, 2)
    assert np.array_equal(x, y.T)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_workers():
    table = _table(3)
    _run(table, 2)
    child = os.fork()
    if child == 0:
        x, y = _run(table, 2)
        os._exit(0 if np.array_equal(x, y.T) else 1)
    deadline = time.monotonic() + 20
    done, status = 0, 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(child, 9)
    assert done and os.waitstatus_to_exitcode(status) == 0


def test_pool_of_one_has_no_workers():
    assert Pool(1)._states.size == 0
