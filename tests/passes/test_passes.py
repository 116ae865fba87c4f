"""Each pass: it fires where it should, keeps results, and leaves alone what it must not touch."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import numpy as np
import pytest

from minifer.errors import MiniferError
from minifer.ir import Graph
from minifer.passes import PASSES, Pass, optimise
from minifer.session import Session
from tests.kernels.models import model, node

RNG = np.random.default_rng(5)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def check(made, inputs, ops, tolerance=1e-5):
    """The optimised graph has exactly these operators and the same results as the original by references."""
    session = Session(made, executor="reference")
    plain = Session(made, executor="reference", optimize=False)
    assert sorted(n.op for n in session.graph.nodes) == sorted(ops)
    for name, want in plain.run(inputs).items():
        np.testing.assert_allclose(session.run(inputs)[name], want, rtol=tolerance, atol=tolerance)


def test_constants_are_folded_through_shapes():
    consts = {"a": draw(3, 4), "b": draw(4)}
    nodes = [node("Add", ["a", "b"], ["c"]), node("Neg", ["c"], ["d"]), node("Mul", ["x", "d"], ["y"])]
    check(model(nodes, {"x": draw(3, 4)}, consts, ["y"]), {"x": draw(3, 4)}, ["Mul"])


def test_random_nodes_are_not_folded():
    nodes = [node("RandomNormal", [], ["r"], shape=(2, 2), seed=1.0), node("Add", ["x", "r"], ["y"])]
    session = Session(model(nodes, {"x": draw(2, 2)}, {}, ["y"]), executor="reference")
    assert [n.op for n in session.graph.nodes] == ["RandomNormal", "Add"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_constant_if_becomes_its_branch(taken):
    branches = {
        f"{which}_branch": Graph((), ("v",), (node(op, ["x"], ["v"]),), {}, {}, which)
        for which, op in (("then", "Neg"), ("else", "Abs"))
    }
    made = model([node("If", ["cond"], ["y"], **branches)], {"x": draw(5)}, {"cond": np.array(taken)}, ["y"])
    check(made, {"x": draw(5)}, ["Neg" if taken else "Abs", "Identity"])


def test_dead_nodes_and_identities_go():
    nodes = [
        node("Identity", ["x"], ["a"]), node("Exp", ["a"], ["dead"]),
        node("Dropout", ["a"], ["b"]), node("Neg", ["b"], ["y"]),
    ]  # fmt: skip
    check(model(nodes, {"x": draw(4)}, {}, ["y"]), {"x": draw(4)}, ["Neg"])


def test_equal_nodes_are_merged():
    nodes = [node("Exp", ["x"], ["a"]), node("Exp", ["x"], ["b"]), node("Add", ["a", "b"], ["y"])]
    check(model(nodes, {"x": draw(4)}, {}, ["y"]), {"x": draw(4)}, ["Exp", "Add"])


def test_nodes_with_other_attributes_are_not_merged():
    nodes = [
        node("Softmax", ["x"], ["a"], axis=0), node("Softmax", ["x"], ["b"], axis=1), node("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    check(model(nodes, {"x": draw(4, 4)}, {}, ["y"]), {"x": draw(4, 4)}, ["Softmax", "Softmax", "Add"])


def test_batch_norm_and_scale_go_into_the_convolution():
    consts = {
        "w": draw(6, 3, 3, 3), "b": draw(6), "s": draw(6), "t": draw(6), "m": draw(6), "v": np.abs(draw(6)) + 0.1,
        "k": draw(1, 6, 1, 1), "a": draw(6, 1, 1), "two": np.array(2, np.float32),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"]),
        node("BatchNormalization", ["c", "s", "t", "m", "v"], ["n"], epsilon=1e-3),
        node("Mul", ["n", "k"], ["p"]), node("Add", ["a", "p"], ["q"]), node("Div", ["q", "two"], ["r"]),
        node("Sub", ["r", "a"], ["y"]),
    ]  # fmt: skip
    check(model(nodes, {"x": draw(2, 3, 7, 7)}, consts, ["y"]), {"x": draw(2, 3, 7, 7)}, ["Conv"], 1e-4)


def test_scale_over_space_is_left_alone():
    consts = {"w": draw(6, 3, 3, 3), "k": draw(1, 6, 5, 5), "row": draw(5)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["p"]), node("Mul", ["p", "row"], ["y"])]
    check(model(nodes, {"x": draw(1, 3, 7, 7)}, consts, ["y"]), {"x": draw(1, 3, 7, 7)}, ["Conv", "Mul", "Mul"])


def test_a_convolution_that_is_read_twice_keeps_its_weights():
    consts = {"w": draw(6, 3, 3, 3), "k": draw(1, 6, 1, 1)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["y"])]
    check(model(nodes, {"x": draw(1, 3, 7, 7)}, consts, ["y", "c"]), {"x": draw(1, 3, 7, 7)}, ["Conv", "Mul"])


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("swap", [True, False])
def test_hard_swish_is_put_together(divide, swap):
    consts = {
        "three": np.float32([3]), "lo": np.array(0, np.float32), "hi": np.array(6, np.float32),
        "six": np.float32([6]) if divide else np.float32([1 / 6]),
    }  # fmt: skip
    nodes = [
        node("Add", ["three", "x"] if swap else ["x", "three"], ["a"]),
        node("Clip", ["a", "lo", "hi"], ["c"]),
        node("Mul", ["c", "x"] if swap else ["x", "c"], ["m"]),
        node("Div" if divide else "Mul", ["m", "six"], ["y"]),
    ]
    check(model(nodes, {"x": draw(50) * 4}, consts, ["y"]), {"x": draw(50) * 4}, ["HardSwish"])


def test_other_bounds_are_no_hard_swish():
    consts = {
        "three": np.float32([3]), "lo": np.array(0, np.float32), "hi": np.array(5, np.float32), "six": np.float32([6]),
    }  # fmt: skip
    nodes = [
        node("Add", ["x", "three"], ["a"]), node("Clip", ["a", "lo", "hi"], ["c"]),
        node("Mul", ["x", "c"], ["m"]), node("Div", ["m", "six"], ["y"]),
    ]  # fmt: skip
    check(model(nodes, {"x": draw(50)}, consts, ["y"]), {"x": draw(50)}, ["Add", "Clip", "Mul", "Div"])


def test_passes_that_find_nothing_give_back_the_very_graph():
    """Then it need not be checked again, and what was found of it holds for the next pass."""
    branch = Graph((), ("v",), (node("Neg", ["x"], ["v"]),), {}, {}, "branch")
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("Clip", ["a", "low"], ["b"]),
        node("If", ["c"], ["d"], then_branch=branch, else_branch=branch), node("Mul", ["b", "d"], ["y"]),
    ]  # fmt: skip
    consts = {"w": draw(2, 2, 1, 1), "low": np.zeros((), np.float32)}
    graph = model(nodes, {"x": draw(1, 2, 3, 3), "c": np.array(True)}, consts, ["y"]).graph
    assert optimise(graph) is graph


def test_the_driver_names_the_pass_that_broke_the_graph(monkeypatch):
    class Breaking(Pass):
        def __call__(self, graph, *given):
            return graph.with_(nodes=graph.nodes[1:])

    monkeypatch.setattr("minifer.passes.PASSES", (*PASSES, Breaking("nowhere", "breaks")))
    made = model([node("Neg", ["x"], ["a"]), node("Abs", ["a"], ["y"])], {"x": draw(2)}, {}, ["y"])
    with pytest.raises(MiniferError, match="breaks"):
        optimise(made.graph)


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_each_pass_is_there_and_takes_what_it_is_given(step):
    function = getattr(importlib.import_module(f"minifer.passes.{step.module}"), step.name)
    assert tuple(inspect.signature(function).parameters) == ("graph", *filter(None, [step.takes]))


def test_a_pass_is_called_where_all_that_it_needs_is_there():
    step = Pass("somewhere", "something", ("Conv", "Add|Sub"))
    assert step.concerns({"Conv", "Sub", "Relu"})
    assert not step.concerns({"Conv", "Relu"}) and not step.concerns({"Add", "Sub"})
    assert Pass("somewhere", "something").concerns(set())


def test_what_a_graph_does_not_need_is_not_imported():
    """The passes are most of the code that reads a graph; a net of convolutions calls few of them."""
    program = """
import sys
from minifer.ir import Graph, Node
from minifer.passes import optimise
optimise(Graph(("x",), ("y",), (Node("Relu", ("x",), ("y",), version=13),)))
print(*sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith("minifer.passes.")))
"""
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert out.stdout.split() == ["clean", "fold", "inline"]
