"""First layers of image networks: few channels, lines of seven taps, stride 2, by Winograd's filtering of lines.

With three channels, transforming tiles of 7 x 7 taps in two dimensions would cost more than the products. In one
dimension it pays: with stride 2, the even pixels of a line meet four of the seven taps and the odd ones three,

    y[i] = sum over u < 4 of w[2 u] e[i + u] + sum over u < 3 of w[2 u + 1] o[i + u],   e[j] = d[2 j], o[j] = d[2 j + 1]

and for four neighbouring results F(4, 4) takes seven products and F(4, 3) six, instead of 28. Their points (see
winograd.py) are the same but for one: 0, 3/4, -3/4, 3/2, -3/2, infinity, and 3/8 for the even pixels. At a common
point the products of both parts are transformed back alike, so that one matrix product sums over both, over all
channels and over the taps above one another. With 3 channels and 7 x 7 taps that is, for four results, 6 products of
42 steps and one of 21, in place of four of 147, and a result's error is 3.3e-7 (rms, over rms of the results; the plain
sum has 9e-8).

The factor (x - 3/8) that the extra point brings into the polynomials of the others is a subtraction of neighbouring
even pixels, e[j + 1] - 3/8 e[j]; behind it, F(4, 4) transforms as F(4, 3) does.

Pixels are transformed as they lie, channels first or last: vector lanes run along tiles, and the matrix product reads
its rows, one for each tile, side by side. float32.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels import conv
from minifer.kernels.activation import CLAMP, activate
from minifer.kernels.conv import BATCH, CHANNELS, FILTERS, IN_H, IN_W, OUT_H, OUT_W, PAD_H, PAD_W, STRIDE_H, TAPS_H
from minifer.kernels.gemm import next_rows
from minifer.kernels.move import transpose_8x8
from minifer.kernels.simd import (
    MR,
    NR,
    SHORT,
    UNROLL,
    lanes,
    rows_strided,
    share,
    tile_outer,
    tile_store,
    tile_zero,
    tile_zero_short,
    vfma,
    vload,
    vload_part,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64
from minifer.kernels.winograd import PP, QQ, P, Q, input_line_4, load_6, output_line_4, store_6

#: results of a tile, taps of a line, and points: those of F(4, 3), and one for even pixels alone
SIZE, TAPS, POINTS = 4, 7, 7
#: the extra point
R = 0.375
#: lines of results that are computed together, by one thread and where several share the work; transformed lines and
#: products stay in the second-level cache
BAND, BAND_SHARED = 8, 4


def geometry(batch, channels, filters, in_size, out_size, taps_h, stride_h, pads) -> np.ndarray:
    """The table for a convolution; in_size, out_size and pads (those at the begin) are (height, width)."""
    image = [(1, *in_size), (1, *out_size), (1, taps_h, TAPS), (1, stride_h, 2), (0, *pads), (1, 1, 1)]
    return conv.geometry(batch, channels, filters, 1, *image)


def tiles_room(g):
    """Tiles of a line, filled up to whole vectors: so many are transformed at once."""
    w = lanes(f32)
    return (g[OUT_W] + SIZE * w - 1) // (SIZE * w) * w


def band_lines(g, band):
    """Lines of input that `band` lines of results are made of."""
    return (band - 1) * g[STRIDE_H] + g[TAPS_H]


def lines_words(g):
    """Elements of a line with its padding, of one of zeros, and of the line in tiles."""
    return 3 * 8 * (tiles_room(g) + lanes(f32))


def points_words(g, band):
    """Elements of a band's transformed lines."""
    return (2 * POINTS - 1) * band_lines(g, band) * g[CHANNELS] * tiles_room(g)


def scratch_words(g, band):
    """Elements (f32) of scratch that one thread needs."""
    return lines_words(g) + points_words(g, band) + POINTS * band * tiles_room(g) * NR


# ---------------------------------------------------------------- weights


def _evaluated(points: tuple[float, ...], taps: int) -> np.ndarray:
    """G of F(4, taps) for some finite points and infinity."""
    scale = [np.prod([a - b for b in points if b != a]) for a in points]
    return np.array([*([a**i / s for i in range(taps)] for a, s in zip(points, scale)), [0] * (taps - 1) + [1]])


_COMMON = (0, P, -P, Q, -Q)
EVEN, ODD = _evaluated((*_COMMON, R), 4), _evaluated(_COMMON, 3)
EVEN = EVEN[[0, 1, 2, 3, 4, 6, 5]]  # infinity before the extra point


def pack_weights(weight: np.ndarray) -> np.ndarray:
    """ONNX weights (filters, channels, taps_h, 7) as panels (panels, steps, NR) of NR filters, zero-filled.

    Steps: for each common point and each line of taps the channels' even parts, then their odd ones; then the even
    parts at the extra point.
    """
    nr, filters = int(NR), weight.shape[0]
    even = np.einsum("pt,fcht->phcf", EVEN, weight[..., 0::2].astype(np.float64))
    odd = np.einsum("pt,fcht->phcf", ODD, weight[..., 1::2].astype(np.float64))
    common = np.concatenate([even[:-1], odd], 2).reshape(-1, filters)
    steps = np.concatenate([common, even[-1].reshape(-1, filters)])
    packed = np.zeros((-(-filters // nr) * nr, len(steps)), np.float32)
    packed[:filters] = steps.T
    return np.ascontiguousarray(packed.reshape(-1, nr, len(steps)).swapaxes(1, 2))


def unpack_weights(packed: np.ndarray, filters: int, channels: int, taps_h: int) -> np.ndarray:
    """The weights that pack_weights was given, in float64."""
    steps = packed.swapaxes(1, 2).reshape(-1, packed.shape[1])[:filters].T.astype(np.float64)
    common = steps[: 6 * taps_h * 2 * channels].reshape(6, taps_h, 2, channels, filters)
    extra = steps[len(common.reshape(-1, filters)) :].reshape(1, taps_h, channels, filters)
    weight = np.zeros((filters, channels, taps_h, TAPS))
    weight[..., 0::2] = np.einsum("tp,phcf->fcht", np.linalg.pinv(EVEN), np.concatenate([common[:, :, 0], extra]))
    weight[..., 1::2] = np.einsum("tp,phcf->fcht", np.linalg.pinv(ODD), common[:, :, 1])
    return weight


# ---------------------------------------------------------------- the input


def copy_line(x, target, left, count, pixel):
    """Pixels of a line, `pixel` elements apart, to target[left:]; what lies around them is zero already."""
    if pixel == 1:
        whole = count // lanes(x) * lanes(x)
        for i in range(0, whole, lanes(x)):
            vstore(target, left + i, vload(x, i))
        vstore_part(target, left + whole, vload_part(x, whole, count - whole), count - whole)
    else:
        for i in range(count):
            target[left + i] = x[i * pixel]


def transform_line(line, turned, u, step, extra, channels, room):
    """A line of pixels, 8 for each tile and as many behind the last, to the points of its tiles.

    turned: scratch. The even part at common point p goes to u[p * step], the odd part `channels` lines behind it; the
    even part at the extra point goes to `extra`.
    """
    w = lanes(line)
    row = room + w
    for t in range(0, row, 8):  # pixel j of tile t to turned[j, t]
        transpose_8x8(line + 8 * t, 8, turned + t, row)
    for t in range(0, room, w):
        e0, e1, e2 = vload(turned, t), vload(turned, 2 * row + t), vload(turned, 4 * row + t)
        e3, e4 = vload(turned, 6 * row + t), vload(turned, t + 1)
        e5, e6 = vload(turned, 2 * row + t + 1), vload(turned, 4 * row + t + 1)
        store_6(u + t, step, input_line_4(
            vfma(e0, -R, e1), vfma(e1, -R, e2), vfma(e2, -R, e3), vfma(e3, -R, e4), vfma(e4, -R, e5), vfma(e5, -R, e6),
        ))  # fmt: skip
        vstore(extra, t, vfma(e1, PP * QQ, vfma(e3, -PP - QQ, e5)))
        o0, o1, o2 = vload(turned, row + t), vload(turned, 3 * row + t), vload(turned, 5 * row + t)
        o3, o4, o5 = vload(turned, 7 * row + t), vload(turned, row + t + 1), vload(turned, 3 * row + t + 1)
        store_6(u + (channels * room + t), step, input_line_4(o0, o1, o2, o3, o4, o5))


def transform_band(x, lines, u, g, band, pixel, channel, image, h0):
    """Transform the lines of input that a band of output reads, from line h0 on.

    u: six planes (lines, 2, channels, room), then one (lines, channels, room).
    """
    channels, room, count = g[CHANNELS], tiles_room(g), band_lines(g, band)
    step = count * 2 * channels * room
    size = 8 * (room + lanes(lines))
    for r in range(count):
        h = h0 + r
        inside = h >= 0 and h < g[IN_H]
        for c in range(channels):
            if inside:
                first = image * channels * g[IN_H] * g[IN_W] + h * g[IN_W] * pixel + c * channel
                copy_line(x + first, lines, g[PAD_W], g[IN_W], pixel)
            transform_line(
                lines + (0 if inside else size), lines + 2 * size, u + (2 * r * channels + c) * room, step,
                u + (6 * step + (r * channels + c) * room), channels, room,
            )  # fmt: skip


# ---------------------------------------------------------------- the products


def accumulate_turned(acc, u, b, k, step):
    """acc + sum over p < k of the tile's rows at u[p * step] times b[p, :]; rows lie side by side."""
    p = 0
    while UNROLL == 4 and p + 2 <= k:
        acc = tile_outer(acc, rows_strided(u, 1, MR), 0, b + p * NR)
        acc = tile_outer(acc, rows_strided(u + step, 1, MR), 0, b + (p + 1) * NR)
        u = u + 2 * step
        p += 2
    while p < k:
        acc = tile_outer(acc, rows_strided(u, 1, MR), 0, b + p * NR)
        u = u + step
        p += 1
    return acc


def multiply(u, b, m, k, first, line, lines, tiles, room):
    """m (lines, tiles, NR) = for each line of results and each tile, k steps of u from `first` on times b (k, NR)."""
    for h in range(lines):
        t = 0
        while t < tiles:
            valid = next_rows(tiles - t)
            from_u, to = u + (first + h * line + t), m + (h * tiles + t) * NR
            if valid <= SHORT:
                tile_store(to, NR, accumulate_turned(tile_zero_short(), from_u, b, k, room), valid, NR)
            else:
                tile_store(to, NR, accumulate_turned(tile_zero(), from_u, b, k, room), valid, NR)
            t += valid


def transform_products(m, step, offset):
    """The seven points of a tile, `step` elements apart, to four results of a vector of filters with a bias."""
    extra = vload(m, 6 * step)
    y0, y1, y2, y3 = output_line_4(*load_6(m, step))
    y0, y1, y2, y3 = y0 + extra, vfma(extra, R, y1), vfma(extra, R * R, y2), vfma(extra, R * R * R, y3)
    return y0 + offset, y1 + offset, y2 + offset, y3 + offset


def store_tile(results, y, residual, count, n, filters, code, first, second, has_residual):
    """Residual and activation of `count` neighbouring pixels, n filters each."""
    y0, y1, y2, y3 = results
    for i in range(count):
        if has_residual != 0:
            y0 = y0 + vload_part(residual, i * filters, n)
        vstore_part(y, i * filters, activate(y0, code, first, second), n)
        y0, y1, y2 = y1, y2, y3


def finish(m, step, tiles, y, bias, residual, width, n, filters, code, first, second, has_bias, has_residual):
    """The products of a line of tiles to `width` pixels of n filters of a vector, and what follows."""
    offset = vload_part(bias, 0, n if has_bias != 0 else 0)
    for t in range(tiles):
        results, at = transform_products(m + t * NR, step, offset), t * SIZE * filters
        if code == CLAMP and has_residual == 0 and n >= lanes(y) and (t + 1) * SIZE <= width:
            y0, y1, y2, y3 = results
            vstore(y, at, activate(y0, CLAMP, first, second))
            vstore(y, at + filters, activate(y1, CLAMP, first, second))
            vstore(y, at + 2 * filters, activate(y2, CLAMP, first, second))
            vstore(y, at + 3 * filters, activate(y3, CLAMP, first, second))
        else:
            store_tile(results, y + at, residual + at, min(SIZE, width - t * SIZE), n, filters, code, first, second,
                       has_residual)  # fmt: skip


def stem_reference(
    x, weight, bias, residual, y, scratch, g, band, pixel, channel, code, first, second, has_bias, has_residual
):
    """The convolution by its definition, on weights transformed back."""
    channels, filters = int(g[CHANNELS]), int(g[FILTERS])
    taps = unpack_weights(weight, filters, channels, int(g[TAPS_H]))
    panels = conv.pack_weights(taps, 1)
    last = x if pixel != 1 else np.moveaxis(x.reshape(int(g[BATCH]), channels, 1, int(g[IN_H]), int(g[IN_W])), 1, -1)
    last = last.reshape(int(g[BATCH]), 1, int(g[IN_H]), int(g[IN_W]), channels)
    out = (len(last), 1, int(g[OUT_H]), int(g[OUT_W]), filters)
    expected, magnitude = conv.conv_reference(
        last, panels, bias, residual.reshape(out), y.reshape(out), None, None, g, code, first, second, has_bias,
        has_residual,
    )["y"]  # fmt: skip
    return {"y": (expected.reshape(y.shape), np.full(y.shape, magnitude.max()))}


def stem_example(rng, size):
    channels, filters = int(rng.integers(1, 5)), int(rng.integers(1, 8 * size))
    taps_h, stride_h = int(rng.integers(1, 8)), int(rng.integers(1, 4))
    pads = [int(p) for p in rng.integers(0, 5, 2)]
    inside = [int(rng.integers(taps_h, taps_h + 3 * size)), int(rng.integers(TAPS, TAPS + 12 * size))]
    out = [(inside[0] + pads[0] + int(rng.integers(0, 3)) - taps_h) // stride_h + 1]
    out += [(inside[1] + pads[1] + int(rng.integers(0, 4)) - TAPS) // 2 + 1]
    n = int(rng.integers(1, 3))
    g = geometry(n, channels, filters, inside, out, taps_h, stride_h, pads)
    shape, band = (n, *out, filters), int(rng.integers(1, 5))
    last = bool(rng.integers(0, 2)) and channels > 1
    return {
        "x": rng.standard_normal((n, inside[0] * inside[1] * channels)).astype("f"),
        "weight": pack_weights(rng.standard_normal((filters, channels, taps_h, TAPS)).astype("f")),
        "bias": rng.standard_normal(filters).astype("f"),
        "residual": rng.standard_normal(shape).astype("f"),
        "y": np.full(shape, np.nan, "f"),
        "scratch": np.full(8 * int(scratch_words(g, band)), np.nan, "f"),
        "g": g,
        "band": band,
        "pixel": channels if last else 1,
        "channel": 1 if last else inside[0] * inside[1],
        "code": int(rng.integers(0, 2)),
        "first": 0.25,
        "second": 6.0,
        "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)),
    }


@kernel(reference=stem_reference, example=stem_example, outputs=("y", "scratch"), tolerance=4e-6)
def stem(
    x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, scratch: ptr_f32, g: ptr_i64, band: i64,
    pixel: i64, channel: i64, code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64, slot: i64, tid: i64,
    nthreads: i64,
):  # fmt: skip
    """y = activate(conv(x, weight) + bias + residual), lines of 7 taps and stride 2 along them, in two dimensions.

    x: (batch, height, width, channels) in any order, neighbouring pixels of a line `pixel` and channels `channel`
    elements apart; weight: see pack_weights; bias: (filters,); residual, y: (batch, out height, out width, filters);
    scratch: scratch_words per thread; band: lines of results that are computed together, see BAND. 26 * taps_h *
    channels * filters FLOPs for four results. Every result bears the rounding errors of its tile's. Work is split over
    bands.
    """
    channels, filters, room, taps_h = g[CHANNELS], g[FILTERS], tiles_room(g), g[TAPS_H]
    tiles, bands = (g[OUT_W] + SIZE - 1) // SIZE, (g[OUT_H] + band - 1) // band
    lines = scratch + slot * scratch_words(g, band)
    u = lines + lines_words(g)
    m = u + points_words(g, band)
    k = taps_h * 2 * channels
    line, plane = 2 * channels * room, band_lines(g, band) * 2 * channels * room
    for i in range(lines_words(g)):
        lines[i] = f32(0)
    for unit in range(share(g[BATCH] * bands, tid, nthreads), share(g[BATCH] * bands, tid + 1, nthreads)):
        image, top = unit // bands, unit % bands * band
        count = min(band, g[OUT_H] - top)
        transform_band(x, lines, u, g, band, pixel, channel, image, top * g[STRIDE_H] - g[PAD_H])
        step = count * tiles * NR
        for q in range((filters + NR - 1) // NR):
            b = weight + q * (6 * k + k // 2) * NR
            for p in range(6):
                multiply(u, b + p * k * NR, m + p * step, k, p * plane, line * g[STRIDE_H], count, tiles, room)
            multiply(u, b + 6 * k * NR, m + 6 * step, k // 2, 6 * plane, line // 2 * g[STRIDE_H], count, tiles, room)
            for h in range(count):
                at = ((image * g[OUT_H] + top + h) * g[OUT_W]) * filters
                for f in range(q * NR, min((q + 1) * NR, filters), lanes(y)):
                    finish(
                        m + (h * tiles * NR + f - q * NR), step, tiles, y + (at + f), bias + f, residual + (at + f),
                        g[OUT_W], filters - f, filters, code, first, second, has_bias, has_residual,
                    )  # fmt: skip
