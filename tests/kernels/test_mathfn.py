"""Elementary functions: the error bounds that their docstrings state, special values, compiled = plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minifer.codegen import library
from minifer.kernels import mathfn
from minifer.kernels.simd import Vec, lanes, vload, vstore
from minifer.kernels.spec import i64, kernel, ptr_f32

SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38], np.float32)
SMALLEST_NORMAL, LARGEST = 1.1754944e-38, 3.4028235e38


def erf(x):
    return np.vectorize(math.erf, otypes=[float])(x)


#: functions that may flush denormal results to 0
FLUSHING = ("exp_negative", "sigmoid", "softplus")

#: name -> (float64 function, relative error, range)
RELATIVE = {
    "exp": (np.exp, 1e-7, (-110, 95)),
    "exp_negative": (np.exp, 1e-7, (-120, 0)),
    "expm1": (np.expm1, 1.5e-7, (-20, 90)),
    "log": (np.log, 1.2e-7, (0, 100)),
    "log1p": (np.log1p, 2e-7, (-1, 100)),
    "tanh": (np.tanh, 3e-7, (-10, 10)),
    "erf": (erf, 4e-7, (-5, 5)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2e-7, (-95, 20)),
    "softplus": (lambda x: np.logaddexp(0, x), 3e-7, (-95, 90)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.2e-7, (1e-30, 100)),
}


def samples(low, high, special=True):
    """Even and random numbers of a range, small ones around 0, and random bit patterns and special values if wanted."""
    rng = np.random.default_rng(0)
    parts = [np.linspace(low, high, 20011), rng.uniform(low, high, 20000), rng.uniform(low, high, 5000) * 1e-4]
    if special:
        parts += [rng.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32), SPECIAL]
    return np.concatenate([p.astype(np.float32) for p in parts])


def check_relative(got, exact, bound, denormal_error=1.5e-45):
    """|got - exact| <= bound * |exact| where the result is a normal number, <= denormal_error where it is denormal."""
    normal = (np.abs(exact) >= SMALLEST_NORMAL) & (np.abs(exact) <= LARGEST)
    error = np.abs(got.astype(np.float64) - exact)
    assert (error[normal] <= bound * np.abs(exact[normal])).all()
    tiny = np.abs(exact) < SMALLEST_NORMAL
    assert (error[tiny] <= denormal_error).all()
    rest = ~(normal | tiny | ((np.abs(exact) > LARGEST) & np.isfinite(exact)))
    np.testing.assert_array_equal(got[rest], exact[rest].astype(np.float32))


@pytest.mark.parametrize("name", RELATIVE)
def test_error_bound(name):
    exactly, bound, span = RELATIVE[name]
    x = samples(*span)
    if name == "exp_negative":
        x = -np.abs(x)
    if name == "rsqrt":
        x = x[x > 0]
    with np.errstate(all="ignore"):
        got = np.asarray(getattr(mathfn, name)(x.view(Vec)))
        check_relative(got, exactly(x.astype(np.float64)), bound, SMALLEST_NORMAL if name in FLUSHING else 1.5e-45)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_circular(name):
    x = np.concatenate([samples(-(2.0**20), 2.0**20, special=False), samples(-10, 10, special=False), SPECIAL[:5]])
    with np.errstate(all="ignore"):
        got = np.asarray(getattr(mathfn, name)(x.view(Vec)))
        exact = getattr(np, name)(x.astype(np.float64))
    np.testing.assert_allclose(got, exact, rtol=0, atol=1.5e-7)


def test_pow():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, (2, 20000), dtype=np.uint32).view(np.float32)
    np.nan_to_num(bits, copy=False)
    x = np.concatenate([bits[0], np.repeat(SPECIAL, SPECIAL.size), rng.integers(-9, 10, 5000), rng.uniform(0, 3, 5000)])
    y = np.concatenate([bits[1], np.tile(SPECIAL, SPECIAL.size), rng.integers(-9, 10, 5000), rng.normal(0, 50, 5000)])
    with np.errstate(all="ignore"):
        x, y = x.astype(np.float32), y.astype(np.float32)
        got = np.asarray(mathfn.pow(x.view(Vec), y.view(Vec)))
        check_relative(got, np.power(x.astype(np.float64), y.astype(np.float64)), 1.5e-7)


def make_kernel(name):
    """A kernel that applies a function to vectors, and to numbers at the end."""
    function = getattr(mathfn, name)

    def body(x: ptr_f32, y: ptr_f32, n: i64, tid: i64, nthreads: i64):
        whole = n // lanes(x) * lanes(x)
        for i in range(0, whole, lanes(x)):
            vstore(y, i, function(vload(x, i)))
        for i in range(whole, n):
            y[i] = function(x[i])

    return kernel(name=f"test_mathfn_{name}")(body)


COMPILED = {name: make_kernel(name) for name in (*RELATIVE, "sin", "cos")}


@kernel(name="test_mathfn_pow")
def power(x: ptr_f32, y: ptr_f32, n: i64, tid: i64, nthreads: i64):
    whole = n // lanes(x) * lanes(x)
    for i in range(0, whole, lanes(x)):
        vstore(y, i, mathfn_pow(vload(x, i), vload(y, i)))
    for i in range(whole, n):
        y[i] = mathfn_pow(x[i], y[i])


mathfn_pow = mathfn.pow


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    """Compiled vectors and numbers give what the Python meaning gives, up to fused rounding."""
    span = RELATIVE[name][2] if name in RELATIVE else (-1000, 1000)
    x = np.concatenate([SPECIAL, samples(*span, special=False)[::13], SPECIAL[:7]])
    if name in ("exp_negative", "rsqrt"):
        x = np.abs(x) * np.float32(-1 if name == "exp_negative" else 1)
    y = np.zeros_like(x)
    assert library.run(COMPILED[name], {"x": x, "y": y, "n": x.size}) == 0
    with np.errstate(all="ignore"):
        plain = np.asarray(getattr(mathfn, name)(x.view(Vec)))
    np.testing.assert_allclose(y, plain, rtol=3e-7, atol=1e-37 if name in RELATIVE else 1e-7)


def test_compiled_pow():
    x = np.concatenate([np.repeat(SPECIAL, SPECIAL.size), np.linspace(-4, 5, 1003, dtype=np.float32)])
    y = np.concatenate([np.tile(SPECIAL, SPECIAL.size), np.rint(np.linspace(-9, 9, 1003)).astype(np.float32)])
    with np.errstate(all="ignore"):
        plain = np.asarray(mathfn.pow(x.view(Vec), y.view(Vec)))
    assert library.run(power, {"x": x, "y": y, "n": x.size}) == 0
    np.testing.assert_allclose(y, plain, rtol=2e-7)
