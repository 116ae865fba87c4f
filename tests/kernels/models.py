"""Small models for tests, and running them by kernels and by references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minifer import dtypes
from minifer.ir import Graph, Model, Node, TensorType, type_of_value
from minifer.plan.plan import KernelStep, PythonStep
from minifer.session import Session


def model(nodes: Sequence[Node], inputs: Mapping[str, np.ndarray], consts: Mapping[str, np.ndarray], outputs) -> Model:
    """A model of these nodes; inputs are declared with the types of the arrays."""
    types = {name: type_of_value(value) for name, value in inputs.items()}
    graph = Graph(tuple(inputs), tuple(outputs), tuple(nodes), dict(consts), types)
    graph.check()
    return Model(graph, {"": 21}, 10)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], version: int = 21, domain: str = "", **attrs) -> Node:
    """A node of the default domain."""
    return Node(op, tuple(inputs), tuple(outputs), attrs, f"{op}_{outputs[0]}", domain, version)


def steps(session: Session) -> tuple[list[KernelStep], list[PythonStep]]:
    """All kernel steps and Python steps that the session has planned, stages after one another."""
    native, python = [], []
    stages = [s for e in session._executors.values() for s in e.stages.values()]
    while stages:
        stage = stages.pop()
        native += [s for s in stage.plan.steps if isinstance(s, KernelStep)]
        python += [s for s in stage.plan.steps if isinstance(s, PythonStep)]
        stages += stage.following.values()
    return native, python


def check_native(
    made: Model, inputs: Mapping[str, np.ndarray], tolerance: float = 1e-5, native: bool = True
) -> list[KernelStep]:
    """Run natively on 1 and 2 threads (bit-identical) and by references; compare against the largest magnitude.

    With `native` every step must be a kernel. Returns the kernel steps.
    """
    one, two = Session(made, threads=1), Session(made, threads=2)
    expected = Session(made, executor="reference", optimize=False).run(inputs)
    got, again = one.run(inputs), two.run(inputs)
    kernels, python = steps(one)
    if native:
        assert not python, [f"{s.node.label}: {s.why}" for s in python]
    for name, want in expected.items():
        have = got[name]
        assert have.dtype == want.dtype and have.shape == want.shape, (name, have.dtype, have.shape, want.shape)
        assert have.tobytes() == again[name].tobytes(), f"{name} differs between 1 and 2 threads"
        if dtypes.from_numpy(want.dtype) in dtypes.FLOATS:
            a, b = have.astype(np.float64), want.astype(np.float64)
            finite = np.isfinite(b)
            scale = np.abs(b[finite]).max(initial=1e-30)
            assert np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(a[np.isinf(b)], b[np.isinf(b)])
            worst = np.abs(a - b)[finite].max(initial=0) / scale
            assert worst <= tolerance, f"{name}: error {worst:.2e} of the largest magnitude"
        else:
            assert np.array_equal(have, want), f"{name}: {have} instead of {want}"
    return kernels


__all__ = ["TensorType", "check_native", "model", "node", "steps"]
