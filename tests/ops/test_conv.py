"""Convolutions against plain loops, at odd dtypes, shapes and settings, and with bad input."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from minifer.errors import ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def loop_conv(x, w, group=1, strides=None, dilations=None, pads=None):
    """The definition, one output element at a time, in float64."""
    rank = x.ndim - 2
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * 2 * rank
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:])]
    x, w = np.pad(x.astype(np.float64), around), w.astype(np.float64)
    filters, depth = w.shape[:2]
    out = [(d - (k - 1) * g - 1) // s + 1 for d, k, g, s in zip(x.shape[2:], w.shape[2:], dilations, strides)]
    y = np.zeros((x.shape[0], filters, *out))
    for n, m, *place in np.ndindex(*y.shape):
        first = m // (filters // group) * depth
        cut = tuple(
            slice(p * s, p * s + (k - 1) * g + 1, g) for p, s, k, g in zip(place, strides, w.shape[2:], dilations)
        )
        y[(n, m, *place)] = (x[(n, slice(first, first + depth), *cut)] * w[m]).sum()
    return y


def loop_conv_transpose(x, w, group=1, strides=None, dilations=None):
    """Every input element adds its multiple of the kernel; no cropping."""
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    per_group, depth = w.shape[1], x.shape[1] // group
    out = [(d - 1) * s + (k - 1) * g + 1 for d, s, k, g in zip(x.shape[2:], strides, w.shape[2:], dilations)]
    y = np.zeros((x.shape[0], per_group * group, *out))
    for n, c, *place in np.ndindex(*x.shape):
        first = c // depth * per_group
        for tap in np.ndindex(*w.shape[2:]):
            at = tuple(p * s + t * g for p, s, t, g in zip(place, strides, tap, dilations))
            y[(n, slice(first, first + per_group), *at)] += x[(n, c, *place)] * w[(c, slice(None), *tap)]
    return y


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("group", [1, 2])
def test_conv_equals_the_definition(rank, group):
    x, w, b = random(2, 4, *(5, 4, 3, 4)[:rank]), random(6, 4 // group, *(3, 2, 1, 2)[:rank]), random(6)
    settings = dict(strides=(2, 1, 1, 3)[:rank], dilations=(1, 2, 1, 1)[:rank])
    settings["pads"] = (1, 0, 2, 1)[:rank] + (0, 2, 1, 0)[:rank]
    (y,) = run_op("Conv", 11, x, w, b, group=group, **settings)
    want = loop_conv(x, w, group, **settings) + b.reshape(-1, *(1,) * rank)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert infer_value("Conv", 11, x, w, b, group=group, **settings) == [TensorType("float32", y.shape)]


def test_conv_depthwise_with_a_multiplier():
    x, w = random(1, 3, 6, 5), random(6, 1, 3, 3)
    (y,) = run_op("Conv", 1, x, w, group=3, pads=(1, 1, 1, 1), strides=(2, 1))
    np.testing.assert_allclose(y, loop_conv(x, w, 3, (2, 1), None, (1, 1, 1, 1)), rtol=1e-4, atol=1e-5)


def test_conv_in_blocks_equals_conv_at_once(monkeypatch):
    x, w = random(2, 3, 9, 7), random(4, 3, 3, 3)
    (whole,) = run_op("Conv", 11, x, w)
    monkeypatch.setattr("minifer.ops.conv._COLUMN_BYTES", 2000)
    np.testing.assert_allclose(run_op("Conv", 11, x, w)[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("auto_pad", "pads"), [("SAME_UPPER", (0, 1, 1, 1)), ("SAME_LOWER", (1, 1, 0, 1))])
def test_conv_same_padding_puts_the_odd_pixel_where_it_says(auto_pad, pads):
    x, w = random(1, 1, 6, 5), random(1, 1, 3, 3)
    (y,) = run_op("Conv", 11, x, w, auto_pad=auto_pad, strides=(2, 2), pads=(9, 9, 9, 9))
    np.testing.assert_allclose(y, loop_conv(x, w, 1, (2, 2), None, pads), rtol=1e-4, atol=1e-5)


def test_same_padding_never_crops_where_steps_exceed_the_kernel():
    x = np.arange(7, dtype=np.float32).reshape(1, 1, 7)
    (y,) = run_op("Conv", 11, x, np.ones((1, 1, 1), np.float32), auto_pad="SAME_UPPER", strides=(3,))
    np.testing.assert_array_equal(y.reshape(-1), [0, 3, 6])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_conv_keeps_the_type_and_sums_in_a_wide_one(dtype):
    x, w = np.full((1, 600, 2), 0.25).astype(dtype), np.ones((1, 600, 1)).astype(dtype)
    (y,) = run_op("Conv", 22, x, w)
    assert y.dtype == dtype and (y.astype(np.float64) == 150).all()


def test_conv_of_nothing():
    w = random(4, 3, 3)
    assert run_op("Conv", 11, random(0, 3, 5), w)[0].shape == (0, 4, 3)
    (y,) = run_op("Conv", 11, random(2, 3, 0), w, np.ones(4, np.float32))
    assert y.shape == (2, 4, 0)


def test_conv_type_rule_keeps_symbols():
    x, w = TensorType("float32", ("N", 3, "H", None)), TensorType("float32", (8, 3, 3, 3))
    kept = TensorType("float32", ("N", 8, "H", None))
    assert infer_op("Conv", 11, x, w, pads=(1, 1, 1, 1)) == [kept]
    assert infer_op("Conv", 11, x, w, auto_pad="SAME_UPPER") == [kept]
    assert infer_op("Conv", 11, x, w) == [TensorType("float32", ("N", 8, None, None))]
    assert infer_op("Conv", 11, TensorType("float32"), w) == [TensorType("float32", (None, 8, None, None))]


@pytest.mark.parametrize(
    ("shapes", "attrs", "says"),
    [
        (((1, 3, 5, 5), (4, 2, 3, 3)), {}, "3 channels"),
        (((1, 3, 2, 2), (4, 3, 3, 3)), {}, "spans 3"),
        (((1, 3, 5), (4, 3, 3, 3)), {}, "rank"),
        (((1, 3), (4, 3)), {}, "rank 2"),
        (((1, 4, 5, 5), (3, 2, 3, 3)), {"group": 2}, "do not divide"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"group": 0}, "group 0"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"pads": (1, 1)}, "pads"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"pads": (1, 1, -1, 1)}, "negative"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"strides": (0, 1)}, "strides"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"dilations": (1, 1, 1)}, "dilations"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"kernel_shape": (5, 5)}, "kernel_shape"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"auto_pad": "SAME"}, "auto_pad"),
        (((1, 3, 5, 5), (4, 3, 3, 3), (3,)), {}, "bias"),
    ],
)
def test_conv_refuses_what_does_not_fit(shapes, attrs, says):
    arrays = [np.ones(s, np.float32) for s in shapes]
    with pytest.raises(ShapeError, match=says):
        run_op("Conv", 11, *arrays, **attrs)
    with pytest.raises(ShapeError, match=says):
        infer_value("Conv", 11, *arrays, **attrs)


# --- ConvTranspose ---


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose_equals_the_definition(rank, group):
    x, w = random(2, 4, *(3, 4, 2)[:rank]), random(4, 3, *(3, 2, 2)[:rank])
    settings = dict(strides=(2, 3, 1)[:rank], dilations=(1, 1, 2)[:rank])
    full = loop_conv_transpose(x, w, group, **settings)
    (y,) = run_op("ConvTranspose", 11, x, w, group=group, **settings)
    np.testing.assert_allclose(y, full, rtol=1e-4, atol=1e-5)
    before, behind, more = (1, 0, 1)[:rank], (0, 1, 1)[:rank], (1, 2, 0)[:rank]
    cropped = full[(..., *(slice(b, None) for b in before))]
    wider = np.pad(cropped, [(0, 0)] * 2 + [(0, m) for m in more])
    want = wider[(..., *(slice(0, d - e) for d, e in zip(wider.shape[2:], behind)))]
    settings.update(pads=before + behind, output_padding=more, group=group)
    (y,) = run_op("ConvTranspose", 11, x, w, **settings)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert infer_value("ConvTranspose", 11, x, w, **settings) == [TensorType("float32", y.shape)]


def test_conv_transpose_output_shape_with_and_without_batch_and_channels():
    x, w = random(1, 2, 3, 3), random(2, 1, 3, 3)
    full = loop_conv_transpose(x, w, 1, (2, 2))  # 7 x 7
    for shape in ((6, 7), (1, 1, 6, 7)):  # one row too many: the larger part goes off the front
        (y,) = run_op("ConvTranspose", 11, x, w, strides=(2, 2), output_shape=shape)
        np.testing.assert_allclose(y, full[:, :, 1:], rtol=1e-4, atol=1e-5)
    (y,) = run_op("ConvTranspose", 11, x, w, strides=(2, 2), output_shape=(6, 7), auto_pad="SAME_UPPER")
    np.testing.assert_allclose(y, full[:, :, :6], rtol=1e-4, atol=1e-5)


def test_conv_transpose_same_multiplies_the_size():
    x, w = TensorType("float32", (1, 2, 5, "W")), TensorType("float32", (2, 1, 3, 3))
    out = infer_op("ConvTranspose", 11, x, w, strides=(2, 2), auto_pad="SAME_LOWER")
    assert out == [TensorType("float32", (1, 1, 10, None))]
    (y,) = run_op("ConvTranspose", 11, random(1, 2, 5, 4), random(2, 1, 3, 3), strides=(2, 2), auto_pad="SAME_LOWER")
    assert y.shape == (1, 1, 10, 8)


@pytest.mark.parametrize(
    ("shapes", "attrs", "says"),
    [
        (((1, 3, 5), (4, 1, 3)), {}, "3 channels"),
        (((1, 4, 5), (4, 1, 3)), {"group": 3}, "do not divide"),
        (((1, 4, 1), (4, 1, 3)), {"pads": (3, 3)}, "crop"),
        (((1, 4, 1), (4, 1, 3)), {"output_shape": (3, 3)}, "output_shape"),
        (((1, 4, 1), (4, 1, 3), (2,)), {}, "bias"),
    ],
)
def test_conv_transpose_refuses_what_does_not_fit(shapes, attrs, says):
    arrays = [np.ones(s, np.float32) for s in shapes]
    with pytest.raises(ShapeError, match=says):
        run_op("ConvTranspose", 11, *arrays, **attrs)
    with pytest.raises(ShapeError, match=says):
        infer_value("ConvTranspose", 11, *arrays, **attrs)


# --- quantised ---


@pytest.mark.parametrize("w_dtype", [np.uint8, np.int8])
def test_conv_integer_pads_with_the_zero_point(w_dtype):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (1, 2, 4, 4)).astype(np.uint8)
    w = rng.integers(0, 128, (3, 2, 3, 3)).astype(w_dtype)
    zeros = np.array([1, 2, 3], w_dtype)
    (y,) = run_op("ConvInteger", 10, x, w, np.array(7, np.uint8), zeros, pads=(1, 1, 1, 1))
    want = loop_conv(x.astype(int) - 7, w.astype(int) - zeros.astype(int).reshape(3, 1, 1, 1), pads=(1, 1, 1, 1))
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, want)


def test_qlinear_conv_rounds_to_even_and_saturates():
    x = np.array([1, 3, 5, 200], np.uint8).reshape(1, 1, 4)
    w, one = np.array([1], np.int8).reshape(1, 1, 1), np.array(1, np.float32)
    inputs = [x, one, np.array(0, np.uint8), w, np.ones(1, np.float32), np.zeros(1, np.int8)]
    (y,) = run_op("QLinearConv", 10, *inputs, np.array(2, np.float32), np.array(1, np.int8), np.array([0], np.int32))
    np.testing.assert_array_equal(y.reshape(-1), [1, 3, 3, 101])  # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 100
    (y,) = run_op("QLinearConv", 10, *inputs, one, np.array(1, np.int8))
    np.testing.assert_array_equal(y.reshape(-1), [2, 4, 6, 127])
    assert y.dtype == np.int8


def test_integer_convolutions_name_a_bad_zero_point():
    x, w = np.ones((1, 2, 4), np.uint8), np.ones((3, 2, 1), np.uint8)
    with pytest.raises(ShapeError, match="w_zero_point"):
        run_op("ConvInteger", 10, x, w, None, np.ones(2, np.uint8))
    with pytest.raises(ShapeError, match="x_zero_point"):
        run_op("ConvInteger", 10, x, w, np.ones(2, np.uint8))


# --- DeformConv and CausalConvWithState ---


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_deform_conv_without_offsets_is_conv(rank):
    x, w = random(2, 4, *(5, 4, 3)[:rank]), random(2, 2, *(3, 2, 2)[:rank])
    settings = dict(group=2, strides=(2, 1, 1)[:rank], pads=(1,) * 2 * rank)
    want = loop_conv(x, w, **settings)
    taps = int(np.prod(w.shape[2:]))
    offset = np.zeros((2, 2 * taps * rank, *want.shape[2:]), np.float32)
    (y,) = run_op("DeformConv", 19, x, w, offset, offset_group=2, **settings)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_deform_conv_interpolates_and_is_zero_outside():
    x = np.array([10, 20, 30], np.float32).reshape(1, 1, 3)
    offset = np.array([0.5, 5.0, np.nan], np.float32).reshape(1, 1, 3)
    half = np.full((1, 1, 3), 0.5, np.float32)
    (y,) = run_op("DeformConv", 22, x, np.ones((1, 1, 1), np.float32), offset, np.ones(1, np.float32), half)
    np.testing.assert_allclose(y.reshape(-1), [8.5, 1, 1])


def test_deform_conv_refuses_a_wrong_offset():
    x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((1, 2, 3, 3), np.float32)
    for run in (run_op, infer_value):
        with pytest.raises(ShapeError, match="offset has shape"):
            run("DeformConv", 19, x, w, np.ones((1, 9, 2, 2), np.float32))
        with pytest.raises(ShapeError, match="offset_group"):
            run("DeformConv", 19, x, w, np.ones((1, 54, 2, 2), np.float32), offset_group=3)


def test_causal_conv_in_pieces_equals_causal_conv_at_once():
    x, w, b = random(2, 3, 7), random(3, 1, 4), random(3)
    y, state = run_op("CausalConvWithState", 27, x, w, b, outputs=2, activation="silu")
    first, past = run_op("CausalConvWithState", 27, x[..., :2], w, b, outputs=2, activation="silu")
    second, last = run_op("CausalConvWithState", 27, x[..., 2:], w, b, past, outputs=2, activation="swish")
    np.testing.assert_allclose(np.concatenate([first, second], 2), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(last, state)
    with pytest.raises(ShapeError, match="past_state"):
        run_op("CausalConvWithState", 27, x, w, b, x, outputs=2)
    with pytest.raises(ShapeError, match="activation"):
        infer_value("CausalConvWithState", 27, x, w, outputs=2, activation="relu")


def test_all_paddings_and_strides_agree_with_their_type_rule():
    for auto_pad, size, kernel, stride in itertools.product(("VALID", "SAME_UPPER"), (4, 5), (1, 3), (1, 2, 3)):
        x, w = random(1, 1, size), random(1, 1, kernel)
        (y,) = run_op("Conv", 11, x, w, auto_pad=auto_pad, strides=(stride,))
        assert infer_value("Conv", 11, x, w, auto_pad=auto_pad, strides=(stride,)) == [TensorType("float32", y.shape)]
