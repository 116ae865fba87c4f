"""Pad against numpy.pad at every version, cropping, CenterCropPad, errors."""

import numpy as np
import pytest

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_is_numpy_pad(mode):
    rng = np.random.default_rng(0)
    for _ in range(30):
        x = rng.standard_normal(rng.integers(1, 5, 2)).astype(np.float32)
        pads = rng.integers(0, 8, 4)
        expected = np.pad(x, [(pads[0], pads[2]), (pads[1], pads[3])], mode=mode)
        assert np.array_equal(run_op("Pad", 19, x, pads, mode=mode)[0], expected)
        assert infer_value("Pad", 19, x, pads, mode=mode)[0].shape == expected.shape
        if mode != "wrap":
            assert np.array_equal(run_op("Pad", 11, x, pads, mode=mode)[0], expected)
            assert np.array_equal(run_op("Pad", 2, x, pads=tuple(pads), mode=mode)[0], expected)
            assert np.array_equal(run_op("Pad", 1, x, paddings=tuple(pads), mode=mode)[0], expected)


def test_negative_pads_crop_first():
    x = np.arange(5.0)
    assert run_op("Pad", 13, x, ints(-1, 2), np.array(9.0))[0].tolist() == [1, 2, 3, 4, 9, 9]
    assert run_op("Pad", 13, x, ints(-7, 4), np.array(9.0))[0].tolist() == [9, 9]
    assert run_op("Pad", 13, x, ints(2, -2), mode="reflect")[0].tolist() == [2, 1, 0, 1, 2]
    assert run_op("Pad", 13, x, ints(-2, -2))[0].tolist() == [2]
    assert run_op("Pad", 13, x, ints(-2, -3))[0].shape == (0,)


def test_pad_fills_by_type():
    assert run_op("Pad", 13, np.array(["a"], object), ints(1, 0))[0].tolist() == ["", "a"]
    assert run_op("Pad", 13, np.array([True]), ints(1, 0))[0].tolist() == [False, True]
    assert run_op("Pad", 2, np.ones(1, np.float32), pads=(1, 0), value=2.5)[0].tolist() == [2.5, 1.0]
    assert run_op("Pad", 13, np.ones((0, 2)), ints(1, 0, 1, 0), np.array([3.0]))[0].tolist() == [[3, 3], [3, 3]]
    assert run_op("Pad", 13, np.array(4.0), ints())[0].shape == ()


def test_pad_axes():
    x = np.ones((2, 3))
    assert run_op("Pad", 18, x, ints(1, 2), None, ints(-1))[0].shape == (2, 6)
    kinds = TensorType("float32", ("n", 3)), TensorType("int64", (2,)), None, TensorType("int64", (1,))
    assert infer_op("Pad", 18, *kinds, values=[None, ints(1, 2), None, ints(1)])[0].shape == ("n", 6)
    assert infer_op("Pad", 18, *kinds, values=[None, None, None, ints(1)])[0].shape == ("n", None)
    assert infer_op("Pad", 18, *kinds)[0].shape == (None, None)


@pytest.mark.parametrize(
    ("version", "shape", "pads", "attrs", "message"),
    [
        (13, (3,), ints(1), {}, "pads has 1"),
        (13, (3,), ints(-2, -2), {}, "remove more"),
        (13, (0,), ints(1, 0), {"mode": "edge"}, "nothing to pad from"),
        (13, (3,), ints(1, 0), {"mode": "wrap"}, "'wrap'"),
        (19, (3,), ints(1, 0), {"mode": "mirror"}, "'mirror'"),
    ],
)
def test_pad_errors(version, shape, pads, attrs, message):
    with pytest.raises(ShapeError, match=message):
        run_op("Pad", version, np.zeros(shape), pads, **attrs)


def test_pad_refuses_a_vector_to_fill_with():
    with pytest.raises(ShapeError, match="constant_value"):
        run_op("Pad", 13, np.zeros(2), ints(1, 1), np.zeros(2))


def test_center_crop_pad():
    x = np.arange(5)
    assert run_op("CenterCropPad", 18, x, ints(2))[0].tolist() == [1, 2]
    assert run_op("CenterCropPad", 18, x, ints(8))[0].tolist() == [0, 0, 1, 2, 3, 4, 0, 0]
    assert run_op("CenterCropPad", 18, np.zeros((2, 3)), ints(0), axes=(-1,))[0].shape == (2, 0)
    kinds = TensorType("float32", ("n", 3)), TensorType("int64", (1,))
    assert infer_op("CenterCropPad", 18, *kinds, axes=(1,), values=[None, ints(7)])[0].shape == ("n", 7)
    for sizes in (ints(2, 2), ints(-1)):
        with pytest.raises((ShapeError, InputError), match="shape"):
            run_op("CenterCropPad", 18, x, sizes)
