"""Elementwise functions of one number: roots, powers, trigonometry, rounding, sign, error function."""

from __future__ import annotations

import functools
import math

import numpy as np

from minifer.ops.numeric import FLOATS, NUMBERS, SIGNED, narrow, require, unary_types, widen
from minifer.ops.registry import Op, deferred, register

lower_activation, lower_unary = deferred("lower_elementwise", "lower_activation", "lower_unary")

_STEP, _REACH, _DEGREE = 1 / 16, 6.0, 10  # erf is 1 in double precision beyond 5.93


@functools.cache
def _erf_table() -> np.ndarray:
    """Taylor coefficients of erf around the multiples of _STEP up to _REACH: shape (_DEGREE + 1, nodes).

    The derivatives of erf are Hermite polynomials times the bell curve (Abramowitz and Stegun 7.1.19):
    erf^(n+1)(a) = 2/sqrt(pi) (-1)^n H_n(a) e^(-a^2).
    """
    nodes = np.arange(0, _REACH + _STEP, _STEP)
    bell = 2 / math.sqrt(math.pi) * np.exp(-nodes * nodes)
    hermite = [np.ones_like(nodes), 2 * nodes]
    for n in range(1, _DEGREE):
        hermite.append(2 * nodes * hermite[n] - 2 * n * hermite[n - 1])
    rows = [np.array([math.erf(a) for a in nodes])]
    rows += [(-1) ** n * hermite[n] * bell / math.factorial(n + 1) for n in range(_DEGREE)]
    return np.stack(rows)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function of a float array, in float64; relative error below 1e-15."""
    x = np.asarray(x, np.float64)
    a = np.abs(x)
    node = np.rint(np.minimum(np.where(np.isnan(a), 0, a), _REACH) / _STEP).astype(np.intp)
    h = np.minimum(a, _REACH) - node * _STEP
    table = _erf_table()
    y = table[_DEGREE][node]
    for n in range(_DEGREE - 1, -1, -1):
        y = y * h + table[n][node]
    return np.copysign(y, x)


def _elementwise(function, allowed):
    """A reference that applies `function` to each element (small floats in float32)."""

    def reference(x):
        require(x, allowed)
        return narrow(function(widen(x)), x.dtype)

    return reference


_FLOAT_OPS = {
    "Acos": (7, np.arccos), "Acosh": (9, np.arccosh), "Asin": (7, np.arcsin), "Asinh": (9, np.arcsinh),
    "Atan": (7, np.arctan), "Atanh": (9, np.arctanh), "Sin": (7, np.sin), "Cos": (7, np.cos), "Tan": (7, np.tan),
    "Sinh": (9, np.sinh), "Cosh": (9, np.cosh), "Tanh": (1, np.tanh), "Exp": (1, np.exp), "Log": (1, np.log),
    "Sqrt": (1, np.sqrt), "Reciprocal": (1, lambda x: 1 / x), "Ceil": (1, np.ceil), "Floor": (1, np.floor),
    "Round": (11, np.rint),
}  # fmt: skip
_OPS = {name: (since, function, FLOATS) for name, (since, function) in _FLOAT_OPS.items()} | {
    "Abs": (1, np.abs, NUMBERS),
    "Neg": (1, np.negative, SIGNED),
    "Sign": (9, np.sign, NUMBERS),
    "Erf": (9, erf, NUMBERS),
}
_LOWER = {"Tanh": lower_activation.of("TANH")}
for _name, (_since, _function, _allowed) in _OPS.items():
    register(
        Op(
            _name,
            since=_since,
            infer=unary_types(_allowed),
            reference=_elementwise(_function, _allowed),
            lower=_LOWER.get(_name) or lower_unary.of(_name.lower()),
            ignore=("consumed_inputs",),
        )
    )
