"""Stages: what is behind a node whose result types only the run tells is planned after it, and nothing of it before."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.session import Session
from tests.building import floats
from tests.kernels.models import model, node

TAILS = {
    "activation": [node("Relu", ["c"], ["y"])],
    "residual": [node("Add", ["c", "a"], ["s"]), node("Relu", ["s"], ["y"])],
    "gate": [node("Sigmoid", ["c"], ["g"]), node("Mul", ["c", "g"], ["y"])],
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_stage_ends_between_a_product_and_what_it_would_absorb(tail, at):
    """NonZero stands behind the product: what follows the product is not done in its epilogue, and not lost."""
    behind = list(TAILS[tail])
    behind.insert(min(at, len(behind)), node("NonZero", ["m"], ["where"]))
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("Conv", ["a", "w"], ["m"]), node("Conv", ["m", "w"], ["c"]), *behind,
        node("ReduceSum", ["where"], ["count"], keepdims=0),
    ]  # fmt: skip
    inputs = {"x": floats(1, 24, 5, 7)}
    made = model(nodes, inputs, {"w": floats(24, 24, 1, 1) / 5}, ["y", "count"])
    want = Session(made, executor="reference", optimize=False).run(inputs)
    session = Session(made, threads=1)
    for _ in range(3):
        got = session.run(inputs)
        assert np.allclose(got["y"], want["y"], rtol=1e-4, atol=1e-5) and got["count"] == want["count"]
