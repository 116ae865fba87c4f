"""AffineGrid and GridSample: identities, padding, odd types, errors."""

import numpy as np
import pytest

from minifer.dtypes import to_numpy
from minifer.errors import MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def ints(*values):
    return np.array(values, np.int64)


def identity_grid(*spatial, align_corners):
    rank = len(spatial)
    theta = np.concatenate([np.eye(rank), np.zeros((rank, 1))], 1)[None].astype(np.float32)
    return run_op("AffineGrid", 20, theta, ints(1, 1, *spatial), align_corners=align_corners)[0]


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("spatial", [(4, 5), (2, 3, 4), (1, 5)])
def test_the_identity_map_samples_each_pixel(align_corners, mode, spatial):
    x = np.random.default_rng(6).standard_normal((1, 2, *spatial))
    grid = identity_grid(*spatial, align_corners=align_corners)
    for padding in ("zeros", "border", "reflection"):
        (y,) = run_op("GridSample", 20, x, grid, mode=mode, padding_mode=padding, align_corners=align_corners)
        np.testing.assert_allclose(y, x, atol=2e-6)


def test_affine_grid():
    theta = np.array([[[1, 0, 10], [0, 1, 20]]], np.float16)
    (y,) = run_op("AffineGrid", 20, theta, ints(1, 1, 1, 2))
    assert y.dtype == np.float16 and y.tolist() == [[[[9.5, 20], [10.5, 20]]]]
    (y,) = run_op("AffineGrid", 20, theta, ints(1, 1, 1, 2), align_corners=1)
    assert y.tolist() == [[[[9, 20], [11, 20]]]]
    kinds = TensorType("float32", ("n", 2, 3)), TensorType("int64", (4,))
    assert infer_op("AffineGrid", 20, *kinds)[0].shape == ("n", None, None, 2)
    assert infer_value("AffineGrid", 20, theta, ints(1, 9, 4, 5))[0].shape == (1, 4, 5, 2)
    for size, message in ((ints(2, 1, 3, 3), "theta"), (ints(1, 1, 3), "size"), (ints(1, 1, -3, 3), "size")):
        with pytest.raises(ShapeError, match=message):
            run_op("AffineGrid", 20, theta, size)


def test_padding_of_one_line():
    """Places -2, 0.5 and 6 pixels of a line of four, corners aligned."""
    x = np.array([[[10.0, 20.0, 30.0, 40.0]]])
    grid = (np.array([[-2.0, 0.5, 6.0]])[..., None]) * 2 / 3 - 1
    for padding, expected in (("zeros", [0, 15, 0]), ("border", [10, 15, 40]), ("reflection", [30, 15, 10])):
        (y,) = run_op("GridSample", 20, x, grid, align_corners=1, padding_mode=padding)
        np.testing.assert_allclose(y[0, 0], expected, atol=1e-9)


def test_values_that_are_no_places():
    x = np.arange(1.0, 5.0).reshape(1, 1, 2, 2)
    grid = np.array([[[[np.nan, np.nan], [np.inf, 0], [-np.inf, 1e30]]]])
    for mode in ("nearest", "linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            (y,) = run_op("GridSample", 20, x, grid, mode=mode, padding_mode=padding)
            assert np.isfinite(y).all()


def test_nearest_moves_any_type_and_rounds_to_even():
    x = np.array([[["a", "b", "c"]]], object)
    grid = np.array([[[-0.5], [0.5], [9.0]]])  # places 0.5 and 1.5, and one outside
    assert run_op("GridSample", 20, x, grid, mode="nearest", align_corners=1)[0].tolist() == [[["a", "c", ""]]]
    small = np.ones((1, 1, 2, 2)).astype(to_numpy("bfloat16"))
    assert run_op("GridSample", 16, small, np.zeros((1, 1, 1, 2), np.float32))[0].dtype == small.dtype
    assert run_op("GridSample", 16, np.full((1, 1, 2, 2), 3, np.uint8), np.zeros((1, 1, 1, 2)))[0].tolist() == [[[[3]]]]


def test_grid_sample_shapes_and_errors():
    x, grid = np.zeros((1, 2, 3, 4)), np.zeros((1, 5, 6, 2))
    assert run_op("GridSample", 16, x, grid[:, :0])[0].shape == (1, 2, 0, 6)
    kinds = TensorType("float32", ("n", 2, "h", "w")), TensorType("float32", (None, 5, "o", 2))
    assert infer_op("GridSample", 16, *kinds)[0].shape == ("n", 2, 5, "o")
    assert infer_op("GridSample", 16, kinds[0], TensorType("float32"))[0].shape == ("n", 2, None, None)
    for inputs, attrs, message in (
        ((x, grid[..., :1]), {}, "1 coordinates"),
        ((x, grid[0]), {}, "rank"),
        ((x, np.zeros((2, 5, 6, 2))), {}, "batches"),
        ((x[0], grid[0, ..., :1]), {}, "rank 4"),
        ((x, grid), {"mode": "trilinear"}, "'trilinear'"),
        ((x, grid), {"padding_mode": "wrap"}, "'wrap'"),
    ):
        with pytest.raises(MiniferError, match=message):
            run_op("GridSample", 16, *inputs, **attrs)
        with pytest.raises(ShapeError, match=message):
            infer_value("GridSample", 16, *inputs, **attrs)
    with pytest.raises(ShapeError, match="nothing to sample"):
        run_op("GridSample", 16, x[:, :, :0], grid)
