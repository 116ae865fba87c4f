"""Functions of two numbers, element by element, with broadcasting: arithmetic, comparisons, bits.

One kernel per function and element type, all with the parameters (a, b, y, table); see elementwise.py for the table.
Comparisons give bytes 0 and 1. Integer arithmetic wraps; integer division refuses a divisor of 0 by status 3.
Cost: the memory traffic.
"""

import math

import numpy as np

from minifer.kernels.elementwise import PIECE, broadcast_example, piece_count, strided_view
from minifer.kernels.mathfn import pow as power
from minifer.kernels.odometer import RANK, odometer_at, odometer_next, odometer_offset, odometer_size
from minifer.kernels.simd import (
    f32,
    f64,
    i32,
    i64,
    lanes,
    like,
    share,
    u8,
    u16,
    u32,
    u64,
    vabs,
    vany,
    vconvert,
    vcopysign,
    vfma,
    vload,
    vload_part,
    vmax,
    vmax_quick,
    vmin,
    vmin_quick,
    vselect,
    vsplat,
    vstore,
    vstore_part,
    vtrunc,
)
from minifer.kernels.spec import KernelSpec, Pointer, kernel, ptr_i64

#: name -> kernel: `BINARY["add_f32"]`
BINARY: dict[str, KernelSpec] = {}
DIVISION_BY_ZERO = 3


def draw(rng, T, shape, positive=False):
    """Random numbers with some ties and zeros; integers also at their limits."""
    if not T.integer:
        x = rng.uniform(0 if positive else -4, 4, shape)
        x = np.where(rng.random(shape) < 0.2, np.rint(x), x)
        return x.astype(T.dtype)
    info = np.iinfo(T.dtype)
    x = rng.integers(max(info.min, -9), 10, shape).astype(T.dtype)
    x = np.where(rng.random(shape) < 0.05, info.min, np.where(rng.random(shape) < 0.05, info.max, x))
    return np.where(x == 0, 1, x).astype(T.dtype) if positive else x.astype(T.dtype)


def tail(p, step, i, n):
    """n elements of a line, in the first lanes."""
    return vload_part(p, i, n) if step != 0 else vsplat(p, p[0])


def binary(name, f, meaning, T, out=None, group="", tolerance=0.0, positive=False, bounded=False):
    """Make the kernel `name` over T of the vector function f(a, b), with a result in `out` (None: T).

    A `bounded` kernel has two more parameters, between which the result is held: a Relu or Clip that follows.
    """
    Y = out or T

    def example(rng, size):
        table, shape, (a, b) = broadcast_example(rng, size, 2)
        y = np.zeros(shape, Y.dtype)
        bounds = {"first": -1.0, "second": 2.5} if bounded else {}
        return {"a": draw(rng, T, a, positive), "b": draw(rng, T, b, positive), "y": y, "table": table, **bounds}

    def value(a, b, first, second):
        v = f(a, b)
        return vmin_quick(second, vmax_quick(first, v)) if bounded else v

    def line(a, a_step, b, b_step, y, n, first, second):
        """y[i] = value(a[i * a_step], b[i * b_step]) for i < n; steps are 0 or 1."""
        w = lanes(a)
        one_a, one_b = vsplat(a, a[0]), vsplat(b, b[0])
        i = 0
        while i + w <= n:
            left, right = vload(a, i) if a_step != 0 else one_a, vload(b, i) if b_step != 0 else one_b
            vstore(y, i, value(left, right, first, second))
            i += w
        if i < n:
            left, right = tail(a, a_step, i, n - i), tail(b, b_step, i, n - i)
            vstore_part(y, i, value(left, right, first, second), n - i)

    run = broadcast_run(line)

    def body(a: Pointer(T), b: Pointer(T), y: Pointer(Y), table: ptr_i64, tid: i64, nthreads: i64):
        """y[place] = f(a[place . a_strides], b[place . b_strides]). table: (3, RANK) = sizes, a_strides, b_strides."""
        run(a, b, y, table, 0, 0, tid, nthreads)

    def bounded_body(
        a: Pointer(T), b: Pointer(T), y: Pointer(Y), table: ptr_i64, first: T, second: T, tid: i64, nthreads: i64
    ):
        """y[place] = min(max(f(a[place . a_strides], b[place . b_strides]), first), second); NaN stays.

        table: (3, RANK) = sizes, a_strides, b_strides.
        """
        run(a, b, y, table, first, second, tid, nthreads)

    full = f"{name}_{T.name}"
    BINARY[full] = kernel(
        reference=broadcast_reference(meaning), example=example, tolerance=tolerance, name=full,
        group=f"{group}_{T.name}" if group else T.name,
    )(bounded_body if bounded else body)  # fmt: skip


def broadcast_reference(meaning):
    """The reference of a kernel whose NumPy form is meaning(a, b)."""

    def reference(a, b, y, table, first=None, second=None):
        left, right = (strided_view(v, table[0], table[row]) for row, v in ((1, a), (2, b)))
        wide = np.float64 if a.dtype.kind == "f" else a.dtype
        expected = meaning(left.astype(wide), right.astype(wide))
        expected = expected if first is None else np.minimum(np.maximum(expected, first), second)
        return {"y": np.asarray(expected).astype(y.dtype).reshape(y.shape)}

    return reference


def broadcast_run(line):
    """A function that walks through the table and calls line(a, a_step, b, b_step, y, n, first, second) for runs."""

    def run(a, b, y, table, first, second, tid, nthreads):
        a_strides, b_strides = table + RANK, table + 2 * RANK
        rows, columns = table[6], table[7]
        pieces = piece_count(columns)
        units = odometer_size(table) * rows * pieces
        unit = share(units, tid, nthreads)
        end = share(units, tid + 1, nthreads)
        piece = unit % pieces
        row = unit // pieces
        r = row % rows
        place = odometer_at(row // rows, table)
        a_base = odometer_offset(place, a_strides)
        b_base = odometer_offset(place, b_strides)
        while unit < end:
            at = piece * PIECE
            line(a + (a_base + r * a_strides[6] + at * a_strides[7]), a_strides[7],
                 b + (b_base + r * b_strides[6] + at * b_strides[7]), b_strides[7],
                 y + (row * columns + at), min(PIECE, columns - at), first, second)  # fmt: skip
            unit += 1
            piece += 1
            if piece == pieces:
                piece = 0
                row += 1
                r += 1
                if r == rows:
                    r = 0
                    place = odometer_next(place, table)
                    a_base = odometer_offset(place, a_strides)
                    b_base = odometer_offset(place, b_strides)

    return run


# ---------------------------------------------------------------- arithmetic


def add(a, b):
    return a + b


def subtract(a, b):
    return a - b


def multiply(a, b):
    return a * b


def divide(a, b):
    return a / b


def larger(a, b):
    return vmax(a, b)


def smaller(a, b):
    return vmin(a, b)


def slope(a, b):
    """PRelu: a, times b where it is negative."""
    return vselect(a < 0.0, a * b, a)


for _T in (f32, f64, i32, i64):
    _tolerance = 0.0 if _T.integer else 1e-6
    binary("add", add, np.add, _T, tolerance=_tolerance, bounded=_T is f32)
    binary("sub", subtract, np.subtract, _T, tolerance=_tolerance, bounded=_T is f32)
    binary("mul", multiply, np.multiply, _T, tolerance=_tolerance, bounded=_T is f32)
    binary("max", larger, np.maximum, _T, group="extreme")
    binary("min", smaller, np.minimum, _T, group="extreme")
for _T in (f32, f64):
    binary("div", divide, np.divide, _T, tolerance=1e-6, bounded=_T is f32)
    binary("prelu", slope, lambda a, b: np.where(a < 0, a * b, a), _T, group="special", tolerance=1e-6)


# ---------------------------------------------------------------- remainders and powers of floats


def _remainder(a, b):
    """The float64 lanes a - trunc(a / b) * b, exactly: each round leaves an exact remainder, 2**52 times smaller."""
    size = vabs(b)
    r = vabs(a)
    open_ = r >= size
    rounds = 0
    while rounds < 6 and vany(open_):
        q = vtrunc(r / size)
        left = vfma(like(r, 0.0) - q, size, r)
        left = vselect(left < 0.0, left + size, left)  # the quotient was rounded up
        r = vselect(open_, left, r)
        open_ = r >= size
        rounds += 1
    return vcopysign(r, a)


def _fmod_wide(a, b):
    wide, divisor = vconvert(a, f64), vconvert(b, f64)
    usual = _remainder(wide, divisor)
    usual = vselect((vabs(divisor) == math.inf) & (vabs(wide) < math.inf), wide, usual)
    return vselect((divisor == 0.0) | (vabs(wide) == math.inf) | (divisor != divisor), like(wide, math.nan), usual)


def fmod(a, b):
    """The remainder with the sign of a (C's fmod), exactly."""
    return vconvert(_fmod_wide(a, b), f32)


def modulo(a, b):
    """The remainder with the sign of b (Python's %)."""
    r = vconvert(_fmod_wide(a, b), f32)
    other = (r != 0.0) & ((r < 0.0) ^ (b < 0.0))
    return vselect(other, r + b, vselect(r == 0.0, vcopysign(r, b), r))


binary("fmod", fmod, np.fmod, f32, group="special", tolerance=1e-6)
binary("mod", modulo, np.mod, f32, group="special", tolerance=1e-6)
binary("pow", power, np.power, f32, group="special", tolerance=1e-6)


# ---------------------------------------------------------------- comparisons


def equal(a, b):
    return bytes_of(a == b, a)


def less(a, b):
    return bytes_of(a < b, a)


def less_or_equal(a, b):
    return bytes_of(a <= b, a)


def bytes_of(mask, a):
    """A mask as bytes 0 and 1, as many as a has lanes."""
    return vselect(mask, vconvert(like(a, 1), u8), vconvert(like(a, 0), u8))


for _T in (f32, f64, i32, i64, u8):
    binary("equal", equal, np.equal, _T, out=u8, group="compare")
    if _T is not u8:
        binary("less", less, np.less, _T, out=u8, group="compare")
        binary("less_or_equal", less_or_equal, np.less_equal, _T, out=u8, group="compare")


# ---------------------------------------------------------------- bits


def bits_and(a, b):
    return a & b


def bits_or(a, b):
    return a | b


def bits_xor(a, b):
    return a ^ b


for _T in (u8, u16, u32, u64):
    binary("and", bits_and, np.bitwise_and, _T, group="bits")
    binary("or", bits_or, np.bitwise_or, _T, group="bits")
    binary("xor", bits_xor, np.bitwise_xor, _T, group="bits")


# ---------------------------------------------------------------- division of integers


def quotient(a, b):
    """a / b rounded toward zero; b is not 0. Dividing by -1 is negation, which wraps where a division would trap."""
    if b == -1:
        return -a
    q = a // b
    return q + 1 if q * b != a and (a < 0) != (b < 0) else q


def remainder(a, b):
    """a - trunc(a / b) * b."""
    return 0 if b == -1 else a - quotient(a, b) * b


def modulus(a, b):
    """a - floor(a / b) * b."""
    return 0 if b == -1 else a - a // b * b


def integer_division(name, f, meaning, T):
    """Make the kernel `name` of f(a, b) over an integer type, with status 3 if a divisor is 0."""

    def example(rng, size):
        table, shape, (a, b) = broadcast_example(rng, size, 2)
        divisor = draw(rng, T, b, positive=rng.random() < 0.8)
        y = np.zeros(shape, T.dtype)
        return {"a": draw(rng, T, a), "b": divisor, "y": y, "divisors": divisor.size, "table": table}

    plain = broadcast_reference(meaning)

    def reference(a, b, y, divisors, table):
        if not b.all():
            return {"status": DIVISION_BY_ZERO}
        return plain(a, b, y, table)

    def line(a, a_step, b, b_step, y, n, first, second):
        for i in range(n):
            divisor = b[i * b_step]
            y[i] = 0 if divisor == 0 else f(a[i * a_step], divisor)

    run = broadcast_run(line)

    def body(a: Pointer(T), b: Pointer(T), y: Pointer(T), divisors: i64, table: ptr_i64, tid: i64, nthreads: i64):
        """y = f(a, b) as the other kernels of this file; 3 if one of the `divisors` elements of b is 0."""
        run(a, b, y, table, 0, 0, tid, nthreads)
        for i in range(share(divisors, tid, nthreads), share(divisors, tid + 1, nthreads)):
            if b[i] == 0:
                return DIVISION_BY_ZERO
        return 0

    full = f"{name}_{T.name}"
    BINARY[full] = kernel(reference=reference, example=example, tolerance=0, name=full, group=f"divide_{T.name}")(body)


def _quotient_reference(a, b):
    floor = np.floor_divide(a, b)
    return floor + ((floor * b != a) & ((a < 0) != (b < 0)))


for _T in (i32, i64):
    integer_division("div", quotient, _quotient_reference, _T)
    integer_division("fmod", remainder, np.fmod, _T)
    integer_division("mod", modulus, np.mod, _T)
