"""Products of bytes with known weights in one step: convolution or matrix product, and all that follows it.

The sums are those of integer.py: exact, in 32 bits. What differs is what happens around them. The left side is widened
to 16 bits block by block, into scratch that stays in the second-level cache, tap by tap where it is a convolution:
no widened image and no table of pixels is ever written to memory. And each tile of sums is finished while it
lies in the first-level cache: scaled, rounded, added to a quantised residual, or turned into floats with bias,
residual and bounds.

Rounding to the nearest integer, halves to even, is an addition: beyond 2^23 a float has no fraction, so x + 1.5 * 2^23
is x rounded, and its lowest bits are the integer (Hacker's Delight, second edition, section 17). Numbers are
brought inside the bounds first, so that they are small.
"""

import numpy as np

from minifer.kernels.conv import (
    BATCH,
    BLOCK,
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
)
from minifer.kernels.conv import geometry as conv_geometry
from minifer.kernels.integer import clear, even, signed, widen_run
from minifer.kernels.simd import (
    MR,
    NR,
    SUM_ROWS,
    bitcast,
    lanes,
    rows_strided,
    share,
    tile_dot_i32,
    tile_row_i32,
    tile_store_i32,
    tile_zero_i32,
    vconvert,
    vload,
    vload_n,
    vload_part,
    vmax_quick,
    vmin_quick,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import (
    KernelSpec,
    Pointer,
    f32,
    i8,
    i32,
    i64,
    kernel,
    ptr_f32,
    ptr_i8,
    ptr_i16,
    ptr_i32,
    ptr_i64,
    ptr_u8,
    u8,
)

#: bytes that one pass over the weights works with: the widened left side, the result and a residual
BLOCK_BYTES = 192 * 1024
#: added to round; see the top
ROUND = 12582912.0
#: has_residual where there is a residual for each element, and where one row serves all pixels
FULL, ROW = 1, 2
#: columns that parameters are padded by, so that whole vectors can be read: as many as the widest have
SLACK = 16

# what `end` holds for results of bytes: bounds of the product less its zero point, zero point of the result; with a
# residual also the product's scale, the residual's scale and zero point, the result's scale, and its own bounds
LOW, HIGH, ZERO, SCALE, OTHER_SCALE, OTHER_ZERO, DIVISOR, LAST_LOW, LAST_HIGH = range(9)
END = 9


def geometry(
    batch, channels, filters, groups, in_size, out_size, taps, strides, pads, dilations, threads=1
) -> np.ndarray:
    """The table for a convolution, with the size of its blocks."""
    g = conv_geometry(batch, channels, filters, groups, in_size, out_size, taps, strides, pads, dilations)
    return in_blocks(g, int(MR), 2 * depth(g) + 2 * filters, threads)


def in_blocks(
    g: np.ndarray, rows: int, row_bytes: int, threads: int, room: int = BLOCK_BYTES, parts: int = 2
) -> np.ndarray:
    """The table with the size of blocks set: a multiple of `rows` pixels, each of which takes `row_bytes` of `room`.

    Several threads get `parts` blocks each, if these are not too small.
    """
    pixels = int(g[BATCH] * g[OUT_D] * g[OUT_H] * g[OUT_W])
    most = max(rows, room // row_bytes // rows * rows)
    count = max(-(-pixels // most), min(parts * threads, pixels // 64)) if threads > 1 else -(-pixels // most)
    g[BLOCK] = -(-pixels // (max(count, 1) * rows)) * rows
    return g


def depth(g: np.ndarray) -> int:
    """Length of a widened row: taps times channels of a group, even."""
    return even(int(g[TAPS_D] * g[TAPS_H] * g[TAPS_W] * g[CHANNELS] // g[GROUPS]))


def block_elements(g: np.ndarray) -> int:
    """i16 elements of scratch that one thread needs."""
    return int(g[BLOCK]) * depth(g)


def pack(weight: np.ndarray, groups: int) -> np.ndarray:
    """ONNX weights (filters, channels / groups, *taps) as int8 panels (groups, panels, pairs, NR, 2).

    A panel holds NR filters side by side, zero-filled; rows are taps in row-major order with channels innermost, of
    which two neighbouring ones lie interleaved.
    """
    nr, filters = int(NR), weight.shape[0]
    of_group = filters // groups
    panels = -(-of_group // nr)
    by_tap = np.moveaxis(signed(weight).reshape(groups, of_group, weight.shape[1], -1), 2, 3)
    flat = by_tap.reshape(groups, of_group, -1)
    rows = np.zeros((groups, panels * nr, even(flat.shape[2])), np.int8)
    rows[:, :of_group, : flat.shape[2]] = flat
    pairs = rows.reshape(groups, panels, nr, -1, 2)
    return np.ascontiguousarray(pairs.transpose(0, 1, 3, 2, 4))


def padded(values: np.ndarray, count: int) -> np.ndarray:
    """Numbers for `count` columns (one number for all, or one each), with slack behind."""
    result = np.zeros(count + SLACK, values.dtype)
    result[:count] = values.reshape(-1)
    return result


# ---------------------------------------------------------------- the left side


def patches(copy, blank):
    """Make the function that writes rows of the patch matrix.

    copy(x, y, n, flip, zero) copies n bytes to elements of the matrix, blank(y, n, zero) writes n elements that stand
    for pixels outside of the image.
    """

    def fill(x, a, zero, flip, g, first, count, group, long):
        """Write `count` rows of the patch matrix, `long` elements each, from pixel `first` on to a."""
        channels, groups = g[CHANNELS], g[GROUPS]
        of = channels // groups
        height, width, taps = g[IN_H], g[IN_W], g[TAPS_W]
        straight = of == channels and g[DILATION_W] == 1
        ow, rest = first % g[OUT_W], first // g[OUT_W]
        oh, rest = rest % g[OUT_H], rest // g[OUT_H]
        od, image = rest % g[OUT_D], rest // g[OUT_D]
        for i in range(count):
            w = ow * g[STRIDE_W] - g[PAD_W]
            inside = straight and w >= 0 and w + taps <= width
            target = a + i * long
            for td in range(g[TAPS_D]):
                d = od * g[STRIDE_D] - g[PAD_D] + td * g[DILATION_D]
                for th in range(g[TAPS_H]):
                    h = oh * g[STRIDE_H] - g[PAD_H] + th * g[DILATION_H]
                    line = x + (((image * g[IN_D] + d) * height + h) * width * channels + group * of)
                    if d < 0 or d >= g[IN_D] or h < 0 or h >= height:
                        blank(target, taps * of, zero)
                    elif inside:
                        copy(line + w * channels, target, taps * of, flip, zero)
                    else:
                        for tw in range(taps):
                            v = w + tw * g[DILATION_W]
                            if v >= 0 and v < width:
                                copy(line + v * channels, target + tw * of, of, flip, zero)
                            else:
                                blank(target + tw * of, of, zero)
                    target = target + taps * of
            for p in range(g[TAPS_D] * g[TAPS_H] * taps * of, long):  # their weights are 0
                a[i * long + p] = 0
            ow += 1
            if ow == g[OUT_W]:
                ow, oh = 0, oh + 1
            if oh == g[OUT_H]:
                oh, od = 0, od + 1
            if od == g[OUT_D]:
                od, image = 0, image + 1

    return fill


def blank_run(y, n, zero):
    """y[i] = 0 for i < n: the zero point is taken off already."""
    clear(y, n)


fill = patches(widen_run, blank_run)


# ---------------------------------------------------------------- the end


def bytes_end(T):
    """What becomes of the sums of a tile where the result is bytes of type T."""

    def finish(strip, y, residual, bias, factors, end, m, n, stride, step, has_residual):
        """y = quantised(sum + bias) [combined with the residual and quantised anew]."""
        if NR % 16 == 0 and n == NR:
            sixteen_columns(strip, y, residual, bias, factors, end, m, stride, step, has_residual)
            return
        low, high, zero = vsplat(f32, end[LOW]), vsplat(f32, end[HIGH]), vsplat(f32, end[ZERO])
        for j in range(0, n, lanes(f32)):
            addend, factor, left = vload(bias, j), vload(factors, j), n - j
            if has_residual == 0:
                for i in range(m):
                    total = vconvert(vload(strip, i * NR + j) + addend, f32) * factor
                    r = vmin_quick(vmax_quick(total, low), high) + ROUND
                    store_bytes(y, i * stride + j, vconvert(bitcast(r + zero, i32), T), left)
            else:
                scale, other_scale = vsplat(f32, end[SCALE]), vsplat(f32, end[OTHER_SCALE])
                other_zero, divisor = vsplat(f32, end[OTHER_ZERO]), vsplat(f32, end[DIVISOR])
                last_low, last_high = vsplat(f32, end[LAST_LOW]), vsplat(f32, end[LAST_HIGH])
                for i in range(m):
                    total = vconvert(vload(strip, i * NR + j) + addend, f32) * factor
                    product_ = ((vmin_quick(vmax_quick(total, low), high) + ROUND) - ROUND) * scale
                    near = i * step + j
                    if left < lanes(f32):
                        for p in range(left):
                            strip[i * NR + j + p] = residual[near + p]
                        other = vload(strip, i * NR + j)
                    else:
                        other = vconvert(vload_n(residual, near, lanes(f32)), i32)
                    total = (product_ + (vconvert(other, f32) - other_zero) * other_scale) / divisor
                    r = vmin_quick(vmax_quick(total, last_low), last_high) + ROUND
                    store_bytes(y, i * stride + j, vconvert(bitcast(r + zero, i32), T), left)

    def sixteen_columns(strip, y, residual, bias, factors, end, m, stride, step, has_residual):
        """A row at a time, sixteen columns: their bytes are put together and stored at once."""
        low, high, zero = end[LOW], end[HIGH], end[ZERO]
        scale, other_scale, other_zero, divisor = end[SCALE], end[OTHER_SCALE], end[OTHER_ZERO], end[DIVISOR]
        last_low, last_high = end[LAST_LOW], end[LAST_HIGH]
        for j in range(0, NR, 16):
            addend, factor = vload_n(bias, j, 16), vload_n(factors, j, 16)
            for i in range(m):
                total = vconvert(vload_n(strip, i * NR + j, 16) + addend, f32) * factor
                r = vmin_quick(vmax_quick(total, low), high) + ROUND
                if has_residual != 0:
                    other = vconvert(vconvert(vload_n(residual, i * step + j, 16), i32), f32)
                    total = ((r - ROUND) * scale + (other - other_zero) * other_scale) / divisor
                    r = vmin_quick(vmax_quick(total, last_low), last_high) + ROUND
                vstore(y, i * stride + j, vconvert(bitcast(r + zero, i32), T))

    return finish


def store_bytes(y, at, v, left):
    """Store the bytes of a vector of sums, or those that are left."""
    if left >= lanes(f32):
        vstore(y, at, v)
    else:
        vstore_part(y, at, v, left)


def float_end(strip, y, residual, bias, factors, end, m, n, stride, step, has_residual):
    """y = sum * (factor * end[0]) + bias + residual, clamped to the bounds behind the strip.

    The bounds lie in memory, because whatever the compiler would keep in vector registers throughout is missing for the
    product's accumulators.
    """
    for j in range(0, n, lanes(f32)):
        left = n - j
        for i in range(m):
            at, near = i * stride + j, i * step + j
            total = vconvert(vload(strip, i * NR + j), f32) * (vload(factors, j) * end[0]) + vload(bias, j)
            low, high = bitcast(strip[SUM_ROWS * NR], f32), bitcast(strip[SUM_ROWS * NR + 1], f32)
            if has_residual != 0:
                total = total + (vload(residual, near) if left >= lanes(f32) else vload_part(residual, near, left))
            bounded = vmin_quick(high, vmax_quick(low, total))
            if left >= lanes(f32):
                vstore(y, at, bounded)
            else:
                vstore_part(y, at, bounded, left)


# ---------------------------------------------------------------- the kernel


def product_reference(
    x, zero, weight, bias, factors, end, residual, y, a, strip, g, flip, has_residual, lowest, highest
):  # fmt: skip
    n, c, filters, groups = (int(v) for v in g[:4])
    size, out, taps, stride, pad, dilation = (tuple(int(v) for v in g[i : i + 3]) for i in range(4, 22, 3))
    cg, fg = c // groups, filters // groups
    rows = weight.transpose(0, 2, 4, 1, 3).reshape(groups, -1, weight.shape[1] * int(NR))
    w = rows[:, : cg * taps[0] * taps[1] * taps[2], :fg].reshape(groups, *taps, cg, fg).astype(np.int64)
    kind = np.int8 if flip else np.uint8
    source = x.view(kind).astype(np.int64).reshape(n, *size, groups, cg) - int(zero.view(kind)[0])
    total = np.zeros((n, *out, groups, fg), np.int64)
    for o in np.ndindex(*out):
        for t in np.ndindex(*taps):
            at = tuple(o[i] * stride[i] + t[i] * dilation[i] - pad[i] for i in range(3))
            if all(0 <= at[i] < size[i] for i in range(3)):
                total[(slice(None), *o)] += np.einsum("ngc,gcf->ngf", source[(slice(None), *at)], w[(slice(None), *t)])
    sums = total.reshape(y.shape)
    if y.dtype == np.float32:
        scaled = sums.astype("d") * (factors[:filters] * end[0]) + bias[:filters]
        magnitude = np.abs(scaled) + np.abs(bias[:filters]) + 1
        scaled = scaled + (residual if has_residual else 0)
        return {"y": (np.clip(scaled, lowest, highest), magnitude)}
    r = np.rint(np.clip((sums + bias[:filters]).astype("f") * factors[:filters], end[LOW], end[HIGH]))
    if has_residual:
        other = (residual.astype("f") - end[OTHER_ZERO]) * end[OTHER_SCALE]
        r = np.rint(np.clip((r * end[SCALE] + other) / end[DIVISOR], end[LAST_LOW], end[LAST_HIGH]))
    return {"y": (r + end[ZERO]).astype(y.dtype)}


def product_example(rng, size, T):
    groups, n = (int(v) for v in rng.integers(1, 3, 2))
    cg, fg = int(rng.integers(1, 3 + 2 * size)), int(rng.integers(1, 4 + 3 * size))
    taps = [int(rng.integers(1, 4)) for _ in range(3)]
    taps[0] = min(taps[0], 2)
    stride, dilation = ([int(rng.integers(1, 3)) for _ in range(3)] for _ in range(2))
    pad = [int(rng.integers(0, t)) for t in taps]
    inside = [(t - 1) * d + 1 + int(rng.integers(0, 4)) for t, d in zip(taps, dilation)]
    out = [(i + 2 * p - (t - 1) * d - 1) // s + 1 for i, p, t, d, s in zip(inside, pad, taps, dilation, stride)]
    g = geometry(n, groups * cg, groups * fg, groups, inside, out, taps, stride, pad, dilation)
    filters, shape = groups * fg, (n, *out, groups * fg)
    low, high = (0, 255) if T is u8 else (-128, 127)
    zeros = [int(v) for v in rng.integers(low, high + 1, 3)]
    end = np.array([
        low - zeros[0], high - zeros[0], zeros[1], 0.02, 0.03, zeros[2], 0.04, low - zeros[1], high - zeros[1],
    ], "f")  # fmt: skip
    has_residual = int(rng.integers(0, 3))
    other = (filters,) if has_residual == ROW else shape
    if not has_residual:
        end[ZERO] = zeros[0]
    if T is f32:
        bias, residual = rng.standard_normal(filters).astype("f"), rng.standard_normal(other).astype("f")
    else:
        bias = rng.integers(-9999, 9999, filters).astype("i4")
        residual = rng.integers(low, high + 1, other).astype(T.dtype)
    return {
        "x": rng.integers(0, 256, (n, *inside, groups * cg)).astype("u1"),
        "zero": rng.integers(0, 256, 1).astype("u1"),
        "weight": pack(rng.integers(-128, 128, (filters, cg, *taps)).astype("i1"), groups),
        "bias": padded(bias, filters), "factors": padded(rng.uniform(1e-4, 0.02, filters).astype("f"), filters),
        "end": end, "residual": residual, "y": np.full(shape, 77, T.dtype),
        "a": np.zeros(8 * block_elements(g), "i2"), "strip": np.zeros(8 * (int(SUM_ROWS) * int(NR) + 8), "i4"), "g": g,
        "flip": int(rng.choice([0, 128])), "has_residual": has_residual, "lowest": -np.inf if size % 2 else 0.25,
        "highest": 6.0,
    }  # fmt: skip


def apart_tile(rows, long, m, b, sums):
    """sums (MR, NR) = m rows, `long` elements apart, times a panel. A function of its own, with all registers."""
    left = rows_strided(rows, long, m)
    if m == 1:
        tile_store_i32(sums, NR, panel_product(tile_row_i32(), left, b, long), 1, NR)
    else:
        tile_store_i32(sums, NR, panel_product(tile_zero_i32(), left, b, long), MR, NR)


def panel_product(acc, rows, b, long):
    """acc + the rows times a panel of `long` (even) rows."""
    p = 0
    while p + 4 <= long:
        acc = tile_dot_i32(acc, rows, p, b + p * NR)
        acc = tile_dot_i32(acc, rows, p + 2, b + (p + 2) * NR)
        p += 4
    if p < long:
        acc = tile_dot_i32(acc, rows, p, b + p * NR)
    return acc


def product(T, B, finish) -> KernelSpec:
    """Make the kernel with results of element type T and a bias of type B."""

    def body(
        x: ptr_u8, zero: ptr_u8, weight: ptr_i8, bias: Pointer(B), factors: ptr_f32, end: ptr_f32,
        residual: Pointer(T), y: Pointer(T), a: ptr_i16, strip: ptr_i32, g: ptr_i64, flip: i64, has_residual: i64,
        lowest: f32, highest: f32, slot: i64, pieces: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y = finish(convolution of x - zero with the weights).

        x: (batch, depth, height, width, channels), read as i8 where flip is 0x80; weight: see pack; bias, factors:
        (filters + SLACK,); residual, y: (batch, out depth, out height, out width, filters); a: block_elements and
        strip: SUM_ROWS * NR + 8 per thread. end: END numbers for bytes; for floats one, a factor that the run brings.
        lowest, highest: bounds of floats. Sums are exact.
        2 * pixels * taps * channels / groups * filters operations. Work is split over blocks of output pixels, or
        over panels of filters where there are few blocks.
        """
        groups, filters, block = g[GROUPS], g[FILTERS], g[BLOCK]
        pixels = g[BATCH] * g[OUT_D] * g[OUT_H] * g[OUT_W]
        taps, of = g[TAPS_D] * g[TAPS_H] * g[TAPS_W], g[CHANNELS] // groups
        long = (taps * of + 1) // 2 * 2
        of_group = filters // groups
        panels = (of_group + NR - 1) // NR
        blocks = (pixels + block - 1) // block
        rows = a + slot * (block * long)
        sums = strip + slot * (SUM_ROWS * NR + 8)
        by_block = blocks >= 2 * pieces or panels * groups < 2 * pieces
        block_from = share(blocks, tid, nthreads) if by_block else 0
        block_to = share(blocks, tid + 1, nthreads) if by_block else blocks
        panel_from = 0 if by_block else share(groups * panels, tid, nthreads)
        panel_to = groups * panels if by_block else share(groups * panels, tid + 1, nthreads)
        shift = zero[0] ^ flip
        step = 0 if has_residual == ROW else filters
        sums[SUM_ROWS * NR] = bitcast(lowest, i32)
        sums[SUM_ROWS * NR + 1] = bitcast(highest, i32)
        whole = taps == 1 and groups == 1 and long == of and g[STRIDE_D] * g[STRIDE_H] * g[STRIDE_W] == 1
        whole = whole and g[PAD_D] + g[PAD_H] + g[PAD_W] == 0 and g[OUT_W] == g[IN_W] and g[OUT_H] == g[IN_H]
        for unit in range(block_from, block_to):
            start = unit * block
            count = min(block, pixels - start)
            filled = -1
            for q in range(panel_from, panel_to):
                group = q // panels
                if group != filled:
                    filled = group
                    if whole:
                        widen_run(x + start * of, rows, count * of, flip, shift)
                    else:
                        fill(x, rows, shift, flip, g, start, count, group, long)
                panel = q % panels * NR
                n, column = min(NR, of_group - panel), group * of_group + panel
                b = weight + q * (long * NR)
                for i in range(0, count, MR):
                    m = min(MR, count - i)
                    apart_tile(rows + i * long, long, m, b, sums)
                    at = (start + i) * filters + column
                    other = residual + (column if has_residual == ROW else at)
                    finish(
                        sums, y + at, other, bias + column, factors + column, end, m, n, filters, step, has_residual
                    )  # fmt: skip

    def example(rng, size):
        return product_example(rng, size, T)

    return kernel(
        reference=product_reference, example=example, outputs=("y", "a", "strip"), name=f"product_{T}", group=f"{T}",
        tolerance=4e-7 if T is f32 else 0,
    )(body)  # fmt: skip


product_u8 = product(u8, i32, bytes_end(u8))
product_i8 = product(i8, i32, bytes_end(i8))
product_f32 = product(f32, f32, float_end)
