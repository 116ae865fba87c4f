"""Room for many arrays of middle size, cut from few large blocks.

The system gives out memory page by page, each when it is first written to. For the weights of a small net, some
hundred kilobytes an array, that takes as long as it takes to compute them. Large pages are a quarter of the work
(4 against 16 ms for 18 MB), and NumPy asks for them, but only for arrays of 4 MB and more. So the blocks are larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK = 1 << 23  # bytes
LEAST, MOST = 1 << 16, 1 << 22  # bytes of an array of middle size
FIRST = 1 << 21  # bytes of such arrays after which blocks are made: for fewer, a large page is too large
ALIGNMENT = 64


class Room:
    """Gives out arrays that live about equally long: a block stays in memory as long as one of its arrays does."""

    def __init__(self) -> None:
        self._given = 0
        self._block = np.empty(0, np.uint8)
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array to be filled."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if not LEAST <= size < MOST or dtype.hasobject or not self._is_large(size):
            return np.empty(shape, dtype)
        if self._used + size > self._block.size:
            self._block = np.empty(BLOCK, np.uint8)
            self._used = -self._block.ctypes.data % ALIGNMENT
        start = self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return self._block[start : start + size].view(dtype).reshape(shape)

    def _is_large(self, size: int) -> bool:
        """Whether so many bytes were given out that blocks are worth it; `size` more are, now."""
        self._given += size
        return self._given > FIRST

    def adopt(self, array: np.ndarray) -> np.ndarray:
        """An array, moved into a block; where it was before is then free for the next one."""
        fits = LEAST <= array.nbytes < MOST and array.flags.owndata and not array.dtype.hasobject
        if not fits or (self._given <= FIRST and not self._is_large(array.nbytes)):
            return array
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        """An array row by row: itself where it lies so, else a copy."""
        if array.flags.c_contiguous:
            return np.ascontiguousarray(array)
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy
