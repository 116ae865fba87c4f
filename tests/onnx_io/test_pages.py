"""Pages of a mapped file are given back once a copy stands in their place."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from minifer.onnx_io.external import map_file
from minifer.onnx_io.pages import release

SIZE = 1 << 24


def resident_file_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_given_back(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(np.arange(SIZE // 4, dtype=np.int32).tobytes())
    array = np.frombuffer(map_file(path), np.int32)[1:].reshape(3, -1)[1:]
    before = resident_file_bytes()
    total = int(array.sum())
    assert resident_file_bytes() - before > SIZE // 2
    release(array)
    assert resident_file_bytes() - before < SIZE // 8
    assert int(array.sum()) == total


def test_only_a_view_of_a_file(tmp_path):
    own = np.arange(SIZE // 4, dtype=np.int32)
    anonymous = mmap.mmap(-1, SIZE)
    anonymous.write(own.tobytes())
    writable = np.frombuffer(anonymous, np.int32)
    for array in (own, own[::2], own[1:], writable, np.zeros(3), None, "text"):
        release(array)
    assert own[-1] == writable[-1] == SIZE // 4 - 1
