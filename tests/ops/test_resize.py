"""Resize and Upsample: a plain per-pixel computation, old versions, policies, errors."""

import math

import numpy as np
import pytest

from minifer.errors import InputError, MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


def pixel(line, at, mode, a):
    """The value of a 1-D line at a place, borders repeated; written out tap by tap."""
    base, total = math.floor(at), 0.0
    for place in range(base - 1, base + 3):
        t = abs(place - at)
        if mode == "linear":
            weight = max(0.0, 1 - t)
        elif t <= 1:
            weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
        else:
            weight = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0
        total += weight * line[min(max(place, 0), len(line) - 1)]
    return total


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
def test_resize_pixel_by_pixel(mode, coordinates):
    rng = np.random.default_rng(1)
    for size, out in ((4, 7), (7, 4), (5, 1), (1, 3), (6, 6)):
        x = rng.standard_normal((size, 2))
        if coordinates == "asymmetric":
            at = [i * size / out for i in range(out)]
        elif coordinates == "align_corners":
            at = [i * (size - 1) / max(out - 1, 1) for i in range(out)]
        else:
            at = [(i + 0.5) * size / out - 0.5 for i in range(out)]
        if coordinates == "pytorch_half_pixel" and out == 1:
            at = [0]
        attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "cubic_coeff_a": -0.5}
        (y,) = run_op("Resize", 13, x, None, None, ints(out, 2), **attrs)
        expected = np.array([[pixel(x[:, c], p, mode, -0.5) for c in range(2)] for p in at])
        np.testing.assert_allclose(y, expected, atol=1e-12)


def test_nearest_modes_at_halves():
    x = np.arange(4.0)
    for mode, expected in (
        ("round_prefer_floor", [0, 2]),
        ("round_prefer_ceil", [1, 3]),
        ("floor", [0, 2]),
        ("ceil", [1, 3]),
    ):
        assert run_op("Resize", 11, x, floats(), floats(), ints(2), nearest_mode=mode)[0].tolist() == expected


def test_nearest_moves_any_type():
    x = np.array([["a", "b"]], object)
    assert run_op("Resize", 13, x, None, floats(1, 2))[0].tolist() == [["a", "a", "b", "b"]]
    with pytest.raises(InputError, match="linear needs numbers"):
        run_op("Resize", 13, x, None, floats(1, 2), mode="linear")


def test_a_third_counts_as_a_third():
    x = np.arange(9.0)
    attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    assert run_op("Resize", 13, x, None, floats(1 / 3), **attrs)[0].tolist() == [0, 3, 6]
    assert run_op("Resize", 13, np.zeros(10), None, floats(0.7))[0].shape == (7,)


def test_integers_saturate_and_floats_keep_their_type():
    x = np.array([0, 255, 255, 0, 0], np.uint8)
    (y,) = run_op("Resize", 13, x, None, None, ints(11), mode="cubic")
    assert y.dtype == np.uint8 and y.max() == 255 and y.min() == 0
    assert run_op("Resize", 13, x.astype(np.float16), None, None, ints(3), mode="linear")[0].dtype == np.float16
    big = np.array([2**62, 2**63 - 1], np.int64)
    assert run_op("Resize", 13, big, None, None, ints(4), mode="linear")[0][-1] == 2**63 - 1


def test_antialias_is_a_mean_when_halving():
    x = np.random.default_rng(2).standard_normal(64)
    (y,) = run_op("Resize", 18, x, None, None, ints(32), mode="linear", antialias=1)
    taps = np.array([1, 3, 3, 1]) / 8
    np.testing.assert_allclose(y[1:-1], np.convolve(x, taps, "valid")[1::2], atol=1e-12)


def test_crop_and_resize_extrapolates():
    x = np.arange(5.0)
    attrs = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    assert run_op("Resize", 13, x, floats(-0.25, 0.75), None, ints(5), **attrs)[0].tolist() == [9, 0, 1, 2, 3]
    assert run_op("Resize", 13, x, floats(0.5, 1.0), floats(2.0), **attrs)[0].shape == (5,)
    with pytest.raises(ShapeError, match="roi"):
        run_op("Resize", 13, x, None, None, ints(5), **attrs)


@pytest.mark.parametrize(
    ("policy", "expected"), [("stretch", (7, 8)), ("not_larger", (4, 8)), ("not_smaller", (7, 14))]
)
def test_aspect_ratio_policies(policy, expected):
    x = np.zeros((1, 2, 4))
    attrs = {"axes": (-2, -1), "keep_aspect_ratio_policy": policy}
    assert run_op("Resize", 18, x, None, None, ints(7, 8), **attrs)[0].shape == (1, *expected)
    assert infer_value("Resize", 18, x, None, None, ints(7, 8), **attrs)[0].shape == (1, *expected)


def test_resize_infers_what_it_can():
    x, scales = TensorType("float32", ("n", 3, "h", 4)), TensorType("float32", (4,))
    known = [None, None, floats(1, 1, 2, 2)]
    assert infer_op("Resize", 13, x, None, scales, values=known)[0].shape == ("n", 3, None, 8)
    assert infer_op("Resize", 13, x, None, scales)[0].shape == (None,) * 4
    sizes = [None, None, None, ints(5, 6)]
    kinds = x, None, None, TensorType("int64", (2,))
    assert infer_op("Resize", 18, *kinds, values=sizes, axes=(2, 3))[0].shape == ("n", 3, 5, 6)
    assert infer_op("Resize", 18, *kinds, axes=(2, 3))[0].shape == ("n", 3, None, None)
    empty = TensorType("float32", (0,))
    kinds = x, empty, empty, TensorType("int64", (4,))
    assert infer_op("Resize", 11, *kinds, values=[None, floats(), floats(), ints(1, 3, 5, 6)])[0].shape == (1, 3, 5, 6)


@pytest.mark.parametrize(
    ("inputs", "attrs", "message"),
    [
        ((None, floats(2), ints(6)), {}, "not both"),
        ((None, None, None), {}, "neither"),
        ((None, floats(2, 2)), {}, "2 scales"),
        ((None, floats(-1)), {}, "positive"),
        ((None, floats(np.nan)), {}, "positive"),
        ((None, None, ints(-3)), {}, "negative"),
        ((None, floats(2)), {"mode": "area"}, "'area'"),
        ((None, floats(2)), {"nearest_mode": "up"}, "'up'"),
        ((None, floats(2)), {"coordinate_transformation_mode": "centre"}, "'centre'"),
        ((None, None, ints(6)), {"keep_aspect_ratio_policy": "fill"}, "'fill'"),
        ((None, None, ints(6)), {"axes": (1,)}, "axis 1"),
    ],
)
def test_resize_errors(inputs, attrs, message):
    with pytest.raises(MiniferError, match=message):
        run_op("Resize", 18, np.zeros(3), *inputs, **attrs)


def test_empty_and_scalar_inputs():
    assert run_op("Resize", 13, np.zeros((0, 3)), None, None, ints(0, 6))[0].shape == (0, 6)
    assert run_op("Resize", 13, np.zeros((2, 3)), None, None, ints(2, 0), mode="linear")[0].shape == (2, 0)
    assert run_op("Resize", 13, np.array(2.0), None, floats())[0] == 2.0
    with pytest.raises(ShapeError, match="empty"):
        run_op("Resize", 13, np.zeros((0, 3)), None, None, ints(2, 3))


def test_resize_10_takes_the_place_before_or_after():
    x = np.arange(1.0, 5.0)
    assert run_op("Resize", 10, x, floats(0.6))[0].tolist() == [1, 3]
    assert run_op("Resize", 10, x, floats(1.5))[0].tolist() == [1, 1, 2, 3, 3, 4]
    np.testing.assert_allclose(run_op("Resize", 10, x, floats(0.6), mode="linear")[0], [1, 8 / 3], atol=1e-6)


def test_upsample_versions():
    x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = np.repeat(np.repeat(x, 2, 2), 3, 3)
    assert np.array_equal(run_op("Upsample", 1, x, height_scale=2.0, width_scale=3.0)[0], expected)
    assert np.array_equal(run_op("Upsample", 7, x, scales=(1.0, 1.0, 2.0, 3.0))[0], expected)
    assert np.array_equal(run_op("Upsample", 9, x, floats(1, 1, 2, 3))[0], expected)
    (y,) = run_op("Upsample", 7, x, scales=(1.0, 1.0, 1.0, 2.0), mode="linear")
    assert y[0, 0, 0].tolist() == [1, 1.5, 2, 2]
    assert infer_op("Upsample", 1, TensorType("int8", ("n", 1, 2, 2)), height_scale=2.0, width_scale=1.5)[0].shape == (
        "n", 1, 4, 3,
    )  # fmt: skip
    assert infer_op("Upsample", 9, TensorType("int8", (1, 2)), TensorType("float32", (2,)))[0].shape == (None, None)
    with pytest.raises(ShapeError, match="1 or more"):
        run_op("Upsample", 9, x, floats(1, 1, 0.5, 1))
    with pytest.raises(ShapeError, match="height_scale"):
        infer_op("Upsample", 1, TensorType("int8", (1, 1, 2, 2)))
