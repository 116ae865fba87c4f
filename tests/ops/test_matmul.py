"""Matrix products: ranks, empty sides, old forms, equations, and what does not fit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minifer.errors import InputError, ModelError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op

RNG = np.random.default_rng(5)
BF16 = ml_dtypes.bfloat16


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


@pytest.mark.parametrize(
    "a, b",
    [((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((3,), (5, 3, 2)), ((4, 1, 2, 3), (5, 3, 2)), ((2, 0), (0, 3))],
)
@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float64, np.int32])
def test_matmul_of_any_rank(a, b, dtype):
    x, y = normal(*a, dtype=dtype), normal(*b, dtype=dtype)
    (z,) = run_op("MatMul", 13, x, y)
    assert isinstance(z, np.ndarray) and z.dtype == x.dtype
    np.testing.assert_allclose(z.astype(float), x.astype(float) @ y.astype(float), atol=0.05)
    assert infer_value("MatMul", 13, x, y) == [TensorType(infer_value("Identity", 1, x)[0].dtype, z.shape)]


def test_products_that_do_not_exist():
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match="inner sizes"):
            action("MatMul", 13, normal(2, 3), normal(2, 3))
        with pytest.raises(ShapeError, match="scalar has no matrix product"):
            action("MatMul", 13, normal(), normal(3))
        with pytest.raises((ShapeError, InputError), match="insert a Cast"):
            action("MatMul", 13, normal(2, 2), normal(2, 2, dtype=np.float64))
        with pytest.raises(ShapeError, match=r"(must be matrices|must be a matrix)"):
            action("Gemm", 13, normal(2, 2, 2), normal(2, 2))
        with pytest.raises(ShapeError, match="C of shape"):
            action("Gemm", 13, normal(2, 3), normal(3, 4), normal(3))


def test_symbols_pass_through():
    a, b = TensorType("float32", ("batch", "n", 4)), TensorType("float32", (4, 7))
    assert infer_op("MatMul", 13, a, b) == [TensorType("float32", ("batch", "n", 7))]
    assert infer_op("Gemm", 13, TensorType("float32", None), b, transB=1) == [TensorType("float32", (None, 4))]


def test_gemm_of_three_ages():
    a, b, c = normal(2, 3), normal(3, 4), normal(4)
    np.testing.assert_allclose(run_op("Gemm", 6, a, b, c, broadcast=1)[0], a @ b + c, rtol=1e-5)
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match="broadcast is not set"):
            action("Gemm", 1, a, b, c)
    np.testing.assert_allclose(run_op("Gemm", 7, a.T, b, c, transA=1, alpha=0.5)[0], a @ b / 2 + c, rtol=1e-5)
    with pytest.raises(ModelError, match="has 2 inputs"):
        run_op("Gemm", 7, a, b)
    np.testing.assert_allclose(run_op("Gemm", 11, a, b)[0], a @ b, rtol=1e-5)
    bad = np.full(4, np.nan, np.float32)
    assert np.isfinite(run_op("Gemm", 11, a, b, bad, beta=0.0)[0]).all()
    ints = np.array([[3]], np.int32)
    assert run_op("Gemm", 11, ints, ints, ints, alpha=0.5, beta=2.0)[0].tolist() == [[10]]


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("bij, bjk -> bik", ((2, 3, 4), (2, 4, 5))), ("ij,jk", ((2, 3), (3, 4))), ("ba", ((2, 3),)), ("ii", ((3, 3),)),
        ("...ii->...i", ((2, 3, 3),)), ("i...,j...->...ij", ((2, 5), (3, 4, 5))), ("aB,Bc->", ((2, 3), (3, 4))),
        ("...,...", ((2, 3), (3,))), ("ij,j,k->ik", ((2, 3), (3,), (4,))), ("ij->ij", ((0, 3),)), ("->", ((),)),
    ],
)  # fmt: skip
def test_einsum(equation, shapes):
    inputs = [normal(*s, dtype=np.float64) for s in shapes]
    (y,) = run_op("Einsum", 12, *inputs, equation=equation)
    np.testing.assert_allclose(y, np.einsum(equation, *inputs), rtol=1e-12)
    assert isinstance(y, np.ndarray)
    assert infer_value("Einsum", 12, *inputs, equation=equation) == [TensorType("float64", y.shape)]


@pytest.mark.parametrize(
    "equation, message",
    [
        ("i1,jk->ik", "broken term 'i1'"), ("ij->", "1 terms for 2 operands"), ("ijk,jk->i", "rank 2"),
        ("ij,jk->iz", "repeats a letter or has one"), ("ij,jk->ii", "repeats a letter"), ("ij,ik->jk", "broadcast"),
    ],
)  # fmt: skip
def test_broken_equations(equation, message):
    inputs = normal(2, 3), normal(3, 4)
    with pytest.raises((InputError, ShapeError)):
        run_op("Einsum", 12, *inputs, equation=equation)
    with pytest.raises(ShapeError, match=message):
        infer_value("Einsum", 12, *inputs, equation=equation)


def test_determinants():
    x = normal(2, 3, 3)
    np.testing.assert_allclose(run_op("Det", 11, x)[0], np.linalg.det(x), rtol=1e-5)
    assert run_op("Det", 11, x[0])[0].shape == () and run_op("Det", 11, normal(0, 2, 2))[0].shape == (0,)
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match="square matrices"):
            action("Det", 11, normal(2, 3))


def test_integer_product_is_exact_for_all_signs():
    for a_type in (np.int8, np.uint8):
        for b_type in (np.int8, np.uint8):
            a, b = np.full((2, 300), np.iinfo(a_type).max, a_type), np.full((300, 3), np.iinfo(b_type).min, b_type)
            zero = np.array([1, 2], a_type), np.array([3, 4, 5], b_type)
            (y,) = run_op("MatMulInteger", 10, a, b, *zero)
            wide = (a.astype(int) - zero[0].astype(int)[:, None]) @ (b.astype(int) - zero[1].astype(int))
            assert y.dtype == np.int32 and y.tolist() == wide.tolist()
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="insert a Cast"):
            action("MatMulInteger", 10, a, b, np.array(1, np.int8))
    with pytest.raises(ShapeError, match="zero point of B of shape"):
        run_op("MatMulInteger", 10, a, b, None, np.array([1, 2], np.uint8))


def test_quantized_product_per_row_and_column():
    a, b = RNG.integers(0, 255, (3, 4), np.uint8), RNG.integers(-128, 127, (4, 5), np.int8)
    scales = np.float32([0.1, 0.2, 0.3]), np.float32([0.01, 0.02, 0.03, 0.04, 0.05])
    zeros = np.array([1, 2, 3], np.uint8), np.array([5, 4, 3, 2, 1], np.int8)
    inputs = (a, scales[0], zeros[0], b, scales[1], zeros[1], np.float32([2]), np.array([7], np.int8))
    (y,) = run_op("QLinearMatMul", 10, *inputs)
    exact = ((a - zeros[0][:, None].astype(float)) * scales[0][:, None]) @ ((b - zeros[1].astype(float)) * scales[1])
    assert y.dtype == np.int8 and np.abs(y - np.clip(np.rint(exact / 2) + 7, -128, 127)).max() <= 1
    assert infer_value("QLinearMatMul", 10, *inputs) == [TensorType("int8", (3, 5))]
