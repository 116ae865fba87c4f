"""The garbage collector waits while somebody asks it to, and never longer."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from minifer.collector import collector_paused


def pause_elsewhere():
    """Begin a pause in another thread; returns what ends it."""
    entered, leave = threading.Event(), threading.Event()

    def pause():
        with collector_paused():
            entered.set()
            leave.wait(20)

    def end():
        leave.set()
        thread.join()

    thread = threading.Thread(target=pause)
    thread.start()
    assert entered.wait(20)
    return end


def test_it_waits_inside_and_runs_behind():
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_runs_again_after_an_error():
    with pytest.raises(ZeroDivisionError), collector_paused():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_one_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_pauses_of_two_threads_may_overlap():
    with collector_paused():
        end = pause_elsewhere()
    assert not gc.isenabled()  # the other one is still inside
    end()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_during_another_threads_pause_collects():
    end = pause_elsewhere()
    child = os.fork()
    if not child:
        os._exit(0 if gc.isenabled() else 1)
    status = os.waitpid(child, 0)[1]
    end()
    assert status == 0
