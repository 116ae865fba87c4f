"""Quantization: rounding, saturation, the three granularities, and parameters that contradict each other."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minifer.dtypes import code_of_name, to_numpy
from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op

ONE = np.array(1, np.float32)


@pytest.mark.parametrize(
    "kind, low, high",
    [("int8", -128, 127), ("uint8", 0, 255), ("int16", -32768, 32767), ("uint16", 0, 65535), ("int4", -8, 7),
     ("uint4", 0, 15), ("int2", -2, 1), ("uint2", 0, 3)],
)  # fmt: skip
def test_rounds_to_even_and_saturates(kind, low, high):
    x = np.array([0.5, 1.5, -0.5, 1e6, -1e6, np.inf, -np.inf, np.nan], np.float32)
    (y,) = run_op("QuantizeLinear", 25, x, ONE, np.zeros((), to_numpy(kind)))
    assert y.dtype == to_numpy(kind)
    assert y.astype(int).tolist() == [0, min(2, high), 0, high, low, high, low, 0]
    (back,) = run_op("DequantizeLinear", 25, y, ONE)
    assert back.dtype == np.float32 and back.tolist() == y.astype(float).tolist()


@pytest.mark.parametrize("kind", ["float8e4m3fn", "float8e5m2", "float4e2m1", "float6e2m3", "float6e3m2"])
def test_quantizes_to_floats(kind):
    x = np.array([1, -3, 1e9], np.float32)
    (y,) = run_op("QuantizeLinear", 28, x, np.array(2, np.float32), output_dtype=code_of_name(kind))
    largest = float(ml_dtypes.finfo(to_numpy(kind)).max)
    assert y.dtype == to_numpy(kind) and y.astype(float).tolist() == [0.5, -1.5, largest]


def test_granularities():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for shape, axis, block in (
        ((), 1, 0),
        ((1,), 1, 0),
        ((3,), 1, 0),
        ((4,), -1, 0),
        ((2, 2, 4), 1, 2),
        ((2, 3, 1), 2, 9),
    ):
        scale = np.random.default_rng(0).uniform(0.5, 2, shape).astype(np.float32)
        zero = np.full(shape, 3, np.uint8)
        wide = scale
        if block:
            wide = np.repeat(scale, block, axis).take(range(x.shape[axis]), axis)
        elif scale.size > 1:
            wide = scale.reshape((3, 1) if axis == 1 else (4,))
        attrs = {"axis": axis, "block_size": block} if block else {"axis": axis}
        inputs = (x, scale, zero)
        (y,) = run_op("QuantizeLinear", 21, *inputs, **attrs)
        np.testing.assert_array_equal(y, np.rint(x / wide) + 3)
        np.testing.assert_allclose(
            run_op("DequantizeLinear", 21, y, scale, zero, **attrs)[0], (y - 3.0) * wide, rtol=1e-6
        )
        assert infer_value("QuantizeLinear", 21, *inputs, **attrs) == [TensorType("uint8", (2, 3, 4))]


def test_precision_and_types():
    x = np.array([10.04], np.float32)
    half = np.array(0.1, np.float16)
    assert run_op("QuantizeLinear", 23, x, half)[0].dtype == np.uint8
    coarse = run_op("QuantizeLinear", 23, np.array([2049.0], np.float32), np.array(1, np.float16), output_dtype=4)[0]
    fine = run_op(
        "QuantizeLinear", 23, np.array([2049.0], np.float32), np.array(1, np.float16), output_dtype=4, precision=1
    )
    assert coarse.tolist() == [2048] and fine[0].tolist() == [2049]
    (y,) = run_op("DequantizeLinear", 23, np.array([3], np.int8), ONE, output_dtype=16)
    assert y.dtype == ml_dtypes.bfloat16
    assert run_op("DequantizeLinear", 10, np.array([-7], np.int32), ONE)[0].tolist() == [-7]
    assert run_op("QuantizeLinear", 10, np.array([300, -4], np.int32), ONE)[0].tolist() == [255, 0]
    assert run_op("QuantizeLinear", 13, np.zeros((2, 0), np.float32), ONE)[0].shape == (2, 0)
    assert run_op("DequantizeLinear", 13, np.array(5, np.uint8), ONE, np.array(2, np.uint8))[0].shape == ()


def test_parameters_that_do_not_fit():
    x, quantized = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int8)
    vector = np.ones(4, np.float32)
    for action in (run_op, infer_value):
        for name, data in (("QuantizeLinear", x), ("DequantizeLinear", quantized)):
            with pytest.raises(ShapeError, match=r"(?i)scale .*scalar or have one value per index of axis 1"):
                action(name, 13, data, vector)
            with pytest.raises(ShapeError, match="scalar before opset 13"):
                action(name, 10, data, vector)
            with pytest.raises((InputError, ShapeError), match="axis 2 is outside"):
                action(name, 13, data, vector, axis=2)
            with pytest.raises(ShapeError, match="blocks of 2 along axis 1"):
                action(name, 21, data, np.ones((2, 3), np.float32), block_size=2)
            with pytest.raises(ShapeError, match="equal"):
                action(name, 13, data, vector[:3], np.zeros(2, np.int8))
            with pytest.raises((InputError, ShapeError), match="block_size is -1"):
                action(name, 21, data, vector[:3], block_size=-1)
        with pytest.raises((InputError, ShapeError), match="output_dtype is int8"):
            action("QuantizeLinear", 21, x, ONE, np.array(0, np.uint8), output_dtype=3)
        with pytest.raises((InputError, ShapeError), match="cannot quantize to float64"):
            action("QuantizeLinear", 21, x, ONE, output_dtype=11)
        with pytest.raises((InputError, ShapeError), match="cannot dequantize to float8e8m0"):
            action("DequantizeLinear", 24, quantized, np.ones((), ml_dtypes.float8_e8m0fnu))
        with pytest.raises((InputError, ShapeError), match="float64"):
            action("QuantizeLinear", 13, x.astype(float), ONE)


def test_dynamic_quantization():
    y, scale, zero = run_op("DynamicQuantizeLinear", 11, np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32), outputs=3)
    assert y.tolist() == [153, 255, 0, 26, 221, 179] and zero == 153 and scale == np.float32(5 / 255)
    for x in (np.zeros((2, 2), np.float32), np.zeros((0,), np.float32)):
        y, scale, zero = run_op("DynamicQuantizeLinear", 11, x, outputs=3)
        assert y.shape == x.shape and not y.any() and scale.shape == zero.shape == () and zero.dtype == np.uint8
    assert infer_op("DynamicQuantizeLinear", 11, TensorType("float32", ("n",)), outputs=3) == [
        TensorType("uint8", ("n",)), TensorType("float32", ()), TensorType("uint8", ()),
    ]  # fmt: skip
