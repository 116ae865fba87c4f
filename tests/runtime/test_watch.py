"""MINIFER_DEBUG=2: the steps of every run on standard error."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import minifer


@pytest.fixture
def model():
    """y = relu(conv(x)), and a Loop of two rounds that adds y to itself."""
    rng = np.random.default_rng(0)
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "v"], ["w"], "double"), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ()), helper.make_tensor_value_info("c", 9, ()),
         helper.make_tensor_value_info("v", 1, None)],
        [helper.make_tensor_value_info("d", 9, ()), helper.make_tensor_value_info("w", 1, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["h"], "the_conv", pads=[1, 1, 1, 1]),
        helper.make_node("Loop", ["n", "", "h"], ["y"], "the_loop", body=body),
    ]
    consts = [numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3)).astype("f"), "W")]
    inputs = [helper.make_tensor_value_info("x", 1, (1, 3, 8, 8)), helper.make_tensor_value_info("n", 7, ())]
    outputs = [helper.make_tensor_value_info("y", 1, (1, 8, 8, 8))]
    graph = helper.make_graph(nodes, "small", inputs, outputs, consts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_every_run_is_told(model, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    feeds = {"x": np.ones((1, 3, 8, 8), "f"), "n": np.array(2)}
    with minifer.load(model) as session:
        expected = session.run(feeds)["y"]
    assert capfd.readouterr().err.count("run of") == 0
    monkeypatch.setenv("MINIFER_DEBUG", "2")
    with minifer.load(model, threads=1) as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.run(feeds)["y"], expected)
            told = capfd.readouterr().err
            assert told.count("run of 'small' on 1 thread: ") == 1
            assert "the_conv: float32[1, 3, 8, 8]" in told and "2 times: double" in told and "the_loop" in told
            assert "GFLOP/s" in told.splitlines()[-1]
        report = session.profile(feeds, 2)
    assert {"the_conv", "double", "the_loop"} <= {step.node for step in report.steps}


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "taps", "expected"),
    [
        (3, 8, 1, 3, "implicit GEMM: 3 channels or 8 filters are too few for Winograd"),
        (8, 8, 1, 5, "implicit GEMM: Winograd is for 3x3 taps"),
        (8, 8, 8, 3, "depthwise: "),
        (8, 8, 1, 1, "gemm: "),
        (64, 64, 1, 3, "Winograd F(4x4, 3x3): expected are "),
    ],
)
def test_choices_are_told(channels, filters, groups, taps, expected, monkeypatch, capfd) -> None:
    """Which kernel a convolution gets, and why."""
    weight = np.zeros((filters, channels // groups, taps, taps), "f")
    node = helper.make_node("Conv", ["x", "W"], ["y"], "the_conv", group=groups)
    values = [helper.make_tensor_value_info("x", 1, (1, channels, 34, 34)), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph([node], "small", values[:1], values[1:], [numpy_helper.from_array(weight, "W")])
    monkeypatch.setenv("MINIFER_DEBUG", "2")
    with minifer.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)) as session:
        session.plan({"x": np.zeros((1, channels, 34, 34), "f")})
    told = [line for line in capfd.readouterr().err.splitlines() if "the_conv" in line]
    assert len(told) == 1 and expected in told[0], told
