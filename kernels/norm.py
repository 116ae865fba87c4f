"""Normalisations: rows as LayerNorm does, and by channel as batch, instance and group normalisation do. float32.

LayerNorm takes mean and variance of a row and writes the row in one go (three readings from the first cache).
By channel it takes three kernels: `moments` (mean and variance of each channel, in either layout), `coefficients` (what
to do with each channel: a handful of numbers), and `scale_rows` or `scale_columns`, which a batch normalisation with
known statistics needs alone. Variances are sums of squared differences from the mean: no cancellation.
"""

import numpy as np

from minifer.kernels.activation import CLAMP, activate
from minifer.kernels.elementwise import PIECE, piece_count
from minifer.kernels.reduce import COLUMNS
from minifer.kernels.simd import (
    f32,
    lanes,
    share,
    vconvert,
    vload,
    vload_part,
    vmax_quick,
    vmin_quick,
    vselect,
    vsplat,
    vsqrt,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import f64, i64, kernel, ptr_f32
from minifer.kernels.sums import column_totals, four_column_totals, row_total

# ---------------------------------------------------------------- rows


def layer_norm_reference(x, skip, scale, bias, y, total, mean, inverse, rows, n, epsilon, flags):
    source = x.astype("d").reshape(rows, n)
    if flags & HAS_SKIP:
        source = source + skip.reshape(rows, n)
    centre = 0 if flags & ROOT_MEAN_SQUARE else source.mean(1, keepdims=True)
    root = 1 / np.sqrt(np.square(source - centre).mean(1, keepdims=True) + epsilon)
    result = (source - centre) * root * scale + (bias if flags & HAS_BIAS else 0)
    expected = {"y": result.reshape(y.shape)}
    if flags & HAS_SKIP:
        expected["total"] = source.reshape(total.shape)
    if flags & STATISTICS:
        expected |= {"mean": np.broadcast_to(centre, (rows, 1)).reshape(rows), "inverse": root.reshape(rows)}
    return expected


def layer_norm_example(rng, size):
    rows, n = int(rng.integers(1, 5)), int(rng.integers(1, 40 * size))
    x, skip = (rng.standard_normal((rows, n)).astype("f") + 1 for _ in range(2))
    scale, bias = (rng.standard_normal(n).astype("f") for _ in range(2))
    y, total = np.zeros_like(x), np.zeros_like(x)
    mean, inverse = np.zeros(rows, "f"), np.zeros(rows, "f")
    return {
        "x": x, "skip": skip, "scale": scale, "bias": bias, "y": y, "total": total, "mean": mean, "inverse": inverse,
        "rows": rows, "n": n, "epsilon": 0.125, "flags": int(rng.integers(16)),
    }  # fmt: skip


#: bits of `flags`
HAS_BIAS, ROOT_MEAN_SQUARE, STATISTICS, HAS_SKIP = 1, 2, 4, 8


@kernel(
    reference=layer_norm_reference, example=layer_norm_example, outputs=("y", "total", "mean", "inverse"),
    tolerance=2e-6, group="layer_norm",
)  # fmt: skip
def layer_norm(
    x: ptr_f32, skip: ptr_f32, scale: ptr_f32, bias: ptr_f32, y: ptr_f32, total: ptr_f32, mean: ptr_f32,
    inverse: ptr_f32, rows: i64, n: i64, epsilon: f32, flags: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, row by row; x, y: (rows, n); scale, bias: (n,).

    HAS_SKIP: x + skip takes the place of x, and is written to `total`, all (rows, n). ROOT_MEAN_SQUARE: the mean is
    taken as 0. STATISTICS: mean and 1 / standard deviation are written, (rows,). Nothing else is touched.
    Nine operations an element (Ba, Kiros and Hinton 2016; Zhang and Sennrich 2019). Error 2e-6 of the largest y.
    """
    w = lanes(x)
    for r in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        source, target = x + r * n, y + r * n
        if flags & HAS_SKIP != 0:
            add_rows(source, skip + r * n, total + r * n, n)
            source = total + r * n
        centre = f32(0)
        if flags & ROOT_MEAN_SQUARE == 0:
            centre = f32(row_total(source, n, 0, f32(0)) / f64(n))
        variance = f32(row_total(source, n, 2, centre) / f64(n))
        root = f32(1) / vsqrt(variance + epsilon)
        i = 0
        while i + w <= n:
            v = (vload(source, i) - centre) * root * vload(scale, i)
            vstore(target, i, v + vload(bias, i) if flags & HAS_BIAS != 0 else v)
            i += w
        if i < n:
            v = (vload_part(source, i, n - i) - centre) * root * vload_part(scale, i, n - i)
            v = v + vload_part(bias, i, n - i) if flags & HAS_BIAS != 0 else v
            vstore_part(target, i, v, n - i)
        if flags & STATISTICS != 0:
            mean[r] = centre
            inverse[r] = root


def add_rows(a, b, y, n):
    """y[i] = a[i] + b[i] for i < n."""
    w = lanes(a)
    i = 0
    while i + w <= n:
        vstore(y, i, vload(a, i) + vload(b, i))
        i += w
    vstore_part(y, i, vload_part(a, i, n - i) + vload_part(b, i, n - i), n - i)


# ---------------------------------------------------------------- statistics


def moments_reference(x, mean, variance, outer, n, inner):
    block = x.reshape(outer, n, inner).astype("d")
    return {"mean": block.mean(1), "variance": block.var(1)}


def moments_example(rng, size):
    outer, n, inner = (int(v) for v in rng.integers(1, (4, 40 * size, 9 * size)))
    outer, inner = (outer * 3, 1) if rng.random() < 0.5 else (outer, inner)
    x = rng.standard_normal((outer, n, inner)).astype("f") + 2
    mean, variance = np.zeros((outer, inner), "f"), np.zeros((outer, inner), "f")
    return {"x": x, "mean": mean, "variance": variance, "outer": outer, "n": n, "inner": inner}


@kernel(
    reference=moments_reference, example=moments_example, outputs=("mean", "variance"), tolerance=1e-6, group="channel"
)
def moments(
    x: ptr_f32, mean: ptr_f32, variance: ptr_f32, outer: i64, n: i64, inner: i64, tid: i64, nthreads: i64
):  # fmt: skip
    """Mean and population variance along the middle axis of x (outer, n, inner); mean, variance: (outer, inner)."""
    if inner == 1:
        for o in range(share(outer, tid, nthreads), share(outer, tid + 1, nthreads)):
            centre = f32(row_total(x + o * n, n, 0, f32(0)) / f64(n))
            mean[o] = centre
            variance[o] = f32(row_total(x + o * n, n, 2, centre) / f64(n))
        return
    w = lanes(x)
    pieces = (inner + COLUMNS - 1) // COLUMNS
    for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
        first = unit % pieces * COLUMNS
        end = min(inner, first + COLUMNS)
        source = x + unit // pieces * n * inner
        base = unit // pieces * inner
        if end - first == 4 * w:
            wide_moments(source + first, mean + (base + first), variance + (base + first), n, inner)
            first = end
        for j in range(first, end, w):
            count = min(w, end - j)
            centre = vconvert(column_totals(source + j, n, inner, 0, vsplat(f32, 0), count) / f64(n), f32)
            vstore_part(mean, base + j, centre, count)
            spread = column_totals(source + j, n, inner, 2, centre, count) / f64(n)
            vstore_part(variance, base + j, vconvert(spread, f32), count)


def wide_moments(x, mean, variance, n, step):
    """The moments of four neighbouring vectors of columns."""
    w = lanes(x)
    zero = vsplat(f32, 0)
    a, b, c, d = four_column_totals(x, n, step, 0, (zero, zero, zero, zero))
    count = f64(n)
    e, f = vconvert(a / count, f32), vconvert(b / count, f32)
    g, h = vconvert(c / count, f32), vconvert(d / count, f32)
    a, b, c, d = four_column_totals(x, n, step, 2, (e, f, g, h))
    vstore(mean, 0, e)
    vstore(mean, w, f)
    vstore(mean, 2 * w, g)
    vstore(mean, 3 * w, h)
    vstore(variance, 0, vconvert(a / count, f32))
    vstore(variance, w, vconvert(b / count, f32))
    vstore(variance, 2 * w, vconvert(c / count, f32))
    vstore(variance, 3 * w, vconvert(d / count, f32))


def coefficients_reference(
    mean, variance, scale, bias, centre, factor, shift, batch, channels, groups, per_group, epsilon, outside
):
    shape = (batch, groups, channels // groups)
    m, v = (p.reshape(shape).astype("d") for p in (mean, variance))
    middle = m.mean(2, keepdims=True)
    spread = (v + np.square(m - middle)).mean(2, keepdims=True)
    s, b = (p.reshape((groups, 1) if per_group else shape[1:]) for p in (scale, bias))
    expected = middle, s / (np.sqrt(spread + epsilon) + outside), b
    names = ("centre", "factor", "shift")
    return {name: np.broadcast_to(e, shape).reshape(batch, channels) for name, e in zip(names, expected)}


def coefficients_example(rng, size):
    batch, groups, per = (int(v) for v in rng.integers(1, (3, 4 * size, 6)))
    channels = groups * per
    per_group = int(rng.integers(2))
    mean, variance = (rng.random((batch, channels)).astype("f") for _ in range(2))
    scale, bias = (rng.standard_normal(groups if per_group else channels).astype("f") for _ in range(2))
    results = {name: np.zeros((batch, channels), "f") for name in ("centre", "factor", "shift")}
    return {
        "mean": mean, "variance": variance, "scale": scale, "bias": bias, **results, "batch": batch,
        "channels": channels, "groups": groups, "per_group": per_group, "epsilon": 0.01, "outside": 0.25,
    }  # fmt: skip


@kernel(
    reference=coefficients_reference, example=coefficients_example, outputs=("centre", "factor", "shift"),
    tolerance=2e-6, group="channel",
)  # fmt: skip
def coefficients(
    mean: ptr_f32, variance: ptr_f32, scale: ptr_f32, bias: ptr_f32, centre: ptr_f32, factor: ptr_f32, shift: ptr_f32,
    batch: i64, channels: i64, groups: i64, per_group: i64, epsilon: f32, outside: f32, tid: i64, nthreads: i64,
):  # fmt: skip
    """What each channel is to be normalised by: y = (x - centre) * factor + shift.

    From means and variances of channels (batch, channels) come those of groups of neighbouring channels, all of which
    have as many elements; factor = scale / (sqrt(variance + epsilon) + outside), shift = bias. scale and bias are
    (channels,), or (groups,) where per_group is set. centre, factor, shift: (batch, channels).
    """
    size = channels // groups
    for unit in range(share(batch * groups, tid, nthreads), share(batch * groups, tid + 1, nthreads)):
        g = unit % groups
        base = unit * size
        total = f64(0)
        for c in range(size):
            total += f64(mean[base + c])
        middle = total / f64(size)
        spread = f64(0)
        for c in range(size):
            away = f64(mean[base + c]) - middle
            spread += f64(variance[base + c]) + away * away
        root = vsqrt(f32(spread / f64(size)) + epsilon) + outside
        for c in range(size):
            own = g if per_group != 0 else g * size + c
            centre[base + c] = f32(middle)
            factor[base + c] = scale[own] / root
            shift[base + c] = bias[own]


# ---------------------------------------------------------------- applying them


def clamped(v, first, second):
    """The activation CLAMP."""
    return vmin_quick(second, vmax_quick(first, v))


def scale_rows_reference(x, centre, factor, shift, y, rows, columns, period, code, first, second):
    at = np.arange(rows) % period
    wide = (x.astype("d") - centre[at, None]) * factor[at, None] + shift[at, None]
    return {"y": np.clip(wide, first, second)}


def scale_rows_example(rng, size):
    rows, columns = int(rng.integers(1, 9)), int(rng.integers(1, 20 * size))
    period = int(rng.integers(1, rows + 1))
    x = rng.standard_normal((rows, columns)).astype("f")
    centre, factor, shift = (rng.standard_normal(period).astype("f") for _ in range(3))
    return {
        "x": x, "centre": centre, "factor": factor, "shift": shift, "y": np.zeros_like(x), "rows": rows,
        "columns": columns, "period": period, "code": CLAMP, "first": -0.5, "second": 2.0,
    }  # fmt: skip


@kernel(reference=scale_rows_reference, example=scale_rows_example, tolerance=1e-6, group="scale")
def scale_rows(
    x: ptr_f32, centre: ptr_f32, factor: ptr_f32, shift: ptr_f32, y: ptr_f32, rows: i64, columns: i64, period: i64,
    code: i64, first: f32, second: f32, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[r, j] = activate((x[r, j] - centre[k]) * factor[k] + shift[k]) with k = r mod period. x, y: (rows, columns)."""
    w = lanes(x)
    pieces = piece_count(columns)
    for unit in range(share(rows * pieces, tid, nthreads), share(rows * pieces, tid + 1, nthreads)):
        row = unit // pieces
        k = row % period
        c, f, s = centre[k], factor[k], shift[k]
        i = row * columns + unit % pieces * PIECE
        end = min(row * columns + columns, i + PIECE)
        if code == CLAMP:  # a loop of its own: the others' code costs registers
            while i + w <= end:
                vstore(y, i, clamped((vload(x, i) - c) * f + s, first, second))
                i += w
        while i + w <= end:
            vstore(y, i, activate((vload(x, i) - c) * f + s, code, first, second))
            i += w
        if i < end:
            v = (vload_part(x, i, end - i) - c) * f + s
            vstore_part(y, i, activate(v, code, first, second), end - i)


def scale_columns_reference(x, centre, factor, shift, y, rows, columns, together, code, first, second):
    at = np.arange(rows) // together
    wide = (x.astype("d") - centre[at]) * factor[at] + shift[at]
    return {"y": np.clip(wide, first, second)}


def scale_columns_example(rng, size):
    rows, columns, together = int(rng.integers(1, 40)), int(rng.integers(1, 20 * size)), int(rng.integers(1, 9))
    x = rng.standard_normal((rows, columns)).astype("f")
    count = (rows + together - 1) // together
    centre, factor, shift = (rng.standard_normal((count, columns)).astype("f") for _ in range(3))
    return {
        "x": x, "centre": centre, "factor": factor, "shift": shift, "y": np.zeros_like(x), "rows": rows,
        "columns": columns, "together": together, "code": CLAMP, "first": -0.5, "second": 2.0,
    }  # fmt: skip


@kernel(reference=scale_columns_reference, example=scale_columns_example, tolerance=1e-6, group="scale")
def scale_columns(
    x: ptr_f32, centre: ptr_f32, factor: ptr_f32, shift: ptr_f32, y: ptr_f32, rows: i64, columns: i64, together: i64,
    code: i64, first: f32, second: f32, tid: i64, nthreads: i64,
):  # fmt: skip
    """y[r, j] = activate((x[r, j] - centre[k, j]) * factor[k, j] + shift[k, j]) with k = r // together.

    x, y: (rows, columns); centre, factor, shift: (ceil(rows / together), columns).
    """
    r, end = share(rows, tid, nthreads), share(rows, tid + 1, nthreads)
    while r < end:
        count = min(end, (r // together + 1) * together) - r  # rows of the same numbers
        k = r // together * columns
        i = 0
        if code == CLAMP:  # a loop of its own: the others' code costs registers
            while i + 4 <= count:
                clamp_four(x, y, (r + i) * columns, centre + k, factor + k, shift + k, columns, first, second)
                i += 4
        while i < count:
            scale_line(x, y, (r + i) * columns, centre + k, factor + k, shift + k, columns, code, first, second)
            i += 1
        r += count


def clamp_four(x, y, at, centre, factor, shift, columns, first, second):
    """Four rows from `at` on: the channels' numbers are loaded once."""
    w = lanes(x)
    j = 0
    while j + w <= columns:
        c, f, s = vload(centre, j), vload(factor, j), vload(shift, j)
        i = at + j
        vstore(y, i, clamped((vload(x, i) - c) * f + s, first, second))
        i += columns
        vstore(y, i, clamped((vload(x, i) - c) * f + s, first, second))
        i += columns
        vstore(y, i, clamped((vload(x, i) - c) * f + s, first, second))
        i += columns
        vstore(y, i, clamped((vload(x, i) - c) * f + s, first, second))
        j += w
    if j < columns:
        n = columns - j
        c, f, s = vload_part(centre, j, n), vload_part(factor, j, n), vload_part(shift, j, n)
        for row in range(4):
            i = at + row * columns + j
            vstore_part(y, i, clamped((vload_part(x, i, n) - c) * f + s, first, second), n)


def scale_line(x, y, at, centre, factor, shift, columns, code, first, second):
    """One row from `at` on, any activation."""
    w = lanes(x)
    for j in range(0, columns, w):
        n = columns - j
        v = (vload_part(x, at + j, n) - vload_part(centre, j, n)) * vload_part(factor, j, n) + vload_part(shift, j, n)
        vstore_part(y, at + j, activate(v, code, first, second), n)


# ---------------------------------------------------------------- vector norms


def lp_reference(x, y, outer, n, inner, p):
    block = x.reshape(outer, n, inner).astype("d")
    size = np.abs(block).sum(1, keepdims=True) if p == 1 else np.sqrt(np.square(block).sum(1, keepdims=True))
    return {"y": np.where(size == 0, 0, block / np.where(size == 0, 1, size)).reshape(y.shape)}


def lp_example(rng, size):
    arguments = moments_example(rng, size)
    x = arguments["x"]
    if rng.random() < 0.2:
        x[0] = 0
    sizes = {name: arguments[name] for name in ("outer", "n", "inner")}
    return {"x": x, "y": np.zeros_like(x), **sizes, "p": int(rng.integers(1, 3))}


@kernel(reference=lp_reference, example=lp_example, tolerance=1e-6, group="lp")
def lp_normalize(x: ptr_f32, y: ptr_f32, outer: i64, n: i64, inner: i64, p: i64, tid: i64, nthreads: i64):
    """y = x / |x|, the norm (p = 1 or 2) being along the middle axis of (outer, n, inner); 0 where that is 0."""
    w = lanes(x)
    pieces = (inner + w - 1) // w
    for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
        first = unit % pieces * w
        at = unit // pieces * n * inner + first
        if inner == 1:
            total = f32(row_total(x + at, n, p, f32(0)))
            size = vsqrt(total) if p == 2 else total
            factor = f32(1) / size if size > f32(0) else size
            for i in range(0, n, w):
                vstore_part(y, at + i, vload_part(x, at + i, n - i) * factor, n - i)
        else:
            count = min(w, inner - first)
            totals = vconvert(column_totals(x + at, n, inner, p, vsplat(f32, 0), count), f32)
            sizes = vsqrt(totals) if p == 2 else totals
            factors = vselect(sizes == 0.0, sizes, vsplat(f32, 1) / sizes)
            for i in range(n):
                vstore_part(y, at + i * inner, vload_part(x, at + i * inner, count) * factors, count)
