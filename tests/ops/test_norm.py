"""Normalisations: old versions, training, odd types, and bad input, against the plain formula."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minifer.errors import MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def normalise(x, axes, epsilon):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + epsilon)


def channels(v, rank):
    return v.reshape(-1, *(1,) * (rank - 2))


PARAMETERS = random(3), random(3, seed=1), random(3, seed=2), np.abs(random(3, seed=3)) + 0.1


@pytest.mark.parametrize(
    ("version", "attrs"),
    [(1, {"is_test": 1, "consumed_inputs": (0, 0)}), (6, {}), (7, {}), (9, {}), (14, {}), (15, {})],
)
def test_batch_norm_with_given_statistics(version, attrs):
    x, (scale, bias, mean, var) = random(2, 3, 4, 5), PARAMETERS
    (y,) = run_op("BatchNormalization", version, x, *PARAMETERS, epsilon=0.01, **attrs)[:1]
    want = (x - channels(mean, 4)) / np.sqrt(channels(var, 4) + 0.01) * channels(scale, 4) + channels(bias, 4)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "attrs", "outputs"), [(6, {}, 5), (7, {}, 5), (9, {}, 5), (14, {"training_mode": 1}, 3)]
)
def test_batch_norm_in_training_takes_the_statistics_of_the_batch(version, attrs, outputs):
    x, (scale, bias, mean, var) = random(4, 3, 5), PARAMETERS
    out = run_op("BatchNormalization", version, x, *PARAMETERS, epsilon=0.01, momentum=0.75, outputs=outputs, **attrs)
    want = normalise(x, (0, 2), 0.01) * channels(scale, 3) + channels(bias, 3)
    np.testing.assert_allclose(out[0], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out[1], 0.75 * mean + 0.25 * x.mean((0, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out[2], 0.75 * var + 0.25 * x.var((0, 2)), rtol=1e-4)
    if outputs == 5:
        np.testing.assert_allclose(out[3], x.mean((0, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(out[4], x.var((0, 2)), rtol=1e-4)


def test_batch_norm_7_without_spatial_has_parameters_per_element():
    x = random(4, 3, 2)
    scale, bias, mean = (random(3, 2, seed=i) for i in range(3))
    var = np.abs(random(3, 2, seed=3)) + 0.1
    (y,) = run_op("BatchNormalization", 7, x, scale, bias, mean, var, spatial=0)[:1]
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)
    out = run_op("BatchNormalization", 7, x, scale, bias, mean, var, spatial=0, outputs=5)
    np.testing.assert_allclose(out[0], normalise(x, 0, 1e-5) * scale + bias, rtol=1e-3, atol=1e-4)
    assert out[1].shape == (3, 2)


def test_batch_norm_of_vectors_and_of_mixed_types():
    (y,) = run_op(
        "BatchNormalization", 9, np.array([1, 3], np.float32), *(np.array([v], np.float32) for v in (2, 1, 1, 4))
    )[:1]
    np.testing.assert_allclose(y, [1, 3], rtol=1e-4)
    x = random(2, 3).astype(np.float16)
    y, mean, var = run_op("BatchNormalization", 15, x, *PARAMETERS, training_mode=1, outputs=3)
    assert (y.dtype, mean.dtype, var.dtype) == (np.float16, np.float32, np.float32)
    types = infer_value("BatchNormalization", 15, x, *PARAMETERS, training_mode=1, outputs=3)
    assert types == [TensorType("float16", (2, 3)), TensorType("float32", (3,)), TensorType("float32", (3,))]


def test_instance_and_group_norm():
    x, scale, bias = random(2, 6, 4, 3), random(6, seed=1), random(6, seed=2)
    (y,) = run_op("InstanceNormalization", 1, x, scale, bias, epsilon=0.1, consumed_inputs=(0,))
    want = normalise(x, (2, 3), 0.1) * channels(scale, 4) + channels(bias, 4)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    groups = normalise(x.reshape(2, 3, -1), 2, 0.1)
    (y,) = run_op("GroupNormalization", 21, x, scale, bias, num_groups=3, epsilon=0.1)
    want = groups.reshape(x.shape) * channels(scale, 4) + channels(bias, 4)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    (y,) = run_op("GroupNormalization", 18, x, scale[:3], bias[:3], num_groups=3, epsilon=0.1)
    want = (groups * scale[:3, None] + bias[:3, None]).reshape(x.shape)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [-3, -1, 0, 1, 2])
def test_layer_and_rms_norm(axis):
    x, axes = random(2, 3, 4), tuple(range(axis % 3, 3))
    scale, bias = random(*x.shape[axis % 3 :], seed=1), random(4, seed=2)
    y, mean, inverse = run_op("LayerNormalization", 17, x, scale, bias, axis=axis, epsilon=0.1, outputs=3)
    np.testing.assert_allclose(y, normalise(x, axes, 0.1) * scale + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, x.mean(axes, keepdims=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(x.var(axes, keepdims=True) + 0.1), rtol=1e-4)
    (y,) = run_op("RMSNormalization", 23, x, scale, axis=axis, epsilon=0.1)
    want = x / np.sqrt((x**2).mean(axes, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    (y, _) = run_op("SimplifiedLayerNormalization", 1, x, scale, axis=axis, epsilon=0.1, outputs=2)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_statistics_have_the_stash_type():
    x = np.array([[1000, 1001]]).astype(np.float16)
    y, mean, inverse = run_op("LayerNormalization", 17, x, np.ones(2, np.float16), outputs=3)
    assert (y.dtype, mean.dtype, inverse.dtype) == (np.float16, np.float32, np.float32)
    np.testing.assert_array_equal(mean, [[1000.5]])
    np.testing.assert_allclose(y.astype(float), [[-1, 1]], rtol=1e-3)
    types = infer_value("LayerNormalization", 17, x, np.ones(2, np.float16), stash_type=16, outputs=3)
    assert [t.dtype for t in types] == ["float16", "bfloat16", "bfloat16"]
    out = run_op("LayerNormalization", 17, x, np.ones(2, np.float16), stash_type=16, outputs=3)
    assert out[1].dtype == ml_dtypes.bfloat16


def test_rms_norm_has_the_type_of_its_scale():
    (y,) = run_op("RMSNormalization", 23, random(2, 3).astype(np.float16), np.ones(3, np.float32))
    assert y.dtype == np.float32
    types = infer_op("RMSNormalization", 23, TensorType("float16", ("N", 3)), TensorType("float32", (3,)))
    assert types == [TensorType("float32", ("N", 3))]


def test_norms_of_nothing():
    empty = random(0, 3, 4)
    assert run_op("LayerNormalization", 17, empty, random(4), outputs=3)[1].shape == (0, 3, 1)
    assert run_op("InstanceNormalization", 6, empty, random(3), random(3))[0].shape == (0, 3, 4)
    assert run_op("BatchNormalization", 15, empty, *PARAMETERS)[0].shape == (0, 3, 4)
    assert np.isnan(run_op("LayerNormalization", 17, random(2, 0), random(0), outputs=3)[1]).all()


@pytest.mark.parametrize(
    ("name", "version", "inputs", "attrs", "says"),
    [
        ("BatchNormalization", 15, [(2, 3, 4), (3,), (3,), (3,), (2,)], {}, "variance has shape"),
        ("BatchNormalization", 9, [(2, 3, 4), (3, 1), (3,), (3,), (3,)], {}, "scale has shape"),
        ("InstanceNormalization", 6, [(2, 3, 4), (4,), (3,)], {}, "scale has shape"),
        ("InstanceNormalization", 6, [(2, 3), (3,), (3,)], {}, "rank 2"),
        ("GroupNormalization", 21, [(2, 4, 4), (4,), (4,)], {"num_groups": 3}, "do not divide"),
        ("GroupNormalization", 21, [(2, 4, 4), (2,), (4,)], {"num_groups": 2}, "scale has shape"),
        ("GroupNormalization", 18, [(2, 4, 4), (4,), (2,)], {"num_groups": 2}, "scale has shape"),
        ("GroupNormalization", 21, [(2, 4, 4), (4,), (4,)], {"num_groups": 0}, "num_groups 0"),
        ("LayerNormalization", 17, [(2, 3), (3,)], {"axis": 2}, "axis 2"),
        ("LayerNormalization", 17, [(2, 3), (4,)], {}, "does not broadcast"),
        ("LayerNormalization", 17, [(2, 3), (3,)], {"stash_type": 7}, "stash_type 7"),
        ("RMSNormalization", 23, [(2, 3), (1, 2, 3)], {}, "does not broadcast"),
    ],
)
def test_norms_refuse_what_does_not_fit(name, version, inputs, attrs, says):
    arrays = [np.ones(s, np.float32) for s in inputs]
    for run in (run_op, infer_value):
        with pytest.raises(ShapeError, match=says):
            run(name, version, *arrays, **attrs)


def test_an_attribute_of_another_version_is_named():
    with pytest.raises(MiniferError, match="spatial"):
        run_op("BatchNormalization", 9, random(2, 3, 4), *PARAMETERS, spatial=0)
