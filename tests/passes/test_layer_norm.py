"""LayerNormalization and RMSNormalization are found however they are written out, and only where they are."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.checking import draw, fused, node

X = {"x": draw(2, 5, 12) * 2 + 1}
CONSTS = {
    "two": np.array(2, np.float32), "small": np.array(1e-3, np.float32), "one": np.array(1, np.float32),
    "scale": draw(12), "bias": draw(12), "axes": np.array([-1], np.int64), "both": np.array([1, 2], np.int64),
    "middle": np.array([1], np.int64), "plane": draw(5, 12),
}  # fmt: skip


def layer_norm(square="Pow", root="Div", axes="axes", scale="scale", bias="bias"):
    nodes = [node("ReduceMean", ["x", axes], ["m"]), node("Sub", ["x", "m"], ["d"])]
    nodes.append(node("Pow", ["d", "two"], ["q"]) if square == "Pow" else node("Mul", ["d", "d"], ["q"]))
    nodes += [
        node("ReduceMean", ["q", axes], ["v"]), node("Add", ["v", "small"], ["e"]), node("Sqrt", ["e"], ["s"]),
    ]  # fmt: skip
    if root == "Div":
        nodes.append(node("Div", ["d", "s"], ["n"]))
    else:
        nodes += [node(root, ["s"] if root == "Reciprocal" else ["one", "s"], ["r"]), node("Mul", ["r", "d"], ["n"])]
    if scale:
        nodes += [node("Mul", ["n", scale], ["t"]), node("Add", ["t", bias], ["y"])]
    return nodes


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("root", ["Div", "Reciprocal"])
def test_layer_norm(square, root):
    assert fused(layer_norm(square, root), X, CONSTS) == ["LayerNormalization"]


def test_axes_as_an_attribute():
    nodes = [n if n.op != "ReduceMean" else node("ReduceMean", n.inputs[:1], n.outputs, 13, axes=(-1,))
             for n in layer_norm()]  # fmt: skip
    assert fused(nodes, X, CONSTS) == ["LayerNormalization"]


def test_two_axes():
    assert fused(layer_norm(axes="both", scale="plane", bias="plane"), X, CONSTS) == ["LayerNormalization"]


def test_without_scale_and_bias():
    assert fused(layer_norm(scale=""), X, CONSTS, ("n",)) == ["LayerNormalization"]


def test_a_bias_of_another_shape_stays_behind():
    assert fused(layer_norm(bias="plane"), X, CONSTS) == ["Add", "LayerNormalization"]


@pytest.mark.parametrize("inner", ["m", "d", "q", "v", "e", "s"])
def test_what_is_read_elsewhere_stays(inner):
    assert "LayerNormalization" not in fused(layer_norm(), X, CONSTS, ("y", inner))


def test_another_axis_is_no_layer_norm():
    assert "LayerNormalization" not in fused(layer_norm(axes="middle"), X, CONSTS)


def test_another_power_is_no_layer_norm():
    consts = {**CONSTS, "two": np.array(4, np.float32)}
    assert "LayerNormalization" not in fused(layer_norm(), X, consts)


@pytest.mark.parametrize("root", ["Div", "Reciprocal", "inverse"])
def test_rms_norm(root):
    nodes = [
        node("Pow", ["x", "two"], ["q"]), node("ReduceMean", ["q", "axes"], ["v"]), node("Add", ["small", "v"], ["e"]),
        node("Sqrt", ["e"], ["s"]),
    ]  # fmt: skip
    if root == "Div":
        nodes.append(node("Div", ["x", "s"], ["n"]))
    else:
        nodes.append(node("Reciprocal", ["s"], ["r"]) if root == "Reciprocal" else node("Div", ["one", "s"], ["r"]))
        nodes.append(node("Mul", ["x", "r"], ["n"]))
    nodes.append(node("Mul", ["scale", "n"], ["y"]))
    assert fused(nodes, X, CONSTS) == ["RMSNormalization"]
