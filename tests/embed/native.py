"""A compiled shared library called by ctypes, with what its description functions say."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minifer.kernels.target import host

#: machines that run what is made for x86-64-v3
RUN_V3 = ("x86-64-v3", "x86-64-v4", "x86-64-amx")
#: compile's `cpu` for a library that gives the engine's bits on this machine
LEVEL = host().name if host().name in RUN_V3 else None
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


class Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def aligned(nbytes: int, off: int = 0) -> np.ndarray:
    """Memory that begins `off` bytes behind a multiple of 64, filled with ones."""
    raw = np.full(nbytes + 128, 255, np.uint8)
    start = -raw.ctypes.data % 64 + off
    return raw[start : start + nbytes]


class Library:
    """The functions of a compiled model. Everything it says of itself is asked for, not assumed."""

    def __init__(self, path: Path, name: str):
        self.name, self.library = name, ctypes.CDLL(str(path))
        self.run_raw = self.call("run", ctypes.c_int32)
        self.workspace_bytes = self.call("workspace_bytes", ctypes.c_size_t)()
        self.weights_bytes = self.call("weights_bytes", ctypes.c_size_t)()
        self.inputs, self.outputs = self._tensors("input"), self._tensors("output")

    def call(self, what: str, result: Any):
        function = getattr(self.library, f"{self.name}_{what}")
        function.restype = result
        return lambda *arguments: function(*(ctypes.c_size_t(a) if isinstance(a, int) else a for a in arguments))

    def _tensors(self, kind: str) -> list[tuple[str, type, tuple[int, ...], int]]:
        count = self.call(f"{kind}_count", ctypes.c_size_t)()
        name, dtype = self.call(f"{kind}_name", ctypes.c_char_p), self.call(f"{kind}_dtype", ctypes.c_int32)
        rank, dim = self.call(f"{kind}_rank", ctypes.c_size_t), self.call(f"{kind}_dim", ctypes.c_int64)
        nbytes = self.call(f"{kind}_bytes", ctypes.c_size_t)
        assert name(count) is None and dtype(count) == 0 and rank(count) == 0 and nbytes(count) == 0
        found = []
        for i in range(count):
            shape = tuple(dim(i, axis) for axis in range(rank(i)))
            assert dim(i, rank(i) + 20) == -1 and dim(count, 0) == -1
            found.append((name(i).decode(), DTYPES[dtype(i)], shape, nbytes(i)))
        return found

    def run(self, feeds: Mapping[str, np.ndarray], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The outputs for these inputs; the status must be 0. The workspace holds rubbish at first."""
        given = [np.ascontiguousarray(feeds[n], dtype).reshape(shape) for n, dtype, shape, _ in self.inputs]
        made = {n: np.full(shape, 77, dtype) for n, dtype, shape, _ in self.outputs}
        status = self.status(given, list(made.values()), aligned(self.workspace_bytes), weights)
        assert status == 0, status
        return made

    def status(self, inputs, outputs, workspace, weights=None, counts=None) -> int:
        """What `run` returns; arrays may be None, `counts` other than there are."""
        into, out = self._list(inputs), self._list(outputs)
        counts = counts or (len(inputs), len(outputs))
        arguments = [into, counts[0], out, counts[1], *_memory(workspace)]
        if self.weights_bytes:
            arguments += _memory(weights)
        return self.run_raw(*arguments)

    @staticmethod
    def _list(arrays):
        entries = [Buffer(*(x.value if hasattr(x, "value") else x for x in _memory(a))) for a in arrays]
        return (Buffer * max(len(entries), 1))(*entries)


def _memory(array: np.ndarray | None) -> list[Any]:
    return [ctypes.c_void_p(None), 0] if array is None else [ctypes.c_void_p(array.ctypes.data), array.nbytes]
