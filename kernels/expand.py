"""A 1x1 convolution and the depthwise one that alone reads its result, in one: what lies between is never written.

Networks for small machines make few channels many, filter each by itself, and make them few again (the inverted
residual: Sandler et al., "MobileNetV2", 2018). The many are the largest tensors of such a network: megabytes, which
leave the second-level cache and come back. Here a depthwise convolution fills its buffer of lines (see depthwise.py)
with products of pixels and weights, where it else copies them: a line of LANES channels is made when the first line of
output wants it, and is in the first-level cache when the others do. float32.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels import gemm
from minifer.kernels.activation import CLAMP, activate_rows, activation_reference
from minifer.kernels.conv import CHANNELS, IN_D, IN_H, IN_W
from minifer.kernels.depthwise import (
    LANES,
    Buffer,
    clear,
    depthwise_example,
    depthwise_reference,
    over_lines,
)
from minifer.kernels.gemm import accumulate, next_rows
from minifer.kernels.simd import (
    NR,
    SHORT,
    rows_strided,
    tile_bias,
    tile_clamp,
    tile_store,
    tile_zero,
    tile_zero_short,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64


def fits() -> bool:
    """Whether panels of the register tile make up LANES channels."""
    return int(LANES) % int(NR) == 0


def make_line(source, row, block, target, w0, count, g):
    """Pixels w0 .. w0 + count of line `row` of the product, for a block of channels."""
    x, b, offset, k, lda, code, first, second, has_offset = source
    left = min(count, max(0, 0 - w0))
    right = max(left, min(count, g[IN_W] - w0))
    clear(target, 0, left)
    for panel in range(block * (LANES // NR), min((block + 1) * (LANES // NR), (g[CHANNELS] + NR - 1) // NR)):
        line, weights = target + (panel * NR - block * LANES), b + panel * NR * k
        i = left
        while i < right:
            valid = next_rows(right - i)
            pixels = rows_strided(x + (row * g[IN_W] + w0 + i) * lda, lda, valid)
            if valid <= SHORT:
                short = accumulate(start(tile_zero_short(), offset, panel, g, has_offset), pixels, 0, weights, k)
                end(short, line + i * LANES, valid, code, first, second)
            else:
                whole = accumulate(start(tile_zero(), offset, panel, g, has_offset), pixels, 0, weights, k)
                end(whole, line + i * LANES, valid, code, first, second)
            i += valid
    if code != CLAMP:
        activate_rows(target + left * LANES, LANES, right - left, LANES, code, first, second)
    clear(target, right, count)


def start(zero, offset, panel, g, has_offset):
    """The bias in each row: it costs less before the product than behind it."""
    if has_offset != 0:
        return tile_bias(zero, offset + panel * NR, min(NR, g[CHANNELS] - panel * NR))
    return zero


def end(acc, to, valid, code, first, second):
    """Into the line, clamped if that is the activation: the whole tile, for the line has room for it."""
    if code == CLAMP:
        acc = tile_clamp(acc, first, second)
    tile_store(to, LANES, acc, valid, NR)


def expand_example(rng, size):
    drawn = depthwise_example(rng, size)
    g, k = drawn["g"], int(rng.integers(0, 2 * size))
    channels, pixels = int(g[CHANNELS]), drawn.pop("x").size // int(g[CHANNELS])
    lines = Buffer(g)
    fresh = {
        "x": rng.standard_normal((pixels, k + int(rng.integers(0, 3)))).astype("f"),
        "b": gemm.pack(rng.standard_normal((k, channels)).astype("f")),
        "offset": rng.standard_normal(channels).astype("f"),
        "buffer": np.full(8 * lines.floats, np.nan, "f"),
        "lines": np.zeros(8 * lines.words, np.int64),
        "tile": lines.tile, "columns": lines.columns, "group": lines.group,
        "k": k, "inner_code": int(rng.integers(0, 2)), "inner_first": 0.25, "inner_second": 2.0,
        "has_offset": int(rng.integers(0, 2)),
    }  # fmt: skip
    fresh["lda"] = fresh["x"].shape[1]
    return drawn | fresh


def expand_reference(
    x, b, offset, weight, bias, residual, y, buffer, lines, g, k, lda, inner_code, inner_first, inner_second,
    has_offset, tile, columns, group, code, first, second, has_bias, has_residual,
):  # fmt: skip
    """One convolution after the other, by their definitions."""
    channels = int(g[CHANNELS])
    weights = b.transpose(1, 0, 2).reshape(k, b.shape[0] * b.shape[2])[:, :channels].astype(np.float64)
    pixels = x[:, :k].astype(np.float64)
    shape = (-1, *(int(g[i]) for i in (IN_D, IN_H, IN_W)), channels)
    made = activation_reference(pixels @ weights + offset * has_offset, inner_code, inner_first, inner_second)
    sizes = np.abs(pixels) @ np.abs(weights) + np.abs(offset) * has_offset + 1
    rest = (residual, y, buffer, lines, g, tile, columns, group, code, first, second, has_bias, has_residual)
    expected, magnitude = depthwise_reference(made.reshape(shape), weight, bias, *rest)["y"]
    larger = depthwise_reference(sizes.reshape(shape), np.abs(weight), np.abs(bias), *rest)["y"][1]
    return {"y": (expected, np.maximum(magnitude, larger))}


made = over_lines(make_line, 8)


@kernel(
    reference=expand_reference, example=expand_example, outputs=("y", "buffer", "lines"), tolerance=2e-6, coarse=True
)
def expand_depthwise(
    x: ptr_f32, b: ptr_f32, offset: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32,
    buffer: ptr_f32, lines: ptr_i64, g: ptr_i64, k: i64, lda: i64, inner_code: i64, inner_first: f32,
    inner_second: f32, has_offset: i64, tile: i64, columns: i64, group: i64, code: i64, first: f32, second: f32,
    has_bias: i64, has_residual: i64, slot: i64, pieces: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = activate(depthwise convolution of e + bias + residual), where e = inner activation of (x @ b + offset).

    x: (pixels, k), stride lda; b: packed as by gemm.pack, (k, channels); offset: (channels,); g: the geometry of the
    depthwise convolution of e, (pixels, channels). The others as for `depthwise`. 2 k FLOPs
    for each element of e, and again for lines and columns where two threads or two tiles meet.
    """
    made(
        (x, b, offset, k, lda, inner_code, inner_first, inner_second, has_offset), weight, bias, residual, y, buffer,
        lines, g, tile, columns, group, code, first, second, has_bias, has_residual, slot, pieces, tid, nthreads,
    )  # fmt: skip
