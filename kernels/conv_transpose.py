"""Transposed convolution on channels-last tensors, as a gather.

Seen from an output pixel, a transposed convolution is a convolution whose taps meet an input pixel only where
(pixel + pad - tap * dilation) divides by the stride. Output pixels of one row that are equal modulo the
stride meet the same taps, and consecutive input pixels: they form the rows of the register tile (conv.py has the
idea of the table). Nothing is added up in memory, so threads never meet. Geometry as in conv.py; float32.

Where taps and strides are equal, each input pixel has output pixels of its own: `spread` is a plain matrix product of
pixels with all taps of all filters.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.activation import CLAMP, activate_rows, activation_reference
from minifer.kernels.conv import (
    BATCH,
    CHANNELS,
    DILATION_D,
    DILATION_H,
    DILATION_W,
    FILTERS,
    GROUPS,
    IN_D,
    IN_H,
    IN_W,
    OUT_D,
    OUT_H,
    OUT_W,
    PAD_D,
    PAD_H,
    PAD_W,
    STRIDE_D,
    STRIDE_H,
    STRIDE_W,
    TAPS_D,
    TAPS_H,
    TAPS_W,
    geometry,
    pack_weights,
)
from minifer.kernels.gemm import pack
from minifer.kernels.simd import (
    MR,
    NR,
    address_of,
    as_ptr,
    rows_strided,
    rows_table,
    share,
    tile_add,
    tile_bias,
    tile_clamp,
    tile_outer,
    tile_outer4,
    tile_store,
    tile_zero,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64


def scratch_words(g: np.ndarray) -> int:
    """Table entries (i64) that one thread needs: tap, first input column and line of each tap, and its rows."""
    return int(g[TAPS_D] * g[TAPS_H] * g[TAPS_W]) * (3 + int(MR))


def pack_transposed(weight: np.ndarray, groups: int) -> np.ndarray:
    """ONNX weights (channels, filters / groups, *taps) in the panels of conv.pack_weights."""
    by_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    filters_first = by_group.swapaxes(1, 2)
    return pack_weights(filters_first.reshape(-1, *filters_first.shape[2:]), groups)


def transposed_reference(x, weight, bias, residual, y, zeros, table, g, code, first, second, has_bias, has_residual):
    """Scatter each input pixel through the taps, in float64."""
    n, c, filters, groups = (int(v) for v in g[:4])
    size, out, taps, stride, pad, dilation = (tuple(int(v) for v in g[i : i + 3]) for i in range(4, 22, 3))
    cg, fg = c // groups, filters // groups
    w = weight.reshape(groups, -1, weight.shape[2], NR).transpose(0, 2, 1, 3)
    w = w.reshape(groups, *taps, cg, -1)[..., :fg].astype(np.float64)
    source = x.reshape(n, *size, groups, cg).astype(np.float64)
    result = np.zeros((n, *out, groups, fg))
    magnitude = np.zeros_like(result)
    for i in np.ndindex(*size):
        for t in np.ndindex(*taps):
            at = tuple(i[k] * stride[k] + t[k] * dilation[k] - pad[k] for k in range(3))
            if all(0 <= at[k] < out[k] for k in range(3)):
                for k in range(groups):
                    result[(slice(None), *at, k)] += source[(slice(None), *i, k)] @ w[(k, *t)]
                    magnitude[(slice(None), *at, k)] += abs(source[(slice(None), *i, k)]) @ abs(w[(k, *t)])
    result, magnitude = result.reshape(y.shape), magnitude.reshape(y.shape)
    if has_bias:
        result, magnitude = result + bias, magnitude + abs(bias)
    if has_residual:
        result, magnitude = result + residual, magnitude + abs(residual)
    return {"y": (activation_reference(result, code, first, second), np.maximum(magnitude, 1))}


def transposed_example(rng, size):
    groups = int(rng.integers(1, 3))
    cg, fg = int(rng.integers(1, 3 + size)), int(rng.integers(1, 4 + 2 * size))
    taps = [int(rng.integers(1, 3)), int(rng.integers(1, 4)), int(rng.integers(1, 4))]
    stride, dilation = ([int(rng.integers(1, 4)) for _ in range(3)] for _ in range(2))
    inside = [int(rng.integers(1, 5)) for _ in range(3)]
    full = [(i - 1) * s + (t - 1) * d + 1 for i, s, t, d in zip(inside, stride, taps, dilation)]
    pad = [int(rng.integers(0, min(t, f))) for t, f in zip(taps, full)]
    out = [max(1, f - p - int(rng.integers(0, 2))) for f, p in zip(full, pad)]
    n = int(rng.integers(1, 3))
    g = geometry(n, groups * cg, groups * fg, groups, inside, out, taps, stride, pad, dilation)
    shape = (n, *out, groups * fg)
    return {
        "x": rng.standard_normal((n, *inside, groups * cg)).astype("f"),
        "weight": pack_transposed(rng.standard_normal((groups * cg, fg, *taps)).astype("f"), groups),
        "bias": rng.standard_normal(groups * fg).astype("f"),
        "residual": rng.standard_normal(shape).astype("f"),
        "y": np.full(shape, np.nan, "f"),
        "zeros": np.zeros(groups * cg, "f"),
        "table": np.zeros(8 * scratch_words(g), np.int64),
        "g": g,
        "code": int(rng.integers(0, 2)),
        "first": 0.25,
        "second": 6.0,
        "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)),
    }


@kernel(reference=transposed_reference, example=transposed_example, outputs=("y", "table"), tolerance=2e-6)
def conv_transpose(
    x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, zeros: ptr_f32, table: ptr_i64,
    g: ptr_i64, code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64,
    slot: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = activate(transposed convolution of x + bias + residual).

    x: (batch, depth, height, width, channels); weight: see pack_transposed; bias: (filters,); residual and
    y: (batch, out depth, out height, out width, filters); zeros: channels zeros; table: scratch_words per thread.
    2 * input pixels * taps * channels / groups * filters FLOPs. Work is split over output rows and phases.
    """
    groups, filters, stride = g[GROUPS], g[FILTERS], g[STRIDE_W]
    of_group, run = filters // groups, g[CHANNELS] // groups
    panels = (of_group + NR - 1) // NR
    taps = g[TAPS_D] * g[TAPS_H] * g[TAPS_W]
    plan = table + slot * (taps * (3 + MR))
    rows = plan + 3 * taps
    base = as_ptr(min(address_of(x), address_of(zeros)), f32)
    origin = (address_of(x) - address_of(base)) // 4
    nothing = (address_of(zeros) - address_of(base)) // 4
    lines = g[BATCH] * g[OUT_D] * g[OUT_H]
    phases = min(stride, g[OUT_W])
    for unit in range(share(lines * phases, tid, nthreads), share(lines * phases, tid + 1, nthreads)):
        line, phase = unit // phases, unit % phases
        entries = taps_that_meet(plan, g, line, phase)
        count = (g[OUT_W] - phase + stride - 1) // stride
        for t in range(0, count, MR):
            m = min(MR, count - t)
            fill_rows(rows, plan, g, entries, t, m, origin, nothing)
            corner = (line * g[OUT_W] + phase + t * stride) * filters
            for q in range(groups * panels):
                group, panel = q // panels, q % panels
                n = min(NR, of_group - panel * NR)
                column = group * of_group + panel * NR
                acc = tile_zero()
                for e in range(entries):
                    b = weight + (q * taps + plan[3 * e]) * (run * NR)
                    source = rows_table(base + group * run, rows + e * m, m)
                    whole = run // 4 * 4
                    for p in range(0, whole, 4):
                        acc = tile_outer4(acc, source, p, b + p * NR)
                    for p in range(whole, run):
                        acc = tile_outer(acc, source, p, b + p * NR)
                if has_bias != 0:
                    acc = tile_bias(acc, bias + column, n)
                at = corner + column
                if has_residual != 0:
                    acc = tile_add(acc, residual + at, stride * filters, m, n)
                if code == CLAMP:
                    acc = tile_clamp(acc, first, second)
                tile_store(y + at, stride * filters, acc, m, n)
                if code != CLAMP:
                    activate_rows(y + at, stride * filters, m, n, code, first, second)


def taps_that_meet(plan, g, line, phase):
    """List the taps that meet input pixels for an output line and phase: (tap, first input column, input line)."""
    oh = line % g[OUT_H]
    od = line // g[OUT_H] % g[OUT_D]
    image = line // (g[OUT_H] * g[OUT_D]) * g[IN_D]
    entries = 0
    for kd in range(g[TAPS_D]):
        d = od + g[PAD_D] - kd * g[DILATION_D]
        for kh in range(g[TAPS_H]):
            h = oh + g[PAD_H] - kh * g[DILATION_H]
            meets = d % g[STRIDE_D] == 0 and h % g[STRIDE_H] == 0
            at_d, at_h = d // g[STRIDE_D], h // g[STRIDE_H]
            inside = at_d >= 0 and at_d < g[IN_D] and at_h >= 0 and at_h < g[IN_H]
            for kw in range(g[TAPS_W]):
                w = phase + g[PAD_W] - kw * g[DILATION_W]
                if meets and inside and w % g[STRIDE_W] == 0:
                    plan[3 * entries] = (kd * g[TAPS_H] + kh) * g[TAPS_W] + kw
                    plan[3 * entries + 1] = w // g[STRIDE_W]
                    plan[3 * entries + 2] = ((image + at_d) * g[IN_H] + at_h) * g[IN_W]
                    entries += 1
    return entries


def fill_rows(rows, plan, g, entries, t, m, origin, nothing):
    """Where the channels of each tap and each of m pixels from the t-th on begin."""
    for e in range(entries):
        for i in range(m):
            w = plan[3 * e + 1] + t + i
            inside = w >= 0 and w < g[IN_W]
            rows[e * m + i] = origin + (plan[3 * e + 2] + w) * g[CHANNELS] if inside else nothing


def pack_spread(weight: np.ndarray) -> np.ndarray:
    """ONNX weights (channels, filters, *taps) as the panels of (channels, taps * filters)."""
    return pack(np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1))


def spread_reference(x, weight, bias, y, piece, lines, width, channels, filters, taps_h, taps_w, code, first, second,
                     has_bias):  # fmt: skip
    """As one product in float64, its columns moved to their places."""
    count = taps_h * taps_w * filters
    w = weight.transpose(1, 0, 2).reshape(channels, -1)[:, :count].astype(np.float64)
    pixels = x.reshape(-1, channels).astype(np.float64)
    shape = (lines, width, taps_h, taps_w, filters)
    result, magnitude = ((a @ b).reshape(shape) for a, b in ((pixels, w), (abs(pixels), abs(w))))
    if has_bias:
        more = bias.reshape(taps_h, taps_w, filters)
        result, magnitude = result + more, magnitude + abs(more)
    result, magnitude = (v.transpose(0, 2, 1, 3, 4).reshape(y.shape) for v in (result, magnitude))
    return {"y": (activation_reference(result, code, first, second), np.maximum(magnitude, 1))}


def spread_example(rng, size):
    lines, width, taps_h, taps_w = (int(v) for v in rng.integers(1, (4, 9, 4, 4)))
    channels, filters = int(rng.integers(1, 3 + size)), int(rng.choice([1, 2, 3, int(rng.integers(1, 6 * size))]))
    count = taps_h * taps_w * filters
    return {
        "x": rng.standard_normal((lines, width, channels)).astype("f"),
        "weight": pack(rng.standard_normal((channels, count)).astype("f")),
        "bias": rng.standard_normal(count).astype("f"),
        "y": np.full((lines, taps_h, width, taps_w, filters), np.nan, "f"),
        "piece": np.zeros(8 * MR * NR, "f"),
        "lines": lines, "width": width, "channels": channels, "filters": filters, "taps_h": taps_h, "taps_w": taps_w,
        "code": int(rng.integers(0, 2)), "first": 0.25, "second": 6.0, "has_bias": int(rng.integers(0, 2)),
    }  # fmt: skip


@kernel(reference=spread_reference, example=spread_example, outputs=("y", "piece"), tolerance=2e-6)
def spread(
    x: ptr_f32, weight: ptr_f32, bias: ptr_f32, y: ptr_f32, piece: ptr_f32, lines: i64, width: i64, channels: i64,
    filters: i64, taps_h: i64, taps_w: i64, code: i64, first: f32, second: f32, has_bias: i64,
    slot: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = activate(transposed convolution of x + bias), with strides equal to the taps and no padding.

    x: (lines, width, channels); weight: gemm.pack of (channels, taps_h * taps_w * filters); bias: as many as that has
    columns; y: (lines, taps_h, width, taps_w, filters), which is the image; piece: a register tile per thread.
    2 * lines * width * channels * columns FLOPs. Work is split over lines of x.
    """
    run = taps_w * filters  # what a pixel gives to each line of y
    columns = taps_h * run
    piece = piece + slot * (MR * NR)
    for l in range(share(lines, tid, nthreads), share(lines, tid + 1, nthreads)):
        source, target = x + l * width * channels, y + l * width * columns
        for c in range(0, columns, NR):
            n = min(NR, columns - c)
            whole = c % run + n <= run  # all columns of the panel belong to one line of y
            b = weight + c * channels
            for t in range(0, width, MR):
                m = min(MR, width - t)
                rows = rows_strided(source + t * channels, channels, m)
                acc = tile_zero()
                for p in range(0, channels // 4 * 4, 4):
                    acc = tile_outer4(acc, rows, p, b + p * NR)
                for p in range(channels // 4 * 4, channels):
                    acc = tile_outer(acc, rows, p, b + p * NR)
                if has_bias != 0:
                    acc = tile_bias(acc, bias + c, n)
                if code == CLAMP:
                    acc = tile_clamp(acc, first, second)
                if whole:
                    tile_store(target + ((c // run * width + t) * run + c % run), run, acc, m, n)
                else:
                    tile_store(piece, NR, acc, m, NR)
                    deal(piece, target, m, n, c, t, run, width)
        if code != CLAMP:
            activate_rows(target, 0, 1, width * columns, code, first, second)


def deal(piece, y, m, n, c, t, run, width):
    """Copy columns c .. c + n of m pixels from the t-th on to the lines of y that they belong to."""
    j = 0
    while j < n:
        at = (c + j) % run
        count = min(n - j, run - at)
        line = y + (((c + j) // run * width + t) * run + at)
        for i in range(m):
            for e in range(count):
                line[i * run + e] = piece[i * NR + j + e]
        j += count
