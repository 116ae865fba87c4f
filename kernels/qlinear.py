"""Elementwise functions, concatenation and global means of quantised bytes.

A function of one byte is a table of 256 bytes, made while planning. Sums and products of two tensors are computed in
float32 and quantised anew. Bytes are read as u8: with `flip` 0x80 they mean i8. Scales and zero points are tensors of
one element.
"""

import numpy as np

from minifer.kernels.elementwise import PIECE, broadcast_example, piece_count, strided_view
from minifer.kernels.odometer import RANK, odometer_at, odometer_offset, odometer_size
from minifer.kernels.pooling import MAX, WORDS, pool_example, pool_reference
from minifer.kernels.simd import (
    lanes,
    share,
    vconvert,
    vload,
    vload_n,
    vload_part,
    vlow,
    vmax,
    vmin,
    vround,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import f32, f64, i32, i64, kernel, ptr_f32, ptr_i64, ptr_u8, u8

ADD, MULTIPLY = 0, 1

# ---------------------------------------------------------------- tables


def translate_example(rng, size):
    rows, n, more = int(rng.integers(0, 2 * size)), int(rng.integers(1, 30 * size)), int(rng.integers(0, 9))
    if rng.random() < 0.1:
        rows, n = 2, PIECE + 3
    return {
        "x": rng.integers(0, 256, (rows, n)).astype("u1"), "table": rng.integers(0, 256, 256).astype("u1"),
        "y": np.zeros((rows, n + more), "u1"), "rows": rows, "n": n, "step": n + more,
        "start": int(rng.integers(0, more + 1)),
    }  # fmt: skip


def translate_reference(x, table, y, rows, n, step, start):
    y = y.copy()
    y[:, start : start + n] = table[x]
    return {"y": y}


@kernel(reference=translate_reference, example=translate_example, tolerance=0, group="translate")
def translate(x: ptr_u8, table: ptr_u8, y: ptr_u8, rows: i64, n: i64, step: i64, start: i64, tid: i64, nthreads: i64):
    """y[r, start + i] = table[x[r, i]]. x: (rows, n); y: (rows, step); table: (256,). Exact."""
    pieces = piece_count(n)
    for unit in range(share(rows * pieces, tid, nthreads), share(rows * pieces, tid + 1, nthreads)):
        row, first = unit // pieces, unit % pieces * PIECE
        source, target = x + (row * n + first), y + (row * step + start + first)
        for i in range(min(PIECE, n - first)):
            target[i] = table[source[i]]


# ---------------------------------------------------------------- two tensors


def as_numbers(x, flip):
    """Bytes as the numbers that they mean."""
    return x.view(np.int8 if flip else np.uint8).astype(np.float32)


def combine_reference(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero, y, table, code, flip):
    left, right = (
        (as_numbers(x, flip) - as_numbers(zero, flip)) * scale
        for x, scale, zero in ((a, a_scale, a_zero), (b, b_scale, b_zero))
    )
    pair = [strided_view(np.ascontiguousarray(v), table[0], table[row]) for row, v in ((1, left), (2, right))]
    total = pair[0] * pair[1] if code == MULTIPLY else pair[0] + pair[1]
    whole = np.rint(total / y_scale) + as_numbers(y_zero, flip)
    low, high = (-128, 127) if flip else (0, 255)
    return {"y": np.clip(whole, low, high).astype(np.int32).astype(np.uint8).reshape(y.shape)}


def combine_example(rng, size):
    table, shape, (a, b) = broadcast_example(rng, size, 2)
    drawn = {"a": rng.integers(0, 256, a), "b": rng.integers(0, 256, b), "a_zero": rng.integers(0, 256, 1)}
    drawn |= {"b_zero": rng.integers(0, 256, 1), "y_zero": rng.integers(0, 256, 1)}
    drawn = {k: v.astype("u1") for k, v in drawn.items()}
    drawn |= {k: rng.uniform(0.01, 0.1, 1).astype("f") for k in ("a_scale", "b_scale", "y_scale")}
    drawn |= {"y": np.zeros(shape, "u1"), "table": table}
    return {**drawn, "code": int(rng.integers(0, 2)), "flip": int(rng.choice([0, 128]))}


def numbers_at(p, step, i, n, flip, zero, scale):
    """(p[i:] - zero) * scale in the lanes of f32; p[0] in all of them where step is 0."""
    if step == 0:
        whole = vsplat(i32, p[0] ^ flip)
    else:
        whole = some_bytes(p, i, n) ^ flip
    return vconvert(whole - zero, f32) * scale


def some_bytes(p, i, n):
    """A vector of i32 from n bytes at p[i:], or from more of them where there are more."""
    if n >= lanes(i32):
        return vconvert(vload_n(p, i, lanes(i32)), i32)
    return vconvert(vlow(vlow(vload_part(p, i, n))), i32)


@kernel(reference=combine_reference, example=combine_example, tolerance=0, group="combine")
def combine(
    a: ptr_u8, a_scale: ptr_f32, a_zero: ptr_u8, b: ptr_u8, b_scale: ptr_f32, b_zero: ptr_u8, y_scale: ptr_f32,
    y_zero: ptr_u8, y: ptr_u8, table: ptr_i64, code: i64, flip: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = quantised (a + b), or (a * b) where code is MULTIPLY, of tensors that broadcast.

    A byte q stands for (q - zero) * scale. table: (3, RANK) = sizes, strides of a, strides of b (see elementwise.py).
    round((..) / y_scale) + y_zero, halves to even, saturated. Each step in float32, rounded as the formula stands.
    """
    zero_a, zero_b = a_zero[0] ^ flip, b_zero[0] ^ flip
    low = f32(0 - flip)
    start = f32(y_zero[0] ^ flip) + low
    factor_a, factor_b, divisor = a_scale[0], b_scale[0], y_scale[0]
    a_strides, b_strides = table + RANK, table + 2 * RANK
    rows, columns = table[6], table[7]
    pieces = piece_count(columns)
    units = odometer_size(table) * rows * pieces
    for unit in range(share(units, tid, nthreads), share(units, tid + 1, nthreads)):
        row, first = unit // pieces, unit % pieces * PIECE
        place = odometer_at(row // rows, table)
        left = a + (odometer_offset(place, a_strides) + row % rows * a_strides[6] + first * a_strides[7])
        right = b + (odometer_offset(place, b_strides) + row % rows * b_strides[6] + first * b_strides[7])
        target, n = y + (row * columns + first), min(PIECE, columns - first)
        for i in range(0, n, lanes(f32)):
            u = numbers_at(left, a_strides[7], i, n - i, flip, zero_a, factor_a)
            v = numbers_at(right, b_strides[7], i, n - i, flip, zero_b, factor_b)
            whole = vround((u * v if code == MULTIPLY else u + v) / divisor) + start
            bytes_ = vconvert(vconvert(vmin(vmax(whole, low), low + f32(255)), i32), u8)
            if n - i >= lanes(f32):
                vstore(target, i, bytes_)
            else:
                vstore_part(target, i, bytes_, n - i)


# ---------------------------------------------------------------- maxima


def max_pool_reference(x, y, table, batch, channels, depth, height, width, out_d, out_h, out_w, flip):
    sizes = (depth, height, width, out_d, out_h, out_w)
    numbers = as_numbers(x, flip)
    pooled = pool_reference(numbers, np.empty(y.shape, "f"), table, batch, channels, *sizes, MAX)["y"]
    low = -128 if flip else 0
    return {"y": np.maximum(pooled, low).astype(np.int32).astype(np.uint8)}


def max_pool_example(rng, size):
    drawn = pool_example(rng, size)
    drawn.pop("mode")
    x, y = (rng.integers(0, 256, drawn[name].shape).astype("u1") for name in ("x", "y"))
    return {**drawn, "x": x, "y": y, "flip": int(rng.choice([0, 128]))}


@kernel(reference=max_pool_reference, example=max_pool_example, outputs=("y",), tolerance=0, group="max_pool")
def max_pool(
    x: ptr_u8, y: ptr_u8, table: ptr_i64, batch: i64, channels: i64, depth: i64, height: i64, width: i64,
    out_d: i64, out_h: i64, out_w: i64, flip: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = the largest byte of each window; the least there is where a window is empty.

    x: (batch, depth, height, width, channels); y: (batch, out_d, out_h, out_w, channels); table: the axis tables of
    depth, height and width (see pooling.py). Exact. Work is split over output rows.
    """
    rows, w = batch * out_d * out_h, lanes(x)
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        td = table + (row // out_h % out_d) * WORDS
        th = table + (out_d + row % out_h) * WORDS
        image = x + row // (out_h * out_d) * (depth * height * width * channels)
        for ow in range(out_w):
            tw = table + (out_d + out_h + ow) * WORDS
            corner = image + ((td[0] * height + th[0]) * width + tw[0]) * channels
            out = y + (row * out_w + ow) * channels
            for block in range(0, channels, w):
                c = min(block, max(channels - w, 0))  # the last ones, some of them again
                n = channels - c
                largest = vsplat(u8, 0)
                for kd in range(td[1]):
                    for kh in range(th[1]):
                        p = corner + ((kd * td[2] * height + kh * th[2]) * width * channels + c)
                        for kw in range(tw[1]):
                            at = kw * tw[2] * channels
                            bytes_ = vload(p, at) if n >= w else vload_part(p, at, n)
                            largest = vmax(largest, bytes_ ^ flip)
                if n >= w:
                    vstore(out, c, largest ^ flip)
                else:
                    vstore_part(out, c, largest ^ flip, n)


# ---------------------------------------------------------------- global means


def mean_reference(x, x_scale, x_zero, y_scale, y_zero, y, batch, area, channels, flip):
    numbers = as_numbers(x, flip).astype("d") - as_numbers(x_zero, flip)
    factor = x_scale.astype("d") / y_scale.astype("d")
    mean = (numbers.reshape(batch, area, channels).mean(axis=1) * factor).astype("f")
    whole = np.rint(mean) + as_numbers(y_zero, flip)
    low, high = (-128, 127) if flip else (0, 255)
    return {"y": np.clip(whole, low, high).astype(np.int32).astype(np.uint8).reshape(y.shape)}


def mean_example(rng, size):
    batch, area, channels = int(rng.integers(1, 4)), int(rng.integers(1, 9 * size)), int(rng.integers(1, 9 * size))
    drawn = {"x": rng.integers(0, 256, (batch, area, channels)).astype("u1"), "x_scale": rng.uniform(0.01, 0.1, 1)}
    drawn |= {"x_zero": rng.integers(0, 256, 1).astype("u1"), "y_scale": rng.uniform(0.01, 0.1, 1)}
    drawn |= {"y_zero": rng.integers(0, 256, 1).astype("u1"), "y": np.zeros((batch, channels), "u1")}
    drawn = {k: v.astype("f") if v.dtype == "d" else v for k, v in drawn.items()}
    return {**drawn, "batch": batch, "area": area, "channels": channels, "flip": int(rng.choice([0, 128]))}


@kernel(reference=mean_reference, example=mean_example, tolerance=0, group="mean")
def mean(
    x: ptr_u8, x_scale: ptr_f32, x_zero: ptr_u8, y_scale: ptr_f32, y_zero: ptr_u8, y: ptr_u8, batch: i64, area: i64,
    channels: i64, flip: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = quantised mean over the area. x: (batch, area, channels), area < 2^23; y: (batch, channels).

    round(mean(x - x_zero) * x_scale / y_scale) + y_zero, saturated; sums are exact, the rest float64.
    """
    low = f32(0 - flip)
    start = f32(y_zero[0] ^ flip) + low
    factor = f64(x_scale[0]) / f64(y_scale[0])
    shift = f64((x_zero[0] ^ flip) * area)
    w = lanes(f32)
    groups = (channels + w - 1) // w
    for unit in range(share(batch * groups, tid, nthreads), share(batch * groups, tid + 1, nthreads)):
        c = min(unit % groups * w, max(channels - w, 0))  # the last ones, some of them again
        n = channels - c
        source = x + (unit // groups * area * channels + c)
        total = vsplat(i32, 0)
        for p in range(area):
            total = total + (some_bytes(source, p * channels, n) ^ flip)
        scaled = (vconvert(total, f64) - shift) / f64(area) * factor
        whole = vround(vconvert(scaled, f32)) + start
        bytes_ = vconvert(vconvert(vmin(vmax(whole, low), low + f32(255)), i32), u8)
        if n >= w:
            vstore(y, unit // groups * channels + c, bytes_)
        else:
            vstore_part(y, unit // groups * channels + c, bytes_, n)
