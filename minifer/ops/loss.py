"""Losses: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss, accumulated in float64."""

from __future__ import annotations

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType, Type
from minifer.ops.numeric import (
    FLOATS,
    check_count,
    check_same_type,
    check_type,
    equal_shape,
    narrow,
    require,
    require_same_type,
    widen,
)
from minifer.ops.registry import Call, Context, Op, register

_INDICES = ("int32", "int64")
_REDUCTIONS = ("none", "sum", "mean")


def _check(x, target, weight, reduction):
    require(x, FLOATS, "the scores")
    require(target, _INDICES, "the target")
    if reduction not in _REDUCTIONS:
        raise InputError(f"reduction is {reduction!r}; it must be one of {', '.join(_REDUCTIONS)}")
    if x.ndim < 2 or target.shape != x.shape[:1] + x.shape[2:]:
        raise ShapeError(f"scores of shape {x.shape} [N, C, ...] do not fit targets of shape {target.shape} [N, ...]")
    if weight is not None:
        require_same_type(x, weight)
        if weight.shape != x.shape[1:2]:
            raise ShapeError(f"weight has shape {weight.shape}; it needs one value for each of {x.shape[1]} classes")


def _likelihood_loss(log_probability, target, weight, reduction, ignore_index):
    """The loss, in float64, of float64 log-probabilities [N, C, ...] for the classes `target` [N, ...]."""
    classes = log_probability.shape[1]
    counted = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    index = np.where(counted, target, 0)
    if counted.any() and (classes == 0 or ((index < 0) | (index >= classes)).any()):
        raise InputError(f"a target class is outside [0, {classes}) and is not ignore_index")
    if classes == 0:
        picked = np.zeros(target.shape)
    else:
        picked = np.take_along_axis(log_probability, np.expand_dims(index, 1), 1).squeeze(1)
    factor = counted.astype(np.float64) if weight is None or not classes else np.where(counted, weight[index], 0)
    loss = np.where(counted, -picked * factor, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / factor.sum()


def _negative_log_likelihood(x, target, weight=None, *, reduction="mean", ignore_index=None):
    _check(x, target, weight, reduction)
    wide = None if weight is None else widen(weight).astype(np.float64)
    return narrow(_likelihood_loss(widen(x).astype(np.float64), target, wide, reduction, ignore_index), x.dtype)


def _softmax_cross_entropy(x, labels, weight=None, *, reduction="mean", ignore_index=None, ctx: Context):
    _check(x, labels, weight, reduction)
    scores = widen(x).astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True, initial=-np.inf)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    wide = None if weight is None else widen(weight).astype(np.float64)
    loss = narrow(_likelihood_loss(log_probability, labels, wide, reduction, ignore_index), x.dtype)
    return loss, narrow(log_probability, x.dtype) if ctx.wants(1) else None


def _loss_types(call: Call) -> list[Type]:
    check_count(call, 2, 3)
    kind = check_type(call, 0, FLOATS)
    check_type(call, 1, _INDICES)
    shape, target = kind.shape, call.shape(1)
    reduction = call.attr("reduction", "mean")
    if reduction not in _REDUCTIONS:
        raise call.fail(f"reduction is {reduction!r}; it must be one of {', '.join(_REDUCTIONS)}")
    if shape is not None and len(shape) < 2:
        raise call.fail("scores must have shape [N, C, ...]")
    samples = equal_shape(call, None if shape is None else shape[:1] + shape[2:], target)
    if call.has(2):
        check_same_type(call, 0, 2)
        equal_shape(call, None if shape is None else shape[1:2], call.shape(2))
    return [TensorType(kind.dtype, samples if reduction == "none" else ()), kind]


def _first(infer):
    return lambda call: infer(call)[0]


register(
    Op("NegativeLogLikelihoodLoss", since=12, infer=_first(_loss_types), reference=_negative_log_likelihood),
)
register(Op("SoftmaxCrossEntropyLoss", since=12, infer=_loss_types, reference=_softmax_cross_entropy))
