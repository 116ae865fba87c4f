"""What the classifiers and regressors of ai.onnx.ml share: rows of features, score transforms, class labels.

Scores are computed in float64 and rounded once, to the output type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import InputError, ModelError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.registry import Call

ML = "ai.onnx.ml"
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def feature_rows(x: np.ndarray) -> np.ndarray:
    """Features as float64 (rows, features); a tensor of rank 1 is one row."""
    if x.ndim not in (1, 2):
        raise InputError(f"the input must have shape [N, F] or [F], not {list(x.shape)}")
    return np.atleast_2d(x).astype(np.float64)


def row_count(call: Call) -> Dim:
    """The number of rows of input 0 (see `feature_rows`), for type rules."""
    shape = call.shape(0)
    if shape is not None and len(shape) not in (1, 2):
        raise call.fail("the input must have shape [N, F] or [F]")
    return None if shape is None else shape[0] if len(shape) == 2 else 1


def need_features(x: np.ndarray, count: int) -> None:
    """InputError unless the rows of `x` have `count` features."""
    if x.shape[1] != count:
        raise InputError(f"the model has {count} features, and the input rows have {x.shape[1]}")


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=1, keepdims=True)


def _softmax_zero(x: np.ndarray) -> np.ndarray:
    """Softmax over the scores that are not zero; those that are (to 1e-7) stay zero."""
    alive = np.abs(x) > 1e-7
    e = np.where(alive, np.exp(x - x.max(axis=1, keepdims=True, initial=-np.inf)), 0)
    total = e.sum(axis=1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def _probit(x: np.ndarray) -> np.ndarray:
    """The inverse of the normal distribution function; NaN outside [0, 1]. (Rare, hence one value at a time.)"""
    from statistics import NormalDist

    inverse = NormalDist().inv_cdf
    edges = {0.0: -np.inf, 1.0: np.inf}
    values = [inverse(p) if 0 < p < 1 else edges.get(p, np.nan) for p in x.reshape(-1).tolist()]
    return np.array(values, np.float64).reshape(x.shape)


_FUNCTIONS = {"SOFTMAX": _softmax, "LOGISTIC": logistic, "SOFTMAX_ZERO": _softmax_zero, "PROBIT": _probit}


def transform_scores(scores: np.ndarray, name: str) -> np.ndarray:
    """Apply a `post_transform` to scores (rows, classes)."""
    if name not in TRANSFORMS:
        raise ModelError(f"post_transform must be one of {', '.join(TRANSFORMS)}, not {name!r}")
    return scores if name == "NONE" else _FUNCTIONS[name](scores)


def two_scores(score: np.ndarray, name: str, complement: bool) -> np.ndarray:
    """The scores (rows, 2) of two classes, of which a model scores only the second: `score` (rows,).

    With LOGISTIC (or PROBIT) the score is transformed and the first class gets what remains to 1. Otherwise
    the first class gets 1 - score where scores are probabilities (`complement`), and -score where they are not.
    """
    if name not in TRANSFORMS:
        raise ModelError(f"post_transform must be one of {', '.join(TRANSFORMS)}, not {name!r}")
    if name == "LOGISTIC":
        return np.stack([logistic(-score), logistic(score)], 1)
    if name == "PROBIT":
        return np.stack([1 - _probit(score), _probit(score)], 1)
    return np.stack([1 - score if complement else -score, score], 1)


def class_labels(strings: Sequence[str], integers: Sequence[int]) -> np.ndarray:
    """The labels as an int64 array or an object array of str; exactly one list may be given."""
    if bool(strings) == bool(integers):
        raise ModelError("class labels must be given either as strings or as integers")
    if integers:
        return np.array(integers, np.int64)
    labels = np.empty(len(strings), object)
    labels[:] = strings
    return labels


def label_type(call: Call, strings: str, integers: str) -> tuple[str, int]:
    """(element type of the labels, how many there are), from the names of the two attributes."""
    given = [call.attr(strings, ()), call.attr(integers, ())]
    if bool(given[0]) == bool(given[1]):
        raise call.fail(f"needs one of {strings} and {integers}, and only one")
    return ("string", len(given[0])) if given[0] else ("int64", len(given[1]))


def exactly_one(**given: Any) -> tuple[str, Any]:
    """The (name, value) of the one argument that is neither None nor empty; ModelError otherwise."""
    present = [(k, v) for k, v in given.items() if v is not None and len(v)]
    if len(present) != 1:
        found = ", ".join(k for k, _ in present) or "none"
        raise ModelError(f"exactly one of {', '.join(given)} must be given, and there is {found}")
    return present[0]


def same_shape_as_input(dtype: str | None = None) -> Any:
    """A type rule: the shape of input 0, with element type `dtype` or that of input 0."""

    def infer(call: Call) -> Type:
        return TensorType(dtype or call.dtype(0), call.shape(0))

    return infer
