"""The steps from naive loops to fast kernels that performance.md tells of. Each works on one thread.

A matrix product is c = a @ b with a (m, k), b (k, n), c (m, n), float32. The convolution has 3x3 taps, stride 1 and one
pixel of padding.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.simd import (
    MR,
    NR,
    lanes,
    prefetch,
    rows_strided,
    tile_add,
    tile_outer,
    tile_outer4,
    tile_store,
    tile_zero,
    vfma,
    vload,
    vload_part,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32

BLOCK = 1 << 16  # floats of b in a block: 256 KB
PANEL = 6144  # floats of a panel of b for a block of k: 24 KB, 384 steps where NR is 16
LINE = 16  # floats of a cache line


@kernel(outputs=("y",))
def step_peak(y: ptr_f32, n: i64, tid: i64, nthreads: i64):
    """What the arithmetic units can do: twelve chains of multiply-adds that touch no memory. 24 n FLOPs per lane."""
    x, one = vload(y, 0), vsplat(f32, 1)
    a, b, c, d, e, f = x, x, x, x, x, x
    g, h, i, j, k, l = x, x, x, x, x, x
    for _ in range(n):
        a, b, c, d = vfma(a, x, one), vfma(b, x, one), vfma(c, x, one), vfma(d, x, one)
        e, f, g, h = vfma(e, x, one), vfma(f, x, one), vfma(g, x, one), vfma(h, x, one)
        i, j, k, l = vfma(i, x, one), vfma(j, x, one), vfma(k, x, one), vfma(l, x, one)
    vstore(y, 0, a + b + c + d + e + f + g + h + i + j + k + l)


# ---------------------------------------------------------------- matrix product


@kernel(outputs=("c",))
def step_naive(a: ptr_f32, b: ptr_f32, c: ptr_f32, m: i64, n: i64, k: i64, tid: i64, nthreads: i64):
    """The definition: for each element of c, a row of a times a column of b."""
    for i in range(m):
        for j in range(n):
            total = f32(0)
            for p in range(k):
                total = total + a[i * k + p] * b[p * n + j]
            c[i * n + j] = total


@kernel(outputs=("c",))
def step_rows(a: ptr_f32, b: ptr_f32, c: ptr_f32, m: i64, n: i64, k: i64, tid: i64, nthreads: i64):
    """The same sums with the loops exchanged: rows of b are added to a row of c, a vector of columns at a time."""
    w = lanes(c)
    for i in range(m):
        for p in range(k):
            factor = a[i * k + p]
            for j in range(0, n, w):
                if p == 0:
                    vstore_part(c, i * n + j, vload_part(b, j, n - j) * factor, n - j)
                elif j + w <= n:
                    vstore(c, i * n + j, vfma(vload(b, p * n + j), factor, vload(c, i * n + j)))
                else:
                    more = vfma(vload_part(b, p * n + j, n - j), factor, vload_part(c, i * n + j, n - j))
                    vstore_part(c, i * n + j, more, n - j)


@kernel(outputs=("c",))
def step_tile(a: ptr_f32, b: ptr_f32, c: ptr_f32, m: i64, n: i64, k: i64, tid: i64, nthreads: i64):
    """A tile of MR x NR sums stays in registers while all of k goes by. n must be a multiple of NR here."""
    for i in range(0, m, MR):
        for j in range(0, n, NR):
            rows = rows_strided(a + i * k, k, m - i)
            acc = tile_zero()
            for p in range(k):
                acc = tile_outer(acc, rows, p, b + (p * n + j))
            tile_store(c + (i * n + j), n, acc, min(MR, m - i), NR)


@kernel(outputs=("c",))
def step_packed(a: ptr_f32, b: ptr_f32, c: ptr_f32, m: i64, n: i64, k: i64, tid: i64, nthreads: i64):
    """The same with b packed beforehand: panels of NR columns, each k rows of NR numbers, one after the other."""
    for i in range(0, m, MR):
        for j in range(0, n, NR):
            rows = rows_strided(a + i * k, k, m - i)
            acc = tile_zero()
            for p in range(k):
                acc = tile_outer(acc, rows, p, b + (j * k + p * NR))
            tile_store(c + (i * n + j), n, acc, min(MR, m - i), min(NR, n - j))


@kernel(outputs=("c",))
def step_blocked(a: ptr_f32, b: ptr_f32, c: ptr_f32, m: i64, n: i64, k: i64, tid: i64, nthreads: i64):
    """The same for some panels after the other: those stay in the second-level cache while all rows of a go by."""
    group = max(1, BLOCK // (k * NR)) * NR
    for block in range(0, n, group):
        for i in range(0, m, MR):
            for j in range(block, min(block + group, n), NR):
                rows = rows_strided(a + i * k, k, m - i)
                acc = tile_zero()
                for p in range(k):
                    acc = tile_outer(acc, rows, p, b + (j * k + p * NR))
                tile_store(c + (i * n + j), n, acc, min(MR, m - i), min(NR, n - j))


@kernel(outputs=("c",))
def step_split(a: ptr_f32, b: ptr_f32, c: ptr_f32, m: i64, n: i64, k: i64, tid: i64, nthreads: i64):
    """Blocks of k, so short that one panel stays in the first-level cache for all rows; c is read and written again
    for each of them."""
    depth = PANEL // NR
    for first in range(0, k, depth):
        steps = min(depth, k - first)
        for j in range(0, n, NR):
            for i in range(0, m, MR):
                rows, target = rows_strided(a + i * k, k, m - i), c + (i * n + j)
                height, width = min(MR, m - i), min(NR, n - j)
                acc = tile_zero()
                if first > 0:
                    acc = tile_add(acc, target, n, height, width)
                for p in range(first, first + steps):
                    acc = tile_outer(acc, rows, p, b + (j * k + p * NR))
                tile_store(target, n, acc, height, width)


@kernel(outputs=("c",))
def step_fetched(a: ptr_f32, b: ptr_f32, c: ptr_f32, m: i64, n: i64, k: i64, tid: i64, nthreads: i64):
    """The same in strides of four steps, while the panel that comes next is fetched line by line."""
    depth = PANEL // NR
    for first in range(0, k, depth):
        steps = min(depth, k - first)
        for j in range(0, n, NR):
            panel = b + (j * k + first * NR)
            ahead = panel + k * NR
            lines = (steps * NR // LINE * MR + m - 1) // m  # for each tile, so that all are there in time
            for i in range(0, m, MR):
                for _ in range(lines):
                    prefetch(ahead, 0)
                    ahead = ahead + LINE
                rows, target = rows_strided(a + i * k, k, m - i), c + (i * n + j)
                height, width = min(MR, m - i), min(NR, n - j)
                acc = tile_zero()
                if first > 0:
                    acc = tile_add(acc, target, n, height, width)
                for p in range(0, steps - 3, 4):
                    acc = tile_outer4(acc, rows, first + p, panel + p * NR)
                for p in range(steps // 4 * 4, steps):
                    acc = tile_outer(acc, rows, first + p, panel + p * NR)
                tile_store(target, n, acc, height, width)


# ---------------------------------------------------------------- convolution


def lies_in(i, j, height, width):
    """Whether row i and column j are in the image, not in its padding."""
    return i >= 0 and i < height and j >= 0 and j < width


@kernel(outputs=("y",))
def step_conv_naive(
    x: ptr_f32, w: ptr_f32, y: ptr_f32, height: i64, width: i64, channels: i64, filters: i64, tid: i64, nthreads: i64
):
    """The definition, in the layout of ONNX: x (channels, height, width), w (filters, channels, 3, 3), y as x."""
    for f in range(filters):
        for h in range(height):
            for v in range(width):
                total = f32(0)
                for c in range(channels):
                    for i in range(3):
                        for j in range(3):
                            if lies_in(h + i - 1, v + j - 1, height, width):
                                at = (c * height + h + i - 1) * width + v + j - 1
                                total = total + x[at] * w[(f * channels + c) * 9 + i * 3 + j]
                y[(f * height + h) * width + v] = total


@kernel(outputs=("y",))
def step_conv_filters(
    x: ptr_f32, w: ptr_f32, y: ptr_f32, height: i64, width: i64, channels: i64, filters: i64, tid: i64, nthreads: i64
):
    """Channels last: x (height, width, channels), w (3, 3, channels, filters), y (height, width, filters); a vector of
    filters at a time, the padding asked for once per tap."""
    for h in range(height):
        for v in range(width):
            for f in range(0, filters, lanes(y)):
                total = vsplat(f32, 0)
                for i in range(3):
                    for j in range(3):
                        if lies_in(h + i - 1, v + j - 1, height, width):
                            pixel = x + ((h + i - 1) * width + v + j - 1) * channels
                            tap = w + ((i * 3 + j) * channels * filters + f)
                            for c in range(channels):
                                total = vfma(vload_part(tap, c * filters, filters - f), pixel[c], total)
                vstore_part(y, (h * width + v) * filters + f, total, filters - f)


@kernel(outputs=("columns",))
def step_unfold(x: ptr_f32, columns: ptr_f32, height: i64, width: i64, channels: i64, tid: i64, nthreads: i64):
    """im2col: the nine pixels around each pixel side by side, columns (height * width, 9 * channels)."""
    to = columns
    for h in range(height):
        for v in range(width):
            for i in range(h - 1, h + 2):
                for j in range(v - 1, v + 2):
                    inside = lies_in(i, j, height, width)
                    pixel = x + ((i * width + j) * channels if inside else 0)
                    for c in range(0, channels, lanes(x)):
                        some = vload_part(pixel, c, channels - c if inside else 0)
                        vstore_part(to, c, some, channels - c)
                    to = to + channels


# ---------------------------------------------------------------- by the definition, for the tests


def convolution(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x (channels, height, width), w (filters, channels, 3, 3) -> (filters, height, width), in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("chvij,fcij->fhv", windows, w.astype(np.float64))
