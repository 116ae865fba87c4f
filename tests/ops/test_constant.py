"""Constant, ConstantOfShape, Identity, Shape, Size: forms and errors that the official cases leave out."""

import numpy as np
import pytest

from minifer.errors import ModelError, ShapeError
from minifer.ir import SequenceType, SparseTensor, TensorType
from tests.ops.helpers import infer_op, run_op


@pytest.mark.parametrize(
    ("attrs", "dtype", "expected"),
    [
        ({"value": np.array([1, 2], np.int8)}, np.int8, [1, 2]),
        ({"value_float": 1.5}, np.float32, 1.5),
        ({"value_floats": (1.5, 2.0)}, np.float32, [1.5, 2.0]),
        ({"value_floats": ()}, np.float32, []),
        ({"value_int": 7}, np.int64, 7),
        ({"value_ints": (7, 8)}, np.int64, [7, 8]),
        ({"value_string": "a"}, object, "a"),
        ({"value_strings": ("a", b"\xff")}, object, ["a", "\udcff"]),
        ({"sparse_value": SparseTensor(np.array([5.0]), np.array([2]), (3,))}, np.float64, [0, 0, 5]),
        ({"sparse_value": SparseTensor(np.array([5.0]), np.array([[1, 0]]), (2, 2))}, np.float64, [[0, 0], [5, 0]]),
    ],
)
def test_constant_forms(attrs, dtype, expected):
    (value,) = run_op("Constant", 13, **attrs)
    assert isinstance(value, np.ndarray) and value.dtype == dtype and value.tolist() == expected
    (kind,) = infer_op("Constant", 13, **attrs)
    assert kind.shape == value.shape


def test_constant_needs_one_form():
    with pytest.raises(ModelError, match="exactly one"):
        run_op("Constant", 13)
    with pytest.raises(ModelError, match="value_int, value_float"):
        run_op("Constant", 13, value_int=1, value_float=1.0)


def test_constant_of_shape():
    (y,) = run_op("ConstantOfShape", 9, np.array([2, 0], np.int64))
    assert y.shape == (2, 0) and y.dtype == np.float32
    (y,) = run_op("ConstantOfShape", 9, np.array([], np.int64), value=np.array([3], np.int8))
    assert y.shape == () and y.dtype == np.int8 and y == 3
    with pytest.raises(ShapeError, match="negative"):
        run_op("ConstantOfShape", 9, np.array([2, -1]))
    with pytest.raises(ShapeError, match="2 elements"):
        run_op("ConstantOfShape", 9, np.array([2]), value=np.array([1, 2]))
    assert infer_op("ConstantOfShape", 9, TensorType("int64", (2,))) == [TensorType("float32", (None, None))]
    assert infer_op("ConstantOfShape", 9, TensorType("int64", ("r",))) == [TensorType("float32")]


def test_identity_keeps_sequences_and_absent_optionals():
    value = [np.zeros(2), np.ones(3)]
    assert run_op("Identity", 16, value) == [value]
    kind = SequenceType(TensorType("float32"))
    assert infer_op("Identity", 16, kind) == [kind]


@pytest.mark.parametrize(("start", "end"), [(0, None), (-1, None), (1, 2), (-9, 9), (2, 1), (0, -1)])
def test_shape_slices_like_python(start, end):
    x = np.zeros((2, 3, 4))
    attrs = {"start": start} if end is None else {"start": start, "end": end}
    (y,) = run_op("Shape", 15, x, **attrs)
    assert y.dtype == np.int64 and y.tolist() == list(x.shape[start:end])
    assert infer_op("Shape", 15, TensorType("float32", (2, "n", None)), **attrs) == [TensorType("int64", y.shape)]


def test_shape_and_size_of_odd_tensors():
    assert run_op("Shape", 1, np.array(3.0))[0].shape == (0,)
    (size,) = run_op("Size", 1, np.zeros((0, 3)))
    assert isinstance(size, np.ndarray) and size.dtype == np.int64 and size == 0
    with pytest.raises(ModelError, match="start"):
        run_op("Shape", 13, np.zeros(2), start=1)
