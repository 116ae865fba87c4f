"""Giving back the memory of a mapped file that has been read and will hardly be read again."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

LEAST = 1 << 16  # bytes: less is not worth a system call


def release(array: Any) -> None:
    """Let go of the pages that a view of a mapped file has drawn into memory: a copy stands in its place now. The view
    stays valid; read again, it is read from the file (or the system's cache of it) again."""
    if not isinstance(array, np.ndarray) or array.nbytes < LEAST or not array.flags.c_contiguous:
        return
    mapped = _mapping_of(array)
    if mapped is None or not hasattr(mapped, "madvise"):
        return
    start = array.__array_interface__["data"][0] - np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if 0 <= first < last <= len(mapped):
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _mapping_of(array: np.ndarray) -> mmap.mmap | None:
    """The file mapping that an array is a view of, read only; None where it has memory of its own."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return None
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None
