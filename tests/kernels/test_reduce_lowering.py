"""Reductions, global pooling and softmax through the whole engine: native against reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minifer import dtypes
from minifer.session import Session
from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(12)
REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip


def draw(shape, dtype="float32"):
    x = RNG.uniform(0.5, 2.0, shape)
    if dtype in dtypes.INTEGERS:
        x = RNG.integers(0 if dtype.startswith("u") else -4, 5, shape)
    return x.astype(dtypes.to_numpy(dtype))


def run(op, x, axes, tolerance=1e-6, **attrs):
    consts = {} if axes is None else {"axes": np.array(axes, np.int64)}
    made = model([node(op, ["x", *consts], ["y"], **attrs)], {"x": x}, consts, ["y"])
    return check_native(made, {"x": x}, tolerance)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_all_sets_of_axes(op):
    x = draw((2, 3, 4, 5))
    for count in range(5):
        for axes in itertools.combinations(range(4), count):
            run(op, x, axes, keepdims=count % 2)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_forms(op):
    x = draw((3, 1, 70, 33))
    run(op, x, [-1, 0])
    run(op, x, None)
    run(op, x, None, noop_with_empty_axes=1)
    run(op, draw(()), None)
    old = model([node(op, ["x"], ["y"], 11, axes=[1, 2], keepdims=0)], {"x": x}, {}, ["y"])
    check_native(old, {"x": x}, 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "uint8", "int32", "int64"])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare"])
def test_types(op, dtype):
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype, 1e-6)
    run(op, draw((3, 9, 5), dtype), [1], tolerance)
    run(op, draw((3, 40), dtype), [1], tolerance)


def test_truth():
    x = RNG.random((4, 40)) > 0.9
    run("ReduceMax", x, [1])
    run("ReduceMin", x, [0])


@pytest.mark.parametrize("shape, axes", [((1_500_000,), [0]), ((1_000_000, 2), [0])])
def test_long_sums_stay_accurate(shape, axes):
    x = RNG.random(shape).astype(np.float32)
    made = model([node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)], {"x": x}, {"axes": np.array(axes)}, ["y"])
    got = Session(made).run({"x": x})["y"]
    np.testing.assert_allclose(got, x.sum(0, dtype=np.float64), rtol=1.5e-7)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 40, 6, 7), (2, 3, 2, 3, 4), (3, 70, 1, 1)])
def test_global_pools(op, shape):
    x = draw(shape)
    check_native(model([node(op, ["x"], ["y"])], {"x": x}, {}, ["y"]), {"x": x})


def test_global_pools_turn_nothing_round():
    """Channels-last data is pooled as it lies, and what comes out suits both layouts."""
    fed = {"x": draw((2, 40, 6, 7))}
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1]),
        node("GlobalAveragePool", ["p"], ["a"]),
        node("Mul", ["p", "a"], ["m"]),
        node("MaxPool", ["m"], ["y"], kernel_shape=[1, 1]),
        node("Identity", ["a"], ["b"]),
    ]
    kernels = check_native(model(nodes, fed, {}, ["y", "b"]), fed)
    assert sum(k.kernel.name.startswith("transpose") for k in kernels) == 2


@pytest.mark.parametrize("axes", [[1], [2], [3], [2, 3], [1, 3], [0], [0, 2, 3]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_channels_last_data(axes, keepdims):
    fed = {"x": draw((2, 5, 4, 6))}
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1]),
        node("ReduceMean", ["p", "axes"], ["y"], keepdims=keepdims),
    ]
    check_native(model(nodes, fed, {"axes": np.array(axes)}, ["y"]), fed)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [(5,), (3, 1000), (2, 3, 40), (2, 70, 3, 5), (1, 1)])
def test_softmax(op, shape):
    x = (RNG.standard_normal(shape) * 5).astype(np.float32)
    for axis in range(-len(shape), len(shape)):
        check_native(model([node(op, ["x"], ["y"], axis=axis)], {"x": x}, {}, ["y"]), {"x": x}, 1e-6)
    for axis in range(len(shape)):
        check_native(model([node(op, ["x"], ["y"], 11, axis=axis)], {"x": x}, {}, ["y"]), {"x": x}, 1e-6)


@pytest.mark.parametrize("op, dtype", [("Softmax", "float16"), ("LogSoftmax", "float16"), ("LogSoftmax", "bfloat16")])
def test_softmax_of_half_precision(op, dtype):
    x = RNG.standard_normal((3, 40)).astype(dtypes.to_numpy(dtype))
    tolerance = {"float16": 2e-3, "bfloat16": 8e-3}[dtype]
    check_native(model([node(op, ["x"], ["y"])], {"x": x}, {}, ["y"]), {"x": x}, tolerance)


def test_softmax_of_masked_rows():
    x = np.zeros((4, 20), np.float32)
    x[0, 3:] = -np.inf
    x[1] = -np.inf
    x[2, 0] = np.nan
    x[3, 1] = 3e38
    check_native(model([node("Softmax", ["x"], ["y"])], {"x": x}, {}, ["y"]), {"x": x}, 1e-6)


def test_softmax_over_channels_last_data():
    fed = {"x": draw((2, 21, 4, 6))}
    nodes = [node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1]), node("Softmax", ["p"], ["y"], axis=1)]
    kernels = check_native(model(nodes, fed, {}, ["y"]), fed)
    assert sum(k.kernel.name.startswith("transpose") for k in kernels) == 2
