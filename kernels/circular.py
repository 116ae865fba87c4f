"""Circular, hyperbolic and inverse functions on float32 vectors, composed of those in mathfn.py.

Every function takes a vector or a number (f32) and returns the same. NaN gives NaN, infinities the limits, arguments
outside of a function's domain NaN. The two polynomials are minimax fits made for this file (Lawson-weighted least
squares in float64). Range reductions: Muller, "Elementary Functions", chapters 9 and 10.
"""

from __future__ import annotations

from minifer.kernels.mathfn import cos, exp, expm1, log, log1p, sin
from minifer.kernels.simd import like, vabs, vcopysign, vfma, vselect, vsqrt

_HALF_PI, _QUARTER_PI = 1.5707963267948966, 0.7853981633974483
_LN2 = 0.6931471805599453
#: beyond it 1 is lost beside the square of a float32
_LARGE = 1e4


def tan(x):
    """Tangent. Relative error <= 5e-7 for |x| <= 2**20."""
    return sin(x) / cos(x)


def _atan_part(t):
    """atan(t) for |t| <= tan(pi / 8); relative error 2e-8 beside roundings."""
    z = t * t
    p = vfma(z, 8.060307920658671e-2, -1.387984968290248e-1)
    p = vfma(p, z, 1.997792605350175e-1)
    p = vfma(p, z, -3.3332955252866864e-1)
    return vfma(p * z, t, t)


def atan(x):
    """Inverse tangent. Relative error <= 2e-7."""
    a = vabs(x)
    one = like(x, 1.0)
    far, middle = a > like(x, 2.414213562373095), a > like(x, 0.41421356237309503)
    t = vselect(far, (one - one - one) / a, vselect(middle, (a - one) / (a + one), a))
    base = vselect(far, like(x, _HALF_PI), vselect(middle, like(x, _QUARTER_PI), like(x, 0.0)))
    return vcopysign(base + _atan_part(t), x)


def _asin_part(s, z):
    """asin(s) for 0 <= s <= 1/2 and z = s * s; relative error 5e-9 beside roundings."""
    p = vfma(z, 4.221857774888199e-2, 2.4147594973446207e-2)
    p = vfma(p, z, 4.547709998440132e-2)
    p = vfma(p, z, 7.495241762106454e-2)
    p = vfma(p, z, 1.66667539281274e-1)
    return vfma(p * z, s, s)


def _asin_steps(x):
    """(mask of |x| > 1/2, asin of the argument brought below 1/2)."""
    a = vabs(x)
    far = a > like(x, 0.5)
    z = vselect(far, (like(x, 1.0) - a) * like(x, 0.5), a * a)
    return far, _asin_part(vselect(far, vsqrt(z), a), z)


def asin(x):
    """Inverse sine. Relative error <= 2e-7."""
    far, p = _asin_steps(x)
    return vcopysign(vselect(far, like(x, _HALF_PI) - (p + p), p), x)


def acos(x):
    """Inverse cosine. Error <= 2e-7, relative near 1."""
    far, p = _asin_steps(x)
    near = like(x, _HALF_PI) - vcopysign(p, x)
    return vselect(far, vselect(x > like(x, 0.0), p + p, like(x, 2 * _HALF_PI) - (p + p)), near)


def sinh(x):
    """Hyperbolic sine. Relative error <= 5e-7."""
    a = vabs(x)
    t = expm1(a)
    one = like(x, 1.0)
    near = (t + t / (t + one)) * like(x, 0.5)
    e = exp(a * like(x, 0.5))  # the square of the half: e**a overflows before the result does
    return vcopysign(vselect(a < like(x, 20.0), near, e * like(x, 0.5) * e), x)


def cosh(x):
    """Hyperbolic cosine. Relative error <= 5e-7."""
    e = exp(vabs(x) * like(x, 0.5))
    half = like(x, 0.5)
    return e * half * e + half / (e * e)


def asinh(x):
    """Inverse hyperbolic sine. Relative error <= 5e-7."""
    a = vabs(x)
    one = like(x, 1.0)
    square = a * a
    near = log1p(a + square / (one + vsqrt(square + one)))
    return vcopysign(vselect(a < like(x, _LARGE), near, log(a) + like(x, _LN2)), x)


def acosh(x):
    """Inverse hyperbolic cosine. Relative error <= 5e-7."""
    t = x - like(x, 1.0)
    near = log1p(t + vsqrt(t * t + (t + t)))
    return vselect(x < like(x, _LARGE), near, log(x) + like(x, _LN2))


def atanh(x):
    """Inverse hyperbolic tangent. Relative error <= 5e-7."""
    a = vabs(x)
    return vcopysign(log1p((a + a) / (like(x, 1.0) - a)) * like(x, 0.5), x)
