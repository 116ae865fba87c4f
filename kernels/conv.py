"""Convolution on channels-last tensors: implicit GEMM, without ever writing the matrix of patches.

A convolution is a matrix product: one row per output pixel, one column per output channel, and the inner
dimension runs over taps and input channels (Chellapilla, Puri and Simard, "High Performance Convolutional Neural
Networks for Document Processing", 2006). The patch matrix need not exist (Dukhan, "The Indirect
Convolution Algorithm", 2019): its rows are runs of channels in the input, so a table holds, for each tap and output
pixel, where its run begins, and the register tile reads its rows through the table. A tap that falls into the
padding points at a row of zeros.

Geometry: one to three spatial dimensions are all treated as three (depth, height, width). All tensors are float32.
The numbers of a convolution come in a table of integers, indexed by the names below.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.activation import activation_reference
from minifer.kernels.gemm import (
    accumulate_ahead,
    block_size,
    fetch_rows,
    many_rows,
    next_rows,
    pause_or_finish,
    resume,
)
from minifer.kernels.simd import (
    MR,
    NR,
    SHORT,
    address_of,
    as_ptr,
    rows_table,
    share,
    tile_zero,
    tile_zero_short,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64
from minifer.kernels.target import host

# indices into the geometry table
BATCH, CHANNELS, FILTERS, GROUPS = 0, 1, 2, 3
IN_D, IN_H, IN_W, OUT_D, OUT_H, OUT_W = 4, 5, 6, 7, 8, 9
TAPS_D, TAPS_H, TAPS_W, STRIDE_D, STRIDE_H, STRIDE_W = 10, 11, 12, 13, 14, 15
PAD_D, PAD_H, PAD_W, DILATION_D, DILATION_H, DILATION_W = 16, 17, 18, 19, 20, 21
RUN = 22  # channels of one table entry: CHANNELS / GROUPS, or TAPS_W times that where a row of taps is contiguous
BLOCK = 23  # most output pixels of a block: the table holds BLOCK * taps entries
IN_STEP, OUT_STEP, RESIDUAL_STEP = 24, 25, 26  # elements from one pixel to the next
GEOMETRY_WORDS = 27
#: floats of a panel of weights of which the second-level cache has no room for two
LARGE = 1 << 17
#: what a block may take of the second-level cache: bytes of the input that it reads, entries of the table
BLOCK_BYTES, BLOCK_ENTRIES = 8 * host().block, 8192


def geometry(
    batch, channels, filters, groups, in_size, out_size, taps, strides, pads, dilations, *, merged=False, gaps=(0, 0, 0)
) -> np.ndarray:
    """The table for a convolution; spatial tuples are (depth, height, width), pads are those at the begin.

    `merged`: a row of taps is one run of memory (no padding and no dilation in width, one group). `gaps`: elements
    left out behind each pixel of the input, the result and the residual.
    """
    run = channels // groups * (taps[2] if merged else 1)
    entries = taps[0] * taps[1] * (1 if merged else taps[2])
    pixels = min(strides[0], taps[0]) * min(strides[1], taps[1]) * min(strides[2], taps[2])  # read per output pixel
    fitting = min(BLOCK_BYTES // (4 * channels * pixels), BLOCK_ENTRIES // entries)
    block = max(24, min(240, fitting // 24 * 24))
    sizes = [batch, channels, filters, groups, *in_size, *out_size, *taps, *strides, *pads, *dilations, run, block]
    return np.array([*sizes, channels + gaps[0], filters + gaps[1], filters + gaps[2]], np.int64)


def scratch_words(g: np.ndarray) -> int:
    """Table entries (i64) that one thread needs."""
    return int(g[BLOCK] * g[TAPS_D] * g[TAPS_H] * g[TAPS_W])


def pack_weights(weight: np.ndarray, groups: int) -> np.ndarray:
    """ONNX weights (filters, channels / groups, *taps) as panels (groups, panels, taps * channels / groups, NR).

    A panel holds NR filters side by side, zero-filled; taps are in row-major order, channels innermost.
    """
    nr = int(NR)
    filters, channels = weight.shape[0] // groups, weight.shape[1]
    panels, taps = -(-filters // nr), int(np.prod(weight.shape[2:]))
    out = np.zeros((groups, panels, taps, channels, nr), np.float32)
    for group in range(groups):
        for panel in range(panels):
            first, last = group * filters + panel * nr, group * filters + min(filters, (panel + 1) * nr)
            out[group, panel, :, :, : last - first] = taps_first(weight[first:last])
    return out.reshape(groups, panels, taps * channels, nr)


def taps_first(weight: np.ndarray) -> np.ndarray:
    """Weights (filters, channels, *taps) as (taps, channels, filters); by a copy, which is quicker than one jump."""
    filters, channels = weight.shape[:2]
    filters_last = np.ascontiguousarray(weight.reshape(filters, -1).T)
    return filters_last.reshape(channels, -1, filters).transpose(1, 0, 2)


def pack_filters_example(rng, size):
    groups, filters, channels, taps = (int(v) for v in rng.integers(1, 3 + size, 4))
    lanes = int(rng.choice([8, 16, 32]))
    return {
        "w": rng.standard_normal((groups * filters, channels, taps)).astype("f"),
        "packed": np.full((groups, -(-filters // lanes), taps, channels, lanes), np.nan, "f"),
        "groups": groups, "filters": filters, "channels": channels, "taps": taps, "lanes": lanes,
    }  # fmt: skip


def pack_filters_reference(w, packed, groups, filters, channels, taps, lanes):
    panels = packed.shape[1]
    full = np.zeros((groups, panels * lanes, channels, taps), "f")
    full[:, :filters] = w.reshape(groups, filters, channels, taps)
    return {"packed": full.reshape(groups, panels, lanes, channels, taps).transpose(0, 1, 4, 3, 2)}


@kernel(reference=pack_filters_reference, example=pack_filters_example, outputs=("packed",), tolerance=0)
def pack_filters(
    w: ptr_f32, packed: ptr_f32, groups: i64, filters: i64, channels: i64, taps: i64, lanes: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """pack_weights for weights that only the run knows, in panels of `lanes` filters.

    w: (groups * filters, channels, taps); packed: (groups, panels, taps, channels, lanes). Split over panels.
    """
    panels = (filters + lanes - 1) // lanes
    size = channels * taps  # of a filter
    for unit in range(share(groups * panels, tid, nthreads), share(groups * panels, tid + 1, nthreads)):
        first = unit % panels * lanes
        source, out = w + (unit // panels * filters + first) * size, packed + unit * (size * lanes)
        for c in range(channels):
            for t in range(taps):
                line = out + (t * channels + c) * lanes
                for j in range(lanes):
                    line[j] = source[j * size + c * taps + t] if first + j < filters else f32(0)


def conv_reference(x, weight, bias, residual, y, zeros, table, g, code, first, second, has_bias, has_residual):
    """The same by the definition, in float64."""
    n, c, filters, groups = g[:4]
    size, out, taps, stride, pad, dilation = (tuple(int(v) for v in g[i : i + 3]) for i in range(4, 22, 3))
    cg, fg = c // groups, filters // groups
    w = weight.reshape(groups, -1, weight.shape[2], NR).transpose(0, 2, 1, 3)
    w = w.reshape(groups, *taps, cg, -1)[..., :fg].astype(np.float64)
    source = x[..., :c].reshape(n, *size, groups, cg).astype(np.float64)
    result = np.zeros((n, *out, groups, fg))
    magnitude = np.zeros_like(result)
    for o in np.ndindex(*out):
        for t in np.ndindex(*taps):
            at = tuple(o[i] * stride[i] + t[i] * dilation[i] - pad[i] for i in range(3))
            if all(0 <= at[i] < size[i] for i in range(3)):
                pixel = source[(slice(None), *at)]
                for k in range(groups):
                    result[(slice(None), *o, k)] += pixel[:, k] @ w[(k, *t)]
                    magnitude[(slice(None), *o, k)] += abs(pixel[:, k]) @ abs(w[(k, *t)])
    form = (*y.shape[:-1], filters)
    result, magnitude = result.reshape(form), magnitude.reshape(form)
    if has_bias:
        result, magnitude = result + bias, magnitude + abs(bias)
    if has_residual:
        residual = residual[..., :filters]
        result, magnitude = result + residual, magnitude + abs(residual)
    expected, error = y.astype(np.float64), np.ones(y.shape)
    expected[..., :filters] = activation_reference(result, code, first, second)
    error[..., :filters] = np.maximum(magnitude, 1)
    return {"y": (expected, error)}


def conv_example(rng, size):
    groups = int(rng.integers(1, 3))
    cg, fg = int(rng.integers(1, 3 + size)), int(rng.integers(1, 4 + 2 * size))
    taps = [int(rng.integers(1, 4)) for _ in range(3)]
    taps[0] = min(taps[0], 2)
    stride, dilation = ([int(rng.integers(1, 3)) for _ in range(3)] for _ in range(2))
    pad = [int(rng.integers(0, t)) for t in taps]
    inside = [(t - 1) * d + 1 + int(rng.integers(0, 4)) for t, d in zip(taps, dilation)]
    out = [(i + 2 * p - (t - 1) * d - 1) // s + 1 for i, p, t, d, s in zip(inside, pad, taps, dilation, stride)]
    n = int(rng.integers(1, 3))
    merged = bool(rng.integers(0, 2)) and groups == 1
    if merged:
        pad, dilation[2] = [0, 0, 0], 1
        out = [(i - (t - 1) * d - 1) // s + 1 for i, t, d, s in zip(inside, taps, dilation, stride)]
    gaps = (0 if merged else int(rng.integers(0, 3)), int(rng.integers(0, 3)), int(rng.integers(0, 3)))
    sizes = (n, groups * cg, groups * fg, groups, inside, out, taps, stride, pad, dilation)
    g = geometry(*sizes, merged=merged, gaps=gaps)
    weight = rng.standard_normal((groups * fg, cg, *taps)).astype("f")
    return {
        "x": rng.standard_normal((n, *inside, groups * cg + gaps[0])).astype("f"),
        "weight": pack_weights(weight, groups),
        "bias": rng.standard_normal(groups * fg).astype("f"),
        "residual": rng.standard_normal((n, *out, groups * fg + gaps[2])).astype("f"),
        "y": np.full((n, *out, groups * fg + gaps[1]), np.nan, "f"),
        "zeros": np.zeros(int(g[RUN]) * groups, "f"),
        "table": np.zeros(8 * scratch_words(g), np.int64),
        "g": g,
        "code": int(rng.integers(0, 2)),
        "first": 0.25,
        "second": 6.0,
        "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)),
    }


@kernel(reference=conv_reference, example=conv_example, outputs=("y", "table"), tolerance=2e-6)
def conv(
    x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, zeros: ptr_f32, table: ptr_i64,
    g: ptr_i64, code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64,
    slot: i64, pieces: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = activate(conv(x, weight) + bias + residual).

    x: (batch, depth, height, width, channels); weight: see pack_weights; bias: (filters,); residual and
    y: (batch, out depth, out height, out width, filters); zeros: RUN * GROUPS zeros; table: scratch_words per thread.
    Pixels lie IN_STEP, OUT_STEP and RESIDUAL_STEP elements apart. residual may be y itself.
    2 * pixels * taps * channels / groups * filters FLOPs. Each result is one sum in the order taps, channels.
    Error: (terms) * 2^-24 times the sum of absolute products at most; about its square root in practice.
    Work is split over output pixels, or over panels of filters where there are few pixels.
    """
    groups, filters = g[GROUPS], g[FILTERS]
    pixels = g[BATCH] * g[OUT_D] * g[OUT_H] * g[OUT_W]
    run = g[RUN]
    per_row = g[TAPS_W] if run * groups == g[CHANNELS] else 1
    entries = g[TAPS_D] * g[TAPS_H] * per_row
    of_group = filters // groups
    panels = (of_group + NR - 1) // NR
    mine = table + slot * (g[BLOCK] * g[TAPS_D] * g[TAPS_H] * g[TAPS_W])
    # entries count from the lower of the two arrays that a row may lie in
    base = as_ptr(min(address_of(x), address_of(zeros)), f32)
    origin = (address_of(x) - address_of(base)) // 4
    nothing = (address_of(zeros) - address_of(base)) // 4
    # few pixels: all threads walk all of them and share the panels
    by_pixel = many_rows(pixels, of_group * entries * run) or groups * panels < 2 * pieces
    strips = (pixels + MR - 1) // MR
    pixel_from = share(strips, tid, nthreads) * MR if by_pixel else 0
    pixel_to = min(pixels, share(strips, tid + 1, nthreads) * MR) if by_pixel else pixels
    panel_from = 0 if by_pixel else share(groups * panels, tid, nthreads)
    panel_to = groups * panels if by_pixel else share(groups * panels, tid + 1, nthreads)
    if panel_from == panel_to or pixel_from >= pixel_to:
        return
    block = block_size(pixel_to - pixel_from, g[BLOCK], MR)
    size = entries * run * NR  # of a panel
    to_next, to_other = g[OUT_STEP], g[RESIDUAL_STEP]
    for p0 in range(pixel_from, pixel_to, block):
        count = min(block, pixel_to - p0)
        fill_table(mine, g, p0, count, per_row, origin, nothing)
        # large panels go tap by tap, for all pixels, with sums kept in y: the cache has no room for two of them
        parts = entries if size > LARGE and has_residual == 0 and count > MR else 1
        part_size, taps = size // parts, entries // parts
        for unit in range(panel_from * parts, panel_to * parts):
            q, part = unit // parts, unit % parts
            group, panel = q // panels, q % panels
            n = min(NR, of_group - panel * NR)
            column = group * of_group + panel * NR
            rows, b = base + group * run, weight + unit * part_size
            i, turn = 0, 0
            while i < count:
                m = next_rows(count - i)
                # each of the first four tiles fetches a quarter of the weights that come next
                ahead = (part_size if turn < 4 else 0) + turn % 4 * (run // 4 * NR)
                target, offset = y + (p0 + i) * to_next + column, residual + (p0 + i) * to_other + column
                entry = mine + (part * count + i)
                if has_residual != 0:
                    fetch_rows(offset, to_other, m)
                last = part + 1 == parts
                if m <= SHORT:
                    acc = resume(tile_zero_short(), part, target, offset, to_next, to_other, m, n, 0)
                    acc = product(acc, rows, entry, count, b, taps, run, m, ahead)
                    pause_or_finish(acc, last, target, bias + column, offset, to_next, to_other, m, n, has_bias,
                                    has_residual, code, first, second)  # fmt: skip
                else:
                    tile = resume(tile_zero(), part, target, offset, to_next, to_other, m, n, 0)
                    tile = product(tile, rows, entry, count, b, taps, run, m, ahead)
                    pause_or_finish(tile, last, target, bias + column, offset, to_next, to_other, m, n, has_bias,
                                    has_residual, code, first, second)  # fmt: skip
                i += m
                turn += 1


def product(acc, x, table, pitch, b, entries, run, m, ahead):
    """The register tile of m pixels by NR filters: acc and the sum over table entries and their runs.

    `ahead` elements behind the weights lie those to be fetched meanwhile.
    """
    for e in range(entries):
        acc = accumulate_ahead(acc, rows_table(x, table + e * pitch, m), b, run, b + ahead, 1)
        b = b + run * NR
    return acc


def fill_table(table, g, p0, count, per_row, origin, nothing):
    """Where the run of each tap begins for the pixels p0 .. p0 + count: (entries, count).

    `origin` is where the input begins, `nothing` where the zeros lie.
    """
    i = 0
    while i < count:  # a row of output pixels at a time
        column = (p0 + i) % g[OUT_W]
        length = min(count - i, g[OUT_W] - column)
        fill_row(table + i, count, g, (p0 + i) // g[OUT_W], column, length, per_row, origin, nothing)
        i += length


def fill_row(table, count, g, row, column, length, per_row, origin, nothing):
    """fill_table for `length` neighbouring pixels of an output row, from a column on."""
    width, height, depth = g[IN_W], g[IN_H], g[IN_D]
    rest = row // g[OUT_H]
    image = rest // g[OUT_D] * depth
    d0 = rest % g[OUT_D] * g[STRIDE_D] - g[PAD_D]
    h0 = row % g[OUT_H] * g[STRIDE_H] - g[PAD_H]
    stride, step = g[STRIDE_W], g[IN_STEP]
    for kd in range(g[TAPS_D]):
        d = d0 + kd * g[DILATION_D]
        for kh in range(g[TAPS_H]):
            h = h0 + kh * g[DILATION_H]
            line = origin + ((image + d) * height + h) * width * step
            inside = d >= 0 and d < depth and h >= 0 and h < height
            for kw in range(per_row):
                w0 = column * stride - g[PAD_W] + kw * g[DILATION_W]
                for i in range(length):
                    w = w0 + i * stride
                    table[i] = line + w * step if inside and w >= 0 and w < width else nothing
                table = table + count


def halo_reference(x, y, batch, channels, depth, height, width, to_d, to_h, to_w, pad_d, pad_h, pad_w, pixel, channel):
    source = x.reshape(batch, depth, height, width, channels) if channel == 1 else np.moveaxis(
        x.reshape(batch, channels, depth, height, width), 1, -1
    )  # fmt: skip
    out = np.zeros(y.shape)
    out[:, pad_d : pad_d + depth, pad_h : pad_h + height, pad_w : pad_w + width] = source
    return {"y": out}


def halo_example(rng, size):
    n, c, d, h, w, pd, ph, pw = (int(v) for v in rng.integers(1, 4, 8))
    to = (d + pd, h + ph + 1, w + 2 * pw)
    pixel, channel = (c, 1) if rng.integers(0, 2) else (1, d * h * w)
    return {
        "x": rng.standard_normal(n * c * d * h * w).astype("f"), "y": np.full((n, *to, c), np.nan, "f"),
        "batch": n, "channels": c, "depth": d, "height": h, "width": w, "to_d": to[0], "to_h": to[1], "to_w": to[2],
        "pad_d": pd, "pad_h": ph, "pad_w": pw, "pixel": pixel, "channel": channel,
    }  # fmt: skip


@kernel(reference=halo_reference, example=halo_example, outputs=("y",), tolerance=0)
def halo(
    x: ptr_f32, y: ptr_f32, batch: i64, channels: i64, depth: i64, height: i64, width: i64,
    to_d: i64, to_h: i64, to_w: i64, pad_d: i64, pad_h: i64, pad_w: i64, pixel: i64, channel: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """Copy x into the middle of zeros, channels last: y (batch, to_d, to_h, to_w, channels).

    Neighbouring pixels of x lie `pixel` elements apart, channels `channel`. For few channels. Split over rows of y.
    """
    rows = batch * to_d * to_h
    image = channels * depth * height * width
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        h = row % to_h - pad_h
        rest = row // to_h
        d = rest % to_d - pad_d
        out = y + row * to_w * channels
        inside = d >= 0 and d < depth and h >= 0 and h < height
        source = x + (rest // to_d * image + (d * height + h) * width * pixel)
        for i in range(0, pad_w * channels if inside else to_w * channels):
            out[i] = f32(0)
        if inside:
            for c in range(channels):
                target = out + (pad_w * channels + c)
                for w in range(width):
                    target[w * channels] = source[w * pixel + c * channel]
            for i in range((pad_w + width) * channels, to_w * channels):
                out[i] = f32(0)
