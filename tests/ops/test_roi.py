"""MaxRoiPool and RoiAlign: plain loops, half pixels, errors."""

import math

import numpy as np
import pytest

from minifer.errors import MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def bilinear(image, y, x):
    height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("half", [True, False])
def test_roi_align_sample_by_sample(half):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, 1, 6, 7))
    start = rng.uniform(-1, 4, (5, 2))
    rois, index = np.concatenate([start, start + rng.uniform(0.5, 5, (5, 2))], 1), np.array([0, 1, 1, 0, 1])
    mode = "half_pixel" if half else "output_half_pixel"
    attrs = {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.5}
    (y,) = run_op("RoiAlign", 16, x, rois, index, coordinate_transformation_mode=mode, **attrs)
    for r, (left, top, right, bottom) in enumerate(rois * 0.5 - (0.5 if half else 0)):
        height, width = bottom - top, right - left
        if not half:
            height, width = max(height, 1), max(width, 1)
        for i, j in np.ndindex(2, 3):
            samples = [
                bilinear(x[index[r], 0], top + height * (i + (a + 0.5) / 2) / 2, left + width * (j + (b + 0.5) / 2) / 3)
                for a, b in np.ndindex(2, 2)
            ]
            assert abs(y[r, 0, i, j] - np.mean(samples)) < 1e-6
    if not half:
        assert np.array_equal(run_op("RoiAlign", 10, x, rois, index, **attrs)[0], y)


def test_roi_align_adapts_its_grid_and_keeps_types():
    x = np.arange(16.0, dtype=np.float16).reshape(1, 1, 4, 4)
    rois = np.array([[0.5, 0.5, 3.5, 3.5], [2, 2, 2, 2]], np.float16)
    (y,) = run_op("RoiAlign", 22, x, rois, np.array([0, 0]))
    assert y.dtype == np.float16 and y[0] == 7.5 and y[1] == 0  # an empty region has no samples
    assert run_op("RoiAlign", 22, x, rois[:0], np.zeros(0, np.int64))[0].shape == (0, 1, 1, 1)
    kinds = TensorType("float32", ("n", "c", 4, 4)), TensorType("float32", ("r", 4)), TensorType("int64", (5,))
    assert infer_op("RoiAlign", 16, *kinds, output_width=3)[0].shape == (5, "c", 1, 3)


def test_max_roi_pool():
    x = np.arange(36.0, dtype=np.float32).reshape(1, 1, 6, 6)
    rois = np.array([[0, 0, 0, 5, 5], [0, 1, 1, 3, 2], [0, 8, 8, 9, 9]], np.float32)
    (y,) = run_op("MaxRoiPool", 1, x, rois, pooled_shape=(2, 2))
    assert y[0, 0].tolist() == [[14, 17], [32, 35]]
    assert y[1, 0].tolist() == [[8, 9], [14, 15]]  # three columns: the cells share the middle one
    assert not y[2].any()  # outside the map
    assert infer_value("MaxRoiPool", 22, x, rois, pooled_shape=(2, 3))[0].shape == (3, 1, 2, 3)


@pytest.mark.parametrize(
    ("name", "inputs", "attrs", "message"),
    [
        ("RoiAlign", (np.zeros((1, 1, 4)), np.zeros((1, 4)), np.array([0])), {}, "rank 4"),
        ("RoiAlign", (np.zeros((1, 1, 4, 4)), np.zeros((1, 5)), np.array([0])), {}, "rois"),
        ("RoiAlign", (np.zeros((1, 1, 4, 4)), np.zeros((1, 4)), np.array([0, 0])), {}, "batch_indices"),
        ("RoiAlign", (np.zeros((1, 1, 4, 4)), np.zeros((1, 4)), np.array([0])), {"mode": "sum"}, "'sum'"),
        ("RoiAlign", (np.zeros((1, 1, 4, 4)), np.zeros((1, 4)), np.array([0])), {"output_width": 0}, "positive"),
        ("MaxRoiPool", (np.zeros((1, 1, 4, 4)), np.zeros((1, 4))), {"pooled_shape": (1, 1)}, "rois"),
        ("MaxRoiPool", (np.zeros((1, 1, 4, 4)), np.zeros((1, 5))), {"pooled_shape": (1,)}, "pooled_shape"),
    ],
)
def test_shapes_that_do_not_fit(name, inputs, attrs, message):
    with pytest.raises(MiniferError, match=message):
        run_op(name, 22, *inputs, **attrs)
    with pytest.raises(ShapeError, match=message):
        infer_value(name, 22, *inputs, **attrs)


def test_data_that_does_not_fit():
    x, roi = np.zeros((2, 1, 4, 4)), np.zeros((1, 4))
    with pytest.raises(MiniferError, match="batch of 2"):
        run_op("RoiAlign", 16, x, roi, np.array([2]))
    with pytest.raises(MiniferError, match="finite"):
        run_op("RoiAlign", 16, x, roi * np.nan, np.array([0]))
    with pytest.raises(MiniferError, match="batch of 2"):
        run_op("MaxRoiPool", 1, x, np.array([[-1.0, 0, 0, 1, 1]]), pooled_shape=(1, 1))
