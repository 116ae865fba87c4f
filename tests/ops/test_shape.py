"""Reshape, Flatten, Squeeze, Unsqueeze: symbolic shapes, old forms, errors."""

import numpy as np
import pytest

from minifer.errors import MiniferError, ModelError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, run_op


def ints(*values):
    return np.array(values, np.int64)


def shape_of(name, version, shape, *values, **attrs):
    types = [TensorType("float32", shape), *(TensorType("int64", v.shape) for v in values)]
    return infer_op(name, version, *types, values=[None, *values], **attrs)[0].shape


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [
        (("n", 4, 5), (0, -1), ("n", 20)),
        (("n", 4, 5), (-1, 20), ("n", 20)),
        (("n", "m", 64), (0, 0, 8, 8), ("n", "m", 8, 8)),
        (("n", 6), (-1, 4), (None, 4)),
        (("n", "m"), (-1,), (None,)),
        (None, (2, 0, -1), (2, None, None)),
        ((0, 4, 5), (0, -1), (0, 20)),
        ((0, 3), (3, -1), (3, 0)),
        ((2, 3), (3, 2), (3, 2)),
        ((1,), (), ()),
    ],
)
def test_reshape_infers(shape, wanted, expected):
    assert shape_of("Reshape", 14, shape, ints(*wanted)) == expected


def test_reshape_with_unknown_target_has_known_rank():
    types = TensorType("float32", (2, 3)), TensorType("int64", (4,))
    assert infer_op("Reshape", 14, *types) == [TensorType("float32", (None,) * 4)]
    assert infer_op("Reshape", 14, types[0], TensorType("int64")) == [TensorType("float32")]


def test_reshape_1_and_views():
    x = np.arange(6.0)
    (y,) = run_op("Reshape", 1, x, shape=(0, 1), consumed_inputs=(0,))
    assert y.shape == (6, 1) and np.shares_memory(x, y)
    assert infer_op("Reshape", 1, TensorType("float32", (6,)), shape=(2, -1))[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("shape", "wanted", "allowzero", "message"),
    [
        ((2, 3), (-1, -1), 0, "one -1"),
        ((2, 3), (-2, 3), 0, "negative"),
        ((2, 3), (4, -1), 0, "divide"),
        ((2, 3), (2, 2), 0, "do not fit"),
        ((6,), (2, 0), 0, "rank 1"),
        ((0, 3), (0, -1), 1, "allowzero"),
        ((0, 3), (0, 0, 0), 0, "rank 2"),
    ],
)
def test_reshape_errors(shape, wanted, allowzero, message):
    with pytest.raises(ShapeError, match=message):
        run_op("Reshape", 14, np.zeros(shape), ints(*wanted), allowzero=allowzero)
    with pytest.raises(ShapeError, match="Reshape-14.*" + message):
        shape_of("Reshape", 14, shape, ints(*wanted), allowzero=allowzero)


def test_flatten():
    assert run_op("Flatten", 1, np.zeros((2, 3, 4)))[0].shape == (2, 12)
    assert run_op("Flatten", 11, np.zeros((2, 3, 4)), axis=-1)[0].shape == (6, 4)
    assert run_op("Flatten", 13, np.array(1.0), axis=0)[0].shape == (1, 1)
    assert run_op("Flatten", 13, np.zeros((0, 3)), axis=2)[0].shape == (0, 1)
    assert shape_of("Flatten", 13, ("n", 3, 4)) == ("n", 12)
    with pytest.raises(ShapeError, match="axis 4"):
        run_op("Flatten", 13, np.zeros((2, 3)), axis=4)


def test_squeeze():
    x = np.zeros((1, 3, 1))
    assert run_op("Squeeze", 1, x)[0].shape == (3,)
    assert run_op("Squeeze", 11, x, axes=(-1,))[0].shape == (1, 3)
    assert run_op("Squeeze", 13, x, ints(2, 0))[0].shape == (3,)
    assert run_op("Squeeze", 13, x, None)[0].shape == (3,)
    assert shape_of("Squeeze", 13, ("n", 1), ints(0)) == (1,)
    assert shape_of("Squeeze", 13, ("n", 1)) is None
    for axes, message in ((ints(1), "size 3"), (ints(3), "axis 3"), (ints(0, -3), "twice")):
        with pytest.raises(ShapeError, match=message):
            run_op("Squeeze", 13, x, axes)
    unknown = infer_op("Squeeze", 13, TensorType("float32", (1, 2, 3)), TensorType("int64", (1,)))
    assert unknown == [TensorType("float32", (None, None))]


def test_unsqueeze():
    x = np.zeros((2, 3))
    assert run_op("Unsqueeze", 1, x, axes=(0, 3))[0].shape == (1, 2, 3, 1)
    assert run_op("Unsqueeze", 13, x, ints(-1, 0))[0].shape == (1, 2, 3, 1)
    assert run_op("Unsqueeze", 13, np.array("a", object), ints(0))[0].tolist() == ["a"]
    assert shape_of("Unsqueeze", 13, ("n",), ints(1)) == ("n", 1)
    for axes, message in ((ints(3), "axis 3"), (ints(0, -4), "twice")):
        with pytest.raises(ShapeError, match=message):
            run_op("Unsqueeze", 13, x, axes)
    with pytest.raises(MiniferError):
        run_op("Unsqueeze", 1, x)
    with pytest.raises(ShapeError, match="axes is missing"):
        infer_op("Unsqueeze", 1, TensorType("float32", (2,)))


def test_an_omitted_shape_is_a_model_error():
    with pytest.raises(ModelError, match="Reshape-14"):
        run_op("Reshape", 14, np.zeros(3), None)
