"""A lock that a forked child can use.

A child has only the thread that forked. A lock that another thread of the parent held then would stay held for ever.
What our locks guard is changed in single steps, so the child may go on with a new lock.

`_thread.RLock` is `threading.RLock`, without the rest of that module, which many programs never need.
"""

from __future__ import annotations

import os
import weakref
from _thread import RLock


class Lock:
    """A re-entrant lock for `with`; free in the child after a fork, whoever held it."""

    def __init__(self) -> None:
        self._renew()
        _all.add(self)

    def _renew(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _all:
        lock._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
