"""Support vector machines of ai.onnx.ml: SVMClassifier and SVMRegressor.

Models come from libsvm (one decision for each pair of classes, through a kernel over support vectors) or, where
there are no support vectors, from liblinear (one linear score for each class).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minifer.errors import ModelError
from minifer.ir import TensorType, Type
from minifer.ops.ml_scores import (
    ML,
    class_labels,
    feature_rows,
    label_type,
    logistic,
    need_features,
    row_count,
    transform_scores,
    two_scores,
)
from minifer.ops.registry import Call, Op, register


def _kernel(x: np.ndarray, vectors: np.ndarray, kind: str, parameters: Sequence[float]) -> np.ndarray:
    """Kernel values of each row with each support vector: (rows, vectors).

    LINEAR <x, v>, POLY (gamma <x, v> + coef0)^degree, RBF exp(-gamma |x - v|^2), SIGMOID tanh(gamma <x, v> + coef0).
    """
    if len(parameters) not in (0, 3):
        raise ModelError(f"kernel_params must hold gamma, coef0 and degree, and has {len(parameters)} entries")
    gamma, coef0, degree = parameters or (0.0, 0.0, 0.0)
    if kind == "RBF":
        squares = np.square(x).sum(1)[:, None] + np.square(vectors).sum(1) - 2 * (x @ vectors.T)
        return np.exp(-gamma * np.maximum(squares, 0))
    dots = x @ vectors.T
    if kind == "LINEAR":
        return dots
    if kind == "POLY":
        return (gamma * dots + coef0) ** degree
    if kind == "SIGMOID":
        return np.tanh(gamma * dots + coef0)
    raise ModelError(f"kernel_type must be LINEAR, POLY, RBF or SIGMOID, not {kind!r}")


def _matrix(values: Sequence[float], rows: int, name: str) -> np.ndarray:
    """A list attribute as (rows, ...) float64."""
    if rows <= 0 or len(values) % rows:
        raise ModelError(f"{name} has {len(values)} entries, which {rows} rows do not divide")
    return np.array(values, np.float64).reshape(rows, -1)


# ------------------------------------------------------------------------------------------------------ regressor


def _regressor(
    x,
    *,
    coefficients=(),
    rho=(),
    support_vectors=(),
    n_supports=0,
    kernel_type="LINEAR",
    kernel_params=(),
    one_class=0,
    post_transform="NONE",
):
    """One score for each row, (rows, 1); with `one_class` +1 for inliers and -1 for outliers."""
    rows = feature_rows(x)
    shift = rho[0] if len(rho) else 0.0
    if n_supports > 0:
        vectors = _matrix(support_vectors, n_supports, "support_vectors")
        if len(coefficients) != n_supports:
            raise ModelError(f"there are {len(coefficients)} coefficients for {n_supports} support vectors")
        need_features(rows, vectors.shape[1])
        scores = _kernel(rows, vectors, kernel_type, kernel_params) @ np.array(coefficients, np.float64) + shift
    else:
        need_features(rows, len(coefficients))
        scores = rows @ np.array(coefficients, np.float64) + shift
    if one_class:
        return np.where(scores > 0, 1, -1).astype(np.float32)[:, None]
    return transform_scores(scores[:, None], post_transform).astype(np.float32)


def _infer_regressor(call: Call) -> Type:
    return TensorType("float32", (row_count(call), 1))


# ----------------------------------------------------------------------------------------------------- classifier


def _pairs(classes: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(classes) for j in range(i + 1, classes)]


def _decisions(kernel: np.ndarray, coefficients: np.ndarray, per_class: Sequence[int], rho: np.ndarray) -> np.ndarray:
    """One decision for each pair of classes, positive where the first of the two wins: (rows, pairs).

    `coefficients` (classes - 1, vectors): the row of a vector of class i against class j is j - 1 for j > i,
    and j for j < i.
    """
    ends = np.cumsum([0, *per_class])
    out = np.empty((len(kernel), len(rho)))
    for k, (i, j) in enumerate(_pairs(len(per_class))):
        of_i, of_j = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
        out[:, k] = kernel[:, of_i] @ coefficients[j - 1, of_i] + kernel[:, of_j] @ coefficients[i, of_j] + rho[k]
    return out


def _couple(decisions: np.ndarray, classes: int, prob_a: np.ndarray, prob_b: np.ndarray) -> np.ndarray:
    """Class probabilities from pairwise ones: (rows, classes).

    T.-F. Wu, C.-J. Lin, R. C. Weng, "Probability estimates for multi-class classification by pairwise coupling",
    JMLR 5 (2004), their second method (algorithm 2): minimise p^T Q p under sum(p) = 1, here for all rows at
    once, with the stopping rule of libsvm (0.005 / classes, 100 rounds at most).
    """
    pair = np.zeros((len(decisions), classes, classes))  # pair[:, i, j]: probability of i when it is i or j
    for k, (i, j) in enumerate(_pairs(classes)):
        first = (1 - logistic(decisions[:, k] * prob_a[k] + prob_b[k])).clip(1e-7, 1 - 1e-7)
        pair[:, i, j], pair[:, j, i] = first, 1 - first
    q = -pair * pair.transpose(0, 2, 1)
    diagonal = np.arange(classes)
    q[:, diagonal, diagonal] = np.square(pair).sum(1)
    p = np.full((len(decisions), classes), 1 / classes)
    running = np.arange(len(decisions))
    for _ in range(100):
        here, part = q[running], p[running]
        qp = np.einsum("nij,nj->ni", here, part)
        total = (part * qp).sum(1)
        going = np.abs(qp - total[:, None]).max(1, initial=0) >= 0.005 / classes
        if not going.any():
            break
        running, here, part, qp, total = running[going], here[going], part[going], qp[going], total[going]
        for t in range(classes):
            step = (total - qp[:, t]) / here[:, t, t]
            part[:, t] += step
            total = (total + step * (step * here[:, t, t] + 2 * qp[:, t])) / np.square(1 + step)
            qp = (qp + step[:, None] * here[:, t]) / (1 + step)[:, None]
            part /= (1 + step)[:, None]
        p[running] = part
    return p


def _classifier(
    x,
    *,
    classlabels_ints=(),
    classlabels_strings=(),
    coefficients=(),
    rho=(),
    prob_a=(),
    prob_b=(),
    support_vectors=(),
    vectors_per_class=(),
    kernel_type="LINEAR",
    kernel_params=(),
    post_transform="NONE",
):
    """Returns labels (rows,) and scores.

    Scores are class probabilities (rows, classes) with prob_a and prob_b, else the pairwise decisions
    (rows, pairs), which for two classes are (-decision, decision); without support vectors one linear score
    for each class. With support vectors the label is the class that wins most pairs (of equals the first).
    """
    labels = class_labels(classlabels_strings, classlabels_ints)
    rows, classes = feature_rows(x), len(labels)
    if sum(vectors_per_class) <= 0:
        weights = _matrix(coefficients, classes, "coefficients")
        need_features(rows, weights.shape[1])
        scores = rows @ weights.T + (rho[0] if len(rho) else 0.0)
        return labels[scores.argmax(1)], transform_scores(scores, post_transform).astype(np.float32)

    pairs = classes * (classes - 1) // 2
    _check_pairs(classes, pairs, vectors_per_class, rho, prob_a, prob_b)
    vectors = _matrix(support_vectors, sum(vectors_per_class), "support_vectors")
    weights = _matrix(coefficients, classes - 1, "coefficients")
    if weights.shape[1] != len(vectors):
        raise ModelError(f"there are {weights.shape[1]} coefficients a row for {len(vectors)} support vectors")
    need_features(rows, vectors.shape[1])
    kernel = _kernel(rows, vectors, kernel_type, kernel_params)
    decisions = _decisions(kernel, weights, vectors_per_class, np.array(rho[:pairs], np.float64))
    votes = np.zeros((len(rows), classes), np.int64)
    for k, (i, j) in enumerate(_pairs(classes)):
        votes[np.arange(len(rows)), np.where(decisions[:, k] > 0, i, j)] += 1
    if len(prob_a):
        scores = _couple(decisions, classes, np.array(prob_a, np.float64), np.array(prob_b, np.float64))
        scores = transform_scores(scores, post_transform)
    elif classes == 2:
        scores = two_scores(decisions[:, 0], post_transform, complement=post_transform != "NONE")
    else:
        scores = transform_scores(decisions, post_transform)
    return labels[votes.argmax(1)], scores.astype(np.float32)


def _check_pairs(
    classes: int,
    pairs: int,
    vectors_per_class: Sequence[int],
    rho: Sequence[float],
    prob_a: Sequence[float],
    prob_b: Sequence[float],
) -> None:
    if classes < 2 or len(vectors_per_class) != classes or min(vectors_per_class) < 0:
        raise ModelError(f"vectors_per_class {list(vectors_per_class)} does not fit {classes} class labels")
    if len(rho) < pairs:
        raise ModelError(f"rho has {len(rho)} entries for {pairs} pairs of classes")
    if len(prob_a) != len(prob_b) or 0 < len(prob_a) < pairs:
        raise ModelError(f"prob_a and prob_b have {len(prob_a)} and {len(prob_b)} entries for {pairs} pairs of classes")


def _infer_classifier(call: Call) -> list[Type]:
    rows = row_count(call)
    dtype, classes = label_type(call, "classlabels_strings", "classlabels_ints")
    columns = classes
    if sum(call.attr("vectors_per_class", ())) > 0 and not call.attr("prob_a") and classes > 2:
        columns = classes * (classes - 1) // 2
    return [TensorType(dtype, (rows,)), TensorType("float32", (rows, columns))]


register(Op("SVMClassifier", since=1, infer=_infer_classifier, reference=_classifier, domain=ML))
register(Op("SVMRegressor", since=1, infer=_infer_regressor, reference=_regressor, domain=ML))
