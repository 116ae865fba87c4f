"""Random tensors, Dropout, EyeLike, Range: distributions, seeds, and arguments out of range."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minifer.dtypes import code_of_name, to_numpy
from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import find
from tests.ops.helpers import infer_op, infer_value, run_op

SHAPE = (40, 50)
LIKE = np.zeros(SHAPE, np.float32)


def scalars(*values, dtype=np.float32):
    return [np.array(v, dtype) for v in values]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_distributions(kind):
    code = code_of_name(kind)
    (normal,) = run_op("RandomNormal", 22, shape=SHAPE, mean=3.0, scale=2.0, dtype=code)
    (uniform,) = run_op("RandomUniformLike", 22, LIKE, low=-1.0, high=3.0, dtype=code)
    assert normal.dtype == uniform.dtype == to_numpy(kind) and normal.shape == uniform.shape == SHAPE
    normal, uniform = normal.astype(float), uniform.astype(float)
    assert abs(normal.mean() - 3) < 0.25 and abs(normal.std() - 2) < 0.2
    assert abs(uniform.mean() - 1) < 0.15 and uniform.min() >= -1 and uniform.max() < 3
    (unit,) = run_op("RandomUniform", 22, shape=(100_000,), dtype=code)
    assert unit.astype(float).max() < 1
    expected = [TensorType(kind, SHAPE)]
    assert infer_op("RandomNormal", 22, shape=SHAPE, dtype=code) == expected
    assert infer_value("RandomNormalLike", 22, LIKE, dtype=code) == expected


@pytest.mark.parametrize(
    "name, inputs, attrs",
    [("RandomNormal", (), {"shape": SHAPE}), ("RandomUniform", (), {"shape": SHAPE}),
     ("RandomNormalLike", (LIKE,), {}), ("RandomUniformLike", (LIKE,), {}),
     ("Bernoulli", (LIKE + 0.5,), {}), ("Multinomial", (LIKE,), {"sample_size": 5})],
)  # fmt: skip
def test_a_seed_gives_the_same_values_again(name, inputs, attrs):
    def draw(**seed):
        return run_op(name, 15, *inputs, **attrs, **seed)[0]

    np.testing.assert_array_equal(draw(seed=7.0), draw(seed=7.0))
    assert (draw(seed=7.0) != draw(seed=7.5)).any() and (draw() != draw()).any()
    op = find("", name, 15)
    assert op is not None and not op.deterministic


def test_bernoulli():
    p = np.array([0, 1, 0.25] * 4000)
    for code in (1, 9, 7):
        (y,) = run_op("Bernoulli", 22, p, dtype=code)
        y = y.astype(float).reshape(-1, 3)
        assert set(y.ravel()) == {0, 1} and not y[:, 0].any() and y[:, 1].all() and abs(y[:, 2].mean() - 0.25) < 0.04
    assert run_op("Bernoulli", 15, p.astype(np.float16))[0].dtype == np.float16
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(InputError, match=r"must be in \[0, 1\]"):
            run_op("Bernoulli", 15, np.array([bad]))


def test_multinomial():
    weights = np.array([[0.1, 1e-300, 0.6, 0.3], [1, 1, 1, 1]])
    (y,) = run_op("Multinomial", 7, np.log(weights), sample_size=20_000, seed=1.0, dtype=7)
    assert y.shape == (2, 20_000) and y.dtype == np.int64
    shares = np.stack([np.bincount(row, minlength=4) / 20_000 for row in y])
    np.testing.assert_allclose(shares, weights / weights.sum(1, keepdims=True), atol=0.02)
    assert infer_value("Multinomial", 7, np.log(weights), sample_size=3) == [TensorType("int32", (2, 3))]
    for bad in (np.full((1, 2), -np.inf), np.full((1, 2), np.nan), np.zeros((1, 0))):
        with pytest.raises(InputError, match="row of log-probabilities"):
            run_op("Multinomial", 7, bad)
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match="needs a matrix"):
            action("Multinomial", 7, np.zeros(3))
        with pytest.raises((InputError, ShapeError), match="must be int32 or int64"):
            action("Multinomial", 7, weights, dtype=1)


def test_random_types_that_make_no_sense():
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="random values are floats, not int64"):
            action("RandomNormalLike", 1, np.zeros(3, np.int64))
        with pytest.raises((InputError, ShapeError), match="negative size"):
            action("RandomUniform", 1, shape=(2, -1))


def test_dropout_through_the_ages():
    x = np.arange(1, 5, dtype=np.float32)
    y, mask = run_op("Dropout", 1, x, is_test=1, consumed_inputs=(0,), outputs=2)
    assert y.tolist() == x.tolist() and mask.dtype == np.float32
    big = np.ones(20_000, np.float32)
    y, mask = run_op("Dropout", 6, big, ratio=0.25, outputs=2)
    assert abs(mask.mean() - 0.75) < 0.03 and set(y.tolist()) == {0, np.float32(4 / 3)}
    y, mask = run_op("Dropout", 7, x, outputs=2)
    assert y.tolist() == x.tolist() and mask.tolist() == [1, 1, 1, 1] and mask.dtype == np.float32
    assert run_op("Dropout", 10, x, outputs=2)[1].dtype == bool
    assert run_op("Dropout", 12, x)[0].tolist() == x.tolist()
    assert infer_value("Dropout", 7, x, outputs=2) == [TensorType("float32", (4,))] * 2


def test_dropout_in_training():
    x = np.ones(1000, ml_dtypes.bfloat16)
    first = run_op("Dropout", 22, x, np.array(0.5), np.array(True), seed=3, outputs=2)
    again = run_op("Dropout", 22, x, np.array(0.5), np.array(True), seed=3, outputs=2)
    assert first[0].dtype == x.dtype and set(first[0].astype(float).tolist()) == {0, 2}
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[0] != 0, first[1])
    assert run_op("Dropout", 13, x, np.array(0.0), np.array(True), outputs=2)[1].all()
    with pytest.raises(InputError, match="ratio is 1"):
        run_op("Dropout", 13, x, np.array(1.0), np.array(True))
    with pytest.raises(ShapeError, match="ratio must be a scalar"):
        run_op("Dropout", 13, x, np.array([0.1, 0.2]), np.array(True))


def test_eye_like():
    x = np.zeros((2, 3), np.int32)
    assert run_op("EyeLike", 9, x)[0].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert run_op("EyeLike", 22, x, k=-1, dtype=16)[0].astype(int).tolist() == [[0, 0, 0], [1, 0, 0]]
    for far in (9, -9, 2**62):
        assert not run_op("EyeLike", 9, x, k=far)[0].any()
    for action in (run_op, infer_value):
        with pytest.raises(ShapeError, match="needs a matrix"):
            action("EyeLike", 9, x[0])
        with pytest.raises((InputError, ShapeError), match="dtype is string"):
            action("EyeLike", 9, x, dtype=8)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_range(dtype):
    for parts in ((3, 9, 3), (10, 4, -2), (4, 4, 1), (4, 3, 1), (0, 7, 2)):
        inputs = scalars(*parts, dtype=dtype)
        (y,) = run_op("Range", 27, *inputs)
        assert y.dtype == inputs[0].dtype and y.astype(int).tolist() == list(range(*parts))
        assert infer_value("Range", 27, *inputs) == [TensorType(infer_value("Identity", 1, y)[0].dtype, y.shape)]


def test_ranges_that_do_not_end():
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="delta is 0"):
            action("Range", 11, *scalars(0, 1, 0))
        with pytest.raises((InputError, ShapeError), match="no finite number"):
            action("Range", 11, *scalars(0, np.inf, 1))
        with pytest.raises((InputError, ShapeError), match="must be a scalar"):
            action("Range", 11, np.zeros(2), *scalars(1, 1, dtype=np.float64))
    unknown = [TensorType("float32", ())] * 3
    assert infer_op("Range", 11, *unknown) == [TensorType("float32", (None,))]
