"""The memory that runs take for what lives within a run."""

from __future__ import annotations

import numpy as np

from minifer.errors import LimitError
from minifer.locks import Lock

WORKSPACES_KEPT = 4


class Workspaces:
    """Arenas, reused between runs. Two runs at once get two."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = Lock()

    def take(self, nbytes: int) -> np.ndarray:
        """A 64-byte aligned block of at least `nbytes` bytes."""
        with self._lock:
            fitting = [w for w in self._free if w.nbytes >= nbytes]
            if fitting:
                best = min(fitting, key=lambda w: w.nbytes)
                self._free = [w for w in self._free if w is not best]
                return best
        try:
            raw = np.empty(nbytes + 64, np.uint8)
        except MemoryError:
            raise LimitError(f"a run needs {nbytes:,} bytes of workspace, which this machine cannot give") from None
        start = -raw.ctypes.data % 64
        return raw[start : start + nbytes]

    def give(self, block: np.ndarray) -> None:
        """Return a block; the smallest beyond a few are freed."""
        with self._lock:
            self._free.append(block)
            if len(self._free) > WORKSPACES_KEPT:
                self._free = sorted(self._free, key=lambda w: w.nbytes)[-WORKSPACES_KEPT:]

    def clear(self) -> None:
        """Free all."""
        with self._lock:
            self._free.clear()
