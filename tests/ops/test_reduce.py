"""Reductions, running sums and normalizations: both ways to name axes, empty sets, odd types, bad axes."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from minifer.errors import InputError, ModelError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op

RNG = np.random.default_rng(3)
EXPECTED = {
    "ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod,
    "ReduceL1": lambda x, **k: np.sum(np.abs(x), **k), "ReduceL2": lambda x, **k: np.sqrt(np.sum(x * x, **k)),
    "ReduceLogSum": lambda x, **k: np.log(np.sum(x, **k)), "ReduceSumSquare": lambda x, **k: np.sum(x * x, **k),
    "ReduceLogSumExp": lambda x, **k: np.log(np.sum(np.exp(x), **k)),
}  # fmt: skip


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("axes", [None, (1,), (0, -1)])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_axes_by_attribute_and_by_input(name, axes, keepdims):
    x = RNG.uniform(0.5, 2, (2, 3, 4))
    expected = EXPECTED[name](x, axis=axes, keepdims=bool(keepdims))
    attrs = {"keepdims": keepdims} | ({} if axes is None else {"axes": axes})
    inputs = (x,) if axes is None else (x, ints(*axes))
    for version, args, named in ((1, (x,), attrs), (11, (x,), attrs), (18, inputs, {"keepdims": keepdims})):
        (y,) = run_op(name, version, *args, **named)
        assert isinstance(y, np.ndarray)
        np.testing.assert_allclose(y, expected, rtol=1e-12)
        assert infer_value(name, version, *args, **named) == [TensorType("float64", y.shape)]
    if axes:
        unknown = infer_op(name, 18, *(TensorType("float64", x.shape), TensorType("int64", (len(axes),))), keepdims=0)
        assert unknown == [TensorType("float64", (None,) * (3 - len(axes)))]


def test_reduce_sum_takes_axes_as_input_from_13_the_others_from_18():
    x = np.ones((2, 3), np.float32)
    assert run_op("ReduceSum", 13, x, ints(0))[0].shape == (1, 3)
    with pytest.raises(ModelError, match="has 2 inputs"):
        run_op("ReduceMean", 13, x, ints(0))


def test_no_axes_mean_all_or_none():
    x = np.array([[1.0, -2.0]], np.float32)
    assert run_op("ReduceSum", 13, x, ints(), keepdims=0)[0] == -1
    assert run_op("ReduceSum", 13, x, ints(), noop_with_empty_axes=1)[0].tolist() == x.tolist()
    assert run_op("ReduceSumSquare", 18, x, noop_with_empty_axes=1)[0].tolist() == [[1, 4]]
    assert run_op("ReduceL1", 18, np.float32([-2]), noop_with_empty_axes=1)[0].tolist() == [2]
    assert infer_value("ReduceSum", 13, x, ints(), noop_with_empty_axes=1, keepdims=0) == [
        TensorType("float32", (1, 2))
    ]


def test_nothing_to_reduce():
    for dtype, low, high in (
        (np.float32, -np.inf, np.inf),
        (np.int32, -(2**31), 2**31 - 1),
        (np.uint8, 0, 255),
        (bool, 0, 1),
        (ml_dtypes.bfloat16, -np.inf, np.inf),
    ):
        x = np.zeros((2, 0), dtype)
        assert run_op("ReduceMax", 20, x, ints(1))[0].astype(float).tolist() == [[low]] * 2
        assert run_op("ReduceMin", 20, x, ints(1))[0].astype(float).tolist() == [[high]] * 2
    x = np.zeros((0,), np.float32)
    values = {name: float(run_op(name, 18, x, keepdims=0)[0]) for name in EXPECTED}
    assert values["ReduceSum"] == 0 and values["ReduceProd"] == 1 and values["ReduceLogSumExp"] == -np.inf
    assert np.isnan(values["ReduceMean"])


def test_integers_and_scalars():
    x = np.array([-7, 2], np.int32)
    assert run_op("ReduceMean", 18, x, keepdims=0)[0] == -2
    assert run_op("ReduceL2", 18, np.array([3, 4], np.int64))[0].tolist() == [5]
    big = np.array([2**62, 2**62 - 1], np.int64)
    assert run_op("ReduceMax", 18, big)[0].tolist() == [2**62]
    (y,) = run_op("ReduceSum", 13, np.array(3, np.float32))
    assert y.shape == () and y == 3
    assert run_op("ReduceSum", 13, np.full(5000, 1, ml_dtypes.bfloat16))[0].astype(float).tolist() == [4992]


def test_bad_axes():
    x = np.ones((2, 3), np.float32)
    for action, version in itertools.product((run_op, infer_value), (13,)):
        with pytest.raises((InputError, ShapeError), match=r"axis 2 is outside \[-2, 2\)"):
            action("ReduceSum", version, x, ints(2))
        with pytest.raises((InputError, ShapeError), match="name an axis twice"):
            action("ReduceSum", version, x, ints(1, -1))
        with pytest.raises(ShapeError, match="axes must be a vector"):
            action("ReduceSum", version, x, np.array(1))
        with pytest.raises((InputError, ShapeError), match="string"):
            action("ReduceSum", version, np.array(["a"], object))
        with pytest.raises((InputError, ShapeError), match="axis -3 is outside"):
            action("ArgMax", version, x, axis=-3)
        with pytest.raises((InputError, ShapeError), match="is empty"):
            action("ArgMin", version, x[:0])
        with pytest.raises((InputError, ShapeError), match="axis 5 is outside"):
            action("CumSum", 14, x, np.array(5))


def test_arg_max_picks_first_or_last():
    x = np.array([[1, 3, 3], [2, 2, 1]], ml_dtypes.bfloat16)
    assert run_op("ArgMax", 1, x, axis=1)[0].tolist() == [[1], [0]]
    assert run_op("ArgMax", 13, x, axis=1, keepdims=0, select_last_index=1)[0].tolist() == [2, 1]
    assert run_op("ArgMin", 13, x, axis=-1, keepdims=0, select_last_index=1)[0].tolist() == [0, 2]
    assert run_op("ArgMax", 13, np.zeros((0, 2)), axis=1)[0].shape == (0, 1)


def test_running_products():
    x = np.array([[2, 3, 4]], np.int32)
    for exclusive, reverse, expected in (
        (0, 0, [2, 6, 24]),
        (1, 0, [1, 2, 6]),
        (0, 1, [24, 12, 4]),
        (1, 1, [12, 4, 1]),
    ):
        (y,) = run_op("CumProd", 26, x, np.array([1]), exclusive=exclusive, reverse=reverse)
        assert y.tolist() == [expected] and y.dtype == np.int32
    for exclusive in (0, 1):
        assert run_op("CumSum", 14, np.zeros((2, 0), np.float16), np.array(1), exclusive=exclusive)[0].shape == (2, 0)
    (y,) = run_op("CumSum", 14, np.ones(600, ml_dtypes.bfloat16), np.array(0))
    assert float(y[-1]) == 600


def test_normalizations():
    x = np.array([[3, 4], [0, 0]], np.float16)
    np.testing.assert_allclose(run_op("LpNormalization", 1, x)[0], [[0.6, 0.8], [0, 0]], rtol=1e-3)
    with pytest.raises(InputError, match="p is 3"):
        run_op("LpNormalization", 1, x, p=3)
    x = RNG.normal(size=(2, 3, 4, 5))
    (y,) = run_op("MeanVarianceNormalization", 9, x)
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.std((0, 2, 3)), 1, rtol=1e-6)
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="axis 3 is outside"):
            action("MeanVarianceNormalization", 9, x[0])
