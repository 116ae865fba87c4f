"""Quantised graphs: which integer operators appear, and that results stay within one quantum of the unfused graph."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.kernels.simd import EXACT
from minifer.session import Session
from tests.kernels.models import check_native, model, node, steps

#: the family of the kernels for products of bytes with weights that fill the range
PRODUCT = "quads" if EXACT else "product"
RNG = np.random.default_rng(11)
F = np.float32


def draw(*shape):
    return RNG.standard_normal(shape).astype(F)


class Qdq:
    """Builds a graph in which every tensor passes through QuantizeLinear and DequantizeLinear."""

    def __init__(self, kind=np.uint8):
        self.kind, self.nodes, self.consts = kind, [], {}

    def scales(self, name, scale, zero, axis=None):
        """The names of a scale and a zero point."""
        self.consts |= {f"{name}_s": np.asarray(scale, F), f"{name}_z": np.asarray(zero)}
        return [f"{name}_s", f"{name}_z"], ({} if axis is None else {"axis": axis})

    def quantized(self, x, scale, zero, out=None):
        """A float value through bytes; returns the float behind."""
        names, attrs = self.scales(f"{x}_q", scale, self.kind(zero))
        self.nodes += [
            node("QuantizeLinear", [x, *names], [f"{x}_q"], **attrs),
            node("DequantizeLinear", [f"{x}_q", *names], [out or f"{x}_d"], **attrs),
        ]
        return out or f"{x}_d"

    def weight(self, name, shape, axis=0, scale=None, dtype=np.int8):
        """Constant bytes, dequantised per channel."""
        info, count = np.iinfo(dtype), shape[axis]
        self.consts[name] = RNG.integers(info.min, info.max + 1, shape).astype(dtype)
        scale = RNG.uniform(0.002, 0.01, count) if scale is None else scale
        names, attrs = self.scales(name, scale, np.zeros(np.shape(scale), dtype), axis)
        self.nodes.append(node("DequantizeLinear", [name, *names], [f"{name}_d"], **attrs))
        return f"{name}_d"

    def add(self, op, inputs, out, **attrs):
        """An operator on floats."""
        self.nodes.append(node(op, inputs, [out], **attrs))
        return out

    def check(self, inputs, ops, quanta, scale, wrong=0.02):
        """The optimised graph has these operators among others, and every result is near the unfused one's.

        `quanta`: how far a result may be off, in steps of `scale`; `wrong`: the part of results that may be off.
        """
        made = model(self.nodes, inputs, self.consts, ["y"])
        fused, plain = Session(made, executor="reference"), Session(made, executor="reference", optimize=False)
        found = sorted(n.op for n in fused.graph.nodes)
        assert found == sorted(ops), found
        want, have = plain.run(inputs)["y"].astype("d"), fused.run(inputs)["y"].astype("d")
        off = np.abs(want - have) / scale
        assert off.max() <= quanta + 1e-3 and (off > 1e-3).mean() <= wrong, (off.max(), (off > 1e-3).mean())
        native = [Session(made, threads=t).run(inputs)["y"] for t in (1, 2)]
        np.testing.assert_allclose(native[0], have, rtol=2e-6, atol=1e-6)
        assert native[0].tobytes() == native[1].tobytes()
        return made


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("clamp", ["", "Relu", "Clip"])
def test_a_convolution_with_bias_and_bounds(kind, clamp):
    g = Qdq(kind)
    x, w = g.quantized("x", 0.02, 100), g.weight("w", (9, 6, 3, 3))
    sums = 0.02 * g.consts["w_s"]
    g.consts["b"] = RNG.integers(-3000, 3000, 9).astype(np.int32)
    names, attrs = g.scales("b", sums, np.zeros(9, np.int32), 0)
    g.nodes.append(node("DequantizeLinear", ["b", *names], ["b_d"], **attrs))
    out = g.add("Conv", [x, w, "b_d"], "conv", pads=(1, 1, 1, 1), strides=(2, 1))
    table = []
    if clamp == "Clip":
        g.consts |= {"low": np.array(-0.5, F), "high": np.array(6, F)}
        out, table = g.add("Clip", [out, "low", "high"], "clip"), ["Lookup"]
    elif clamp:
        out = g.add("Relu", [out], "relu")
    zero = 30 if clamp == "Clip" else np.iinfo(kind).min if clamp else 40
    g.quantized(out, 0.05, zero, "y")
    g.check(
        {"x": draw(2, 6, 7, 8)}, ["QuantizeLinear", "QLinearConv", *table, "DequantizeLinear"], 1, 0.05
    )  # fmt: skip


def test_a_float_bias_is_rounded_to_the_scale_of_the_sums():
    g = Qdq()
    x, w = g.quantized("x", 0.02, 128), g.weight("w", (4, 3, 1, 1))
    g.consts["b"] = draw(4)
    g.quantized(g.add("Conv", [x, w, "b"], "conv"), 0.05, 128, "y")
    g.check({"x": draw(1, 3, 5, 5)}, ["QuantizeLinear", "QLinearConv", "DequantizeLinear"], 1, 0.05)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_a_residual_block_stays_in_bytes(kind):
    g = Qdq(kind)
    x, w = g.quantized("x", 0.02, 100), g.weight("w", (6, 6, 3, 3))
    y = g.quantized(g.add("Conv", [x, w], "conv", pads=(1, 1, 1, 1)), 0.05, 40)
    total = g.add("Relu", [g.add("Add", [y, x], "sum")], "relu")
    g.quantized(total, 0.06, np.iinfo(kind).min, "y")
    ops = ["QuantizeLinear", "QLinearConv", "QLinearAdd", "DequantizeLinear"]
    inputs = {"x": draw(1, 6, 9, 8)}
    made = g.check(inputs, ops, 1, 0.06)
    session = Session(made, threads=1)
    session.run(inputs)
    kernels = [s.kernel.name for s in steps(session)[0]]
    assert len([k for k in kernels if k.startswith((PRODUCT, "winograd"))]) == 1 and "combine" not in kernels, kernels


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_matrix_products(op, quantised):
    g = Qdq()
    inputs = [g.quantized("x", 0.02, 110), g.weight("w", (7, 20), 1)]
    if op == "Gemm":
        g.consts["b"] = draw(20)
        inputs.append("b")
    out = "product" if quantised else "y"
    g.add(op, inputs, out)
    if quantised:
        g.quantized(out, 0.03, 128, "y")
    made = {"MatMul": "QLinearMatMul" if quantised else "MatMulIntegerToFloat", "Gemm": "QGemm"}[op]
    ops = ["QuantizeLinear", made, *(["DequantizeLinear"] if quantised else [])]
    if quantised:
        g.check({"x": draw(11, 7)}, ops, 1, 0.03)
    else:  # nothing is rounded but a float bias, to the scale of the sums
        g.check({"x": draw(11, 7)}, ops, 1, 2e-4, wrong=1)


def test_two_quantised_tensors_are_multiplied_and_moved_as_bytes():
    g = Qdq(np.int8)
    a, b = g.quantized("a", 0.02, 3), g.quantized("b", 0.03, -7)
    b = g.quantized(g.add("Transpose", [b], "t", perm=(0, 2, 1)), 0.03, -7)
    y = g.quantized(g.add("MatMul", [a, b], "m"), 0.05, 0)
    g.consts["shape"] = np.array([2, -1])
    g.quantized(g.add("Reshape", [y, "shape"], "r"), 0.06, 1, "y")  # another scale: a table behind
    ops = ["QuantizeLinear", "QuantizeLinear", "Transpose", "QLinearMatMul", "Reshape", "Lookup", "DequantizeLinear"]
    g.check({"a": draw(2, 5, 7), "b": draw(2, 6, 7)}, ops, 1, 0.06)


def test_a_chain_on_one_tensor_becomes_a_table():
    g = Qdq(np.int8)
    x = g.quantized("x", 0.03, 2)
    g.consts |= {"root": np.array(1.4142, F), "one": np.array([1], F)}
    e = g.quantized(g.add("Erf", [g.add("Div", [x, "root"], "d")], "e"), 0.008, 0)
    p = g.quantized(g.add("Add", [e, "one"], "p"), 0.008, -128)
    g.quantized(g.add("Mul", [x, p], "m"), 0.03, -100, "y")
    g.check({"x": draw(3, 50)}, ["QuantizeLinear", "Lookup", "DequantizeLinear"], 0, 0.03, 0)


def test_a_constant_that_adds_dimensions_makes_no_table():
    g = Qdq()
    x = g.quantized("x", 0.03, 2)
    g.consts["two"] = np.full((1, 1), 2, F)
    g.quantized(g.add("Mul", [x, "two"], "m"), 0.03, 100, "y")
    g.check({"x": draw(5)}, ["DequantizeLinear", "DequantizeLinear", "Mul", "QuantizeLinear", "QuantizeLinear"], 0, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_pools_and_concatenation(kind):
    g = Qdq(kind)
    x = g.quantized("x", 0.03, 90)
    top = g.quantized(g.add("MaxPool", [x], "m", kernel_shape=(3, 3), pads=(1, 1, 1, 1), strides=(2, 2)), 0.03, 90)
    mean = g.quantized(g.add("AveragePool", [x], "a", kernel_shape=(2, 2), strides=(2, 2)), 0.02, 80)
    both = g.quantized(g.add("Concat", [top, mean], "c", axis=1), 0.03, 90)
    g.quantized(g.add("GlobalAveragePool", [both], "g"), 0.01, 70, "y")
    ops = ["QuantizeLinear", "MaxPool", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool"]
    g.check({"x": draw(1, 37, 6, 8)}, [*ops, "DequantizeLinear"], 1, 0.01, 0.1)


def test_rows_of_a_quantised_table_are_picked_as_bytes():
    g = Qdq()
    g.weight("w", (50, 8), scale=0.01, dtype=np.uint8)
    g.nodes.append(node("Gather", ["w_d", "i"], ["y"]))
    made = model(g.nodes, {"i": np.array([3, 49, 0])}, g.consts, ["y"])
    session = Session(made, executor="reference")
    assert sorted(n.op for n in session.graph.nodes) == ["DequantizeLinear", "Gather"]
    assert all(v.dtype != np.float32 or v.size < 2 for v in session.graph.consts.values())
    check_native(made, {"i": np.array([3, 49, 0])})


def test_a_product_that_somebody_reads_as_floats_too_is_left_alone():
    g = Qdq()
    x, w = g.quantized("x", 0.02, 128), g.weight("w", (4, 3, 1, 1))
    g.add("Conv", [x, w], "conv")
    g.quantized("conv", 0.05, 128)
    g.add("Add", ["conv_d", "conv"], "y")
    ops = ["QuantizeLinear", "DequantizeLinear", "Conv", "QuantizeLinear", "DequantizeLinear", "Add"]
    g.check({"x": draw(1, 3, 5, 5)}, ops, 0, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_dynamic_products_are_scaled_in_one_step(bias):
    w = RNG.integers(-128, 128, (24, 40)).astype(np.int8)
    consts = {"w": w, "ws": RNG.uniform(0.001, 0.01, 40).astype(F), "wz": np.zeros(40, np.int8), "b": draw(40)}
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z", "wz"], ["p"]),
        node("Cast", ["p"], ["f"], to=1), node("Mul", ["s", "ws"], ["factor"]),
        node("Mul", ["f", "factor"], ["scaled"]), node("Add", ["scaled", "b"], ["biased"]),
        node("Gelu", ["biased" if bias else "scaled"], ["y"]),
    ]  # fmt: skip
    nodes = [n for n in nodes if bias or n.op != "Add"]
    made = model(nodes, {"x": draw(3, 9, 24)}, consts, ["y"])
    session = Session(made, executor="reference")
    assert [n.op for n in session.graph.nodes] == ["DynamicQuantizeLinear", "MatMulIntegerToFloat", "Gelu"]
    kernels = check_native(made, {"x": draw(3, 9, 24)}, tolerance=3e-6)
    assert [k.kernel.name for k in kernels].count(f"{PRODUCT}_f32") == 1
