"""Gradient: each derivative against central differences, composed and second derivatives, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.errors import ModelError, UnsupportedError
from minifer.ir import Graph, Node, type_of_value
from minifer.ops import registry
from minifer.passes.gradient import DOMAIN, expand_gradients

RNG = np.random.default_rng(11)


def uniform(*shape, low=0.5, high=1.5):
    return RNG.uniform(low, high, shape)


def run(graph, feeds):
    """The outputs of a graph by the references."""
    values = {**graph.consts, **feeds}
    for node in graph.nodes:
        op = registry.select(node)
        assert op is not None, node.label
        out = op.call(registry.Context(node, lambda sub, args: []), [values[n] if n else None for n in node.inputs])
        values.update((n, v) for n, v in zip(node.outputs, out) if n)
    return [values[n] for n in graph.outputs]


def gradient_node(xs, y, outputs, inputs=None, zs=()):
    return Node(
        "Gradient", tuple(inputs or (*xs, *zs)), outputs, {"xs": tuple(xs), "zs": tuple(zs), "y": y}, "d", DOMAIN, 1
    )


def check(nodes, feeds, consts=None, y="y"):
    """dy/dx of all feeds, by the rewrite and by central differences of the sum of y."""
    consts, names = consts or {}, tuple(feeds)
    types = {n: type_of_value(v) for n, v in feeds.items()}
    forward = Graph(names, (y,), tuple(nodes), consts, types)
    outputs = tuple(f"d{n}" for n in names)
    graph = expand_gradients(forward.with_(nodes=(*nodes, gradient_node(names, y, outputs)), outputs=outputs))
    graph.check()
    assert not any(n.op == "Gradient" for n in graph.nodes)
    step = 1e-6
    for name, found in zip(names, run(graph, feeds)):
        expected = np.zeros_like(feeds[name])
        for index in np.ndindex(expected.shape):
            sides = []
            for sign in (1, -1):
                moved = feeds[name].copy()
                moved[index] += sign * step
                sides.append(run(forward, {**feeds, name: moved})[0].sum())
            expected[index] = (sides[0] - sides[1]) / (2 * step)
        assert found.dtype == feeds[name].dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    "op", ["Identity", "Neg", "Abs", "Reciprocal", "Exp", "Log", "Sqrt", "Sin", "Cos", "Tanh", "Sigmoid", "Softplus",
           "Relu", "LeakyRelu", "Erf", "Transpose", "Flatten", "ReduceSum", "ReduceMean", "Softmax", "LogSoftmax"]
)  # fmt: skip
def test_one_input(op):
    x = uniform(2, 3)
    if op not in ("Log", "Sqrt"):
        x[0] *= -1
    check([Node(op, ("x",), ("a",), version=18), Node("Mul", ("a", "a"), ("y",), version=18)], {"x": x})


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 1), (3,)), ((), (2, 3)), ((1, 3), (2, 1, 1))])
def test_broadcasting_is_undone(op, shapes):
    feeds = {"a": uniform(*shapes[0]), "b": uniform(*shapes[1])}
    check([Node(op, ("a", "b"), ("c",), version=18), Node("Mul", ("c", "c"), ("y",), version=18)], feeds)


@pytest.mark.parametrize(
    "a, b",
    [((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((5, 1, 2, 3), (4, 3, 2)), ((2, 3), (4, 3, 2))],
)
def test_matmul(a, b):
    nodes = [Node("MatMul", ("a", "b"), ("c",), version=13), Node("Sin", ("c",), ("y",), version=7)]
    check(nodes, {"a": uniform(*a), "b": uniform(*b)})


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_a, trans_b):
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": 0.5, "beta": 2.0}
    feeds = {
        "a": uniform(*((3, 2) if trans_a else (2, 3))),
        "b": uniform(*((4, 3) if trans_b else (3, 4))),
        "c": uniform(4),
    }
    check([Node("Gemm", ("a", "b", "c"), ("g",), attrs, version=13), Node("Exp", ("g",), ("y",), version=13)], feeds)


@pytest.mark.parametrize("equation", ["...ij,jk->...ik", "ij,...kj->...ki", "...i,j->...ji", "...ij,ik->...kj"])
def test_einsum(equation):
    feeds = {name: uniform(*([4] if "..." in term else []), *[2] * len(term.replace("...", "")))
             for name, term in zip("ab", equation.split("->")[0].split(","))}  # fmt: skip
    nodes = [
        Node("Einsum", ("a", "b"), ("c",), {"equation": equation}, version=12),
        Node("Sin", ("c",), ("y",), version=7),
    ]
    check(nodes, feeds)


def test_moving_and_choosing():
    consts = {
        "shape": np.array([3, 2]),
        "axes": np.array([0]),
        "wide": np.array([2, 2, 3]),
        "mask": np.arange(6) % 2 == 0,
    }
    nodes = [
        Node("Reshape", ("x", "shape"), ("a",), version=14),
        Node("Transpose", ("a",), ("b",), {"perm": (1, 0)}, version=13),
        Node("Unsqueeze", ("b", "axes"), ("c",), version=13),
        Node("Expand", ("c", "wide"), ("d",), version=13),
        Node("Mul", ("d", "d"), ("e",), version=14),
        Node("ReduceMean", ("e", "axes"), ("f",), {"keepdims": 0}, version=18),
        Node("Concat", ("f", "b"), ("g",), {"axis": -1}, version=13),
        Node("Flatten", ("g",), ("h",), {"axis": 0}, version=13),
        Node("Mul", ("h", "h"), ("y",), version=14),
    ]
    check(nodes, {"x": uniform(6)}, consts)
    where = [Node("Where", ("mask", "x", "z"), ("a",), version=16), Node("Mul", ("a", "x"), ("y",), version=14)]
    check(where, {"x": uniform(6), "z": uniform(1)}, consts)


def test_rounding_and_integers_stop_the_derivative():
    nodes = [
        Node("Floor", ("x",), ("a",), version=13),
        Node("Cast", ("x",), ("i",), {"to": 7}, version=13),
        Node("Cast", ("i",), ("f",), {"to": 11}, version=13),
        Node("Add", ("a", "f"), ("b",), version=14),
        Node("Mul", ("b", "x"), ("y",), version=14),
    ]
    check(nodes, {"x": np.array([0.5, 1.5, 2.5])})
    check([Node("Floor", ("x",), ("y",), version=13)], {"x": np.array([0.5, 1.5])})


def test_second_derivative():
    nodes = (
        Node("Exp", ("x",), ("a",), version=13),
        Node("MatMul", ("a", "x"), ("y",), version=13),
        gradient_node(("x",), "y", ("dx",)),
    )
    x = uniform(3)
    graph = Graph(("x",), ("dx",), nodes, {}, {"x": type_of_value(x)})
    np.testing.assert_allclose(run(expand_gradients(graph), {"x": x})[0], np.exp(x) * (1 + x))
    second = Node("Gradient", ("x",), ("ddx",), {"xs": ("x",), "y": "dx"}, "dd", DOMAIN, 1)
    graph = graph.with_(nodes=(*nodes, second), outputs=("ddx",))
    np.testing.assert_allclose(run(expand_gradients(graph), {"x": x})[0], np.exp(x) * (2 + x))


def test_at_another_point_and_in_the_middle():
    nodes = (
        Node("Exp", ("x",), ("h",), version=13),
        Node("Mul", ("h", "z"), ("y",), version=14),
        Node("Add", ("h", "z"), ("other",), version=14),
        gradient_node(("h",), "y", ("dh",), inputs=("other", "x"), zs=("z",)),
    )
    graph = Graph(("x", "z"), ("dh",), nodes, {}, {})
    assert run(expand_gradients(graph), {"x": np.array(2.0), "z": np.array(5.0)}) == [2.0]


def test_graphs_without_gradient_come_back_as_they_are():
    graph = Graph(("x",), ("y",), (Node("Exp", ("x",), ("y",), version=13),))
    assert expand_gradients(graph) is graph


def test_what_is_refused():
    def expand(*nodes):
        expand_gradients(Graph(("x",), (), nodes))

    with pytest.raises(UnsupportedError, match=r"Conv-22 'conv'.*no derivative"):
        expand(Node("Conv", ("x", "x"), ("y",), {}, "conv", "", 22), gradient_node(("x",), "y", ("dx",)))
    with pytest.raises(ModelError, match="no node before it writes y = 'y'"):
        expand(gradient_node(("x",), "y", ("dx",)))
    with pytest.raises(ModelError, match="needs attributes xs and y"):
        expand(Node("Gradient", ("x",), ("dx",), {"y": "y"}, "d", DOMAIN, 1))
    with pytest.raises(UnsupportedError, match="rank of 'x'"):
        expand(Node("MatMul", ("x", "x"), ("y",), version=13), gradient_node(("x",), "y", ("dx",)))
