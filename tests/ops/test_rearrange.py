"""DepthToSpace, SpaceToDepth, Col2Im, Trilu, ReverseSequence."""

import numpy as np
import pytest

from minifer.dtypes import to_numpy
from minifer.errors import InputError, MiniferError, ModelError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space_are_inverses(mode):
    x = np.arange(2 * 8 * 2 * 3).reshape(2, 8, 2, 3)
    (y,) = run_op("DepthToSpace", 13, x, blocksize=2, mode=mode)
    assert y.shape == (2, 2, 4, 6)
    for c, i, j in np.ndindex(2, 4, 6):
        depth = (i % 2 * 2 + j % 2) * 2 + c if mode == "DCR" else c * 4 + i % 2 * 2 + j % 2
        assert y[1, c, i, j] == x[1, depth, i // 2, j // 2]
    assert np.array_equal(run_op("SpaceToDepth", 28, y, blocksize=2, mode=mode)[0], x)
    if mode == "DCR":
        assert np.array_equal(run_op("DepthToSpace", 1, x, blocksize=2)[0], y)
        assert np.array_equal(run_op("SpaceToDepth", 1, y, blocksize=2)[0], x)


def test_block_shapes_and_errors():
    assert infer_op("DepthToSpace", 13, TensorType("int8", ("n", 8, "h", 3)), blocksize=2)[0].shape == ("n", 2, None, 6)
    assert infer_op("SpaceToDepth", 13, TensorType("int8", ("n", "c", 4, 6)), blocksize=2)[0].shape == ("n", None, 2, 3)
    assert infer_op("SpaceToDepth", 13, TensorType("int8"), blocksize=2)[0].shape == (None,) * 4
    assert run_op("DepthToSpace", 13, np.zeros((0, 4, 1, 1)), blocksize=2)[0].shape == (0, 1, 2, 2)
    for shape, attrs, message in (
        ((1, 6, 2, 2), {"blocksize": 2}, "channel count 6"),
        ((1, 8, 2), {"blocksize": 2}, "rank 4"),
        ((1, 8, 2, 2), {"blocksize": 0}, "blocksize 0"),
        ((1, 8, 2, 2), {"blocksize": 2, "mode": "RCD"}, "'RCD'"),
    ):
        with pytest.raises(MiniferError, match=message):
            run_op("DepthToSpace", 13, np.zeros(shape), **attrs)
        with pytest.raises(ShapeError, match=message):
            infer_value("DepthToSpace", 13, np.zeros(shape), **attrs)
    with pytest.raises(ShapeError, match="height 3"):
        run_op("SpaceToDepth", 13, np.zeros((1, 1, 3, 4)), blocksize=2)
    with pytest.raises(ModelError, match="mode"):
        run_op("SpaceToDepth", 13, np.zeros((1, 1, 4, 4)), blocksize=2, mode="CRD")


def test_col2im_counts_covers():
    """Columns of ones count how many blocks cover each pixel."""
    strides, dilations, pads = (2, 1), (1, 2), (1, 0, 0, 1)
    image, block, count = (5, 6), (3, 2), (2, 5)
    covers = np.zeros((6 + 1, 6 + 2))
    for i, j, a, b in np.ndindex(*count, *block):
        covers[i * 2 + a, j + b * 2] += 1
    x = np.ones((2, 3 * 6, 10), np.float16)
    attrs = {"strides": strides, "dilations": dilations, "pads": pads}
    inputs = x, ints(*image), ints(*block)
    (y,) = run_op("Col2Im", 18, *inputs, **attrs)
    assert y.dtype == np.float16 and np.array_equal(y[1, 2], covers[1:6, :6])
    assert infer_value("Col2Im", 18, *inputs, **attrs)[0].shape == y.shape
    kinds = TensorType("float32", ("n", 18, "l")), TensorType("int64", (2,)), TensorType("int64", (2,))
    assert infer_op("Col2Im", 18, *kinds)[0].shape == ("n", None, None, None)
    assert infer_op("Col2Im", 18, *kinds, values=[None, *inputs[1:]], **attrs)[0].shape == ("n", 3, 5, 6)


def test_col2im_errors():
    x = np.ones((1, 4, 4))
    for inputs, attrs, message in (
        ((x, ints(3, 4), ints(2, 2)), {}, "has 4 blocks"),
        ((x, ints(3, 3), ints(4, 2)), {}, "does not fit"),
        ((x, ints(3, 3), ints(2, 2)), {"strides": (0, 1)}, "positive"),
        ((x, ints(3, 3), ints(2, 2)), {"pads": (1, 1)}, "pads"),
        ((x, ints(3, 3), ints(2)), {}, "block_shape"),
        ((x[:, :3], ints(3, 3), ints(2, 2)), {}, "3 rows"),
        ((x[0], ints(3, 3), ints(2, 2)), {}, "rank 3"),
    ):
        with pytest.raises(ShapeError, match=message):
            run_op("Col2Im", 18, *inputs, **attrs)
        with pytest.raises(ShapeError, match=message):
            infer_value("Col2Im", 18, *inputs, **attrs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int64"])
def test_trilu(dtype):
    x = np.ones((2, 3, 4)).astype(to_numpy(dtype))
    for k in (-9, -1, 0, 2, 9):
        for upper, cut in ((1, np.triu), (0, np.tril)):
            (y,) = run_op("Trilu", 14, x, np.array(k), upper=upper)
            assert y.dtype == x.dtype and np.array_equal(y.astype(int), cut(x.astype(int), k))
    assert run_op("Trilu", 14, np.zeros((0, 3)))[0].shape == (0, 3)
    with pytest.raises(ShapeError, match="rank 2"):
        run_op("Trilu", 14, np.zeros(3))
    with pytest.raises(ShapeError, match="one number"):
        run_op("Trilu", 14, x, ints(1, 2))


def test_reverse_sequence():
    x = np.arange(12).reshape(4, 3)
    (y,) = run_op("ReverseSequence", 10, x, ints(4, 0, 2))
    assert y.T.tolist() == [[9, 6, 3, 0], [1, 4, 7, 10], [5, 2, 8, 11]]
    words = np.array([["a", "b"], ["c", "d"]], object)
    assert run_op("ReverseSequence", 10, words, ints(2, 1), batch_axis=0, time_axis=1)[0].tolist() == [
        ["b", "a"],
        ["c", "d"],
    ]
    assert run_op("ReverseSequence", 10, np.zeros((0, 2, 3)), ints(0, 0))[0].shape == (0, 2, 3)
    for lengths, attrs, error, message in (
        (ints(5, 1, 1), {}, InputError, "sequence_lens"),
        (ints(-1, 1, 1), {}, InputError, "sequence_lens"),
        (ints(1, 1), {}, ShapeError, "shape"),
        (ints(1, 1, 1), {"time_axis": 1}, ShapeError, "time_axis 1"),
    ):
        with pytest.raises(error, match=message):
            run_op("ReverseSequence", 10, x, lengths, **attrs)
