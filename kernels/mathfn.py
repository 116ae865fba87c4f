"""Elementary functions on float32 vectors, composed of simd.py's primitives: no library is called.

Every function takes a vector or a number (f32) and returns the same. The polynomials and rational functions are
minimax fits made for this file (Lawson-weighted least squares in float64); the error bounds stated are those of the
whole function against the exact value, measured over the range and checked by tests/kernels/test_mathfn.py.
Infinities give the limits, NaN gives NaN. How ranges are reduced: Muller, "Elementary Functions", chapters 9 and 10.
"""

from __future__ import annotations

from minifer.kernels.simd import (
    bitcast,
    f32,
    f64,
    i32,
    i64,
    like,
    vabs,
    vall,
    vconvert,
    vcopysign,
    vfloor,
    vfma,
    vmax_quick,
    vmin_quick,
    vround,
    vselect,
    vsqrt,
)

INFINITY = float("inf")
NAN = float("nan")

#: adding it leaves the nearest integer in the low bits of the sum
_ROUND = 12582912.0
_ROUND_BITS = 0x4B400000
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440054690583e-4


def power_of_two(n):
    """2**n as f32 for i32 lanes n in [-126, 127]."""
    return bitcast((n + 127) << 23, f32)


def _exp_minus_one(r):
    """exp(r) - 1 for |r| <= ln(2) / 2; error of exp 3.1e-9. By Estrin's scheme: steps that do not wait for another."""
    square = r * r
    p = vfma(r, 8.36889911442995e-3, 4.166840389370918e-2)
    q = vfma(r, 1.666651964187622e-1, 4.999999403953552e-1)
    p = vfma(square, 1.3814221601933241e-3, p)
    return vfma(square, vfma(square, p, q), r)


#: log2(e) in two parts
_LOG2_E_HIGH, _LOG2_E_LOW = 1.44269502162933349609375, 1.925963033500e-8
#: adding it leaves the nearest integer plus 127, the exponent of its power of two, in the low bits of the sum
_EXPONENT = _ROUND + 127.0


def _exp_between(x):
    """e**x as 2**n * 2**f with x * log2(e) = n + f. Relative error 1e-7; 0 where n is -127, infinity where it is 128.

    The polynomial for 2**f is a minimax fit, error 2e-9, by Estrin's scheme.
    """
    shifted = vfma(x, _LOG2_E_HIGH, _EXPONENT)
    f = vfma(x, _LOG2_E_HIGH, like(x, _EXPONENT) - shifted)
    f = vfma(x, _LOG2_E_LOW, f)
    square = f * f
    p = vfma(f, 1.5353362255619138e-4, 1.3398874453502407e-3)
    q = vfma(f, 9.618437356774708e-3, 5.550332471060522e-2)
    r = vfma(f, 2.4022647913634781e-1, 6.931472028550665e-1)
    p = vfma(square, vfma(square, p, q), r)
    return vfma(p, f, 1.0) * bitcast(bitcast(shifted, i32) << 23, f32)


def exp(x):
    """e**x. Relative error <= 1e-7 (denormal results: one unit of the last place)."""
    return _exp_between(x) if vall(vabs(x) < like(x, 87.0)) else _exp_of_all(x)


def _exp_of_all(x):
    """e**x whose result may be denormal or infinite."""
    x = vmax_quick(-104.0, x)
    x = vmin_quick(89.0, x)
    shifted = vfma(x, _LOG2_E, _ROUND)
    n = bitcast(shifted, i32) - _ROUND_BITS
    whole = shifted - like(x, _ROUND)
    r = vfma(whole, -_LN2_HIGH, x)
    r = vfma(whole, -_LN2_LOW, r)
    p = _exp_minus_one(r) + like(x, 1.0)
    half = n >> 1  # 2**n in two factors: n reaches 128 and -150
    return p * power_of_two(half) * power_of_two(n - half)


def exp_negative(x):
    """e**x for x <= 0, as softmax needs it: cheaper. Relative error <= 1e-7; denormal results may become 0."""
    return _exp_between(vmax_quick(-88.0, x))


def expm1(x):
    """e**x - 1. Relative error <= 1.5e-7, also near 0."""
    x = vmax_quick(-18.0, x)
    x = vmin_quick(89.0, x)
    shifted = vfma(x, _LOG2_E, _ROUND)
    n = bitcast(shifted, i32) - _ROUND_BITS
    whole = shifted - like(x, _ROUND)
    r = vfma(whole, -_LN2_HIGH, x)
    r = vfma(whole, -_LN2_LOW, r)
    p = _exp_minus_one(r)
    half = power_of_two(n - 1)  # half the scale: n reaches 128
    result = vfma(half, p, half - like(x, 0.5))
    return vselect(x == like(x, 0.0), x, result + result)


def _log_tail(f):
    """(log(1 + f) - f + f**2 / 2) / f**3 for f in [sqrt(1/2) - 1, sqrt(2) - 1]; error of log 7.5e-10."""
    p = vfma(f, 6.74663856625557e-2, -1.1675651371479034e-1)
    p = vfma(p, f, 1.1888162791728973e-1)
    p = vfma(p, f, -1.240558922290802e-1)
    p = vfma(p, f, 1.4219552278518677e-1)
    p = vfma(p, f, -1.666799634695053e-1)
    p = vfma(p, f, 2.000211924314499e-1)
    p = vfma(p, f, -2.5000008940696716e-1)
    return vfma(p, f, 3.333331346511841e-1)


def log(x):
    """Natural logarithm. Relative error <= 1.2e-7. -inf for 0, NaN for negative numbers."""
    tiny = x < like(x, 1.1754943508222875e-38)
    scaled = vselect(tiny, x * like(x, 8388608.0), x)
    bits = bitcast(scaled, i32)
    exponent = (bits - 0x3F3504F3) >> 23  # so that the fraction lies in [sqrt(1/2), sqrt(2))
    f = bitcast(bits - (exponent << 23), f32) - like(x, 1.0)
    e = vconvert(exponent, f32)
    e = vselect(tiny, e - like(x, 23.0), e)
    square = f * f
    low = vfma(_log_tail(f) * f, square, e * like(x, _LN2_LOW))
    result = vfma(e, _LN2_HIGH, vfma(square, -0.5, low) + f)
    result = vselect(x == like(x, 0.0), like(x, -INFINITY), result)
    result = vselect(x == like(x, INFINITY), x, result)
    return vselect(x >= like(x, 0.0), result, like(x, NAN))


def log1p(x):
    """log(1 + x). Relative error <= 2e-7, also near 0. -inf for -1, NaN below."""
    sum_ = x + like(x, 1.0)
    lost = x - (sum_ - like(x, 1.0))
    result = log(sum_) + lost / sum_
    result = vselect(x == like(x, INFINITY), x, result)
    result = vselect(sum_ == like(x, 0.0), like(x, -INFINITY), result)
    return vselect(x == like(x, 0.0), x, result)


def tanh(x):
    """Hyperbolic tangent, x * P(x*x) / Q(x*x) up to 9.02 and 1 beyond. Relative error <= 3e-7."""
    x = vmax_quick(-9.02, x)
    x = vmin_quick(9.02, x)
    y = x * x
    p = vfma(y, 1.3319075071542687e-8, 2.0583483305576775e-5)
    p = vfma(p, y, 3.494034665715615e-3)
    p = vfma(p, y, 1.337971804814443e-1)
    p = vfma(p, y, 1.0)
    q = vfma(y, 7.76202067353592e-7, 3.2830930252731205e-4)
    q = vfma(q, y, 2.587107357646315e-2)
    q = vfma(q, y, 4.671303325983535e-1)
    q = vfma(q, y, 1.0)
    return _within_one(x * p / q)


def erf(x):
    """Error function, x * P(x*x) / Q(x*x) up to 3.92 and 1 beyond. Relative error <= 4e-7."""
    x = vmax_quick(-3.92, x)
    x = vmin_quick(3.92, x)
    y = x * x
    p = vfma(y, 2.0500831612333375e-6, 2.8488389944315243e-4)
    p = vfma(p, y, 3.7656586325859913e-3)
    p = vfma(p, y, 5.2748853179867806e-2)
    p = vfma(p, y, 1.9040740319648566e-1)
    p = vfma(p, y, 1.1283791461309916)
    q = vfma(y, 3.8091733934912484e-5, 1.1625460483361278e-3)
    q = vfma(q, y, 1.4969300111885863e-2)
    q = vfma(q, y, 1.1410950436232463e-1)
    q = vfma(q, y, 5.020769082488471e-1)
    q = vfma(q, y, 1.0)
    return _within_one(x * p / q)


def _within_one(x):
    """x between -1 and 1; NaN stays."""
    one = like(x, 1.0)
    return vmin_quick(one, vmax_quick(like(x, -1.0), x))


def sigmoid(x):
    """1 / (1 + e**-x). Relative error <= 2e-7; denormal results may become 0."""
    minus = vmin_quick(89.0, vmax_quick(-88.0, like(x, 0.0) - x))
    return like(x, 1.0) / (_exp_between(minus) + like(x, 1.0))


def softplus(x):
    """log(1 + e**x), without overflow. Relative error <= 3e-7; denormal results may become 0."""
    magnitude = vabs(x)
    return vmax_quick(0.0, x) + log1p(exp_negative(like(x, 0.0) - magnitude))


# ---------------------------------------------------------------- sine and cosine

#: pi / 2 in three parts; products of the first two with an integer below 2**20 are exact in float64
_HALF_PI_1, _HALF_PI_2, _HALF_PI_3 = 1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21


def _quarter_turns(x):
    """(n, r): the i32 lanes n and the f32 r in [-pi/4, pi/4] with x = n * pi/2 + r, reduced in float64."""
    wide = vconvert(x, f64)
    count = vround(wide * like(wide, 0.6366197723675814))
    r = vfma(count, -_HALF_PI_1, wide)
    r = vfma(count, -_HALF_PI_2, r)
    r = vfma(count, -_HALF_PI_3, r)
    turns = vconvert(count - vfloor(count * like(count, 0.25)) * like(count, 4.0), i32)
    return turns, vconvert(r, f32)


def _sine_part(r):
    y = r * r
    p = vfma(y, -1.951145787609833e-4, 8.332132973470992e-3)
    p = vfma(p, y, -1.6666654177018395e-1)
    return vfma(p * y, r, r)


def _cosine_part(r):
    y = r * r
    p = vfma(y, 2.4428786276545992e-5, -1.388727854488614e-3)
    p = vfma(p, y, 4.166664492052693e-2)
    return vfma(p * y, y, vfma(y, -0.5, 1.0))


def _circular(turns, r):
    """The sine of turns * pi/2 + r."""
    odd = (turns & 1) != 0
    value = vselect(odd, _cosine_part(r), _sine_part(r))
    return vselect((turns & 2) != 0, like(r, 0.0) - value, value)


def sin(x):
    """Sine. Absolute error <= 1.5e-7 for |x| <= 2**20, growing with |x| beyond. NaN for infinities."""
    turns, r = _quarter_turns(x)
    return vselect(x == like(x, 0.0), x, _circular(turns, r))


def cos(x):
    """Cosine. Absolute error <= 1.5e-7 for |x| <= 2**20, growing with |x| beyond. NaN for infinities."""
    turns, r = _quarter_turns(x)
    return _circular(turns + 1, r)


# ---------------------------------------------------------------- powers


def _log_wide(x):
    """Natural logarithm of positive finite float64 numbers, relative error 1e-13."""
    bits = bitcast(x, i64)
    exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = bitcast(bits - (exponent << 52), f64)
    one = like(x, 1.0)
    s = (m - one) / (m + one)
    y = s * s
    p = vfma(y, 1.9584506681779382e-1, 2.2176165019624403e-1)
    p = vfma(p, y, 2.8572109698911263e-1)
    p = vfma(p, y, 3.999999561706164e-1)
    p = vfma(p, y, 6.666666667581318e-1)
    return vfma(vconvert(exponent, f64), 0.6931471805599453, vfma(p * y, s, s + s))


def _exp_wide(x):
    """e**x for float64 numbers in [-700, 700], relative error 1e-13."""
    n = vround(x * like(x, _LOG2_E))
    r = vfma(n, -0.6931471803691238, x)
    r = vfma(n, -1.9082149292705877e-10, r)
    p = vfma(r, 2.74927249530106e-6, 2.4881215384650037e-5)
    p = vfma(p, r, 1.9841541894763002e-4)
    p = vfma(p, r, 1.388881034879057e-3)
    p = vfma(p, r, 8.333333091374162e-3)
    p = vfma(p, r, 4.16666669667755e-2)
    p = vfma(p, r, 1.6666666667277671e-1)
    p = vfma(p, r, 4.999999999965748e-1)
    p = vfma(p * r, r, r) + like(x, 1.0)
    return p * bitcast((vconvert(n, i64) + 1023) << 52, f64)


def pow(x, y):
    """x**y as IEEE 754 and C define it, also for negative x with integral y, 0, 1, infinities.

    Relative error <= 1.5e-7. Both arguments are vectors, or both are numbers.
    """
    zero, one, infinity = like(x, 0.0), like(x, 1.0), like(x, INFINITY)
    size = vabs(x)
    usable = (size > zero) & (size < infinity)
    logarithm = _log_wide(vconvert(vselect(usable, size, one), f64))
    product = vconvert(y, f64) * logarithm
    product = vmin_quick(200.0, vmax_quick(-200.0, product))
    result = vconvert(_exp_wide(product), f32)
    grows = y > zero
    result = vselect(size == zero, vselect(grows, zero, infinity), result)
    result = vselect(size == infinity, vselect(grows, infinity, zero), result)
    half = y * like(y, 0.5)
    integral = vfloor(y) == y
    odd = integral & (vfloor(half) != half) & (vabs(y) < infinity)
    negative = vcopysign(one, x) < zero
    result = vselect(negative & odd, zero - result, result)
    result = vselect((x < zero) & (size < infinity) & (vfloor(y) != y), like(x, NAN), result)
    result = vselect((x != x) | (y != y), x + y, result)
    result = vselect((size == one) & (vabs(y) == infinity), one, result)
    return vselect((x == one) | (y == zero), one, result)


def rsqrt(x):
    """1 / sqrt(x), by a square root and a division. Relative error <= 1.2e-7."""
    return like(x, 1.0) / vsqrt(x)
