"""Python's garbage collector, and where it should wait."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from minifer.locks import Lock

_lock = Lock()
_inside = 0  # how many have asked it to wait
_running = False  # whether it ran before the first of them came


@contextmanager
def collector_paused() -> Iterator[None]:
    """Look for no garbage: where many objects are made and none dies, half of the time can go into looking for some."""
    global _inside, _running
    with _lock:
        if _inside == 0:
            _running = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside = max(0, _inside - 1)
            if _inside == 0 and _running:
                gc.enable()


def _go_on() -> None:
    """In a forked child nobody is left to end the pauses of other threads."""
    global _inside
    if _inside > 0 and _running:
        gc.enable()
    _inside = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_on)
