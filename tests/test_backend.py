"""The onnx.backend interface: ways to pass inputs, single nodes, devices, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import minifer.backend as backend
from minifer.errors import InputError, UnsupportedError


def value(name, kind=onnx.TensorProto.FLOAT, shape=(2,)):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", [value(n) for n in inputs], [value(n) for n in outputs], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


A, B = np.array([1, 2], np.float32), np.array([10, 20], np.float32)
TWO = model([helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Sub", ["a", "b"], ["d"])], "ab", "ds")


@pytest.mark.parametrize("inputs", [[A, B], (A, B), {"b": B, "a": A}])
def test_inputs_by_position_and_name(inputs):
    for outputs in (backend.prepare(TWO).run(inputs), backend.run_model(TWO, inputs, "CPU:0", threads=1)):
        assert isinstance(outputs, tuple)
        assert [o.tolist() for o in outputs] == [[-9, -18], [11, 22]]


def test_one_array_alone_and_messages():
    negative = model([helper.make_node("Neg", ["a"], ["s"])], "a", "s")
    assert backend.run_model(negative, A)[0].tolist() == [-1, -2]
    assert backend.run_model(negative, [onnx.numpy_helper.from_array(A)])[0].tolist() == [-1, -2]


def test_inputs_with_default_values():
    default = onnx.numpy_helper.from_array(B, "b")
    prepared = backend.prepare(model([helper.make_node("Add", ["a", "b"], ["s"])], "ba", "s", [default]))
    assert prepared.run([A])[0].tolist() == [11, 22]
    assert prepared.run([A, A])[0].tolist() == [2, 4]  # then positions are those of all inputs


def test_wrong_inputs():
    with pytest.raises(InputError, match="3 inputs were given, and the model takes 2: a, b"):
        backend.run_model(TWO, [A, B, A])
    with pytest.raises(InputError, match="missing input b"):
        backend.run_model(TWO, [A])


def test_run_node():
    assert backend.run_node(helper.make_node("Add", ["x", "x"], ["y"]), [A, A])[0].tolist() == [2, 4]
    clip = helper.make_node("Clip", ["x", "", "most"], ["y"])
    limit = np.array(1, np.float32)
    assert backend.run_node(clip, {"x": A, "most": limit})[0].tolist() == [1, 1]
    assert backend.run_node(clip, [A, limit], outputs_info=[(np.dtype(np.float32), (2,))])[0].tolist() == [1, 1]
    with pytest.raises(InputError, match="Clip takes the inputs x, most"):
        backend.run_node(clip, [A])
    at = helper.make_node("SequenceAt", ["s", "i"], ["y"])
    assert backend.run_node(at, [[A, B], np.array(1)])[0].tolist() == [10, 20]
    scaler = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml", threshold=1.0)
    assert backend.run_node(scaler, A)[0].tolist() == [0, 1]


def test_run_node_at_an_opset_version():
    """Softmax-11 normalises all of [2, 2] behind axis 1 as one row, Softmax-13 the last axis."""
    node, x = helper.make_node("Softmax", ["x"], ["y"], axis=1), np.zeros((1, 2, 2), np.float32)
    assert backend.run_node(node, x, opset_version=11)[0].reshape(-1).tolist() == [0.25] * 4
    assert backend.run_node(node, x)[0].reshape(-1).tolist() == [0.5] * 4


def test_devices_and_unknown_operators():
    assert backend.supports_device("CPU") and backend.supports_device("CPU:0")
    assert not backend.supports_device("CUDA") and not backend.supports_device("TPU")
    with pytest.raises(UnsupportedError, match="'CUDA' is not supported"):
        backend.prepare(TWO, "CUDA")
    unknown = model([helper.make_node("Frobnicate", ["a"], ["s"], domain="my.own")], "a", "s")
    unknown.opset_import.append(helper.make_opsetid("my.own", 1))
    assert backend.is_compatible(TWO) and not backend.is_compatible(unknown)
    with pytest.raises(UnsupportedError, match="Frobnicate"):
        backend.prepare(unknown)
