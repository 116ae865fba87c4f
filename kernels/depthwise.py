"""Depthwise convolution on channels-last tensors: every channel has a filter of its own.

There is no sum over channels, so vector lanes run along them. For LANES channels at a time the lines of input that a
line of output needs are copied side by side into a buffer that stays in the first-level cache, with the padding
written out; the next line of output needs few new ones. So each line of memory is touched once, whatever the
number of channels, and the sums run over taps at fixed places: seven neighbouring pixels share a weight.
Geometry as in conv.py (GROUPS = CHANNELS = FILTERS); float32.
"""

from __future__ import annotations

import math

import numpy as np

from minifer.kernels.activation import CLAMP, HARD_SWISH, LEAKY, activate, activation_reference
from minifer.kernels.conv import (
    BATCH,
    CHANNELS,
    DILATION_D,
    DILATION_H,
    DILATION_W,
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
)
from minifer.kernels.simd import (
    PAIR,
    lanes,
    share,
    vfma,
    vload,
    vload_part,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64

INFINITY = float("inf")
#: channels that are walked along the lines with: two vectors of them, one or two cache lines
LANES = PAIR
#: neighbouring pixels that are computed at once; a divisor of the widths that image networks have (7, 14, 28, 56, 112)
STRIP = 7
#: rows that each piece has at least where pieces are parts of the rows; else they are parts of the channels, too
ROWS = 12
#: bytes of the buffer: in the first-level cache; in the second where the input comes from further away than the third
NEAR, FAR, LARGE = 24 << 10, 160 << 10, 8 << 20


def pack_weights(weight: np.ndarray) -> np.ndarray:
    """ONNX weights (channels, 1, *taps) as (blocks of LANES channels, taps, LANES), taps in row-major order."""
    channels = weight.shape[0]
    blocks = -(-channels // LANES)
    packed = np.zeros((blocks * LANES, weight[0].size), weight.dtype)
    packed[:channels] = weight.reshape(channels, -1)
    return np.ascontiguousarray(packed.reshape(blocks, LANES, -1).swapaxes(1, 2))


class Buffer:
    """How a thread's buffer is laid out, from the geometry. A line of it has `columns` pixels of LANES channels."""

    def __init__(self, g: np.ndarray):
        size = {name: int(g[at]) for name, at in (("out", OUT_W), ("stride", STRIDE_W), ("step", DILATION_W))}
        self.slots = int(g[TAPS_D] * g[TAPS_H])
        span = int(g[TAPS_W] - 1) * size["step"] + 1
        most = max(STRIP, (NEAR // (4 * LANES * self.slots) - span) // size["stride"] + 1)
        tiles = -(-size["out"] // most)
        self.tile = -(-size["out"] // tiles)  # pixels of a line that are computed before the next line is begun
        self.columns = (max(self.tile, STRIP) - 1) * size["stride"] + span  # a strip may look behind what is filled
        block = 4 * LANES * self.slots * self.columns
        room = FAR if 4 * math.prod(int(v) for v in g[[BATCH, IN_D, IN_H, IN_W, CHANNELS]]) > LARGE else NEAR
        self.group = max(1, min(-(-int(g[CHANNELS]) // LANES), room // block))  # blocks that are walked with
        self.floats = self.group * block // 4  # size of the buffer
        self.words = self.group * 4 * self.slots  # of the list of lines: see needed_lines


def depthwise_reference(
    x, weight, bias, residual, y, buffer, lines, g, tile, columns, group, code, first, second, has_bias, has_residual
):
    """The same by the definition, in float64."""
    size, out, taps, stride, pad, dilation = (tuple(int(v) for v in g[i : i + 3]) for i in range(4, 22, 3))
    n, c = int(g[BATCH]), int(g[CHANNELS])
    source = x.reshape(n, *size, c).astype(np.float64)
    w = weight.swapaxes(0, 1).reshape(*taps, -1)[..., :c].astype(np.float64)
    result, magnitude = np.zeros((n, *out, c)), np.zeros((n, *out, c))
    for o in np.ndindex(*out):
        for t in np.ndindex(*taps):
            at = tuple(o[i] * stride[i] + t[i] * dilation[i] - pad[i] for i in range(3))
            if all(0 <= at[i] < size[i] for i in range(3)):
                result[(slice(None), *o)] += source[(slice(None), *at)] * w[t]
                magnitude[(slice(None), *o)] += abs(source[(slice(None), *at)] * w[t])
    if has_bias:
        result, magnitude = result + bias, magnitude + abs(bias)
    if has_residual:
        result, magnitude = result + residual, magnitude + abs(residual)
    if code == HARD_SWISH:
        y = result * np.clip(result / 6 + 0.5, 0, 1) * first + second
        return {"y": (y, np.maximum(magnitude, 1) * max(1, abs(first)) + abs(second))}
    return {"y": (activation_reference(result, code, first, second), np.maximum(magnitude, 1))}


def depthwise_example(rng, size):
    c = int(rng.integers(1, 12 * size))
    taps = [int(rng.integers(1, 3)), int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 3, 5, 7]))]
    stride = [int(rng.integers(1, 3)) for _ in range(3)]
    dilation = [int(rng.integers(1, 3)) if rng.random() < 0.3 else 1 for _ in range(3)]
    pad = [int(rng.integers(0, t)) for t in taps]
    inside = [(t - 1) * d + 1 + int(rng.integers(0, most)) for t, d, most in zip(taps, dilation, (2, 5, 9))]
    out = [(i + 2 * p - (t - 1) * d - 1) // s + 1 for i, p, t, d, s in zip(inside, pad, taps, dilation, stride)]
    n = int(rng.integers(1, 3))
    shape = (n, *out, c)
    g = geometry(n, c, c, c, inside, out, taps, stride, pad, dilation)
    buffer = Buffer(g)
    return {
        "x": rng.standard_normal((n, *inside, c)).astype("f"),
        "weight": pack_weights(rng.standard_normal((c, 1, *taps)).astype("f")),
        "bias": rng.standard_normal(c).astype("f"),
        "residual": rng.standard_normal(shape).astype("f"),
        "y": np.full(shape, np.nan, "f"),
        "buffer": np.full(8 * buffer.floats, np.nan, "f"),
        "lines": np.zeros(8 * buffer.words, np.int64),
        "g": g,
        "tile": buffer.tile,
        "columns": buffer.columns,
        "group": buffer.group,
        "code": int(rng.choice([CLAMP, LEAKY, HARD_SWISH])),
        "first": 0.25,
        "second": 6.0,
        "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)),
    }


def needed_lines(lines, g, row, columns):
    """Which lines of input line `row` of the output needs, and where in the buffer each lies or goes.

    `lines`: what each slot holds; then, for each line needed, its place in the buffer and its first tap in the weights;
    then its number if it is not there yet, else -1. Returns how many are needed.
    """
    height, depth, taps_h, taps_d = g[IN_H], g[IN_D], g[TAPS_H], g[TAPS_D]
    rest = row // g[OUT_H]
    h0 = (row - rest * g[OUT_H]) * g[STRIDE_H] - g[PAD_H]
    d0 = 0 - g[PAD_D]
    if g[OUT_D] > 1:
        d0 += rest % g[OUT_D] * g[STRIDE_D]
        rest = rest // g[OUT_D]
    # neighbouring lines have different slots, so that the next line of output finds them again
    turn = h0 % taps_h if g[DILATION_H] == 1 else 0
    slots = taps_d * taps_h
    count = 0
    for kd in range(taps_d):
        d = d0 + kd * g[DILATION_D]
        for kh in range(taps_h):
            h = h0 + kh * g[DILATION_H]
            slot = turn + kh
            slot = kd * taps_h + (slot - taps_h if slot >= taps_h else slot)
            if d >= 0 and d < depth and h >= 0 and h < height:
                source = (rest * depth + d) * height + h
                lines[3 * slots + count] = -1 if lines[slot] == source else source
                lines[slot] = source
                lines[slots + 2 * count] = slot * columns * LANES
                lines[slots + 2 * count + 1] = (kd * taps_h + kh) * g[TAPS_W] * LANES
                count += 1
    return count


def over_lines(fill, together):
    """The convolution of lines that fill(source, line, block, target, w0, count, g) brings into the buffer. So many
    lines of output are computed `together` of one block of channels, then of the next.

    It writes `count` pixels from w0 on, which may be negative, of a block of LANES channels to pixels of LANES channels
    at target, with zeros for those outside of the line.
    """

    def convolve(
        source, weight, bias, residual, y, buffer, lines, g, tile, columns, group, code, first, second, has_bias,
        has_residual, slot, pieces, tid, nthreads,
    ):  # fmt: skip
        channels, out_w = g[CHANNELS], g[OUT_W]
        taps_w, step_w, stride_w = g[TAPS_W], g[DILATION_W], g[STRIDE_W]
        slots = g[TAPS_D] * g[TAPS_H]
        rows, tiles = g[BATCH] * g[OUT_D] * g[OUT_H], (out_w + tile - 1) // tile
        blocks = (channels + LANES - 1) // LANES
        groups = (blocks + group - 1) // group
        # many rows: pieces are parts of them, as in the steps before and behind, so that a thread finds its own results
        by_rows = pieces > 1 and rows >= ROWS * pieces
        first_row = share(rows, tid, nthreads) if by_rows else 0
        mine = share(rows, tid + 1, nthreads) - first_row if by_rows else rows
        units = groups * tiles * mine
        buffer = buffer + slot * (group * slots * columns * LANES)
        lines = lines + slot * (group * 4 * slots)
        swish = code == HARD_SWISH and has_residual == 0
        at_once = swish or (code == CLAMP and has_residual == 0)
        low = first if at_once else f32(-INFINITY)
        high = second if at_once else f32(INFINITY)
        unit, end = (0, units) if by_rows else (share(units, tid, nthreads), share(units, tid + 1, nthreads))
        while unit < end:
            strand, row = unit // mine, first_row + unit % mine
            count = min(first_row + mine - row, end - unit)
            unit += count
            from_b = share(blocks, strand // tiles, groups)
            to_b = share(blocks, strand // tiles + 1, groups)
            from_w = strand % tiles * tile
            width = min(tile, out_w - from_w)
            for slot in range(group * 4 * slots):
                lines[slot] = -1
            for from_r in range(row, row + count, together):
                for block in range(from_b, to_b):
                    c = block * LANES
                    n = min(LANES, channels - c)
                    table = lines + (block - from_b) * 4 * slots
                    ring = buffer + (block - from_b) * (slots * columns * LANES)
                    kernels = weight + block * (slots * taps_w * LANES)
                    for r in range(from_r, min(from_r + together, row + count)):
                        entries = needed_lines(table, g, r, columns)
                        for e in range(entries):
                            if table[3 * slots + e] >= 0:
                                fill(source, table[3 * slots + e], block, ring + table[slots + 2 * e],
                                     from_w * stride_w - g[PAD_W], (width - 1) * stride_w + (taps_w - 1) * step_w + 1,
                                     g)  # fmt: skip
                        target = y + ((r * out_w + from_w) * channels + c)
                        for v in range(0, n, lanes(y)):
                            start = vload_part(bias, c + v, n - v if has_bias != 0 else 0)
                            line(ring + v, kernels + v, table + slots, entries, start, target + v, width,
                                 channels, n - v, taps_w, stride_w, step_w, swish, low, high)  # fmt: skip
                        if not at_once:
                            finish(target, residual + ((r * out_w + from_w) * channels + c), width, channels, n,
                                   code, first, second, has_residual)  # fmt: skip

    return convolve


def copy_line(source, row, block, target, w0, count, g):
    """Copy the pixels w0 .. w0 + count of line `row`."""
    (x,) = source
    channels, width = g[CHANNELS], g[IN_W]
    x, n = x + (row * width * channels + block * LANES), min(LANES, channels - block * LANES)
    left = min(count, max(0, 0 - w0))
    right = max(left, min(count, width - w0))
    clear(target, 0, left)
    if n == LANES:
        for i in range(left, right):
            vstore(target, i * LANES, vload(x, (w0 + i) * channels))
            vstore(target, i * LANES + lanes(x), vload(x, (w0 + i) * channels + lanes(x)))
    else:
        for i in range(left, right):
            vstore(target, i * LANES, vload_part(x, (w0 + i) * channels, n))
            vstore(target, i * LANES + lanes(x), vload_part(x, (w0 + i) * channels + lanes(x), n - lanes(x)))
    clear(target, right, count)


def clear(target, start, stop):
    """Zeros for the pixels from `start` to `stop` of a line."""
    zero = vsplat(f32, 0)
    for i in range(start, stop):
        vstore(target, i * LANES, zero)
        vstore(target, i * LANES + lanes(target), zero)


copied = over_lines(copy_line, 1)


@kernel(reference=depthwise_reference, example=depthwise_example, outputs=("y", "buffer", "lines"), tolerance=2e-6)
def depthwise(
    x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, buffer: ptr_f32, lines: ptr_i64,
    g: ptr_i64, tile: i64, columns: i64, group: i64,
    code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64, slot: i64, pieces: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """y = activate(depthwise convolution of x + bias + residual).

    x: (batch, depth, height, width, channels); weight: see pack_weights; bias: (channels,); residual, y: (batch, out
    depth, out height, out width, channels); buffer, lines: `floats` and `words` of a Buffer per thread; tile, columns,
    group: its others. 2 * results * taps FLOPs. Work is split over lines of y, or over blocks of channels and
    lines.
    """
    copied(
        (x,), weight, bias, residual, y, buffer, lines, g, tile, columns, group, code, first, second, has_bias,
        has_residual, slot, pieces, tid, nthreads,
    )  # fmt: skip


def line(buffer, weight, lines, entries, start, y, width, channels, n, taps, stride, step,
         swish, low, high):  # fmt: skip
    """A vector of channels of `width` pixels: strips of STRIP, of which the last may overlap the one before."""
    i = 0
    while i < width:
        i = max(0, min(i, width - STRIP))
        p = buffer + i * stride * LANES
        if step == 1 and stride == 1 and taps == 3:
            sums = strip_3_1(p, weight, lines, entries, start)
        elif step == 1 and stride == 2 and taps == 3:
            sums = strip_3_2(p, weight, lines, entries, start)
        elif step == 1 and stride == 1 and taps == 5:
            sums = strip_5_1(p, weight, lines, entries, start)
        elif step == 1 and stride == 2 and taps == 5:
            sums = strip_5_2(p, weight, lines, entries, start)
        elif step == 1 and stride == 1 and taps == 7:
            sums = strip_7_1(p, weight, lines, entries, start)
        else:
            sums = strip_of_any(p, weight, lines, entries, start, taps, stride * LANES, step * LANES)
        store(sums, y + i * channels, min(STRIP, width - i), channels, n, swish, low, high)
        i += STRIP


def strip_of(taps, stride):
    """A function for lines of so many taps, neighbouring pixels `stride` apart: all loads have fixed places."""

    def strip(p, weight, lines, entries, start):
        """The sums of STRIP neighbouring pixels over the taps of all lines."""
        s0, s1, s2, s3, s4, s5, s6 = start, start, start, start, start, start, start
        for e in range(entries):
            a, b = p + lines[2 * e], weight + lines[2 * e + 1]
            for t in range(taps):
                k, i = vload(b, t * LANES), t * LANES
                s0, s1 = vfma(vload(a, i), k, s0), vfma(vload(a, i + stride * LANES), k, s1)
                s2, s3 = vfma(vload(a, i + 2 * stride * LANES), k, s2), vfma(vload(a, i + 3 * stride * LANES), k, s3)
                s4, s5 = vfma(vload(a, i + 4 * stride * LANES), k, s4), vfma(vload(a, i + 5 * stride * LANES), k, s5)
                s6 = vfma(vload(a, i + 6 * stride * LANES), k, s6)
        return s0, s1, s2, s3, s4, s5, s6

    return strip


strip_3_1, strip_5_1, strip_7_1 = strip_of(3, 1), strip_of(5, 1), strip_of(7, 1)
strip_3_2, strip_5_2 = strip_of(3, 2), strip_of(5, 2)


def strip_of_any(p, weight, lines, entries, start, taps, stride, step):
    """The same for any number of taps, `step` elements apart, of pixels `stride` elements apart."""
    s0, s1, s2, s3, s4, s5, s6 = start, start, start, start, start, start, start
    for e in range(entries):
        a, b = p + lines[2 * e], weight + lines[2 * e + 1]
        for t in range(taps):
            k, i = vload(b, t * LANES), t * step
            s0, s1 = vfma(vload(a, i), k, s0), vfma(vload(a, i + stride), k, s1)
            s2, s3 = vfma(vload(a, i + 2 * stride), k, s2), vfma(vload(a, i + 3 * stride), k, s3)
            s4, s5 = vfma(vload(a, i + 4 * stride), k, s4), vfma(vload(a, i + 5 * stride), k, s5)
            s6 = vfma(vload(a, i + 6 * stride), k, s6)
    return s0, s1, s2, s3, s4, s5, s6


def store(sums, y, count, step, n, swish, low, high):
    """Write n channels of the first `count` sums to pixels `step` elements apart: between bounds, or by HARD_SWISH."""
    s0, s1, s2, s3, s4, s5, s6 = sums
    if swish:
        s0, s1, s2 = hard_swish(s0, low, high), hard_swish(s1, low, high), hard_swish(s2, low, high)
        s3, s4 = hard_swish(s3, low, high), hard_swish(s4, low, high)
        s5, s6 = hard_swish(s5, low, high), hard_swish(s6, low, high)
    else:
        s0, s1, s2, s3 = clamp(s0, low, high), clamp(s1, low, high), clamp(s2, low, high), clamp(s3, low, high)
        s4, s5, s6 = clamp(s4, low, high), clamp(s5, low, high), clamp(s6, low, high)
    if count == STRIP and n >= lanes(y):
        vstore(y, 0, s0)
        vstore(y, step, s1)
        vstore(y, 2 * step, s2)
        vstore(y, 3 * step, s3)
        vstore(y, 4 * step, s4)
        vstore(y, 5 * step, s5)
        vstore(y, 6 * step, s6)
    else:
        for i in range(count):
            vstore_part(y, i * step, s0, n)
            s0, s1, s2, s3, s4, s5 = s1, s2, s3, s4, s5, s6


def clamp(x, low, high):
    return activate(x, CLAMP, low, high)


def hard_swish(x, factor, shift):
    return activate(x, HARD_SWISH, factor, shift)


def finish(y, residual, width, step, n, code, first, second, has_residual):
    """Add the residual and apply the activation to n channels of `width` pixels."""
    for i in range(width):
        for v in range(0, n, lanes(y)):
            at = i * step + v
            if v + lanes(y) <= n:
                total = vload(y, at)
                if has_residual != 0:
                    total = total + vload(residual, at)
                vstore(y, at, activate(total, code, first, second))
            else:
                total = vload_part(y, at, n - v)
                if has_residual != 0:
                    total = total + vload_part(residual, at, n - v)
                vstore_part(y, at, activate(total, code, first, second), n - v)
