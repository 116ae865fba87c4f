"""A gated image plus the image itself becomes one product, and only where the gate is one number per channel."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.checking import draw, fused, node

X = {"x": draw(2, 12, 5, 7)}
SQUEEZE = [node("GlobalAveragePool", ["x"], ["m"]), node("Sigmoid", ["m"], ["g"])]


@pytest.mark.parametrize("product", [["x", "g"], ["g", "x"]])
@pytest.mark.parametrize("total", [["x", "p"], ["p", "x"]])
def test_sum_becomes_a_product(product, total):
    nodes = [*SQUEEZE, node("Mul", product, ["p"]), node("Add", total, ["t"]), node("Relu", ["t"], ["y"])]
    made = fused(nodes, X, {})
    assert made.count("Mul") == made.count("Add") == 1
    assert made == ["Add", "GlobalAveragePool", "Mul", "Relu", "Sigmoid"]


def sum_of(nodes, outputs=("y",), consts=None):
    """Whether the sum is still one of two images."""
    from minifer.session import Session
    from tests.kernels.models import model

    graph = Session(model(nodes, X, consts or {}, outputs), executor="reference").graph
    return any(n.op == "Add" and "x" in n.inputs for n in graph.nodes)


def test_small_sum_is_of_the_gate():
    assert not sum_of([*SQUEEZE, node("Mul", ["x", "g"], ["p"]), node("Add", ["x", "p"], ["y"])])


@pytest.mark.parametrize("case", ["whole gate", "product read twice", "another image"])
def test_left_alone(case):
    nodes = [*SQUEEZE, node("Mul", ["x", "g"], ["p"]), node("Add", ["x", "p"], ["y"])]
    outputs = ("y", "p") if case == "product read twice" else ("y",)
    if case == "whole gate":
        nodes[1] = node("Tanh", ["x"], ["g"])
        nodes.append(node("Identity", ["m"], ["z"]))
        outputs = ("y", "z")
    if case == "another image":
        nodes[2] = node("Mul", ["o", "g"], ["p"])
    assert sum_of(nodes, outputs, {"o": np.ones((2, 12, 5, 7), np.float32)})
