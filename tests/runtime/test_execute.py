"""Executors: stages that end where data decides, plans per input type and value, subgraphs, fresh results."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.ir import Graph, Model, Node, TensorType
from minifer.ops import registry
from minifer.ops.registry import Op
from minifer.runtime.execute import PLANS_KEPT, VALUES_KEPT
from minifer.session import Session
from tests.kernels.models import model, node, steps

RNG = np.random.default_rng(2)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def stages(session):
    """All stages planned so far."""
    found, pending = [], [s for e in session._executors.values() for s in e.stages.values()]
    while pending:
        stage = pending.pop()
        found.append(stage)
        pending += stage.following.values()
    return found


@pytest.fixture(params=["native", "reference"])
def executor(request):
    return request.param


def test_a_stage_ends_where_a_shape_depends_on_data(executor):
    nodes = [
        node("NonZero", ["x"], ["where"]),
        node("Transpose", ["where"], ["index"], perm=(1, 0)),
        node("GatherND", ["x", "index"], ["picked"]),
        node("MatMul", ["picked", "w"], ["y"]),
    ]
    x = np.array([0, 2, 0, 3, 4], np.float32)
    types = {"x": TensorType("float32", ("n",)), "w": TensorType("float32", ("k", 2))}
    session = Session(Model(Graph(("x", "w"), ("y",), tuple(nodes), {}, types), {"": 21}, 10), executor=executor)
    for zeroed in (0, 1, 3):
        x[zeroed] = 0
        w = draw(np.count_nonzero(x), 2)
        np.testing.assert_allclose(session.run({"x": x, "w": w})["y"], x[x != 0] @ w, rtol=1e-6)
    assert sum(s.plan.dynamic for s in stages(session)) >= 1


def test_the_next_stage_is_planned_once_per_shape_that_turns_up(executor):
    nodes = [node("NonZero", ["x"], ["where"]), node("Cast", ["where"], ["y"], to=1)]
    session = Session(model(nodes, {"x": np.zeros(4, np.float32)}, {}, ["y"]), executor=executor)
    for x in ([1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]):
        assert session.run({"x": np.array(x, np.float32)})["y"].shape == (1, sum(x))
    (first,) = next(iter(session._executors.values())).stages.values()
    assert len(first.following) == 2


def loop_model():
    """y = x @ w @ w ... `trips` times; every product is a scan output as well."""
    body = Graph(
        ("i", "go", "a"), ("go_on", "b", "seen"),
        (node("MatMul", ["a", "w"], ["b"]), node("Identity", ["go"], ["go_on"]), node("Identity", ["b"], ["seen"])),
        {}, {"i": TensorType("int64", ()), "go": TensorType("bool", ()), "a": TensorType("float32", (3, 3))}, "body",
    )  # fmt: skip
    loop = node("Loop", ["trips", "", "x"], ["y", "all"], body=body)
    inputs = {"trips": np.array(3), "x": draw(3, 3)}
    return model([loop], inputs, {"w": draw(3, 3)}, ["y", "all"])


def test_loop_bodies_are_planned_once(executor):
    made = loop_model()
    session = Session(made, executor=executor)
    x, w = draw(3, 3), made.graph.consts["w"]
    for trips in (0, 1, 5):
        got = session.run({"trips": np.array(trips), "x": x})
        expected, all_of_them = x, []
        for _ in range(trips):
            expected = expected @ w
            all_of_them.append(expected)
        np.testing.assert_allclose(got["y"], expected, rtol=1e-5)
        assert got["all"].shape == (trips, 3, 3)
    inner = [e for s in stages(session) for e in s.inner.values()]
    assert inner and all(len(e.stages) == 1 for e in inner)


def if_model():
    branches = {
        f"{which}_branch": Graph((), ("v",), (node(op, ["x"], ["v"]), ), {}, {}, which)
        for which, op in (("then", "Neg"), ("else", "Abs"))
    }  # fmt: skip
    nodes = [node("Equal", ["mode", "seven"], ["is_seven"]), node("If", ["is_seven"], ["r"], **branches)]
    nodes.append(node("Mul", ["r", "x"], ["y"]))
    return model(nodes, {"x": draw(4), "mode": np.array(7)}, {"seven": np.array(7)}, ["y"])


def test_a_branch_on_a_scalar_input_becomes_straight_line_code(executor):
    session = Session(if_model(), executor=executor)
    x = draw(4)
    for mode in (7, 3, 7, 3):
        expected = -x * x if mode == 7 else np.abs(x) * x
        np.testing.assert_array_equal(session.run({"x": x, "mode": np.array(mode)})["y"], expected)
    assert len(stages(session)) == 2
    assert not any(step.node.op == "If" for step in steps(session)[1])


def test_a_scalar_input_with_many_values_is_not_taken_for_a_mode(executor):
    session = Session(if_model(), executor=executor)
    x = draw(4)
    for mode in range(40):
        expected = -x * x if mode == 7 else np.abs(x) * x
        np.testing.assert_array_equal(session.run({"x": x, "mode": np.array(mode)})["y"], expected)
    assert len(stages(session)) <= VALUES_KEPT + 3


def test_plans_are_bounded(executor):
    types = {"x": TensorType("float32", ("n",))}
    made = Model(Graph(("x",), ("y",), (node("Concat", ["x", "x"], ["y"], axis=0),), {}, types), {"": 21}, 10)
    session = Session(made, executor=executor)
    for n in range(1, 3 * PLANS_KEPT):
        assert session.run({"x": np.zeros(n, np.float32)})["y"].shape == (2 * n,)
    assert len(next(iter(session._executors.values())).stages) == PLANS_KEPT


def test_a_wrong_type_rule_is_found_and_the_run_asked_instead(executor):
    def reference(x):
        return x[x > 0]

    registry.register(Op("OddFilter", 1, reference, lambda call: call.tensor(0), domain="test"))
    try:
        nodes = [Node("OddFilter", ("x",), ("p",), {}, "filter", "test", 1), node("MatMul", ["p", "p"], ["y"])]
        session = Session(model(nodes, {"x": draw(4)}, {}, ["y"]), executor=executor)
        for x in ([1, -1, 2, -2], [1, 2, 3, -1]):
            x = np.array(x, np.float32)
            np.testing.assert_allclose(session.run({"x": x})["y"], (x[x > 0] ** 2).sum())
    finally:
        registry._TABLE.pop(("test", "OddFilter"))


@pytest.mark.parametrize("op", ["Identity", "Reshape", "Transpose", "Squeeze"])
def test_results_are_fresh_arrays(op, executor):
    extra = {"Reshape": ["shape"], "Squeeze": ["axis"]}.get(op, [])
    consts = {"shape": np.array([4, 1]), "axis": np.array([0]), "k": draw(1, 4)}
    nodes = [node(op, ["x", *extra], ["y"]), node(op, ["k", *extra], ["z"]), node(op, ["x", *extra], ["y2"])]
    session = Session(model(nodes, {"x": draw(1, 4)}, consts, ["y", "z", "y2", "x"]), executor=executor)
    x = draw(1, 4)
    first = session.run({"x": x})
    copies = {n: v.copy() for n, v in first.items()}
    for value in first.values():
        assert not np.shares_memory(value, x)
        value[...] = 99
    again = session.run({"x": x})
    for name, value in again.items():
        np.testing.assert_array_equal(value, copies[name])


def test_references_do_not_keep_views_into_the_arena():
    """A Python step returns a view of its input, which lies in memory that later steps use again."""

    def view(x):
        return x.reshape(-1)[: x.size // 2]

    registry.register(Op("FrontHalf", 1, view, None, domain="test"))
    try:
        nodes = [
            node("MatMul", ["x", "w"], ["a"]), Node("FrontHalf", ("a",), ("h",), {}, "half", "test", 1),
            node("MatMul", ["x", "v"], ["b"]), node("MatMul", ["b", "w"], ["c"]), node("MatMul", ["c", "v"], ["d"]),
        ]  # fmt: skip
        consts = {"w": draw(8, 8), "v": draw(8, 8)}
        made = model(nodes, {"x": draw(8, 8)}, consts, ["h", "d"])
        x = draw(8, 8)
        got = Session(made, executor="native").run({"x": x})
        np.testing.assert_allclose(got["h"], (x @ consts["w"]).reshape(-1)[:32], rtol=1e-4, atol=1e-5)
    finally:
        registry._TABLE.pop(("test", "FrontHalf"))


def test_without_a_compiler_every_step_runs_by_reference(monkeypatch):
    monkeypatch.setattr("minifer.codegen.store.available", lambda: False)
    session = Session(loop_model())
    assert not session.settings.native
    assert session.run({"trips": np.array(2), "x": draw(3, 3)})["all"].shape == (2, 3, 3)
