"""Plans come and go with the shapes of the inputs; what they held goes with them."""

from __future__ import annotations

import os

import numpy as np
import pytest

import minifer
from tests.building import file, floats, node

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to read the resident set")


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_shapes_leave_memory_flat():
    """A plan of these takes some 20 kB and its workspace up to 2 MB: kept for good, 1000 would take far more."""
    nodes = [
        node("Conv", "x w", "a", pads=(1, 1, 1, 1)),
        node("Relu", "a", "b"),
        node("Transpose", "b", "c", perm=(0, 2, 3, 1)),
        node("MatMul", "c v", "d"),
        node("Softmax", "d", "y", axis=-1),
    ]
    data = file(nodes, {"x": "float32[n,3,h,q]"}, "y", {"w": floats(8, 3, 3, 3), "v": floats(8, 5)})
    session = minifer.load(data, threads=2)
    rng = np.random.default_rng(0)

    def run(times: int) -> int:
        for _ in range(times):
            n, h, q = (int(rng.integers(1, limit)) for limit in (3, 40, 200))
            assert session.run({"x": np.zeros((n, 3, h, q), np.float32)})["y"].shape == (n, h, q, 5)
        return resident_bytes()

    before = run(400)
    assert run(1000) - before < 6_000_000
