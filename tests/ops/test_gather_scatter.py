"""Gather*, Scatter*, TensorScatter, OneHot: bounds, symbolic shapes, old forms, odd types."""

import numpy as np
import pytest

from minifer.dtypes import to_numpy
from minifer.errors import InputError, MiniferError, ModelError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def ints(*values):
    return np.array(values, np.int64)


def test_gather():
    x = np.arange(12.0).reshape(3, 4)
    (y,) = run_op("Gather", 1, x, np.array(-1, np.int32), axis=1)
    assert y.tolist() == [3, 7, 11]
    (y,) = run_op("Gather", 13, np.array(["a", "b"], object), np.array(1))
    assert isinstance(y, np.ndarray) and y.shape == () and y.dtype == object
    assert run_op("Gather", 13, x, np.zeros((0, 2), np.int64))[0].shape == (0, 2, 4)
    kinds = TensorType("int8", ("n", 4)), TensorType("int64", ("k", 2))
    assert infer_op("Gather", 13, *kinds, axis=-1)[0].shape == ("n", "k", 2)


@pytest.mark.parametrize("name", ["Gather", "GatherElements", "GatherND"])
@pytest.mark.parametrize("index", [3, -4, 2**40, -(2**63)])
def test_indices_out_of_range(name, index):
    with pytest.raises(InputError, match=rf"{name}-13 'node'.*{index}"):
        run_op(name, 13, np.zeros(3), ints(index))
    with pytest.raises(InputError, match="float"):
        run_op(name, 13, np.zeros(3), np.array([0.0]))


def test_indices_into_nothing():
    with pytest.raises(InputError, match="outside"):
        run_op("Gather", 13, np.zeros((0, 2)), ints(0))
    with pytest.raises(ShapeError, match="axis 0"):
        run_op("Gather", 13, np.array(1.0), ints(0))


def test_gather_elements():
    x = np.arange(6.0).reshape(2, 3)
    assert run_op("GatherElements", 11, x, ints([2], [-3]), axis=1)[0].tolist() == [[2], [3]]
    assert run_op("GatherElements", 13, x, ints([1, 0]))[0].tolist() == [[3, 1]]  # fewer columns than the data
    for indices, message in ((ints([0] * 4), "size 4"), (ints(0), "rank")):
        with pytest.raises(ShapeError, match=message):
            run_op("GatherElements", 13, x, indices)
        with pytest.raises(ShapeError, match="GatherElements-13"):
            infer_value("GatherElements", 13, x, indices)


def test_gather_nd():
    x = np.arange(24).reshape(2, 3, 4)
    assert run_op("GatherND", 11, x, ints(1, -1))[0].tolist() == x[1, -1].tolist()
    assert run_op("GatherND", 13, x, ints(1, 2, 3))[0].shape == ()
    picked = run_op("GatherND", 12, x, ints([[0], [2]], [[1], [1]]), batch_dims=1)[0]
    assert np.array_equal(picked, np.stack([x[0, [0, 2]], x[1, [1, 1]]]))
    kinds = TensorType("int8", ("b", 3, 4)), TensorType("int64", ("b", "k", 1))
    assert infer_op("GatherND", 13, *kinds, batch_dims=1)[0].shape == ("b", "k", 4)
    for indices, batch, message in (
        (np.zeros((2, 4), np.int64), 0, r"size 4, outside \[1, 3\]"),
        (np.zeros((2, 0), np.int64), 0, "size 0"),
        (np.zeros((3, 1), np.int64), 1, "differ|equal"),
        (np.zeros((2, 1), np.int64), 2, "batch_dims 2"),
        (np.array(0), 0, "rank 1 or more"),
    ):
        with pytest.raises(ShapeError, match=message):
            run_op("GatherND", 13, x, indices, batch_dims=batch)
        with pytest.raises(ShapeError, match=message):
            infer_value("GatherND", 13, x, indices, batch_dims=batch)
    with pytest.raises(ModelError, match="batch_dims"):
        run_op("GatherND", 11, x, ints(0), batch_dims=1)


def test_scatter_leaves_its_input_alone():
    x = np.zeros((2, 3))
    for name, version in (("Scatter", 9), ("ScatterElements", 11), ("ScatterElements", 18)):
        (y,) = run_op(name, version, x, ints([1], [-1]), np.array([[5.0], [6.0]]), axis=1)
        assert y.tolist() == [[0, 5, 0], [0, 0, 6]] and not x.any()
    assert run_op("ScatterND", 11, x, ints([1]), np.ones((1, 3)))[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(ModelError, match="reduction"):
        run_op("ScatterND", 13, x, ints([1]), np.ones((1, 3)), reduction="add")


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "uint64"])
def test_scatter_reduces_repeated_indices(reduction, dtype):
    join = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction]
    rng = np.random.default_rng(3)
    data, updates, index = rng.integers(1, 4, 4), rng.integers(1, 3, 7), rng.integers(0, 4, 7)
    expected = data.copy()
    for i, u in zip(index, updates):
        expected[i] = join(expected[i], u)
    narrow = to_numpy(dtype)
    inputs = data.astype(narrow), index, updates.astype(narrow)
    (y,) = run_op("ScatterElements", 18, *inputs, reduction=reduction)
    assert y.dtype == narrow and y.astype(np.int64).tolist() == expected.tolist()
    (y,) = run_op("ScatterND", 18, inputs[0], index[:, None], inputs[2], reduction=reduction)
    assert y.dtype == narrow and y.astype(np.int64).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("name", "indices", "updates", "attrs", "message"),
    [
        ("ScatterElements", ints([3]), np.ones((1, 1)), {"axis": 1}, "index 3"),
        ("ScatterElements", ints([0]), np.ones((1, 2)), {}, "updates"),
        ("ScatterElements", ints([0], [0], [0]), np.ones((3, 1)), {"axis": 1}, "size 3"),
        ("ScatterElements", ints([0]), np.ones((1, 1), np.float32), {}, "element type|float32"),
        ("ScatterElements", ints([0]), np.ones((1, 1)), {"reduction": "mean"}, "'mean'"),
        ("ScatterND", ints([2]), np.ones((1, 3)), {}, "index 2"),
        ("ScatterND", ints([0]), np.ones((1, 1)), {}, "updates must have shape"),
        ("ScatterND", ints([0, 0, 0]), np.ones(1), {}, "size 3"),
        ("ScatterND", ints([0]), np.ones((1, 3)), {"reduction": "mean"}, "'mean'"),
    ],
)
def test_scatter_errors(name, indices, updates, attrs, message):
    with pytest.raises(MiniferError, match=message):
        run_op(name, 18, np.zeros((2, 3)), indices, updates, **attrs)
    if "index" not in message:
        with pytest.raises(ShapeError, match=f"{name}-18"):
            infer_value(name, 18, np.zeros((2, 3)), indices, updates, **attrs)


def test_tensor_scatter():
    cache, update = np.zeros((2, 4, 1)), np.arange(1.0, 5.0).reshape(2, 2, 1)
    (y,) = run_op("TensorScatter", 24, cache, update, ints(3, 1), mode="circular")
    assert y[..., 0].tolist() == [[2, 0, 0, 1], [0, 3, 4, 0]] and not cache.any()
    assert run_op("TensorScatter", 24, cache, update)[0][0, :, 0].tolist() == [1, 2, 0, 0]
    for inputs, attrs, message in (
        ((update, ints(3, 0)), {}, "outside"),
        ((update, ints(-1, 0)), {"mode": "circular"}, "outside"),
        ((update, ints(0)), {}, "shape"),
        ((np.zeros((2, 5, 1)),), {}, "shorter"),
        ((update,), {"axis": 0}, "batch axis"),
        ((update,), {"mode": "ring"}, "'ring'"),
    ):
        with pytest.raises(MiniferError, match=message):
            run_op("TensorScatter", 24, cache, *inputs, **attrs)


def test_one_hot():
    values = np.array([0, 1], np.int8)
    assert run_op("OneHot", 9, ints(-1, 1, 3), np.array(3), values)[0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert run_op("OneHot", 11, ints(-1, -3, -4), np.array(3), values)[0].tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    (y,) = run_op("OneHot", 11, np.array(1.9, np.float32), np.array([2.0]), np.array(["-", "+"], object))
    assert y.tolist() == ["-", "+"] and y.dtype == object
    assert run_op("OneHot", 11, np.array([np.nan, np.inf, 1.0]), ints(2), values, axis=0)[0].tolist() == [
        [0] * 3,
        [0, 0, 1],
    ]
    assert run_op("OneHot", 11, ints(0, 1), ints(0), values)[0].shape == (2, 0)
    kinds = TensorType("int64", ("n",)), TensorType("int64", ()), TensorType("int8", (2,))
    assert infer_op("OneHot", 11, *kinds, axis=0, values=[None, np.array(5), None])[0] == TensorType("int8", (5, "n"))
    for depth, on, axis, message in (
        (ints(-1), values, 0, "depth"),
        (ints(2), values[:1], 0, "off"),
        (ints(2), values, 2, "axis 2"),
    ):
        with pytest.raises(ShapeError, match=message):
            run_op("OneHot", 11, ints(0), depth, on, axis=axis)
