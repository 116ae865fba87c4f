"""The script that quantises the benchmark's nets: its files load, and become integer operators."""

from __future__ import annotations

import numpy as np
import pytest

import minifer

pytest.importorskip("onnxruntime.quantization")


def _save(path, nodes, inputs, weights, output):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("unsigned", [True, False])
def test_static(tmp_path, unsigned):
    from onnx import helper

    from minifer.models.quantise_nets import quantise_static

    rng = np.random.default_rng(0)
    source, target = str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")
    conv = helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1])
    nodes = [conv, helper.make_node("Relu", ["c"], ["y"])]
    weights = {"w": rng.standard_normal((8, 3, 3, 3)).astype("f"), "b": rng.standard_normal(8).astype("f")}
    _save(source, nodes, {"x": [1, 3, 9, 9]}, weights, "y")
    quantise_static(source, target, unsigned)
    x = rng.standard_normal((1, 3, 9, 9)).astype("f")
    made, plain = minifer.load(target), minifer.load(source)
    assert [n.op for n in made.graph.nodes] == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    have, want = made.run({"x": x})["y"], plain.run({"x": x})["y"]
    assert np.abs(have - want).max() < 0.05 * np.abs(want).max()


def test_dynamic(tmp_path):
    from onnx import helper

    from minifer.models.quantise_nets import quantise_dynamic

    rng = np.random.default_rng(0)
    source, target = str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")
    weights = {"w": rng.standard_normal((16, 24)).astype("f"), "b": rng.standard_normal(24).astype("f")}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    _save(source, nodes, {"x": [5, 16]}, weights, "y")
    quantise_dynamic(source, target)
    x = rng.standard_normal((5, 16)).astype("f")
    made, plain = minifer.load(target), minifer.load(source)
    assert [n.op for n in made.graph.nodes] == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]
    have, want = made.run({"x": x})["y"], plain.run({"x": x})["y"]
    assert np.abs(have - want).max() < 0.03 * np.abs(want).max()
