"""What the tests of fusing passes share: build a model, see what it became, compare all ways of running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minifer.ir import Model, Node
from minifer.session import Session
from tests.kernels.models import model, node

__all__ = ["draw", "fused", "model", "node", "ops", "run_all"]

_RNG = np.random.default_rng(11)


def draw(*shape: int) -> np.ndarray:
    """Random float32 numbers."""
    return _RNG.standard_normal(shape).astype(np.float32)


def ops(made: Model) -> list[str]:
    """The operators of the optimised graph, sorted."""
    return sorted(n.op for n in Session(made, executor="reference").graph.nodes)


def run_all(made: Model, inputs: Mapping[str, np.ndarray], tolerance: float = 2e-6) -> None:
    """The original by references = the optimised graph by references = by kernels on 1 and on 2 threads."""
    expected = Session(made, executor="reference", optimize=False).run(inputs)
    sessions = [Session(made, executor="reference"), Session(made, threads=1), Session(made, threads=2)]
    results = [s.run(inputs) for s in sessions]
    for name, want in expected.items():
        for got in (r[name] for r in results):
            assert got.shape == want.shape and got.dtype == want.dtype
            scale = np.abs(want[np.isfinite(want)]).max(initial=1e-30)
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)
        assert results[1][name].tobytes() == results[2][name].tobytes()


def fused(nodes: Sequence[Node], inputs: Mapping[str, np.ndarray], consts: Mapping[str, np.ndarray], outputs=("y",)):
    """A model's optimised operators, after its results were compared."""
    made = model(nodes, inputs, consts, outputs)
    run_all(made, inputs)
    return ops(made)
