"""Functions of one number, activations, arithmetic, comparisons: what the official cases leave out."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from minifer.errors import InputError, ModelError, ShapeError
from minifer.ir import TensorType
from minifer.ops.math import erf
from minifer.ops.registry import registered
from tests.ops.helpers import infer_op, infer_value, run_op

BF16 = ml_dtypes.bfloat16
UNARY = {
    "Acos": 7, "Acosh": 9, "Asin": 7, "Asinh": 9, "Atan": 7, "Atanh": 9, "Sin": 7, "Cos": 7, "Tan": 7, "Sinh": 9,
    "Cosh": 9, "Tanh": 6, "Exp": 6, "Log": 6, "Sqrt": 6, "Reciprocal": 6, "Ceil": 6, "Floor": 6, "Round": 11,
    "Abs": 6, "Neg": 6, "Sign": 9, "Erf": 9, "Sigmoid": 6, "HardSigmoid": 6, "HardSwish": 14, "Relu": 6,
    "LeakyRelu": 6, "Elu": 6, "Celu": 12, "Selu": 6, "Gelu": 20, "Mish": 18, "Swish": 24, "Softplus": 1, "Softsign": 1,
    "ThresholdedRelu": 10, "Shrink": 9, "Clip": 11,
}  # fmt: skip


def array(*values, dtype=np.float32):
    return np.array(values, dtype)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_unary_keeps_type_and_shape(name, dtype, shape):
    x = np.full(shape, 0.5).astype(dtype)
    (y,) = run_op(name, UNARY[name], x)
    assert isinstance(y, np.ndarray) and y.dtype == x.dtype and y.shape == shape
    assert infer_value(name, UNARY[name], x) == infer_value("Identity", 1, x)


def test_half_precision_is_rounded_once():
    x = np.linspace(-4, 4, 999).astype(BF16)
    for name in ("Sigmoid", "Tanh", "Gelu", "Mish"):
        (narrow,) = run_op(name, 24, x)
        (wide,) = run_op(name, 24, x.astype(np.float32))
        np.testing.assert_array_equal(narrow, wide.astype(BF16))


def test_erf_is_exact_to_the_last_digits():
    x = np.concatenate([np.linspace(-7, 7, 4001), [0.0, -0.0, 1e-300, 1e-8, np.inf, -np.inf]])
    expected = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(erf(x), expected, rtol=1e-15, atol=0)
    assert np.isnan(erf(np.array(np.nan))) and np.signbit(erf(np.array(-0.0)))


def test_first_opsets_ignore_consumed_inputs_and_keep_their_defaults():
    x = array(-1, 2)
    (y,) = run_op("Selu", 1, x, consumed_inputs=(0,))
    np.testing.assert_allclose(y, [1.0507 * 1.6732 * math.expm1(-1), 2 * 1.0507], rtol=1e-6)
    (y,) = run_op("Selu", 6, x)
    np.testing.assert_allclose(y, [1.0507009873 * 1.6732632423 * math.expm1(-1), 2 * 1.0507009873], rtol=1e-6)
    with pytest.raises(ModelError, match="does not know: nonsense"):
        run_op("Relu", 6, x, nonsense=1)


def test_sigmoid_and_softplus_far_out():
    x = array(-100, 100, -1e4, 1e4)
    np.testing.assert_allclose(run_op("Sigmoid", 13, x)[0], [np.exp(np.float32(-100)), 1, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(run_op("Softplus", 1, x)[0], [np.exp(np.float32(-100)), 100, 0, 1e4], rtol=1e-5)


def test_clip_of_three_ages():
    x = array(-3, 0, 3)
    assert run_op("Clip", 1, x, min=-1.0, max=1.0)[0].tolist() == [-1, 0, 1]
    assert run_op("Clip", 6, x, max=1.0)[0].tolist() == [-3, 0, 1]
    assert run_op("Clip", 12, x, None, array(1).reshape(()))[0].tolist() == [-3, 0, 1]
    assert run_op("Clip", 12, x, array(5).reshape(()), array(1).reshape(()))[0].tolist() == [1, 1, 1]
    with pytest.raises(ShapeError, match="min must be a scalar"):
        run_op("Clip", 12, x, x)
    with pytest.raises(ShapeError, match="min must be a scalar"):
        infer_value("Clip", 12, x, x)
    with pytest.raises(InputError, match="must be the same"):
        run_op("Clip", 12, x, np.array(1.0))


def test_prelu_slope_per_channel_before_opset_7():
    x = -np.ones((1, 2, 2), np.float32)
    assert run_op("PRelu", 6, x, array(2, 3))[0].tolist() == [[[-2, -2], [-3, -3]]]
    with pytest.raises(ShapeError, match="slope has 3 values"):
        run_op("PRelu", 6, x, array(1, 2, 3))
    assert run_op("PRelu", 7, x, array(2, 3))[0].tolist() == [[[-2, -3], [-2, -3]]]
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match="slope of shape"):
            action("PRelu", 7, x, np.ones((2, 1, 2, 2), np.float32))


def test_activations_refuse_what_they_cannot_take():
    with pytest.raises(InputError, match="element type int32; it must be one of float16"):
        run_op("Sigmoid", 13, array(1, dtype=np.int32))
    with pytest.raises(ShapeError, match="element type string"):
        infer_op("Exp", 13, TensorType("string", (3,)))
    with pytest.raises(InputError, match="approximate is 'fast'"):
        run_op("Gelu", 20, array(1), approximate="fast")
    with pytest.raises(InputError, match="alpha is 0"):
        run_op("Celu", 12, array(1), alpha=0.0)
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match="equal"):
            action("SwiGLU", 28, array(1, 2), array(1))


def test_is_inf_of_float8():
    x = np.array([1, np.inf, -np.inf, np.nan]).astype(ml_dtypes.float8_e5m2)
    assert run_op("IsInf", 20, x)[0].tolist() == [False, True, True, False]
    assert run_op("IsInf", 20, x, detect_negative=0)[0].tolist() == [False, True, False, False]
    assert run_op("IsNaN", 20, x)[0].tolist() == [False, False, False, True]


# Arithmetic


def test_broadcast_attribute_lays_the_second_along_an_axis():
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for shape, axis in (((4,), None), ((3, 4), None), ((3,), 1), ((2, 3), 0), ((2,), 0), ((), None), ((1, 1), None)):
        b = np.arange(math.prod(shape), dtype=np.float32).reshape(shape) + 1
        attrs = {"broadcast": 1} if axis is None else {"broadcast": 1, "axis": axis}
        start = 3 - len(shape) if axis is None else axis
        expected = a - b.reshape(shape + (1,) * (3 - start - len(shape)))
        np.testing.assert_array_equal(run_op("Sub", 6, a, b, **attrs)[0], expected)
        assert infer_value("Sub", 6, a, b, **attrs) == [TensorType("float32", (2, 3, 4))]
    assert run_op("Greater", 1, a, array(5), broadcast=1)[0].dtype == bool


def test_broadcast_attribute_is_strict():
    a = np.zeros((2, 3), np.float32)
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match=r"broadcast is not set|must be equal"):
            action("Add", 6, a, array(1, 2, 3))
        with pytest.raises(ShapeError, match="does not broadcast"):
            action("Add", 6, a, array(1, 2), broadcast=1)
        with pytest.raises(ShapeError, match="at axis 2"):
            action("Add", 6, a, array(1, 2, 3), broadcast=1, axis=2)
        with pytest.raises(ShapeError, match="must be equal"):
            action("Max", 6, a, a[0])
    assert run_op("Max", 8, a, a[0] + 1)[0].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_integer_division_rounds_toward_zero():
    a, b = array(7, -7, 7, -7, dtype=np.int32), array(2, 2, -2, -2, dtype=np.int32)
    assert run_op("Div", 7, a, b)[0].tolist() == [3, -3, -3, 3]
    assert run_op("Mod", 13, a, b)[0].tolist() == [1, 1, -1, -1]
    assert run_op("Mod", 13, a, b, fmod=1)[0].tolist() == [1, -1, 1, -1]
    assert run_op("Div", 14, array(255, dtype=np.uint8), array(2, dtype=np.uint8))[0].tolist() == [127]
    for name in ("Div", "Mod"):
        with pytest.raises(InputError, match=r"node.*integer division by zero"):
            run_op(name, 14, a, np.zeros_like(b))


def test_float_mod():
    a, b = array(5.5, -5.5, 5.5, -0.0, np.inf, 1, 1), array(2, 2, -2, 3, 2, -np.inf, 0)
    expected = [1.5, 0.5, -0.5, 0, np.nan, -np.inf, np.nan]
    np.testing.assert_array_equal(run_op("Mod", 28, a, b)[0], array(*expected))
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="fmod must be 1 for floats"):
            action("Mod", 13, a, b)
    with pytest.raises(InputError, match="fmod is 2"):
        run_op("Mod", 13, a, b, fmod=2)


def test_pow_of_mixed_types():
    x = array(2, -3, 10, dtype=np.int64)
    assert run_op("Pow", 12, x, array(62, 3, 0, dtype=np.uint8))[0].tolist() == [2**62, -27, 1]
    assert run_op("Pow", 12, x, array(0.5, 2, -1))[0].tolist() == [1, 9, 0]
    x, y = array(-1, -1, 1, 5, dtype=np.int32), array(-3, -2, -9, -1, dtype=np.int32)
    assert run_op("Pow", 12, x, y)[0].tolist() == [-1, 1, 1, 0]
    assert run_op("Pow", 13, array(2, 4), array(-1, -2, dtype=np.int64))[0].dtype == np.float32
    with pytest.raises(InputError, match="0 to a negative power"):
        run_op("Pow", 12, array(0, dtype=np.int32), array(-1, dtype=np.int32))


def test_binary_operators_want_one_type():
    for name, version in (("Add", 14), ("Less", 9), ("Max", 13), ("BitwiseAnd", 18)):
        a, b = array(1, dtype=np.int32), array(1, dtype=np.int64)
        with pytest.raises(InputError, match="insert a Cast"):
            run_op(name, version, a, b)
        with pytest.raises(ShapeError, match="insert a Cast"):
            infer_value(name, version, a, b)
    with pytest.raises(ShapeError, match="takes 2"):
        infer_value("Add", 14, array(1))
    with pytest.raises(ShapeError, match="do not broadcast"):
        infer_value("Add", 14, array(1, 2), array(1, 2, 3))
    with pytest.raises(InputError, match="at least one input"):
        run_op("Sum", 13)


def test_symbols_pass_through_broadcasting():
    a, b = TensorType("float32", ("n", 3)), TensorType("float32", (1, 3))
    assert infer_op("Add", 14, a, b) == [TensorType("float32", ("n", 3))]
    assert infer_op("Less", 9, a, TensorType("float32", None)) == [TensorType("bool", None)]


# Comparisons, bits, Where


def test_equal_of_strings_and_bfloat16():
    a, b = np.array(["x", "y"], object), np.array("x", object)
    assert run_op("Equal", 19, a, b)[0].tolist() == [True, False]
    assert run_op("Equal", 13, np.array([1, 2], BF16), np.array([1], BF16))[0].tolist() == [True, False]


def test_bit_shift_beyond_the_width():
    x, y = array(-5, -5, 5, 1, dtype=np.int8), array(1, 9, 9, -1, dtype=np.int8)
    assert run_op("BitShift", 28, x, y, direction="RIGHT")[0].tolist() == [-3, -1, 0, 0]
    assert run_op("BitShift", 28, x, y, direction="LEFT")[0].tolist() == [-10, 0, 0, 0]
    big = array(2**63 + 1, dtype=np.uint64)
    assert run_op("BitShift", 11, big, array(0, dtype=np.uint64), direction="RIGHT")[0].tolist() == [2**63 + 1]
    with pytest.raises(InputError, match="direction is 'UP'"):
        run_op("BitShift", 11, big, big, direction="UP")


def test_where_of_strings_and_bad_condition():
    (y,) = run_op("Where", 16, np.array([True, False]), np.array(["a"], object), np.array(["b"], object))
    assert y.dtype == object and y.tolist() == ["a", "b"]
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="bool"):
            action("Where", 9, array(1), array(1), array(1))


def test_every_entry_of_these_families_has_a_type_rule():
    names = {*UNARY, "Add", "Pow", "Mod", "Where", "BitShift", "Equal", "Max", "PRelu", "SwiGLU", "IsNaN"}
    assert all(op.infer for name in names for op in registered()["", name])
