"""The models that the tools are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def value(name: str, shape, dtype: int = TensorProto.FLOAT):
    """An input or output."""
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(nodes, inputs, outputs, consts=()) -> onnx.ModelProto:
    """A checked model of one graph."""
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, list(consts))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """y = relu(x @ W) for x (N, 3)."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["m"], "product"), helper.make_node("Relu", ["m"], ["y"])]
    path = tmp_path / "tiny.onnx"
    weight = numpy_helper.from_array(WEIGHT, "W")
    onnx.save(model_of(nodes, [value("x", ("N", 3))], [value("y", ("N", 4))], [weight]), path)
    return str(path)


@pytest.fixture
def looping() -> onnx.ModelProto:
    """n times v = v @ W in a Loop, then the places where the result is not 0, as float32, added to themselves."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["v", "E"], ["w"], "inner"), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [value("i", (), TensorProto.INT64), value("c", (), TensorProto.BOOL), value("v", (4, 4))],
        [value("d", (), TensorProto.BOOL), value("w", (4, 4))],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "E")],
    )
    nodes = [
        helper.make_node("Loop", ["n", "", "x"], ["y"], "loop", body=body),
        helper.make_node("NonZero", ["y"], ["places"]),
        helper.make_node("Cast", ["places"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "f"], ["z"], "sum"),
    ]
    return model_of(nodes, [value("n", (), TensorProto.INT64), value("x", (4, 4))], [value("z", (2, None))])
