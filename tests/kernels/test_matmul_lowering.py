"""MatMul and Gemm through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.session import Session
from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(11)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


PRODUCTS = [
    ((5, 7), (7, 9)), ((1, 33), (33, 50)), ((2, 3, 20, 31), (31, 17)), ((40,), (40, 12)), ((12, 40), (40,)),
    ((40,), (40,)), ((3, 4, 9, 8), (3, 4, 8, 11)), ((3, 1, 9, 8), (4, 8, 11)), ((6, 5), (2, 5, 3)),
    ((64, 200), (1, 200, 70)),
    ((2, 1, 6, 4), (1, 4, 5)), ((7, 1), (1, 6)), ((130, 500), (500, 33)),
]  # fmt: skip


@pytest.mark.parametrize("a, b", PRODUCTS)
@pytest.mark.parametrize("constant", [True, False])
def test_matmul(a, b, constant):
    inputs = {"a": draw(*a)}
    consts = {"b": draw(*b)}
    if not constant:
        inputs, consts = {**inputs, **consts}, {}
    check_native(model([node("MatMul", ["a", "b"], ["y"])], inputs, consts, ["y"]), inputs)


@pytest.mark.parametrize("flip_a", [0, 1])
@pytest.mark.parametrize("flip_b", [0, 1])
@pytest.mark.parametrize("c", [None, (13,), (1,), (), (6, 13), (6, 1), (1, 13)])
@pytest.mark.parametrize("constant", [True, False])
def test_gemm(flip_a, flip_b, c, constant):
    inputs = {"a": draw(*((21, 6) if flip_a else (6, 21)))}
    rest = {"b": draw(*((13, 21) if flip_b else (21, 13))), **({} if c is None else {"c": draw(*c)})}
    consts = rest if constant else {}
    inputs = inputs if constant else {**inputs, **rest}
    gemm = node("Gemm", ["a", *rest], ["y"], transA=flip_a, transB=flip_b, alpha=0.5, beta=1.5)
    check_native(model([gemm], inputs, consts, ["y"]), inputs)


def test_bias_residual_and_activation_run_in_the_epilogue():
    inputs = {"x": draw(2, 5, 24), "skip": draw(2, 5, 30)}
    consts = {"w": draw(24, 30), "bias": draw(30)}
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["bias", "m"], ["b"]),
        node("Add", ["b", "skip"], ["r"]),
        node("Gelu", ["r"], ["y"]),
    ]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert [k.node.op for k in kernels] == ["MatMul"]


@pytest.mark.parametrize("rows", [230, 60])
def test_long_rows_go_by_parts_with_the_same_sums(rows):
    """A is too large for the second-level cache: sums are kept in C between parts of k, whoever computes which rows."""
    depth = 8 * (1 << 17) // rows // 4 * 4 + 6
    inputs, consts = {"a": draw(rows, depth), "r": draw(rows, 70)}, {"b": draw(depth, 70) / 64, "c": draw(70)}
    nodes = [
        node("MatMul", ["a", "b"], ["p"]),
        node("Add", ["p", "c"], ["q"]),
        node("Add", ["q", "r"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    made = model(nodes, inputs, consts, ["y"])
    check_native(made, inputs)
    one, four = (Session(made, threads=t).run(inputs)["y"] for t in (1, 4))
    assert one.tobytes() == four.tobytes()
