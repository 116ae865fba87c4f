"""Transpose, Expand, Tile, Concat, Split, Slice: old forms, clamping, symbolic shapes, errors."""

import numpy as np
import pytest

from minifer.dtypes import to_numpy
from minifer.errors import InputError, ModelError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def ints(*values):
    return np.array(values, np.int64)


def test_transpose():
    x = np.arange(6).reshape(1, 2, 3)
    (y,) = run_op("Transpose", 1, x)
    assert y.shape == (3, 2, 1) and np.shares_memory(x, y)
    assert infer_op("Transpose", 13, TensorType("int8", ("a", 2, 3)), perm=(1, 0, 2))[0].shape == (2, "a", 3)
    assert infer_op("Transpose", 13, TensorType("int8"), perm=(1, 0)) == [TensorType("int8", (None, None))]
    for perm in ((0, 0, 1), (0, 1), (-1, 0, 1)):
        with pytest.raises(ShapeError, match="permutation"):
            run_op("Transpose", 13, x, perm=perm)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4", "float8e5m2", "string", "bool"])
def test_moves_take_every_type(dtype):
    x = np.array([["", "b"]], object) if dtype == "string" else np.array([[0, 1]]).astype(to_numpy(dtype))
    for name, inputs, attrs in (
        ("Transpose", (x,), {}),
        ("Expand", (x, ints(2, 2)), {}),
        ("Tile", (x, ints(2, 2)), {}),
        ("Concat", (x, x), {"axis": 0}),
        ("Slice", (x, ints(1), ints(2), ints(1)), {}),
        ("Pad", (x, ints(0, 1, 0, 0)), {}),
        ("Gather", (x, ints(0, -1)), {"axis": 1}),
        ("Trilu", (x,), {}) if dtype != "string" else ("Identity", (x,), {}),
    ):
        (y,) = run_op(name, 23, *inputs, **attrs)
        assert isinstance(y, np.ndarray) and y.dtype == x.dtype, name
        assert infer_value(name, 23, *inputs, **attrs) == [TensorType(dtype, y.shape)]


def test_expand():
    x = np.zeros((3, 1))
    assert run_op("Expand", 8, x, ints(2, 1, 4))[0].shape == (2, 3, 4)
    assert run_op("Expand", 8, x, ints())[0].shape == (3, 1)
    assert run_op("Expand", 8, np.zeros((0, 1)), ints(0, 3))[0].shape == (0, 3)
    for wanted, message in ((ints(2, 4), "broadcast"), (ints(3, -1), "negative")):
        with pytest.raises(ShapeError, match=message):
            run_op("Expand", 13, x, wanted)
        with pytest.raises(ShapeError, match=message):
            infer_value("Expand", 13, x, wanted)
    types = TensorType("float32", (3, "n")), TensorType("int64", (3,))
    assert infer_op("Expand", 13, *types)[0].shape == (None, 3, None)


def test_tile():
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(run_op("Tile", 6, x, ints(2, 1))[0], np.concatenate([x, x]))
    (y,) = run_op("Tile", 1, x, np.array([2.0]), np.array([1.0]))
    assert np.array_equal(y, np.concatenate([x, x], 1))
    assert infer_value("Tile", 1, x, np.array([2.0]), np.array([1.0]))[0].shape == (2, 6)
    assert run_op("Tile", 13, x, ints(0, 1))[0].shape == (0, 3)
    assert run_op("Tile", 13, np.array(4.0), ints())[0].shape == ()
    for repeats in (ints(2), ints(1, -1)):
        with pytest.raises(ShapeError, match="repeats"):
            run_op("Tile", 13, x, repeats)


def test_concat():
    a, b = np.zeros((2, 3)), np.zeros((2, 1))
    assert run_op("Concat", 1, a, b)[0].shape == (2, 4)  # opset 1: axis 1 by default
    assert run_op("Concat", 13, a, np.zeros((2, 0)), axis=-1)[0].shape == (2, 3)
    for inputs, axis, message in (((a, b), 0, "differ"), ((a, b.astype("f")), 1, "element types"), ((a,), 2, "axis 2")):
        with pytest.raises(ShapeError, match=message):
            run_op("Concat", 13, *inputs, axis=axis)
    with pytest.raises(InputError):
        run_op("Concat", 13, a, None, axis=0)
    f = [TensorType("float32", s) for s in (("n", 3), (None, 3), ("n", "m"))]
    assert infer_op("Concat", 13, f[0], f[1], axis=1)[0].shape == ("n", 6)
    assert infer_op("Concat", 13, f[0], f[2], axis=1)[0].shape == ("n", None)
    assert infer_op("Concat", 13, f[0], f[2], axis=0)[0].shape == (None, 3)
    with pytest.raises(ShapeError, match="axis is missing"):
        infer_op("Concat", 13, *f)
    with pytest.raises(ShapeError, match="equal outside"):
        infer_op("Concat", 13, TensorType("int8", (2, 3)), TensorType("int8", (3, 3)), axis=1)


def test_split_versions():
    x = np.arange(12).reshape(6, 2)
    assert [p.shape for p in run_op("Split", 1, x, np.array([1, 5]), outputs=2)] == [(1, 2), (5, 2)]
    assert [p.shape for p in run_op("Split", 1, x, outputs=2, split=(4, 2))] == [(4, 2), (2, 2)]
    assert [p.shape for p in run_op("Split", 2, x, outputs=3)] == [(2, 2)] * 3
    assert [p.shape for p in run_op("Split", 11, x, outputs=2, axis=-1)] == [(6, 1)] * 2
    assert [p.shape for p in run_op("Split", 13, x, ints(0, 6), outputs=2)] == [(0, 2), (6, 2)]
    parts = run_op("Split", 18, x, outputs=4, num_outputs=4)
    assert [len(p) for p in parts] == [2, 2, 2, 0] and np.array_equal(np.concatenate(parts), x)
    assert all(np.shares_memory(p, x) for p in parts[:3])
    assert [t.shape[0] for t in infer_value("Split", 18, x, outputs=4, num_outputs=4)] == [2, 2, 2, 0]
    assert [t.shape for t in infer_op("Split", 13, TensorType("int8", ("n", 2)), outputs=2)] == [(None, 2)] * 2


@pytest.mark.parametrize(
    ("version", "split", "attrs", "message"),
    [
        (13, None, {}, "equal parts"),
        (13, ints(1, 2, 3, 0), {}, "sum up|gives 4"),
        (13, ints(1, 2, 3), {}, "sum up"),
        (13, ints(-1, 8), {}, "sizes"),
        (18, ints(3, 4), {"num_outputs": 2}, "not both"),
        (18, None, {"num_outputs": 3}, "num_outputs is 3"),
        (18, None, {"num_outputs": 2, "axis": 2}, "axis 2"),
    ],
)
def test_split_errors(version, split, attrs, message):
    x = np.zeros((7, 2))
    with pytest.raises(ShapeError, match=message):
        run_op("Split", version, x, split, outputs=2, **attrs)
    with pytest.raises(ShapeError, match=message):
        infer_value("Split", version, x, split, outputs=2, **attrs)


def expected_slice(size, start, end, step):
    """The spec's clamping, one place at a time."""
    start, end = (v + size if v < 0 else v for v in (start, end))
    if step > 0:
        return list(range(min(max(start, 0), size), min(max(end, 0), size), step))
    return list(range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)) if size else []


def test_slice_clamps():
    for size in range(4):
        x = np.arange(size)
        for start in (-9, -2, -1, 0, 1, 3, 9, 2**63 - 1, -(2**63)):
            for end in (-9, -2, 0, 2, 9, 2**63 - 1, -(2**63)):
                for step in (-3, -1, 1, 2):
                    inputs = x, ints(start), ints(end), ints(0), ints(step)
                    (y,) = run_op("Slice", 13, *inputs)
                    assert y.tolist() == expected_slice(size, start, end, step), (size, start, end, step)
                    assert infer_value("Slice", 13, *inputs)[0].shape == y.shape


def test_slice_versions_and_symbols():
    x = np.arange(12).reshape(3, 4)
    assert np.array_equal(run_op("Slice", 1, x, starts=(1,), ends=(100,), axes=(-1,))[0], x[:, 1:])
    assert np.array_equal(run_op("Slice", 1, x, starts=(0, -2), ends=(-1, 100))[0], x[:-1, -2:])
    assert np.array_equal(
        run_op("Slice", 10, x, np.array([2], np.int32), np.array([0], np.int32), None, ints(-1))[0], x[2:0:-1]
    )
    assert run_op("Slice", 13, np.array(5), ints(), ints())[0].shape == ()
    kinds = TensorType("int8", ("n", 5)), *(TensorType("int64", (1,)),) * 3
    full = [None, ints(0), ints(2**63 - 1), ints(0)]
    assert infer_op("Slice", 13, *kinds, values=full)[0].shape == ("n", 5)
    assert infer_op("Slice", 13, *kinds, values=[None, ints(0), ints(3), ints(0)])[0].shape == (None, 5)
    assert infer_op("Slice", 13, *kinds, values=[None, None, None, ints(1)])[0].shape == ("n", None)
    assert infer_op("Slice", 13, *kinds)[0].shape == (None, None)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((ints(0), ints(1), ints(0), ints(0)), "steps must not be 0"),
        ((ints(0), ints(1), ints(2)), "axis 2"),
        ((ints(0, 0), ints(1, 1), ints(0, -2)), "twice"),
        ((ints(0, 0), ints(1)), "equally many"),
    ],
)
def test_slice_errors(inputs, message):
    with pytest.raises(ShapeError, match=message):
        run_op("Slice", 13, np.zeros((3, 4)), *inputs)
    with pytest.raises(ShapeError, match=message):
        infer_value("Slice", 13, np.zeros((3, 4)), *inputs)


def test_an_attribute_of_another_version_is_refused():
    with pytest.raises(ModelError, match="starts"):
        run_op("Slice", 10, np.zeros(3), ints(0), ints(1), starts=(0,))
