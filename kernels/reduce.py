"""Reductions over the middle axis of a tensor seen as (outer, n, inner): sums, extremes, products, log-sum-exp.

Rows (inner = 1) are summed along their elements, columns (inner > 1) side by side in vector lanes. A reduction is
never split over threads. One operation an element; the data is read once (twice for log-sum-exp).
"""

import numpy as np

from minifer.kernels.mathfn import exp, log
from minifer.kernels.simd import (
    f32,
    f64,
    hmax,
    hmin,
    hsum,
    i32,
    i64,
    lanes,
    share,
    vabs,
    vconvert,
    vload,
    vload_part,
    vmax,
    vmin,
    vselect,
    vsplat,
    vsqrt,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import KernelSpec, Pointer, kernel, ptr_f32
from minifer.kernels.sums import column_totals, first_lanes, four_column_totals, row_total

PLAIN, ABSOLUTE, SQUARE = 0, 1, 2  # what is summed
KEEP, ROOT, LOGARITHM = 0, 1, 2  # what is done with the sum

#: name -> kernel: `REDUCE["sum_f32"]`
REDUCE: dict[str, KernelSpec] = {}

#: columns that one thread takes at a time
COLUMNS = 32


def sizes(rng, size):
    """Random (outer, n, inner), rows in half of the cases."""
    outer, n, inner = (int(v) for v in rng.integers(1, (4, 40 * size, 9 * size)))
    return (outer, n, 1) if rng.random() < 0.5 else (outer, min(n, 70), inner)


def random_block(rng, T, shape):
    if T.integer:
        return rng.integers(-20, 21, shape).astype(T.dtype)
    return rng.uniform(-4, 4, shape).astype(T.dtype)


def finished(total, divisor, finish):
    """What a float64 sum (number or vector) becomes, as f32."""
    mean = vconvert(total / divisor, f32)
    if finish == ROOT:
        return vsqrt(mean)
    return log(mean) if finish == LOGARITHM else mean


# ---------------------------------------------------------------- sums of float32


def sum_reference(x, y, outer, n, inner, power, finish, divisor):
    wide = x.reshape(outer, n, inner).astype("d")
    raised = (wide, np.abs(wide), np.square(wide))[power]
    total = raised.sum(1) / divisor
    size = np.abs(raised).sum(1) / divisor
    if finish != KEEP:
        return {"y": (np.sqrt, np.log)[finish - 1](total).reshape(y.shape)}
    return {"y": (total.reshape(y.shape), np.maximum(size, 1).reshape(y.shape))}


def sum_example(rng, size):
    outer, n, inner = sizes(rng, size)
    x = random_block(rng, f32, (outer, n, inner))
    power = int(rng.integers(3))
    finish = int(rng.integers(3)) if power else 0
    y = np.zeros((outer, inner), "f")
    return {"x": x, "y": y, "outer": outer, "n": n, "inner": inner, "power": power, "finish": finish, "divisor": 7.0}


@kernel(reference=sum_reference, example=sum_example, tolerance=3e-7, group="sum_f32")
def reduce_sum_f32(
    x: ptr_f32, y: ptr_f32, outer: i64, n: i64, inner: i64, power: i64, finish: i64, divisor: f64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """y[o, j] = finish(sum of raised(x[o, i, j]) over i / divisor).

    power: 0 x, 1 |x|, 2 x * x; finish: 0 nothing, 1 square root, 2 logarithm. Error: about one rounding of the sum of
    absolute values.
    """
    if inner == 1:
        for o in range(share(outer, tid, nthreads), share(outer, tid + 1, nthreads)):
            y[o] = finished(row_total(x + o * n, n, power, f32(0)), divisor, finish)
        return
    w = lanes(x)
    pieces = (inner + COLUMNS - 1) // COLUMNS
    for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
        first = unit % pieces * COLUMNS
        source = x + (unit // pieces * n * inner + first)
        target = y + (unit // pieces * inner + first)
        count = min(COLUMNS, inner - first)
        if count == 4 * w:
            zero = vsplat(f32, 0)
            a, b, c, d = four_column_totals(source, n, inner, power, (zero, zero, zero, zero))
            vstore(target, 0, finished(a, divisor, finish))
            vstore(target, w, finished(b, divisor, finish))
            vstore(target, 2 * w, finished(c, divisor, finish))
            vstore(target, 3 * w, finished(d, divisor, finish))
        else:
            j = 0
            while j < count:
                total = column_totals(source + j, n, inner, power, vsplat(f32, 0), count - j)
                vstore_part(target, j, finished(total, divisor, finish), count - j)
                j += w


REDUCE["sum_f32"] = reduce_sum_f32


# ---------------------------------------------------------------- sums and products of other types


def widely(T):
    """The type to accumulate products and float sums in."""
    return f64 if T in (f32, f64) else T


def whole_quotient(total, divisor):
    """total / divisor rounded toward zero; divisor > 0."""
    q = total // divisor
    return q + 1 if q < 0 and q * divisor != total else q


def float_quotient(total, divisor):
    return total / f64(divisor)


def plain_reduction(name, T, start, combine, lift, meaning, power_=True):
    """Make a kernel over T that folds lift(x, power) by combine(total, value) from `start`, in a wider float."""
    W = widely(T)

    def example(rng, size):
        outer, n, inner = sizes(rng, size)
        x = random_block(rng, T, (outer, n, inner))
        y = np.zeros((outer, inner), T.dtype)
        power = int(rng.integers(3)) if power_ else 0
        return {
            "x": x,
            "y": y,
            "outer": outer,
            "n": n,
            "inner": inner,
            "power": power,
            "divisor": int(rng.integers(1, 9)) if power_ else 1,
        }

    def reference(x, y, outer, n, inner, power, divisor):
        block = x.reshape(outer, n, inner)
        block = block.astype("d") if x.dtype.kind == "f" else block
        block = (block, np.abs(block), np.square(block))[power]
        total = meaning(block, axis=1, dtype=block.dtype).reshape(y.shape)
        if x.dtype.kind == "f":
            size = meaning(np.abs(block), axis=1).reshape(y.shape)
            return {"y": (total / divisor, np.maximum(size, 1))}
        return {"y": np.sign(total) * (np.abs(total) // divisor)}

    divided = whole_quotient if T.integer else float_quotient

    def body(
        x: Pointer(T), y: Pointer(T), outer: i64, n: i64, inner: i64, power: i64, divisor: i64, tid: i64, nthreads: i64
    ):
        """y[o, j] = fold of raised(x[o, i, j]) over i, divided by `divisor` (integers: toward zero)."""
        w = lanes(x)
        pieces = (inner + w - 1) // w
        for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
            first = unit % pieces * w
            source = x + (unit // pieces * n * inner + first)
            target = y + (unit // pieces * inner + first)
            if inner == 1:
                totals = vconvert(vsplat(x, start), W)
                i = 0
                while i + w <= n:
                    totals = combine(totals, lift(vconvert(vload(x, unit * n + i), W), power))
                    i += w
                total = totals[0]
                for lane in range(1, w):
                    total = combine(total, totals[lane])
                while i < n:
                    total = combine(total, lift(W(source[i]), power))
                    i += 1
                target[0] = divided(total, divisor)
            else:
                count = min(w, inner - first)
                totals = vconvert(vsplat(x, start), W)
                if count == w:
                    for i in range(n):
                        totals = combine(totals, lift(vconvert(vload(source, i * inner), W), power))
                else:
                    for i in range(n):
                        totals = combine(totals, lift(vconvert(vload_part(source, i * inner, count), W), power))
                for lane in range(count):
                    target[lane] = divided(totals[lane], divisor)

    full = f"{name}_{T.name}"
    made = kernel(reference=reference, example=example, tolerance=1e-6, name=f"reduce_{full}", group=full)(body)
    REDUCE[full] = made


def plus(total, v):
    return total + v


def times(total, v):
    return total * v


def lift_power(v, power):
    if power == SQUARE:
        return v * v
    return vabs(v) if power == ABSOLUTE else v


def lift_nothing(v, power):
    return v


for _T in (f64, i32, i64):
    plain_reduction("sum", _T, 0, plus, lift_power, np.sum)
for _T in (f32, f64, i32, i64):
    plain_reduction("prod", _T, 1, times, lift_nothing, np.prod, power_=False)


# ---------------------------------------------------------------- extremes


def extreme_of_two(a, b, minimum):
    return vmin(a, b) if minimum != 0 else vmax(a, b)


def row_extreme(x, n, minimum):
    """The largest or smallest of n numbers; NaN if there is one."""
    w = lanes(x)
    if n < w:
        best = x[0]
        for i in range(1, n):
            best = extreme_of_two(best, x[i], minimum)
        return best
    a = vload(x, 0)
    b = vload(x, n - w)
    i = w
    while i + 2 * w <= n:
        a = extreme_of_two(a, vload(x, i), minimum)
        b = extreme_of_two(b, vload(x, i + w), minimum)
        i += 2 * w
    if i + w <= n:
        a = extreme_of_two(a, vload(x, i), minimum)
    a = extreme_of_two(a, b, minimum)
    return hmin(a) if minimum != 0 else hmax(a)


def extreme_kernel(T):
    """Make the kernel of the largest or smallest over T."""

    def example(rng, size):
        outer, n, inner = sizes(rng, size)
        x = random_block(rng, T, (outer, n, inner))
        if not T.integer and rng.random() < 0.3:
            x[rng.random(x.shape) < 0.05] = np.nan
        y = np.zeros((outer, inner), T.dtype)
        return {"x": x, "y": y, "outer": outer, "n": n, "inner": inner, "minimum": int(rng.integers(2))}

    def reference(x, y, outer, n, inner, minimum):
        block = x.reshape(outer, n, inner)
        return {"y": (block.min(1) if minimum else block.max(1)).reshape(y.shape)}

    def body(x: Pointer(T), y: Pointer(T), outer: i64, n: i64, inner: i64, minimum: i64, tid: i64, nthreads: i64):
        """y[o, j] = the largest (or smallest) of x[o, i, j] over i; NaN if there is one. n >= 1."""
        if inner == 1:
            for o in range(share(outer, tid, nthreads), share(outer, tid + 1, nthreads)):
                y[o] = row_extreme(x + o * n, n, minimum)
            return
        w = lanes(x)
        pieces = (inner + w - 1) // w
        for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
            first = unit % pieces * w
            source = x + (unit // pieces * n * inner + first)
            target = y + (unit // pieces * inner + first)
            count = min(w, inner - first)
            if count == w:
                best = vload(source, 0)
                for i in range(1, n):
                    best = extreme_of_two(best, vload(source, i * inner), minimum)
                vstore(target, 0, best)
            else:
                best = vload_part(source, 0, count)
                for i in range(1, n):
                    best = extreme_of_two(best, vload_part(source, i * inner, count), minimum)
                vstore_part(target, 0, best, count)

    full = f"extreme_{T.name}"
    REDUCE[full] = kernel(reference=reference, example=example, tolerance=0, name=f"reduce_{full}", group=full)(body)


for _T in (f32, f64, i32, i64):
    extreme_kernel(_T)


# ---------------------------------------------------------------- log-sum-exp


def log_sum_exp_reference(x, y, outer, n, inner):
    block = x.reshape(outer, n, inner).astype("d")
    top = block.max(1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    return {"y": (np.log(np.exp(block - top).sum(1)) + top[:, 0]).reshape(y.shape)}


def log_sum_exp_example(rng, size):
    outer, n, inner = sizes(rng, size)
    x = random_block(rng, f32, (outer, n, inner)) * 30
    if rng.random() < 0.3:
        x[rng.random(x.shape) < 0.2] = -np.inf
    return {"x": x, "y": np.zeros((outer, inner), "f"), "outer": outer, "n": n, "inner": inner}


def shifted_log_sum(x, n, step, count):
    """The log-sum-exp of columns: vectors at x + i * step, of which `count` lanes exist."""
    top = vload_part(x, 0, count)
    for i in range(1, n):
        top = vmax(top, vload_part(x, i * step, count))
    finite = top - top == 0.0
    top = vselect(finite, top, 0.0)
    total = vsplat(f32, 0)
    wide = vconvert(total, f64)
    for i in range(n):
        total = total + exp(vload_part(x, i * step, count) - top)
        if i % 32 == 31:
            wide = wide + vconvert(total, f64)
            total = vsplat(f32, 0)
    return log(vconvert(wide + vconvert(total, f64), f32)) + top


@kernel(reference=log_sum_exp_reference, example=log_sum_exp_example, tolerance=5e-7, group="log_sum_exp")
def reduce_log_sum_exp_f32(x: ptr_f32, y: ptr_f32, outer: i64, n: i64, inner: i64, tid: i64, nthreads: i64):
    """y[o, j] = log(sum of e**x[o, i, j] over i), without overflow. Twenty operations an element."""
    w = lanes(x)
    pieces = (inner + w - 1) // w
    for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
        first = unit % pieces * w
        source = x + (unit // pieces * n * inner + first)
        if inner == 1:
            top = row_extreme(source, n, 0)
            top = top if top - top == f32(0) else f32(0)
            total = vconvert(vsplat(f32, 0), f64)
            i = 0
            while i + w <= n:
                total = total + vconvert(exp(vload(source, i) - top), f64)
                i += w
            rest = first_lanes(exp(vload_part(source, i, n - i) - top), n - i)
            whole = vconvert(vsplat(f64, hsum(total + vconvert(rest, f64))), f32)
            y[unit] = log(whole)[0] + top
        else:
            count = min(w, inner - first)
            vstore_part(y, unit // pieces * inner + first, shifted_log_sum(source, n, inner, count), count)


REDUCE["log_sum_exp_f32"] = reduce_log_sum_exp_f32
