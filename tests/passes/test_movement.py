"""Movement of data is taken out, or put where it does not part a product from what follows it."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.session import Session
from tests.kernels.models import check_native
from tests.passes.checking import draw, fused, model, node

LAST, BACK = (0, 2, 3, 1), (0, 3, 1, 2)


def ints(*values):
    return np.array(values, np.int64)


def test_sizes_of_fixed_inputs_are_constants():
    consts = {"zero": ints(0), "two": ints(2), "rest": ints(-1)}
    nodes = [
        node("Shape", ["x"], ["s"]), node("Slice", ["s", "zero", "two"], ["h"]),
        node("Concat", ["h", "rest"], ["t"], axis=0), node("Reshape", ["x", "t"], ["y"]),
    ]  # fmt: skip
    assert fused(nodes, {"x": draw(2, 3, 4, 5)}, consts) == ["Reshape"]


def test_sizes_that_only_the_run_knows_stay():
    consts = {"zero": ints(0)}
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["y"])]
    made = model(nodes, {"x": draw(2, 3)}, consts, ("y",))
    types = {"x": type(made.graph.types["x"])("float32", ("n", 3))}
    made = type(made)(made.graph.with_(types=types), made.opsets, made.ir_version)
    session = Session(made)
    assert [session.run({"x": draw(n, 3)})["y"].tolist() for n in (2, 5)] == [[2], [5]]


@pytest.mark.parametrize("op", ["Relu", "Gelu"])
def test_an_activation_goes_before_the_movement(op):
    consts = {"w": draw(6, 4, 1, 1), "flat": ints(2, 6, -1)}
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("Reshape", ["c", "flat"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=(0, 2, 1)), node(op, ["t"], ["y"]),
    ]  # fmt: skip
    made, x = model(nodes, {"x": draw(2, 4, 3, 5)}, consts, ("y",)), {"x": draw(2, 4, 3, 5)}
    order = [n.op for n in Session(made, executor="reference").graph.nodes]
    assert order == ["Conv", op, "Reshape", "Transpose"]
    fused(nodes, x, consts)


@pytest.mark.parametrize("inner", ["c", "r", "t"])
def test_an_activation_stays_where_others_read_what_is_before_it(inner):
    consts = {"w": draw(6, 4, 1, 1), "flat": ints(2, 6, -1)}
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("Reshape", ["c", "flat"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=(0, 2, 1)), node("Relu", ["t"], ["y"]),
    ]  # fmt: skip
    made = model(nodes, {"x": draw(2, 4, 3, 5)}, consts, ("y", inner))
    order = [n.op for n in Session(made, executor="reference").graph.nodes]
    assert order == ["Conv", "Reshape", "Transpose", "Relu"]
    fused(nodes, {"x": draw(2, 4, 3, 5)}, consts, ("y", inner))


def block(x, i, consts):
    """A block of ConvNeXt: convolution, product with channels last, scale, residual."""
    consts |= {f"w{i}": draw(6, 6, 1, 1), f"m{i}": draw(6, 6), f"b{i}": draw(6), f"s{i}": draw(6)}
    return [
        node("Conv", [x, f"w{i}"], [f"c{i}"]), node("Transpose", [f"c{i}"], [f"t{i}"], perm=LAST),
        node("MatMul", [f"t{i}", f"m{i}"], [f"p{i}"]), node("Add", [f"b{i}", f"p{i}"], [f"q{i}"]),
        node("Mul", [f"q{i}", f"s{i}"], [f"r{i}"]), node("Transpose", [f"r{i}"], [f"u{i}"], perm=BACK),
        node("Add", [x, f"u{i}"], [f"y{i}"]),
    ]  # fmt: skip


def test_residuals_of_blocks_meet_the_product():
    consts = {"first": draw(6, 3, 2, 2)}
    nodes = [node("Conv", ["x", "first"], ["a"]), *block("a", 1, consts), *block("y1", 2, consts)]
    inputs = {"x": draw(2, 3, 7, 8)}
    kernels = check_native(model(nodes, inputs, consts, ("y2",)), inputs)
    assert not {"add_f32", "mul_f32"} & {s.kernel.name for s in kernels}


def test_a_residual_from_elsewhere_is_left_alone():
    consts = {}
    nodes = block("x", 1, consts)
    nodes[-1] = node("Add", ["z", "u1"], ["y1"])
    found = fused(nodes, {"x": draw(2, 6, 7, 8), "z": draw(1, 6, 1, 1)}, consts, ("y1",))
    assert found == ["Add", "Add", "Conv", "MatMul", "Transpose", "Transpose"]


@pytest.mark.parametrize("op, factor", [("Mul", draw(4)), ("Div", draw(4)), ("Mul", draw(1)), ("Mul", draw(1, 1, 4))])
@pytest.mark.parametrize("biased", [False, True])
def test_factors_of_columns_go_into_the_weights(op, factor, biased):
    consts = {"w": draw(6, 4), "b": draw(4), "s": factor}
    nodes = [node("MatMul", ["x", "w"], ["p"])]
    nodes += [node("Add", ["p", "b"], ["q"])] if biased else []
    nodes.append(node(op, [nodes[-1].outputs[0], "s"], ["y"]))
    assert fused(nodes, {"x": draw(2, 3, 6)}, consts) == (["Add", "MatMul"] if biased else ["MatMul"])


@pytest.mark.parametrize("factor", [draw(3, 1), draw(2, 1, 1), draw(1, 2, 3, 4), np.zeros(4, np.float32)])
def test_other_factors_stay(factor):
    op = "Mul" if factor.any() else "Div"
    nodes = [node("MatMul", ["x", "w"], ["p"]), node(op, ["p", "s"], ["y"])]
    made = model(nodes, {"x": draw(2, 3, 6)}, {"w": draw(6, 4), "s": factor}, ("y",))
    assert op in [n.op for n in Session(made, executor="reference").graph.nodes]


def test_a_product_that_is_read_elsewhere_keeps_its_weights():
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Mul", ["p", "s"], ["y"])]
    assert fused(nodes, {"x": draw(2, 3, 6)}, {"w": draw(6, 4), "s": draw(4)}, ("y", "p")) == ["MatMul", "Mul"]
