"""Linear models and scaling of ai.onnx.ml: LinearClassifier, LinearRegressor, Normalizer, Scaler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minifer.errors import InputError, ModelError
from minifer.ir import TensorType, Type
from minifer.ops.ml_scores import (
    ML,
    class_labels,
    feature_rows,
    label_type,
    row_count,
    same_shape_as_input,
    transform_scores,
    two_scores,
)
from minifer.ops.registry import Call, Op, register


def _scores(x: np.ndarray, coefficients: Sequence[float], intercepts: Sequence[float], targets: int) -> np.ndarray:
    """x @ coefficients^T + intercepts: (rows, targets), float64."""
    rows = feature_rows(x)
    if targets < 1 or len(coefficients) != targets * rows.shape[1]:
        raise InputError(
            f"{len(coefficients)} coefficients do not fit {targets} targets and input rows of {rows.shape[1]} features"
        )
    if len(intercepts) not in (0, targets):
        raise ModelError(f"there are {len(intercepts)} intercepts for {targets} targets")
    scores = rows @ np.array(coefficients, np.float64).reshape(targets, -1).T
    return scores + np.array(intercepts, np.float64) if len(intercepts) else scores


def _classifier(
    x,
    *,
    coefficients,
    intercepts=(),
    classlabels_ints=(),
    classlabels_strings=(),
    multi_class=0,
    post_transform="NONE",
):
    """Returns labels (rows,) and scores (rows, classes).

    One row of coefficients with two labels scores the second class; the first gets 1 - score.
    """
    labels = class_labels(classlabels_strings, classlabels_ints)
    features = max(feature_rows(x).shape[1], 1)
    targets = len(intercepts) or len(coefficients) // features
    if targets != len(labels) and not (targets == 1 and len(labels) == 2):
        raise ModelError(f"{len(labels)} class labels do not fit {targets} rows of coefficients")
    scores = _scores(x, coefficients, intercepts, targets)
    if targets == 1 and len(labels) == 2:
        winners = (scores[:, 0] > 0).astype(np.int64)
        scores = two_scores(scores[:, 0], post_transform, complement=True)
    else:
        winners = scores.argmax(1)
        scores = transform_scores(scores, post_transform)
    return labels[winners], scores.astype(np.float32)


def _infer_classifier(call: Call) -> list[Type]:
    rows = row_count(call)
    dtype, classes = label_type(call, "classlabels_strings", "classlabels_ints")
    return [TensorType(dtype, (rows,)), TensorType("float32", (rows, classes))]


def _regressor(x, *, coefficients=(), intercepts=(), targets=1, post_transform="NONE"):
    scores = _scores(x, coefficients, intercepts, targets)
    return transform_scores(scores, post_transform).astype(np.float32)


def _infer_regressor(call: Call) -> Type:
    return TensorType("float32", (row_count(call), call.attr("targets", 1)))


def _normalizer(x, *, norm="MAX"):
    """Each row (or the one row of a rank-1 tensor) divided by its norm; rows whose norm is zero stay as they are.

    MAX divides by the largest value, L1 by the sum of magnitudes, L2 by the Euclidean length.
    """
    if x.ndim not in (1, 2):
        raise InputError(f"the input must have shape [N, C] or [C], not {list(x.shape)}")
    wide = x.astype(np.float64)
    if norm == "MAX":
        size = wide.max(axis=-1, keepdims=True, initial=-np.inf)
    elif norm == "L1":
        size = np.abs(wide).sum(axis=-1, keepdims=True)
    elif norm == "L2":
        size = np.sqrt(np.square(wide).sum(axis=-1, keepdims=True))
    else:
        raise ModelError(f"norm must be MAX, L1 or L2, not {norm!r}")
    return (wide / np.where(size == 0, 1, size)).astype(np.float32)


def _scaler(x, *, offset=(), scale=()):
    """(x - offset) * scale, each with one entry for all features or one for each (the last axis)."""
    features = x.shape[-1] if x.ndim else 1
    for name, values in (("offset", offset), ("scale", scale)):
        if len(values) not in (0, 1, features):
            raise InputError(f"{name} has {len(values)} entries for {features} features; 1 or all are needed")
    shift = np.array(offset or (0.0,), np.float64)
    factor = np.array(scale or (1.0,), np.float64)
    return ((x.astype(np.float64) - shift) * factor).astype(np.float32).reshape(x.shape)


register(Op("LinearClassifier", since=1, infer=_infer_classifier, reference=_classifier, domain=ML))
register(Op("LinearRegressor", since=1, infer=_infer_regressor, reference=_regressor, domain=ML))
register(Op("Normalizer", since=1, infer=same_shape_as_input("float32"), reference=_normalizer, domain=ML))
register(Op("Scaler", since=1, infer=same_shape_as_input("float32"), reference=_scaler, domain=ML))
