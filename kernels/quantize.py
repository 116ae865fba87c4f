"""Between floats and quantised integers: q = round(x / scale) + zero point, and back.

A scale may hold for a whole tensor, for one index of an axis, or for a block of an axis. All of these are runs: the
tensor is cut into runs of equal length, and a run has one scale, or one for each of its elements (`varying`). Which
ones is said by three numbers: run r takes the scales from (r // repeat % wrap) * step on.
"""

import numpy as np

from minifer.kernels.elementwise import PIECE, piece_count
from minifer.kernels.simd import (
    bitcast,
    hmax,
    hmin,
    lanes,
    share,
    vconvert,
    vload,
    vload_n,
    vload_part,
    vmax,
    vmax_quick,
    vmin,
    vmin_quick,
    vround,
    vselect,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import Pointer, f32, i8, i16, i32, i64, kernel, ptr_f32, ptr_i32, ptr_u8, u8, u16

#: element type -> kernel
QUANTIZE, DEQUANTIZE = {}, {}


def runs_example(rng, size):
    """(n, number of scales, the six numbers of a division into runs)."""
    repeat, wrap = (int(v) for v in rng.integers(1, 4, 2))
    length = int(rng.integers(1, 20 * size))
    rows = int(rng.integers(0, 3)) * repeat * wrap + int(rng.integers(0, repeat * wrap)) + 1
    varying = int(rng.integers(0, 2))
    n = rows * length - (0 if varying else int(rng.integers(0, length)))
    step = length if varying else 1
    return n, wrap * step, {
        "rows": rows, "length": length, "repeat": repeat, "wrap": wrap, "step": step, "varying": varying,
    }  # fmt: skip


def spread(parameter, n, rows, length, repeat, wrap, step, varying):
    """A scale or zero point for each of the n elements."""
    start = np.arange(rows) // repeat % wrap * step
    index = start[:, None] + (np.arange(length) if varying else np.zeros(length, np.int64))
    return parameter[index.reshape(-1)[:n]]


# ---------------------------------------------------------------- to integers


def quantized(x, scale, zero, T):
    """round(x / scale) + zero in NumPy, saturated to T; NaN becomes 0."""
    info = np.iinfo(T.dtype)
    whole = np.rint(x / scale).astype(np.float64) + zero
    return np.nan_to_num(np.clip(whole, info.min, info.max), nan=0).astype(T.dtype)


#: added to round: a float beyond 2^23 has no fraction, so x + 1.5 * 2^23 is x rounded to even, and its low bits are it
ROUND = 12582912.0


def rounding(T):
    """The step from a vector of ratios to integers of type T."""
    least, most = float(np.iinfo(T.dtype).min), float(np.iinfo(T.dtype).max)

    def integers(ratio, shift):
        """round(ratio) + shift, saturated; NaN becomes 0. shift: a vector of whole numbers.

        The bounds are whole numbers, so they may come before rounding; what is left is small enough for ROUND.
        """
        bounded = vmin_quick(vmax_quick(ratio, least - shift), most - shift)
        whole = bitcast(bounded + ROUND + shift, i32)
        return vconvert(vselect(ratio == ratio, whole, vsplat(i32, 0)), T)

    return integers


def quantize_kernel(T):
    integers = rounding(T)

    def reference(x, scale, zero, y, n, rows, length, repeat, wrap, step, varying, has_zero):
        runs = (n, rows, length, repeat, wrap, step, varying)
        shift = spread(zero, *runs).astype("d") if has_zero else np.zeros(n)
        return {"y": quantized(x, spread(scale, *runs), shift, T)}

    def example(rng, size):
        n, scales, runs = runs_example(rng, size)
        info = np.iinfo(T.dtype)
        x = (rng.standard_normal(n) * rng.choice([1, 100, 1e5])).astype("f")
        x[rng.random(n) < 0.05] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
        return {
            "x": x, "scale": rng.choice([0.5, 0.037, 1.0, 300.0], scales).astype("f"),
            "zero": rng.integers(info.min, info.max + 1, scales).astype(T.dtype), "y": np.full(n, 55, T.dtype),
            "n": n, **runs, "has_zero": int(rng.integers(0, 2)),
        }  # fmt: skip

    def of_each(x, scale, zero, y, i, has_zero):
        """A vector of elements with a scale each."""
        shift = vsplat(f32, 0)
        if has_zero != 0:
            shift = vconvert(vload_n(zero, i, lanes(x)), f32)
        vstore(y, i, integers(vload(x, i) / vload(scale, i), shift))

    def line(x, scale, zero, y, n, varying, has_zero):
        """n elements with one scale, or one each."""
        i, w = 0, lanes(x)
        if varying == 0:
            factor = vsplat(f32, scale[0])
            shift = vsplat(f32, zero[0] if has_zero != 0 else 0)
            while i + w <= n:
                vstore(y, i, integers(vload(x, i) / factor, shift))
                i += w
            if i < n:
                vstore_part(y, i, integers(vload_part(x, i, n - i) / factor, shift), n - i)
        else:
            while i + w <= n:
                of_each(x, scale, zero, y, i, has_zero)
                i += w
            if i < n and n >= w:  # the last ones, some of them again
                of_each(x, scale, zero, y, n - w, has_zero)
                i = n
            while i < n:
                moved = vround(x[i] / scale[i]) + (f32(zero[i]) if has_zero != 0 else f32(0))
                y[i] = vconvert(moved, T)
                i += 1

    def body(
        x: ptr_f32, scale: ptr_f32, zero: Pointer(T), y: Pointer(T), n: i64, rows: i64, length: i64, repeat: i64,
        wrap: i64, step: i64, varying: i64, has_zero: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y[i] = round(x[i] / scale) + zero, halves to even, saturated; NaN gives 0.

        x, y: (n,) in `rows` runs of `length` (the last may be shorter); scale, zero: see the module's text; zero is
        read where has_zero. 5 bytes and a division an element. As exact as the division.
        """
        for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
            at, own = row * length, row // repeat % wrap * step
            line(x + at, scale + own, zero + own, y + at, min(length, n - at), varying, has_zero)

    QUANTIZE[T.name] = kernel(
        reference=reference, example=example, tolerance=0, name=f"quantize_{T}", group=f"quantize_{T}"
    )(body)


for _T in (u8, i8, u16, i16):
    quantize_kernel(_T)


# ---------------------------------------------------------------- back to floats


def dequantize_kernel(T):
    def reference(x, scale, zero, y, n, rows, length, repeat, wrap, step, varying, has_zero):
        runs = (n, rows, length, repeat, wrap, step, varying)
        wide = x.astype(np.int64) - (spread(zero, *runs).astype(np.int64) if has_zero else 0)
        return {"y": wide.astype("f") * spread(scale, *runs)}

    def example(rng, size):
        n, scales, runs = runs_example(rng, size)
        info = np.iinfo(T.dtype)
        most = min(info.max, 1 << 24)
        return {
            "x": rng.integers(max(info.min, -most), most, n).astype(T.dtype),
            "scale": rng.uniform(0.01, 3, scales).astype("f"),
            "zero": rng.integers(max(info.min, -most), most, scales).astype(T.dtype), "y": np.full(n, np.nan, "f"),
            "n": n, **runs, "has_zero": int(rng.integers(0, 2)),
        }  # fmt: skip

    def of_one(x, first, factor, y, i):
        """A vector of elements with the same scale and zero point."""
        vstore(y, i, vconvert(vconvert(vload_n(x, i, lanes(y)), i32) - first, f32) * factor)

    def of_each(x, scale, zero, y, i, has_zero):
        """A vector of elements with a scale each."""
        shift = vsplat(i32, 0)
        if has_zero != 0:
            shift = vconvert(vload_n(zero, i, lanes(y)), i32)
        vstore(y, i, vconvert(vconvert(vload_n(x, i, lanes(y)), i32) - shift, f32) * vload(scale, i))

    def line(x, scale, zero, y, n, varying, has_zero):
        """n elements with one scale, or one each."""
        i, w = 0, lanes(y)
        if varying == 0:
            factor = vsplat(f32, scale[0])
            first = zero[0] if has_zero != 0 else 0
            while i + w <= n:
                of_one(x, first, factor, y, i)
                i += w
            if i < n and n >= w:  # the last ones, some of them again
                of_one(x, first, factor, y, n - w)
                i = n
            while i < n:
                y[i] = f32(x[i] - first) * scale[0]
                i += 1
        else:
            while i + w <= n:
                of_each(x, scale, zero, y, i, has_zero)
                i += w
            if i < n and n >= w:
                of_each(x, scale, zero, y, n - w, has_zero)
                i = n
            while i < n:
                y[i] = f32(x[i] - (zero[i] if has_zero != 0 else 0)) * scale[i]
                i += 1

    def body(
        x: Pointer(T), scale: ptr_f32, zero: Pointer(T), y: ptr_f32, n: i64, rows: i64, length: i64, repeat: i64,
        wrap: i64, step: i64, varying: i64, has_zero: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y[i] = (x[i] - zero) * scale; as `quantize`. The difference must fit 32 bits. Error: two roundings."""
        for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
            at, own = row * length, row // repeat % wrap * step
            line(x + at, scale + own, zero + own, y + at, min(length, n - at), varying, has_zero)

    DEQUANTIZE[T.name] = kernel(
        reference=reference, example=example, tolerance=0, name=f"dequantize_{T}", group=f"dequantize_{T}"
    )(body)


for _T in (u8, i8, u16, i16, i32):
    dequantize_kernel(_T)


# ---------------------------------------------------------------- scales found at run time


def extremes_example(rng, size):
    n = int(rng.integers(1, 40 * size))
    if rng.random() < 0.2:
        n += PIECE
    x = (rng.standard_normal(n) + rng.choice([-3, 0, 3])).astype("f")
    return {"x": x, "partial": np.full((piece_count(n), 2), np.nan, "f"), "n": n}


def extremes_reference(x, partial, n):
    pieces = [x[i : i + PIECE] for i in range(0, n, PIECE)]
    return {"partial": np.array([[p.min(), p.max()] for p in pieces])}


@kernel(
    reference=extremes_reference, example=extremes_example, outputs=("partial",), tolerance=0, group="dynamic"
)  # fmt: skip
def extremes(x: ptr_f32, partial: ptr_f32, n: i64, tid: i64, nthreads: i64):
    """partial[p] = (least, greatest) of piece p of x, of PIECE elements; NaN where one is NaN. Exact."""
    pieces, w = piece_count(n), lanes(x)
    for piece in range(share(pieces, tid, nthreads), share(pieces, tid + 1, nthreads)):
        i, end = piece * PIECE, min(n, (piece + 1) * PIECE)
        least, most = vsplat(f32, x[i]), vsplat(f32, x[i])
        while i + w <= end:
            v = vload(x, i)
            least, most = vmin(least, v), vmax(most, v)
            i += w
        low, high = hmin(least), hmax(most)
        while i < end:
            low, high = vmin(low, x[i]), vmax(high, x[i])
            i += 1
        partial[2 * piece] = low
        partial[2 * piece + 1] = high


to_bytes = rounding(u8)


def dynamic_reference(x, partial, y, scale, zero, n, flat):
    low = np.minimum(partial[:, 0].min(), np.float32(0))
    high = np.maximum(partial[:, 1].max(), np.float32(0))
    factor = (high - low) / np.float32(255)
    if flat and factor == 0:
        factor = np.float32(1)
    start = quantized(np.clip(-low / factor, 0, 255), np.float32(1), 0.0, u8)
    y = quantized(x, factor, np.float64(start), u8)
    return {"y": y, "scale": np.array([factor]), "zero": np.array([start])}


def dynamic_example(rng, size):
    drawn = extremes_example(rng, size)
    if rng.random() < 0.1:
        drawn["x"][:] = 0
    partial = extremes_reference(**drawn)["partial"].astype("f")
    return {
        "x": drawn["x"], "partial": partial, "y": np.full(drawn["n"], 9, "u1"), "scale": np.zeros(1, "f"),
        "zero": np.zeros(1, "u1"), "n": drawn["n"], "flat": int(rng.integers(0, 2)),
    }  # fmt: skip


@kernel(
    reference=dynamic_reference, example=dynamic_example, outputs=("y", "scale", "zero"), tolerance=0, group="dynamic"
)
def dynamic_quantize(
    x: ptr_f32, partial: ptr_f32, y: ptr_u8, scale: ptr_f32, zero: ptr_u8, n: i64, flat: i64, tid: i64, nthreads: i64
):
    """Quantise x (n,) to u8 over its range with 0 in it; scale and zero point, one number each, are outputs too.

    partial: what `extremes` gives for x. `flat`: a range of 0 has scale 1 instead of 0. 9 bytes and a division an
    element. As exact as the divisions.
    """
    low, high = f32(0), f32(0)
    for piece in range(piece_count(n)):
        low, high = vmin(low, partial[2 * piece]), vmax(high, partial[2 * piece + 1])
    factor = (high - low) / f32(255)
    if flat != 0 and factor == 0:
        factor = f32(1)
    start = f32(vconvert(vround(vmax(vmin((f32(0) - low) / factor, 255), 0)), u8))
    if tid == 0:
        scale[0] = factor
        zero[0] = vconvert(start, i64)
    divisor, shift, w = vsplat(f32, factor), vsplat(f32, start), lanes(x)
    i, end = share(piece_count(n), tid, nthreads) * PIECE, min(n, share(piece_count(n), tid + 1, nthreads) * PIECE)
    while i + w <= end:
        vstore(y, i, to_bytes(vload(x, i) / divisor, shift))
        i += w
    if i < end:
        vstore_part(y, i, to_bytes(vload_part(x, i, end - i) / divisor, shift), end - i)


# ---------------------------------------------------------------- parameters known at run time


def product_scales_reference(a, b, c, y, n, step, alpha, has_c):
    factor = np.float32(alpha) * a[0] * b[np.arange(n) * step]
    return {"y": factor / c[0] if has_c else factor}


def product_scales_example(rng, size):
    n, step = int(rng.integers(1, 20 * size)), int(rng.integers(0, 2))
    return {
        "a": rng.uniform(0.1, 2, 1).astype("f"), "b": rng.uniform(0.1, 2, n if step else 1).astype("f"),
        "c": rng.uniform(0.1, 2, 1).astype("f"), "y": np.zeros(n, "f"), "n": n, "step": step,
        "alpha": float(rng.choice([1.0, 0.5])), "has_c": int(rng.integers(0, 2)),
    }  # fmt: skip


@kernel(reference=product_scales_reference, example=product_scales_example, tolerance=0, group="parameters")
def product_scales(
    a: ptr_f32, b: ptr_f32, c: ptr_f32, y: ptr_f32, n: i64, step: i64, alpha: f32, has_c: i64, tid: i64, nthreads: i64
):
    """y[j] = alpha * a[0] * b[j * step], over c[0] where has_c: the scale of a product. y: (n,). 2 or 3 roundings."""
    if tid == 0:
        for j in range(n):
            factor = alpha * a[0] * b[j * step]
            y[j] = factor / c[0] if has_c != 0 else factor


def widen_bytes_reference(x, y, n, step, flip):
    return {"y": (x[np.arange(n) * step] ^ np.uint8(flip)).view(np.int8).astype("i4")}


def widen_bytes_example(rng, size):
    n, step = int(rng.integers(1, 20 * size)), int(rng.integers(0, 2))
    x = rng.integers(0, 256, n if step else 1).astype("u1")
    return {"x": x, "y": np.zeros(n, "i4"), "n": n, "step": step, "flip": int(rng.choice([0, 128]))}


@kernel(reference=widen_bytes_reference, example=widen_bytes_example, tolerance=0, group="parameters")
def widen_bytes(x: ptr_u8, y: ptr_i32, n: i64, step: i64, flip: i64, tid: i64, nthreads: i64):
    """y[i] = x[i * step] ^ flip, read as i8. For zero points; y: (n,). Exact."""
    if tid == 0:
        for i in range(n):
            y[i] = i8(x[i * step] ^ flip)
