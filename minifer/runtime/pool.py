"""The worker threads, one set per process and thread count.

Workers are daemon threads that spend their lives inside one native call (`serve`), without the interpreter lock.
Each spins briefly after its last work, then sleeps on a lock: an idle process takes no CPU. The mailboxes are never
freed, because a worker may still look at its own while the interpreter shuts down.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from _thread import allocate_lock
from collections.abc import Callable

import numpy as np

from minifer.kernels import runner_layout as runner

#: turns of the spin loop (tens of nanoseconds each) before a worker sleeps
SPINS = int(os.environ.get("MINIFER_SPIN", "40000"))

_WORD = ctypes.c_int64

def immortal(thing: object) -> None:
    """Never free an object, not even when the interpreter shuts down and clears its modules: a worker may be in it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


#: addresses of the runner's functions, where a plan that was read from disk brought them along
natives: dict[str, int] = {}


def native_address(name: str) -> int:
    """The address of a function of minifer.kernels.runner; its library is loaded or built if need be."""
    if name not in natives:
        from minifer.codegen import library
        from minifer.kernels import runner as functions

        natives[name] = library.address_of_native(getattr(functions, name))
    return natives[name]


def current_cpu() -> Callable[[], int] | None:
    """A function that tells on which CPU the calling thread runs, where the system lets threads choose their CPUs."""
    try:
        return ctypes.CDLL(None).sched_getcpu if hasattr(os, "sched_setaffinity") else None
    except (OSError, AttributeError):
        return None


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
        immortal(raw)
        self._states = self.boxes[:workers, runner.STATE]
        self._address = self.boxes.ctypes.data
        self._give_way = give_way_address()
        self._locks = [allocate_lock() for _ in range(workers)]
        self._wake = allocate_lock()
        for lock in self._locks:
            lock.acquire()
        self._ids = [0] * workers  # of the workers that have been started, the system's numbers
        self._cpus: list[set[int] | None] = [None] * workers  # where a worker that was sent aside may run
        self._current_cpu = current_cpu()
        self._running = 0  # workers that have been started
        self._launch = ctypes.CFUNCTYPE(_WORD, *[_WORD] * 5)(native_address("launch"))

    def _start(self) -> None:
        import threading  # most small models never start a thread

        serve = ctypes.CFUNCTYPE(_WORD, *[_WORD] * 3)(native_address("serve"))
        while self._running < len(self._locks):  # an interrupt may come between two; the next call goes on from there
            w, self._running = self._running, self._running + 1
            worker = threading.Thread(target=self._work, args=(w, serve), name=f"minifer-{w + 1}", daemon=True)
            worker.start()
            self._ids[w] = worker.native_id or 0

    def _work(self, w: int, serve) -> None:
        box = self._address + w * runner.BOX_WORDS * 8
        while True:
            self._locks[w].acquire()
            cpus, self._cpus[w] = self._cpus[w], None
            if cpus:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, cpus)
            if serve(box, SPINS, self._give_way):
                return

    def _send_aside(self, w: int) -> None:
        """Have a worker that is about to wake begin on another CPU than this thread's; it undoes that itself.

        To the scheduler of a virtual machine an idle CPU can look taken, as its host has given it away meanwhile. Whom
        we wake is then put beside us, and waits there for milliseconds, as we go on computing.
        """
        if self._current_cpu is None or not self._ids[w]:
            return
        with contextlib.suppress(OSError):
            cpus = self._cpus[w] or os.sched_getaffinity(self._ids[w])
            others = cpus - {self._current_cpu()}
            if others:
                self._cpus[w] = cpus
                os.sched_setaffinity(self._ids[w], others)

    def wake(self) -> None:
        """Wake the workers that sleep."""
        with self._wake:
            if self._running < len(self._locks):
                self._start()
            for w in range(len(self._locks)):
                if self._states[w] == runner.ASLEEP:
                    self._send_aside(w)
                    self._states[w] = runner.WAKING
                    self._locks[w].release()

    def run(self, block: np.ndarray, address: int, threads: int) -> int:
        """Run the table named in a fresh run block; returns 0, or the first status that a kernel returned."""
        helpers = min(threads, self.threads) - 1
        if helpers > 0 and not self._states.all():
            self.wake()
        return self._launch(address, self._address, self.threads - 1, helpers, self._give_way)


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
