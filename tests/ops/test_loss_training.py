"""Losses and optimizer steps: small dtypes, ignored and wrong classes, several tensors at once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_value, run_op

RNG = np.random.default_rng(9)
NLL, SCE = "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"
DOMAIN = "ai.onnx.preview.training"


def test_losses_agree_with_each_other():
    scores = RNG.normal(size=(4, 5, 3))
    target = RNG.integers(0, 5, (4, 3))
    weight = RNG.uniform(0.5, 2, 5)
    log_probability = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    for reduction in ("none", "sum", "mean"):
        for ignored in ({}, {"ignore_index": 2}):
            attrs = {"reduction": reduction, **ignored}
            loss, logs = run_op(SCE, 13, scores, target, weight, outputs=2, **attrs)
            np.testing.assert_allclose(logs, log_probability, rtol=1e-12)
            np.testing.assert_allclose(loss, run_op(NLL, 13, logs, target, weight, **attrs)[0])
            kinds = infer_value(SCE, 13, scores, target, weight, outputs=2, **attrs)
            assert kinds[0] == TensorType("float64", loss.shape) and kinds[1].shape == scores.shape
    counted = target != 2
    picked = -np.take_along_axis(log_probability, target[:, None], 1)[:, 0]
    mean, _ = run_op(SCE, 13, scores, target, ignore_index=2)
    np.testing.assert_allclose(mean, picked[counted].mean())


def test_losses_of_small_and_empty_tensors():
    scores = np.array([[-1000, 0], [0, 0]]).astype(ml_dtypes.bfloat16)
    target = np.array([0, 1], np.int32)
    loss, _ = run_op(SCE, 13, scores, target, reduction="none")
    assert loss.dtype == scores.dtype
    np.testing.assert_allclose(loss.astype(float), [1000, np.log(2)], rtol=4e-3)
    assert run_op(NLL, 13, np.zeros((0, 3), np.float32), np.zeros(0, np.int64), reduction="sum")[0] == 0
    assert run_op(NLL, 13, np.zeros((2, 3), np.float32), np.array([-9, 1]), ignore_index=-9, reduction="none")[
        0
    ].shape == (2,)


def test_losses_refuse_wrong_classes_and_shapes():
    scores = np.zeros((2, 3), np.float32)
    for name in (NLL, SCE):
        for bad in (-1, 3):
            with pytest.raises(InputError, match=r"outside \[0, 3\)"):
                run_op(name, 13, scores, np.array([0, bad]))
        for action in (run_op, infer_value):
            with pytest.raises(ShapeError, match=r"(do not fit|must be equal)"):
                action(name, 13, scores, np.array([0]))
            with pytest.raises(ShapeError, match=r"(one value for each|must be equal)"):
                action(name, 13, scores, np.array([0, 1]), np.ones(2, np.float32))
            with pytest.raises((InputError, ShapeError), match="reduction is 'max'"):
                action(name, 13, scores, np.array([0, 1]), reduction="max")


def test_optimizers_take_groups_of_tensors():
    rate, count = np.array(0.1, np.float32), np.array(0, np.int64)
    x, y = np.array([1.0, 2.0]), np.array([[3.0]], np.float32)
    given = [x, y, x / 2, y / 2, x * 0, y * 0]
    attrs = dict(alpha=0.9, beta=2.0, mode="standard", norm_coefficient=0.0)
    new = run_op("Momentum", 1, rate, count, *given, domain=DOMAIN, outputs=4, **attrs)
    np.testing.assert_allclose(new[0], x * 0.95)
    np.testing.assert_allclose(new[1], y * 0.95, rtol=1e-6)
    assert [v.dtype for v in new] == [np.float64, np.float32] * 2
    nesterov = run_op("Momentum", 1, rate, count, *given, domain=DOMAIN, outputs=4, **{**attrs, "mode": "nesterov"})
    np.testing.assert_allclose(nesterov[0], x - 0.1 * 1.9 * x / 2)
    adam = run_op("Adam", 1, rate, count + 1, x, x, x * 0, x * 0, domain=DOMAIN, outputs=3, epsilon=0.0)
    np.testing.assert_allclose(adam[0], x - 0.1, rtol=1e-6)  # the first step has the length of the rate
    assert (
        infer_value("Adam", 1, rate, count, x, x, x, x, domain=DOMAIN, outputs=3) == [TensorType("float64", (2,))] * 3
    )


def test_optimizers_refuse_broken_groups():
    rate, count, x = np.array(0.1, np.float32), np.array(0, np.int64), np.zeros(2)
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="has 2 tensors; they must come in 3 groups"):
            action("Adagrad", 1, rate, count, x, x, domain=DOMAIN)
        with pytest.raises(ShapeError, match=r"(differ in shape|must be equal)"):
            action("Adagrad", 1, rate, count, x, x[:1], x, domain=DOMAIN)
    with pytest.raises(InputError, match="mode is 'fast'"):
        run_op(
            "Momentum", 1, rate, count, x, x, x, domain=DOMAIN, alpha=0.0, beta=0.0, mode="fast", norm_coefficient=0.0
        )
