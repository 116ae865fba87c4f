"""Random tensors (RandomNormal, RandomUniform and their Like forms, Multinomial, Bernoulli), Dropout, and the tensors
that are made from sizes alone: EyeLike and Range.

Random operators draw from the Mersenne Twister of NumPy, whose streams never change: a node with a `seed` gives the
same values at each run and on each machine; without one, each run draws anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.numeric import (
    FLOATS,
    NUMBERS,
    check_count,
    check_same_type,
    check_type,
    kind_of,
    narrow,
    require,
    require_same_type,
    scalar_of,
    widen,
)
from minifer.ops.registry import Call, Context, Declined, Op, deferred, register
from minifer.ops.shapes import product

identity, write = deferred("lower_move", "identity", "write")

_PRECISION = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}  # bits of a float's significand
_DROPPABLE = FLOATS + dtypes.FLOAT8


def generator(seed: float | None) -> np.random.RandomState:
    """The source of random numbers for a `seed` attribute: a whole number from 0 to 2^32 - 1 seeds it as it is,
    any other value by its bits. None seeds it from the operating system."""
    if seed is None:
        return np.random.RandomState()
    if float(seed).is_integer() and 0 <= seed < 2**32:
        return np.random.RandomState(int(seed))
    return np.random.RandomState(np.array([seed], np.int64 if isinstance(seed, int) else np.float64).view(np.uint32))


def _float_kind(code: int | None, fallback: str | None) -> str:
    kind = dtypes.name_of_code(code) if code else fallback
    if kind not in FLOATS:
        raise InputError(f"random values are floats, not {kind}; set dtype to one of {', '.join(FLOATS)}")
    return kind


def _normal_values(shape, kind, mean, scale, seed):
    return narrow(generator(seed).normal(size=shape) * scale + mean, dtypes.to_numpy(kind))


def _uniform_values(shape, kind, low, high, seed):
    """low + (high - low) * u, where u has no more bits than the element type, so that it does not round up to 1."""
    steps = 2.0 ** _PRECISION[kind]
    u = np.floor(generator(seed).uniform(size=shape) * steps) / steps
    return narrow(low + (high - low) * u, dtypes.to_numpy(kind))


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if any(d < 0 for d in shape):
        raise InputError(f"shape {tuple(shape)} has a negative size")
    return tuple(int(d) for d in shape)


def _random_normal(*, shape, dtype=1, mean=0.0, scale=1.0, seed=None):
    return _normal_values(_checked_shape(shape), _float_kind(dtype, None), mean, scale, seed)


def _random_uniform(*, shape, dtype=1, low=0.0, high=1.0, seed=None):
    return _uniform_values(_checked_shape(shape), _float_kind(dtype, None), low, high, seed)


def _random_normal_like(x, *, dtype=None, mean=0.0, scale=1.0, seed=None):
    return _normal_values(x.shape, _float_kind(dtype, kind_of(x)), mean, scale, seed)


def _random_uniform_like(x, *, dtype=None, low=0.0, high=1.0, seed=None):
    return _uniform_values(x.shape, _float_kind(dtype, kind_of(x)), low, high, seed)


def _multinomial(x, *, dtype=6, sample_size=1, seed=None):
    """Inversion: the class whose interval of the cumulated probabilities a uniform number falls into."""
    require(x, FLOATS)
    if x.ndim != 2:
        raise ShapeError(f"needs a matrix [batch, classes], got shape {x.shape}")
    kind = _index_kind(dtype)
    if sample_size < 0:
        raise InputError(f"sample_size is {sample_size}; it must not be negative")
    logits = widen(x).astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    edges = np.cumsum(weights, axis=1)
    totals = edges[:, -1:] if x.shape[1] else np.zeros((x.shape[0], 1))
    if not (np.isfinite(totals) & (totals > 0)).all():
        raise InputError("a row of log-probabilities holds no class, NaN, +inf, or -inf alone")
    draws = generator(seed).uniform(size=(x.shape[0], sample_size)) * totals
    rows = [np.searchsorted(edge, draw, side="right") for edge, draw in zip(edges, draws)]
    picked = np.array(rows, np.int64).reshape(draws.shape)
    return np.minimum(picked, x.shape[1] - 1).astype(dtypes.to_numpy(kind))


def _index_kind(code: int) -> str:
    kind = dtypes.name_of_code(code)
    if kind not in ("int32", "int64"):
        raise InputError(f"dtype is {kind}; it must be int32 or int64")
    return kind


def _bernoulli(x, *, dtype=None, seed=None):
    require(x, FLOATS)
    probability = widen(x)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise InputError("probabilities must be in [0, 1]")
    kind = _draw_kind(dtype, kind_of(x))
    return narrow(generator(seed).uniform(size=x.shape) < probability, dtypes.to_numpy(kind))


def _draw_kind(code: int | None, fallback: str) -> str:
    kind = dtypes.name_of_code(code) if code else fallback
    if kind not in (*NUMBERS, "bool"):
        raise InputError(f"dtype is {kind}; it must be a number type or bool")
    return kind


def _eye_like(x, *, dtype=None, k=0):
    if x.ndim != 2:
        raise ShapeError(f"needs a matrix, got shape {x.shape}")
    kind = _draw_kind(dtype, kind_of(x))
    rows, columns = x.shape
    return narrow(np.eye(rows, columns, max(-rows, min(k, columns)), dtype=np.int8), dtypes.to_numpy(kind))


def _range_parts(start: Any, limit: Any, delta: Any) -> tuple[Any, Any, int]:
    """First value, step and number of values of a Range, from 0-d arrays. InputError for a step of 0 or NaN."""
    first, last, step = (widen(scalar_of(v, name))[()] for name, v in
                         (("start", start), ("limit", limit), ("delta", delta)))  # fmt: skip
    if not step:
        raise InputError("delta is 0")
    if first.dtype.kind in "iu":
        return int(first), int(step), max(-((int(first) - int(last)) // int(step)), 0)
    count = float(last - first) / float(step)  # the difference is rounded to the element type
    if not math.isfinite(count):
        raise InputError(f"start {first}, limit {last} and delta {step} give no finite number of values")
    return float(first), float(step), max(math.ceil(count), 0)


def _range(start, limit, delta):
    require(start, NUMBERS)
    require_same_type(start, limit, delta)
    first, step, count = _range_parts(start, limit, delta)
    return narrow(first + np.arange(count) * step, start.dtype)


def _range_27(start, limit, delta, *, stash_type=1):
    """float16 and bfloat16 are computed wider than any stash_type asks for, and rounded once."""
    return _range(start, limit, delta)


def _dropped(x, ratio, seed):
    """Elements with probability 1 - ratio, scaled by 1 / (1 - ratio), and the mask of those kept."""
    if not 0 <= ratio < 1:
        raise InputError(f"ratio is {ratio}; it must be in [0, 1)")
    kept = generator(seed).uniform(size=x.shape) >= ratio
    wide = widen(x)
    return narrow(np.where(kept, wide * wide.dtype.type(1 / (1 - ratio)), 0), x.dtype), np.asarray(kept)


def _dropout_1(x, *, ratio=0.5, is_test=0):
    require(x, _DROPPABLE)
    if is_test:
        return x, np.ones(x.shape, x.dtype)
    y, mask = _dropped(x, ratio, None)
    return y, mask.astype(x.dtype)


def _dropout_7(x, *, ratio=0.5):
    require(x, _DROPPABLE)
    return x, np.ones(x.shape, x.dtype)


def _dropout_10(x, *, ratio=0.5):
    require(x, _DROPPABLE)
    return x, np.ones(x.shape, bool)


def _dropout_12(x, ratio=None, training_mode=None, *, seed=None, ctx: Context):
    require(x, _DROPPABLE)
    share = 0.5 if ratio is None else float(widen(scalar_of(ratio, "ratio")))
    if training_mode is None or not scalar_of(training_mode, "training_mode") or share == 0:
        return x, np.ones(x.shape, bool) if ctx.wants(1) else None
    return _dropped(x, share, seed)


def _shape_types(call: Call) -> Type:
    check_count(call, 0, 0)
    shape = call.attr("shape")
    if shape is None or any(d < 0 for d in shape):
        raise call.fail("attribute 'shape' is missing or has a negative size")
    return TensorType(_checked(call, lambda: _float_kind(call.attr("dtype", 1), None)), tuple(shape))


def _like_types(call: Call) -> Type:
    check_count(call, 1, 1)
    kind = call.tensor(0)
    return TensorType(_checked(call, lambda: _float_kind(call.attr("dtype"), kind.dtype)), kind.shape)


def _checked(call: Call, function):
    """A value that raises InputError where an attribute is wrong: the error names the node."""
    try:
        return function()
    except (InputError, ShapeError) as error:
        raise call.fail(str(error)) from error


def _multinomial_types(call: Call) -> Type:
    check_count(call, 1, 1)
    shape = check_type(call, 0, FLOATS).shape
    if shape is not None and len(shape) != 2:
        raise call.fail("needs a matrix [batch, classes]")
    size = call.attr("sample_size", 1)
    if size < 0:
        raise call.fail(f"sample_size is {size}; it must not be negative")
    return TensorType(_checked(call, lambda: _index_kind(call.attr("dtype", 6))), (shape[0] if shape else None, size))


def _bernoulli_types(call: Call) -> Type:
    check_count(call, 1, 1)
    kind = check_type(call, 0, FLOATS)
    return TensorType(_checked(call, lambda: _draw_kind(call.attr("dtype"), kind.dtype)), kind.shape)


def _eye_types(call: Call) -> Type:
    check_count(call, 1, 1)
    kind = call.tensor(0)
    if kind.shape is not None and len(kind.shape) != 2:
        raise call.fail("needs a matrix")
    out = _checked(call, lambda: _draw_kind(call.attr("dtype"), kind.dtype))
    return TensorType(out, kind.shape or (None, None))


def _range_types(call: Call) -> Type:
    check_count(call, 3, 3)
    check_type(call, 0, NUMBERS)
    kind = check_same_type(call, 0, 1, 2)
    for i in range(3):
        if product(call.shape(i) or ()) not in (1, None):
            raise call.fail(f"input {i} must be a scalar")
    values = [call.value(i) for i in range(3)]
    known = all(v is not None for v in values)
    count: Dim = _checked(call, lambda: _range_parts(*values)[2]) if known else None
    return TensorType(kind, (count,))


def _dropout_types(mask: str | None):
    """Types of Dropout; the mask has element type `mask`, or that of the data."""

    def infer(call: Call) -> list[Type]:
        check_count(call, 1, 3)
        kind = check_type(call, 0, _DROPPABLE)
        return [kind, TensorType(mask or kind.dtype, kind.shape)]

    return infer


for _name, _reference, _infer in (
    ("RandomNormal", _random_normal, _shape_types),
    ("RandomUniform", _random_uniform, _shape_types),
    ("RandomNormalLike", _random_normal_like, _like_types),
    ("RandomUniformLike", _random_uniform_like, _like_types),
):
    register(Op(_name, since=1, infer=_infer, reference=_reference, deterministic=False))
register(Op("Multinomial", since=7, infer=_multinomial_types, reference=_multinomial, deterministic=False))
register(Op("Bernoulli", since=15, infer=_bernoulli_types, reference=_bernoulli, deterministic=False))

register(Op("EyeLike", since=9, infer=_eye_types, reference=_eye_like))
register(Op("Range", since=11, infer=_range_types, reference=_range))
register(Op("Range", since=27, infer=_range_types, reference=_range_27))


def _lower_dropout(low):
    """Dropout that drops nothing."""
    training = low.value(2) if low.has(2) else np.array(False)
    if low.node.version < 7:
        training = np.array(not low.attr("is_test", 0))
    if training is None or np.any(training):
        return Declined("random numbers are drawn by the reference")
    if low.wants(1):
        ones = np.ones(1, dtypes.to_numpy(low.out_type(1).dtype))
        write(low, low.const(ones), 0, [(n, 0) for n in low.out_shape(1)], low.output(1))
    return identity(low)


register(
    Op("Dropout", since=1, infer=_dropout_types(None), reference=_dropout_1, deterministic=False,
       ignore=("consumed_inputs",), lower=_lower_dropout)
)  # fmt: skip
register(Op("Dropout", since=7, infer=_dropout_types(None), reference=_dropout_7, lower=_lower_dropout))
register(Op("Dropout", since=10, infer=_dropout_types("bool"), reference=_dropout_10, lower=_lower_dropout))
register(
    Op("Dropout", since=12, infer=_dropout_types("bool"), reference=_dropout_12, deterministic=False,
       lower=_lower_dropout)
)  # fmt: skip
