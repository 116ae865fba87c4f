"""The worker threads, one set per process and thread count.

Workers are daemon threads that spend their lives inside one native call (`serve`), without the interpreter lock.
Each spins briefly after its last work, then sleeps on a lock: an idle process takes no CPU. The mailboxes are never
freed, because a worker may still look at its own while the interpreter shuts down.
"""

from __future__ import annotations

import ctypes
import os
import sys
from _thread import allocate_lock

import numpy as np

from minifer.kernels import runner_layout as runner

#: turns of the spin loop (tens of nanoseconds each) before a worker sleeps
SPINS = int(os.environ.get("MINIFER_SPIN", "40000"))
#: turns to wait for a worker that is just waking
PATIENCE = 8000

_WORD = ctypes.c_int64
_immortal: list[np.ndarray] = []


#: addresses of the runner's functions, where a plan that was read from disk brought them along
natives: dict[str, int] = {}


def native_address(name: str) -> int:
    """The address of a function of minifer.kernels.runner; its library is loaded or built if need be."""
    if name not in natives:
        from minifer.codegen import library
        from minifer.kernels import runner as functions

        natives[name] = library.address_of_native(getattr(functions, name))
    return natives[name]


def give_way_address() -> int:
    """Address of a C function that yields the core (sched_yield), 0 where there is none."""
    try:
        if sys.platform == "win32":
            return ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value or 0
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


class Pool:
    """Runs tables of kernel calls on the calling thread and up to `threads - 1` workers."""

    def __init__(self, threads: int):
        self.threads = threads
        workers = threads - 1
        raw = np.zeros((workers + 2) * runner.BOX_WORDS, np.int64)
        start = -raw.ctypes.data % 64 // 8
        self.boxes = raw[start : start + max(workers, 1) * runner.BOX_WORDS].reshape(-1, runner.BOX_WORDS)
        _immortal.append(raw)
        self._states = self.boxes[:workers, runner.STATE]
        self._address = self.boxes.ctypes.data
        self._give_way = give_way_address()
        self._locks = [allocate_lock() for _ in range(workers)]
        self._wake = allocate_lock()
        for lock in self._locks:
            lock.acquire()
        self._running = 0  # workers that have been started
        self._launch = ctypes.CFUNCTYPE(_WORD, *[_WORD] * 6)(native_address("launch"))

    def _start(self) -> None:
        import threading  # most small models never start a thread

        serve = ctypes.CFUNCTYPE(_WORD, *[_WORD] * 3)(native_address("serve"))
        while self._running < len(self._locks):  # an interrupt may come between two; the next call goes on from there
            w, self._running = self._running, self._running + 1
            threading.Thread(target=self._work, args=(w, serve), name=f"minifer-{w + 1}", daemon=True).start()

    def _work(self, w: int, serve) -> None:
        box = self._address + w * runner.BOX_WORDS * 8
        while True:
            self._locks[w].acquire()
            self._states[w] = runner.IDLE
            if serve(box, SPINS, self._give_way):
                return

    def wake(self) -> None:
        """Wake the workers that sleep."""
        with self._wake:
            if self._running < len(self._locks):
                self._start()
            for w in range(len(self._locks)):
                if self._states[w] == runner.ASLEEP:
                    self._states[w] = runner.WAKING
                    self._locks[w].release()

    def run(self, block: np.ndarray, address: int, threads: int) -> int:
        """Run the table named in a fresh run block; returns 0, or the first status that a kernel returned."""
        helpers = min(threads, self.threads) - 1
        if helpers > 0 and not self._states.all():
            self.wake()
        return self._launch(address, self._address, self.threads - 1, helpers, PATIENCE, self._give_way)


_pools: dict[int, Pool] = {}
_lock = allocate_lock()


def pool(threads: int) -> Pool:
    """The process's pool for a thread count."""
    found = _pools.get(threads)
    if found is None:
        with _lock:
            found = _pools.setdefault(threads, Pool(threads))
    return found


def _forget() -> None:
    """In a forked child the workers do not exist: start anew."""
    global _lock
    _lock = allocate_lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
