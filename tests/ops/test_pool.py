"""Pools against plain loops, at odd settings and types, and with bad input."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minifer.errors import InputError, MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def loop_pool(x, kernel, strides, dilations, pads, reduce, out=None):
    """`reduce(values, taps inside data and padding)` of each window, windows one at a time."""
    rank = x.ndim - 2
    begin, end = pads[:rank], pads[rank:]
    sizes = x.shape[2:]
    out = out or [
        (d + b + e - (k - 1) * g - 1) // s + 1
        for d, b, e, k, g, s in zip(sizes, begin, end, kernel, dilations, strides)
    ]
    y = np.zeros((*x.shape[:2], *out))
    for n, c, *place in np.ndindex(*y.shape):
        values, inside = [], 0
        for tap in np.ndindex(*kernel):
            at = [p * s + t * g - b for p, s, t, g, b in zip(place, strides, tap, dilations, begin)]
            inside += all(-b <= a < d + e for a, b, d, e in zip(at, begin, sizes, end))
            if all(0 <= a < d for a, d in zip(at, sizes)):
                values.append(x[(n, c, *at)])
        y[(n, c, *place)] = reduce(values, inside)
    return y


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SETTINGS = [
    dict(kernel_shape=(3,), strides=(2,), dilations=(1,), pads=(1, 0)),
    dict(kernel_shape=(2, 3), strides=(1, 2), dilations=(2, 1), pads=(1, 0, 0, 2)),
    dict(kernel_shape=(2, 2, 1), strides=(2, 1, 1), dilations=(1, 2, 1), pads=(0, 1, 0, 1, 1, 0)),
]


@pytest.mark.parametrize("attrs", SETTINGS)
def test_pools_equal_the_definition(attrs):
    x = random(2, 2, *(6, 7, 4)[: len(attrs["kernel_shape"])])
    args = attrs["kernel_shape"], attrs["strides"], attrs["dilations"], attrs["pads"]
    for name, extra, reduce in (
        ("MaxPool", {}, lambda v, n: max(v)),
        ("AveragePool", {}, lambda v, n: sum(v) / len(v)),
        ("AveragePool", {"count_include_pad": 1}, lambda v, n: sum(v) / n),
        ("LpPool", {"p": 3}, lambda v, n: sum(abs(e) ** 3 for e in v) ** (1 / 3)),
    ):
        (y,) = run_op(name, 22, x, **attrs, **extra)
        np.testing.assert_allclose(y, loop_pool(x, *args, reduce), rtol=1e-4, atol=1e-5)
        assert infer_value(name, 22, x, **attrs, **extra)[0] == TensorType("float32", y.shape)


def test_ceil_mode_adds_a_window_but_none_that_starts_in_the_padding():
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    (y,) = run_op("MaxPool", 12, x, kernel_shape=(2,), strides=(2,), ceil_mode=1)
    np.testing.assert_array_equal(y.reshape(-1), [1, 3, 4])
    (y,) = run_op("MaxPool", 12, x, kernel_shape=(1,), strides=(3,), pads=(0, 1), ceil_mode=1)
    np.testing.assert_array_equal(y.reshape(-1), [0, 3])
    (y,) = run_op("AveragePool", 19, x, kernel_shape=(3,), strides=(2,), pads=(0, 1), ceil_mode=1, count_include_pad=1)
    np.testing.assert_allclose(y.reshape(-1), [1, 3, 2])  # the last counts 4 and one padding
    (y,) = run_op("MaxPool", 12, x[..., :1], kernel_shape=(2,), strides=(2,), ceil_mode=1)
    np.testing.assert_array_equal(y.reshape(-1), [0])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, ml_dtypes.bfloat16, np.float64])
def test_max_pool_keeps_the_type(dtype):
    x = np.array([3, 100, 7, 1]).reshape(1, 1, 4).astype(dtype)
    (y,) = run_op("MaxPool", 22, x, kernel_shape=(2,), pads=(1, 1))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.reshape(-1).astype(int), [3, 100, 100, 7, 1])


def test_max_pool_indices_count_from_the_start_of_the_tensor():
    x = np.array([[1, 5, 5], [2, 0, 9]], np.float32).reshape(1, 1, 2, 3)
    x = np.concatenate([x, -x], axis=1)
    y, rows = run_op("MaxPool", 12, x, kernel_shape=(2, 2), outputs=2)
    np.testing.assert_array_equal(y.reshape(-1), [5, 9, 0, 0])
    np.testing.assert_array_equal(rows.reshape(-1), [1, 5, 6 + 4, 6 + 4])  # of equals the first
    assert rows.dtype == np.int64
    _, columns = run_op("MaxPool", 12, x, kernel_shape=(2, 2), storage_order=1, outputs=2)
    np.testing.assert_array_equal(columns.reshape(-1), [2, 5, 6 + 3, 6 + 3])


def test_max_pool_passes_nan_on_and_indexes_minus_infinity():
    x = np.array([-np.inf, -np.inf, np.nan, 1], np.float32).reshape(1, 1, 4)
    y, index = run_op("MaxPool", 12, x, kernel_shape=(2,), outputs=2)
    np.testing.assert_array_equal(y.reshape(-1), [-np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(index.reshape(-1), [0, 2, 2])
    (alone,) = run_op("MaxPool", 12, x, kernel_shape=(2,))
    np.testing.assert_array_equal(alone, y)


def test_unpooling_undoes_pooling_with_indices():
    x = random(2, 3, 4, 6)
    y, index = run_op("MaxPool", 12, x, kernel_shape=(2, 2), strides=(2, 2), outputs=2)
    (back,) = run_op("MaxUnpool", 11, y, index, kernel_shape=(2, 2), strides=(2, 2))
    assert back.shape == x.shape and (back != 0).sum() == y.size
    np.testing.assert_array_equal(
        run_op("MaxPool", 12, back + (back == 0) * -9, kernel_shape=(2, 2), strides=(2, 2))[0], y
    )
    wide = np.array([2, 3, 5, 7])
    (bigger,) = run_op("MaxUnpool", 11, y, index, wide, kernel_shape=(2, 2), strides=(2, 2))
    np.testing.assert_array_equal(bigger[:, :, :4, :6], back)
    out = infer_value("MaxUnpool", 11, y, index, wide, kernel_shape=(2, 2), strides=(2, 2))
    assert out == [TensorType("float32", (2, 3, 5, 7))]


def test_unpooling_refuses_wild_indices_and_shapes():
    x, index = np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 1, 2, 2), np.int64)
    for bad in (-1, 16):
        with pytest.raises(InputError, match="indices run from"):
            run_op("MaxUnpool", 11, x, index + bad, kernel_shape=(2, 2), strides=(2, 2))
    with pytest.raises(ShapeError, match="indices have shape"):
        run_op("MaxUnpool", 11, x, index[:, :, :1], kernel_shape=(2, 2))
    with pytest.raises(ShapeError, match="output_shape"):
        run_op("MaxUnpool", 11, x, index, np.array([1, 2, 4, 4]), kernel_shape=(2, 2))


@pytest.mark.parametrize("name", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools(name):
    x = random(2, 3, 4, 5, 2)
    flat = x.reshape(2, 3, -1)
    want = {"A": flat.mean(2), "M": flat.max(2), "L": np.sqrt((flat**2).sum(2))}[name[6]]
    (y,) = run_op(name, 2 if name == "GlobalLpPool" else 1, x)
    np.testing.assert_allclose(y, want.reshape(2, 3, 1, 1, 1), rtol=1e-5)
    assert run_op(name, 2, x.astype(np.float16))[0].dtype == np.float16
    unknown = TensorType("float32", ("N", 3, None, "W"))
    assert infer_op(name, 2, unknown) == [TensorType("float32", ("N", 3, 1, 1))]
    with pytest.raises(ShapeError, match="rank"):
        run_op(name, 2, np.ones(3, np.float32))


def test_the_first_version_of_lp_pools_takes_a_fractional_p():
    x = np.array([1, 4, 9], np.float32).reshape(1, 1, 3)
    np.testing.assert_allclose(run_op("GlobalLpPool", 1, x, p=0.5)[0].reshape(()), 36)
    np.testing.assert_allclose(run_op("LpPool", 1, x, p=0.5, kernel_shape=(2,))[0].reshape(-1), [9, 25], rtol=1e-6)
    with pytest.raises(InputError, match="p = 0"):
        run_op("GlobalLpPool", 1, x, p=0.0)


def test_an_average_over_padding_alone_is_zero():
    x = np.ones((1, 1, 1), np.float32)
    (y,) = run_op("AveragePool", 19, x, kernel_shape=(2,), dilations=(2,), pads=(1, 1))
    np.testing.assert_array_equal(y, np.zeros((1, 1, 1)))


def test_lrn_equals_the_definition():
    x = random(2, 5, 3)
    (y,) = run_op("LRN", 13, x, size=4, alpha=0.5, beta=0.6, bias=2.0)
    for c in range(5):
        near = x[:, max(0, c - 1) : c + 3]  # floor(3/2) before, ceil(3/2) behind
        want = x[:, c] / (2 + 0.5 / 4 * (near**2).sum(1)) ** 0.6
        np.testing.assert_allclose(y[:, c], want, rtol=1e-5)
    with pytest.raises(InputError, match="size 0"):
        run_op("LRN", 1, x, size=0)


def test_pools_of_nothing():
    assert run_op("AveragePool", 7, random(0, 2, 4), kernel_shape=(2,))[0].shape == (0, 2, 3)
    assert run_op("MaxPool", 8, random(2, 0, 4), kernel_shape=(2,), outputs=2)[1].shape == (2, 0, 3)
    assert np.isnan(run_op("GlobalAveragePool", 1, random(1, 2, 0))[0]).all()


@pytest.mark.parametrize(
    ("attrs", "says"),
    [
        ({"kernel_shape": (3, 3)}, "spans 3"),
        ({"kernel_shape": (1,)}, "kernel_shape"),
        ({"kernel_shape": (0, 1)}, "kernel_shape"),
        ({"kernel_shape": (1, 1), "strides": (0, 1)}, "strides"),
        ({"kernel_shape": (1, 1), "pads": (1, 1, 1)}, "pads"),
        ({"kernel_shape": (1, 1), "auto_pad": "?"}, "auto_pad"),
        ({}, "kernel_shape"),
    ],
)
@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
def test_pools_refuse_what_does_not_fit(name, attrs, says):
    x = np.ones((1, 1, 2, 2), np.float32)
    for run in (run_op, infer_value):
        with pytest.raises(MiniferError, match=says):
            run(name, 11, x, **attrs)
