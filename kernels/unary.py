"""Functions of one number, element by element: what ONNX activations and elementary functions need.

One kernel per function, all with the same parameters: `y[i] = f(x[i])` for n elements, where `first` and `second` are
the function's parameters (an alpha, a bound) or unused. `activation` serves all functions that epilogues have too, by
code (activation.py). Groups are small, so that a model builds only what is near to what it uses. Cost: the memory
traffic of one reading and one writing, but for transcendental functions (10 to 40 operations an element).
"""

import math

import numpy as np

from minifer.kernels import circular
from minifer.kernels.activation import CLAMP, GELU, HARD_SWISH, SIGMOID, SILU, TANH, activate
from minifer.kernels.elementwise import piece_start
from minifer.kernels.mathfn import erf, exp, expm1, log, sigmoid
from minifer.kernels.simd import (
    lanes,
    like,
    vabs,
    vceil,
    vconvert,
    vfloor,
    vload,
    vload_part,
    vmax,
    vmin,
    vround,
    vselect,
    vsplat,
    vsqrt,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import KernelSpec, Pointer, f32, f64, i32, i64, kernel, ptr_f32, ptr_u8, u8

#: name -> kernel: `UNARY["sqrt_f32"]`
UNARY: dict[str, KernelSpec] = {}

SPECIAL = (0.0, -0.0, 0.5, -0.5, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-30, 3e38, -3e38)
#: no sine is exact for huge arguments
MODERATE = SPECIAL[:10]


def numbers(rng, T, low, high, n, special=SPECIAL):
    """Random numbers of the range where a function is interesting, and some special ones."""
    if T.integer:
        return rng.integers(-12, 13, n).astype(T.dtype)
    x = rng.uniform(low, high, n)
    return np.where(rng.random(n) < 0.1, rng.choice(special, n), x).astype(T.dtype)


def unary(
    name, f, meaning, T=f32, group="simple", range_=(-6.0, 6.0), parameters=(0.0, 0.0), tolerance=1e-6, special=SPECIAL
):  # fmt: skip
    """Make the kernel `name` over T of the vector function f(x, first, second); `meaning` is its NumPy form."""
    low, high = range_

    def example(rng, size):
        n = int(rng.integers(0, 30 * size))
        x = numbers(rng, T, low, high, n, special)
        return {"x": x, "y": np.zeros_like(x), "n": n, "first": parameters[0], "second": parameters[1]}

    def reference(x, y, n, first, second):
        wide = x.astype("d") if x.dtype.kind == "f" else x
        return {"y": np.asarray(meaning(wide, first, second)).astype(x.dtype)}

    def body(x: Pointer(T), y: Pointer(T), n: i64, first: T, second: T, tid: i64, nthreads: i64):
        """y[i] = f(x[i], first, second) for i < n."""
        w = lanes(x)
        start, end = piece_start(n, tid, nthreads), piece_start(n, tid + 1, nthreads)
        i = start
        while i + w <= end:
            vstore(y, i, f(vload(x, i), first, second))
            i += w
        vstore_part(y, i, f(vload_part(x, i, end - i), first, second), end - i)

    full = f"{name}_{T.name}"
    group = f"{group}_{T.name}"
    UNARY[full] = kernel(reference=reference, example=example, tolerance=tolerance, name=full, group=group)(body)


# ---------------------------------------------------------------- functions without a polynomial


def absolute(x, first, second):
    return vabs(x)


def negative(x, first, second):
    return -x


def sign(x, first, second):
    """-1, 0 or 1; NaN stays."""
    return vselect(x > 0, like(x, 1), vselect(x < 0, like(x, -1), x))


def square(x, first, second):
    return x * x


def cube(x, first, second):
    return x * x * x


def clip(x, first, second):
    """Between first and second; NaN stays."""
    return vmin(vmax(x, first), second)


def floor(x, first, second):
    return vfloor(x)


def ceil(x, first, second):
    return vceil(x)


def round_half_even(x, first, second):
    return vround(x)


def reciprocal(x, first, second):
    return like(x, 1.0) / x


def square_root(x, first, second):
    return vsqrt(x)


def power_half(x, first, second):
    """x**0.5, which differs from the root at -0 and -infinity."""
    return vselect(x == -math.inf, like(x, math.inf), vsqrt(x + 0.0))


def power_minus_half(x, first, second):
    """x**-0.5."""
    return vselect(x == -math.inf, like(x, 0.0), like(x, 1.0) / vsqrt(x + 0.0))


def softsign(x, first, second):
    return x / (vabs(x) + 1.0)


def thresholded_relu(x, first, second):
    return vselect(x > first, x, like(x, 0.0))


def shrink(x, first, second):
    """Towards 0 by `first` outside of [-second, second], 0 inside."""
    return vselect(x < 0.0 - second, x + first, vselect(x > second, x - first, like(x, 0.0)))


for _T in (f32, f64, i32, i64):
    unary("abs", absolute, lambda x, a, b: np.abs(x), _T, tolerance=0)
    unary("neg", negative, lambda x, a, b: -x, _T, tolerance=0)
    unary("sign", sign, lambda x, a, b: np.sign(x), _T, tolerance=0)
    unary("square", square, lambda x, a, b: x * x, _T)
    unary("cube", cube, lambda x, a, b: x * x * x, _T)
    unary("clip", clip, lambda x, a, b: np.minimum(np.maximum(x, a), b), _T, parameters=(-1, 2), tolerance=0)

for _T in (f32, f64):
    unary("floor", floor, lambda x, a, b: np.floor(x), _T, tolerance=0)
    unary("ceil", ceil, lambda x, a, b: np.ceil(x), _T, tolerance=0)
    unary("round", round_half_even, lambda x, a, b: np.rint(x), _T, tolerance=0)
    unary("reciprocal", reciprocal, lambda x, a, b: 1 / x, _T)
    unary("sqrt", square_root, lambda x, a, b: np.sqrt(x), _T)
    unary("power_half", power_half, lambda x, a, b: np.power(x, np.full_like(x, 0.5)), _T)
    unary("power_minus_half", power_minus_half, lambda x, a, b: np.power(x, np.full_like(x, -0.5)), _T)

unary("softsign", softsign, lambda x, a, b: np.where(np.isinf(x), np.nan, x / (1 + np.abs(x))))
unary("thresholded_relu", thresholded_relu, lambda x, a, b: np.where(x > a, x, 0), parameters=(0.75, 0))
unary(
    "shrink", shrink, lambda x, a, b: np.where(x < -b, x + a, np.where(x > b, x - a, 0)), parameters=(0.25, 1.5),
)  # fmt: skip


# ---------------------------------------------------------------- exponentials


def exponential(x, first, second):
    return exp(x)


def logarithm(x, first, second):
    return log(x)


def error_function(x, first, second):
    return erf(x)


def celu(x, first, second):
    """x above 0, below first * (e**(x / first) - 1)."""
    return vmax(x, 0.0) + vmin(expm1(x / first) * first, 0.0)


def selu(x, first, second):
    """second * x above 0, below second * first * (e**x - 1)."""
    return vselect(x > 0.0, x, expm1(vmin(x, 0.0)) * first) * second


def swish(x, first, second):
    """x * sigmoid(first * x)."""
    return x * sigmoid(x * first)


_erf = np.vectorize(math.erf, otypes=[float])

unary("exp", exponential, lambda x, a, b: np.exp(x), group="exponential", range_=(-20, 5), tolerance=2e-7)
unary("log", logarithm, lambda x, a, b: np.log(x), group="exponential", range_=(0, 50), tolerance=3e-7)
unary("erf", error_function, lambda x, a, b: _erf(x), group="exponential", tolerance=4e-7)
unary(
    "celu", celu, lambda x, a, b: np.maximum(x, 0) + np.minimum(0, a * np.expm1(x / a)), group="exponential",
    parameters=(1.5, 0),
)  # fmt: skip
unary(
    "selu", selu, lambda x, a, b: b * np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))), group="exponential",
    parameters=(1.6733, 1.0507),
)  # fmt: skip
unary("swish", swish, lambda x, a, b: x / (1 + np.exp(-a * x)), group="exponential", parameters=(1.702, 0))

# ---------------------------------------------------------------- circular and hyperbolic functions


def without_parameters(f):
    """f(x) as a function of (x, first, second)."""

    def function(x, first, second):
        return f(x)

    return function


for _name, _range in (
    ("sin", (-20, 20)), ("cos", (-20, 20)), ("tan", (-1.5, 1.5)), ("asin", (-1, 1)), ("acos", (-1, 1)),
    ("atan", (-9, 9)), ("sinh", (-9, 9)), ("cosh", (-9, 9)), ("asinh", (-9, 9)), ("acosh", (1, 9)), ("atanh", (-1, 1)),
):  # fmt: skip
    _numpy = getattr(np, _name.replace("a", "arc", 1) if _name.startswith("a") else _name)
    _function = without_parameters(getattr(circular, _name))
    _group = _name[-4:].strip("a")
    unary(_name, _function, lambda x, a, b, f=_numpy: f(x), group=_group, range_=_range, special=MODERATE)


# ---------------------------------------------------------------- all activations of epilogues, by code


def activation_reference(x, y, n, code, first, second):
    """Each by its definition, in float64."""
    wide = x.astype("d")
    sigmoid = 1 / (1 + np.exp(-wide))
    soft = np.logaddexp(0, wide)
    tanh_gelu = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    listed = [
        np.minimum(np.maximum(wide, first), second), np.where(wide < 0, first * wide, wide), sigmoid, np.tanh(wide),
        wide * sigmoid, np.clip(first * wide + second, 0, 1), wide * np.clip(wide / 6 + 0.5, 0, 1) * first + second,
        wide * 0.5 * (1 + _erf(wide / math.sqrt(2))), wide * 0.5 * (1 + tanh_gelu),
        np.where(wide < 0, first * np.expm1(wide), wide), soft, wide * np.tanh(soft),
    ]  # fmt: skip
    return {"y": listed[code]}


def activation_example(rng, size):
    n = int(rng.integers(0, 30 * size))
    x = rng.uniform(-6, 6, n).astype("f")
    return {"x": x, "y": np.zeros_like(x), "n": n, "code": int(rng.integers(12)), "first": 0.25, "second": 0.75}


def loop_of(code):
    """A loop for one activation: with the code known, nothing is decided inside of it."""

    def loop(x, y, i, end, first, second):
        w = lanes(x)
        while i + w <= end:
            vstore(y, i, activate(vload(x, i), code, first, second))
            i += w
        vstore_part(y, i, activate(vload_part(x, i, end - i), code, first, second), end - i)

    return loop


clamp_loop, sigmoid_loop, tanh_loop = loop_of(CLAMP), loop_of(SIGMOID), loop_of(TANH)
silu_loop, gelu_loop, hard_swish_loop = loop_of(SILU), loop_of(GELU), loop_of(HARD_SWISH)


@kernel(reference=activation_reference, example=activation_example, tolerance=1e-6, group="activation")
def activation(x: ptr_f32, y: ptr_f32, n: i64, code: i64, first: f32, second: f32, tid: i64, nthreads: i64):
    """y[i] = activate(x[i], code, first, second) for i < n."""
    i, end = piece_start(n, tid, nthreads), piece_start(n, tid + 1, nthreads)
    if code == CLAMP:
        clamp_loop(x, y, i, end, first, second)
    elif code == SIGMOID:
        sigmoid_loop(x, y, i, end, first, second)
    elif code == TANH:
        tanh_loop(x, y, i, end, first, second)
    elif code == SILU:
        silu_loop(x, y, i, end, first, second)
    elif code == GELU:
        gelu_loop(x, y, i, end, first, second)
    elif code == HARD_SWISH:
        hard_swish_loop(x, y, i, end, first, second)
    else:
        w = lanes(x)
        while i + w <= end:
            vstore(y, i, activate(vload(x, i), code, first, second))
            i += w
        vstore_part(y, i, activate(vload_part(x, i, end - i), code, first, second), end - i)


# ---------------------------------------------------------------- tests of one number


def nan_reference(x, y, n):
    return {"y": np.isnan(x).astype("u1")}


def nan_example(rng, size):
    n = int(rng.integers(0, 30 * size))
    return {"x": numbers(rng, f32, -1, 1, n), "y": np.zeros(n, "u1"), "n": n}


def as_bytes(mask):
    """A mask of as many lanes as a natural vector of f32 has, as bytes 0 and 1."""
    return vselect(mask, vconvert(vsplat(i32, 1), u8), vconvert(vsplat(i32, 0), u8))


@kernel(reference=nan_reference, example=nan_example, tolerance=0, group="tests")
def is_nan(x: ptr_f32, y: ptr_u8, n: i64, tid: i64, nthreads: i64):
    """y[i] = 1 if x[i] is NaN, else 0."""
    w = lanes(x)
    i, end = piece_start(n, tid, nthreads), piece_start(n, tid + 1, nthreads)
    while i + w <= end:
        v = vload(x, i)
        vstore(y, i, as_bytes(v != v))
        i += w
    v = vload_part(x, i, end - i)
    vstore_part(y, i, as_bytes(v != v), end - i)


def infinity_reference(x, y, n, negative, positive):
    return {"y": ((positive != 0) & (x == np.inf) | (negative != 0) & (x == -np.inf)).astype("u1")}


def infinity_example(rng, size):
    return {**nan_example(rng, size), "negative": int(rng.integers(2)), "positive": int(rng.integers(2))}


@kernel(reference=infinity_reference, example=infinity_example, tolerance=0, group="tests")
def is_infinite(x: ptr_f32, y: ptr_u8, n: i64, negative: i64, positive: i64, tid: i64, nthreads: i64):
    """y[i] = 1 if x[i] is -infinity and `negative` is set, or infinity and `positive` is; else 0."""
    low = f32(-math.inf) if negative != 0 else f32(math.nan)  # NaN equals nothing
    high = f32(math.inf) if positive != 0 else f32(math.nan)
    w = lanes(x)
    i, end = piece_start(n, tid, nthreads), piece_start(n, tid + 1, nthreads)
    while i + w <= end:
        v = vload(x, i)
        vstore(y, i, as_bytes((v == low) | (v == high)))
        i += w
    v = vload_part(x, i, end - i)
    vstore_part(y, i, as_bytes((v == low) | (v == high)), end - i)
