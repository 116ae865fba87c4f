"""Activations: functions of one number that networks put between their layers, and Clip, IsInf, IsNaN."""

from __future__ import annotations

import math

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType, Type
from minifer.ops.math import erf
from minifer.ops.numeric import (
    FLOATS,
    NUMBERS,
    check_count,
    check_fits,
    check_same_type,
    check_type,
    equal_shape,
    narrow,
    require,
    require_fits,
    require_same_type,
    scalar_of,
    unary_types,
    widen,
)
from minifer.ops.registry import Call, Op, deferred, register

(
    lower_activation, lower_binary, lower_clip, lower_clip_by_attributes, lower_gelu, lower_is_inf, lower_is_nan,
    lower_relu, lower_swish, lower_unary,
) = deferred(
    "lower_elementwise", "lower_activation", "lower_binary", "lower_clip", "lower_clip_by_attributes", "lower_gelu",
    "lower_is_inf", "lower_is_nan", "lower_relu", "lower_swish", "lower_unary",
)  # fmt: skip

_TESTABLE = FLOATS + dtypes.FLOAT8


def sigmoid(x):
    """1 / (1 + e^-x) of a float array, without overflow and exact to the last digits at both ends."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def softplus(x):
    """log(1 + e^x) of a float array, without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _activation(formula):
    """A reference from `formula(x, **attributes)`; small floats are computed in float32."""

    def wrap(x, *args, **attrs):
        require(x, FLOATS)
        return narrow(formula(widen(x), *args, **attrs), x.dtype)

    return wrap


_run_hard_sigmoid = _activation(lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1))
_run_leaky_relu = _activation(lambda x, alpha: np.where(x < 0, alpha * x, x))
_run_elu = _activation(lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x))
_run_celu = _activation(lambda x, alpha: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha)))
_run_selu = _activation(lambda x, alpha, gamma: gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))
_run_swish = _activation(lambda x, alpha: x * sigmoid(alpha * x))
_run_thresholded = _activation(lambda x, alpha: np.where(x > alpha, x, 0))
_run_gelu = _activation(lambda x: 0.5 * x * (1 + erf(x * math.sqrt(0.5))))
_run_gelu_tanh = _activation(lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


# Defaults of attributes are the float32 values that a file would carry.


def _hard_sigmoid(x, *, alpha=0.20000000298023224, beta=0.5):
    return _run_hard_sigmoid(x, alpha, beta)


def _hard_swish(x):
    return _activation(lambda v: v * np.clip(v / 6 + 0.5, 0, 1))(x)


def _leaky_relu(x, *, alpha=0.009999999776482582):
    return _run_leaky_relu(x, alpha)


def _elu(x, *, alpha=1.0):
    return _run_elu(x, alpha)


def _celu(x, *, alpha=1.0):
    if alpha == 0:
        raise InputError("alpha is 0, and the formula divides by it")
    return _run_celu(x, alpha)


def _selu_1(x, *, alpha=1.673200011253357, gamma=1.0506999492645264):
    return _run_selu(x, alpha, gamma)


def _selu(x, *, alpha=1.6732631921768188, gamma=1.0507010221481323):
    return _run_selu(x, alpha, gamma)


def _gelu(x, *, approximate="none"):
    if approximate not in ("none", "tanh"):
        raise InputError(f"approximate is {approximate!r}; it must be 'none' or 'tanh'")
    return _run_gelu_tanh(x) if approximate == "tanh" else _run_gelu(x)


def _swish(x, *, alpha=1.0):
    return _run_swish(x, alpha)


def _swiglu(a, b, *, alpha=1.0):
    require(a, FLOATS)
    require_same_type(a, b)
    if a.shape != b.shape:
        raise ShapeError(f"gate shape {a.shape} and value shape {b.shape} must be equal")
    wide = widen(a)
    return narrow(wide * sigmoid(alpha * wide) * widen(b), a.dtype)


def _thresholded_relu(x, *, alpha=1.0):
    return _run_thresholded(x, alpha)


def _relu(x):
    require(x, NUMBERS)
    wide = widen(x)
    return narrow(np.maximum(wide, wide.dtype.type(0)), x.dtype)


def _shrink(x, *, bias=0.0, lambd=0.5):
    require(x, NUMBERS)
    wide = widen(x) if x.dtype.kind not in "iu" else x.astype(np.float64)
    return narrow(np.where(wide < -lambd, wide + bias, np.where(wide > lambd, wide - bias, 0)), x.dtype)


def _slope_per_channel(x, slope):
    """PRelu-1: a slope of several values has one per channel (axis 1)."""
    if slope.size == 1:
        return slope.reshape(())
    if x.ndim < 2 or slope.size != x.shape[1]:
        raise ShapeError(f"slope has {slope.size} values; the input of shape {x.shape} needs 1 or one per channel")
    return slope.reshape((-1,) + (1,) * (x.ndim - 2))


def _prelu_1(x, slope):
    return _prelu(x, _slope_per_channel(x, slope))


def _prelu(x, slope):
    require(x, NUMBERS)
    require_same_type(x, slope)
    require_fits(slope.shape, x.shape, "slope")
    wide = widen(x)
    return narrow(np.where(wide < 0, wide * widen(slope), wide), x.dtype)


def _clip_between(x, low, high):
    require(x, NUMBERS)
    y = widen(x)
    if low is not None:
        y = np.maximum(y, low)
    if high is not None:
        y = np.minimum(y, high)
    return narrow(y, x.dtype)


def _clip_1(x, *, min=None, max=None):
    require(x, FLOATS)
    wide = widen(x).dtype.type
    return _clip_between(x, None if min is None else wide(min), None if max is None else wide(max))


def _clip(x, low=None, high=None):
    require_same_type(*(v for v in (x, low, high) if v is not None))
    bounds = [None if v is None else widen(scalar_of(v, name)) for name, v in (("min", low), ("max", high))]
    return _clip_between(x, *bounds)


def _is_inf(x, *, detect_negative=1, detect_positive=1):
    require(x, _TESTABLE)
    wide = widen(x)
    return np.asarray((bool(detect_positive) & (wide == np.inf)) | (bool(detect_negative) & (wide == -np.inf)))


def _is_nan(x):
    require(x, _TESTABLE)
    return np.asarray(np.isnan(widen(x)))


def _swiglu_types(call: Call) -> Type:
    check_count(call, 2, 2)
    check_type(call, 0, FLOATS)
    return TensorType(check_same_type(call, 0, 1), equal_shape(call, call.shape(0), call.shape(1)))


def _prelu_1_types(call: Call) -> TensorType:
    check_count(call, 2, 2)
    kind = check_type(call, 0, NUMBERS)
    check_same_type(call, 0, 1)
    return kind


def _prelu_types(call: Call) -> Type:
    kind = _prelu_1_types(call)
    check_fits(call, call.shape(1), kind.shape, "slope")
    return kind


def _checked_types(call: Call) -> Type:
    if call.node.op == "Celu" and call.attr("alpha", 1.0) == 0:
        raise call.fail("alpha is 0, and the formula divides by it")
    if call.node.op == "Gelu" and call.attr("approximate", "none") not in ("none", "tanh"):
        raise call.fail(f"approximate is {call.attr('approximate')!r}; it must be 'none' or 'tanh'")
    return unary_types(FLOATS)(call)


def _clip_types(call: Call) -> Type:
    check_count(call, 1, 3)
    kind = check_type(call, 0, NUMBERS)
    for i, name in ((1, "min"), (2, "max")):
        if call.has(i):
            check_same_type(call, 0, i)
            if any(isinstance(d, int) and d != 1 for d in call.shape(i) or ()):
                raise call.fail(f"{name} must be a scalar")
    return kind


_FLOAT_OPS = {
    ("Sigmoid", 1): _activation(sigmoid), ("HardSigmoid", 1): _hard_sigmoid, ("HardSwish", 14): _hard_swish,
    ("LeakyRelu", 1): _leaky_relu, ("Elu", 1): _elu, ("Celu", 12): _celu, ("Selu", 1): _selu_1, ("Selu", 6): _selu,
    ("Gelu", 20): _gelu, ("Mish", 18): _activation(lambda x: x * np.tanh(softplus(x))), ("Swish", 24): _swish,
    ("Softplus", 1): _activation(softplus), ("Softsign", 1): _activation(lambda x: x / (1 + np.abs(x))),
    ("ThresholdedRelu", 10): _thresholded_relu, ("Clip", 1): _clip_1,
}  # fmt: skip
_LOWER = {
    ("Sigmoid", 1): lower_activation.of("SIGMOID"),
    ("HardSigmoid", 1): lower_activation.of("HARD_SIGMOID", first=("alpha", 0.20000000298023224), second=("beta", 0.5)
    ),
    ("HardSwish", 14): lower_activation.of("HARD_SWISH", first=("", 1.0)),
    ("LeakyRelu", 1): lower_activation.of("LEAKY", first=("alpha", 0.009999999776482582)),
    ("Elu", 1): lower_activation.of("ELU", first=("alpha", 1.0)),
    ("Celu", 12): lower_unary.of("celu", first=("alpha", 1.0)),
    ("Selu", 1): lower_unary.of("selu", first=("alpha", 1.673200011253357), second=("gamma", 1.0506999492645264)),
    ("Selu", 6): lower_unary.of("selu", first=("alpha", 1.6732631921768188), second=("gamma", 1.0507010221481323)),
    ("Gelu", 20): lower_gelu, ("Mish", 18): lower_activation.of("MISH"), ("Swish", 24): lower_swish,
    ("Softplus", 1): lower_activation.of("SOFTPLUS"), ("Softsign", 1): lower_unary.of("softsign"),
    ("ThresholdedRelu", 10): lower_unary.of("thresholded_relu", first=("alpha", 1.0)),
    ("Clip", 1): lower_clip_by_attributes,
}  # fmt: skip
for (_name, _since), _reference in _FLOAT_OPS.items():
    _lower = _LOWER[_name, _since]
    register(Op(_name, _since, _reference, _checked_types, _lower, ignore=("consumed_inputs",)))
_infer = unary_types(NUMBERS)
register(Op("Relu", since=1, infer=_infer, reference=_relu, lower=lower_relu, ignore=("consumed_inputs",)))
_shrink_kernel = lower_unary.of("shrink", first=("bias", 0.0), second=("lambd", 0.5))
register(Op("Shrink", since=9, infer=_infer, reference=_shrink, lower=_shrink_kernel))
register(Op("SwiGLU", since=28, infer=_swiglu_types, reference=_swiglu))
register(Op("PRelu", since=1, infer=_prelu_1_types, reference=_prelu_1, ignore=("consumed_inputs",)))
register(Op("PRelu", since=7, infer=_prelu_types, reference=_prelu, lower=lower_binary.of("prelu")))
register(Op("Clip", since=11, infer=_clip_types, reference=_clip, lower=lower_clip))
register(Op("IsInf", since=10, infer=unary_types(_TESTABLE, "bool"), reference=_is_inf, lower=lower_is_inf))
register(Op("IsNaN", since=9, infer=unary_types(_TESTABLE, "bool"), reference=_is_nan, lower=lower_is_nan))
