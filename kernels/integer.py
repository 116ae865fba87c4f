"""Products of 8-bit integers with exact 32-bit sums: matrix products and convolutions of quantised tensors.

A quantised tensor q stands for (q - zero point) * scale. The left side (the activations) is first widened to 16 bits
with its zero point taken off, which always fits, and its padding written out as zeros; an odd number of channels gets
a zero behind it. The right side (the weights) stays in 8 bits, shifted to the signed range. The register tile
multiplies pairs of 16-bit numbers and adds the two products in 32 bits (`pmaddwd` on x86): no step saturates, so every
sum is exact (beyond 2^31 it wraps). What the zero point of the weights adds is the sum of the row times that zero
point; it is taken off at the end (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, section 2.3).

A convolution is an implicit matrix product through a table of pixels, as in conv.py; a plain matrix product is the
same with one pixel per row and one tap. Bytes are read as u8: `flip` is 0x80 where they mean i8, and 0 where u8.
"""

import numpy as np

from minifer.kernels.conv import (
    BATCH,
    BLOCK,
    CHANNELS,
    FILTERS,
    GROUPS,
    OUT_D,
    OUT_H,
    OUT_W,
    RUN,
    TAPS_D,
    TAPS_H,
    TAPS_W,
    fill_table,
)
from minifer.kernels.conv import geometry as float_geometry
from minifer.kernels.simd import (
    MR,
    NR,
    hsum,
    lanes,
    rows_table,
    share,
    tile_dot_i32,
    tile_row_i32,
    tile_store_i32,
    tile_zero_i32,
    u8,
    vconvert,
    vload,
    vload_n,
    vload_part,
    vround,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import (
    KernelSpec,
    Pointer,
    f32,
    i8,
    i16,
    i32,
    i64,
    kernel,
    ptr_f32,
    ptr_i8,
    ptr_i16,
    ptr_i32,
    ptr_i64,
    ptr_u8,
)

#: bytes of the left side that one pass over the weights works with: they stay in the second-level cache
BLOCK_BYTES = 256 * 1024
#: panels of the right side that a tile's rows meet one after another, at most, and their bytes: results are then
#: written in long runs, and the panels stay in the second-level cache
TOGETHER = 8
TOGETHER_BYTES = 128 * 1024


def even(n: int) -> int:
    """n, rounded up to an even number."""
    return n + n % 2


def geometry(batch, channels, filters, groups, in_size, out_size, taps, strides, dilations) -> np.ndarray:
    """The table for a convolution of a widened image: `in_size` has the padding in it, `channels` is as in the model.

    Where it can be, a row of taps is one run of memory.
    """
    of_group = even(channels // groups)
    merged = groups == 1 and dilations[2] == 1
    g = float_geometry(
        batch, groups * of_group, filters, groups, in_size, out_size, taps, strides, (0, 0, 0), dilations,
        merged=merged,
    )  # fmt: skip
    entries = taps[0] * taps[1] * (1 if merged else taps[2])
    mr = int(MR)
    most = max(mr, min(BLOCK_BYTES // (2 * entries * int(g[RUN])), 8192 // entries) // mr * mr)
    pixels = batch * out_size[0] * out_size[1] * out_size[2]
    count = -(-pixels // most)
    g[BLOCK] = -(-pixels // (count * mr)) * mr
    return g


def product_geometry(m: int, n: int, k: int) -> np.ndarray:
    """The table for a matrix product (m, k) @ (k, n)."""
    one = (1, 1, 1)
    return geometry(1, k, n, 1, (1, 1, m), (1, 1, m), one, one, one)


def table_words(g: np.ndarray) -> int:
    """i64 words of table that one thread needs."""
    return int(g[BLOCK] * g[TAPS_D] * g[TAPS_H] * g[TAPS_W])


def work_words(g: np.ndarray) -> int:
    """i32 words of scratch that one thread needs: tiles side by side, and the sums of the rows of a block."""
    return int(MR * NR * TOGETHER + g[BLOCK] * g[GROUPS])


# ---------------------------------------------------------------- the right side


def signed(weight: np.ndarray) -> np.ndarray:
    """8-bit weights as int8; uint8 ones less 128."""
    return weight if weight.dtype == np.int8 else (weight ^ np.uint8(0x80)).view(np.int8)


def pack_filters(weight: np.ndarray, groups: int) -> np.ndarray:
    """ONNX weights (filters, channels / groups, *taps) as int8 panels (groups, panels, pairs, NR, 2).

    A panel holds NR filters side by side, zero-filled; rows are taps in row-major order with channels innermost, each
    run of channels filled up to an even number; two neighbouring rows lie interleaved.
    """
    nr, (filters, depth) = int(NR), weight.shape[:2]
    of_group = filters // groups
    panels = -(-of_group // nr)
    by_tap = np.moveaxis(signed(weight).reshape(groups, of_group, depth, -1), 2, 3)
    rows = np.zeros((groups, panels * nr, by_tap.shape[2], even(depth)), np.int8)
    rows[:, :of_group, :, :depth] = by_tap
    pairs = rows.reshape(groups, panels, nr, -1, 2)
    return np.ascontiguousarray(pairs.transpose(0, 1, 3, 2, 4))


def pack_matrix(b: np.ndarray) -> np.ndarray:
    """B (k, n) of int8 or uint8 as panels (1, panels, pairs, NR, 2)."""
    return pack_filters(np.ascontiguousarray(b.T), 1)


def packed_bytes(k: int, n: int) -> int:
    """Size of a packed B (k, n)."""
    return -(-n // int(NR)) * int(NR) * even(k)


def pack_panels_example(rng, size):
    batch, k, n = (int(v) for v in rng.integers(1, (4, 6 * size, 6 * size)))
    row, column = (n, 1) if rng.random() < 0.5 else (1, k)
    return {
        "b": rng.integers(0, 256, batch * k * n).astype("u1"),
        "packed": np.full((batch, packed_bytes(k, n)), 7, "i1"),
        "batch": batch, "k": k, "n": n, "row": row, "column": column, "flip": int(rng.choice([0, 128])),
    }  # fmt: skip


def pack_panels_reference(b, packed, batch, k, n, row, column, flip):
    matrices = b.reshape(batch, k, n) if column == 1 else b.reshape(batch, n, k).transpose(0, 2, 1)
    wide = matrices if flip == 0 else matrices.view(np.int8)
    return {"packed": np.stack([pack_matrix(m).reshape(-1) for m in wide])}


@kernel(reference=pack_panels_reference, example=pack_panels_example, outputs=("packed",), tolerance=0, group="pack")
def pack_panels(
    b: ptr_u8, packed: ptr_i8, batch: i64, k: i64, n: i64, row: i64, column: i64, flip: i64, tid: i64, nthreads: i64
):
    """Pack matrices B[p, j] = b[p * row + j * column] as pack_matrix does: for a right side that only the run knows.

    b: (batch, k * n); packed: (batch, packed_bytes). Exact. Split over panels.
    """
    panels = (n + NR - 1) // NR
    pairs = (k + 1) // 2
    turn = 128 - flip
    for unit in range(share(batch * panels, tid, nthreads), share(batch * panels, tid + 1, nthreads)):
        first = unit % panels * NR
        source = b + (unit // panels * (k * n) + first * column)
        target = packed + unit * (pairs * NR * 2)
        columns = min(NR, n - first)
        for p in range(2 * pairs):
            line = target + (p // 2 * NR * 2 + p % 2)
            inside = columns if p < k else 0
            for j in range(inside):
                line[2 * j] = source[p * row + j * column] ^ turn
            for j in range(inside, NR):
                line[2 * j] = 0


# ---------------------------------------------------------------- the left side


def widen_example(rng, size):
    groups, n, d, h, w, pd, ph, pw, more = (int(v) for v in rng.integers(1, 4, 9))
    channels = groups * int(rng.integers(1, 9 * size))
    matrix = rng.random() < 0.4
    if matrix:
        groups, n, d, h, w, pd, ph, pw, more = 1, 1, 1, 1, 3 * w, 0, 0, 0, 0
    first = rng.random() < 0.3
    steps = int(matrix and rng.random() < 0.5)
    inside, to = (d, h, w), (d + pd, h + ph + more, w + 2 * pw)
    room = even(channels // groups) + int(rng.choice([0, 0, 2, 4]))
    return {
        "x": rng.integers(0, 256, n * d * h * w * channels).astype("u1"),
        "zero": rng.integers(0, 256, w if steps else 1).astype("u1"),
        "y": np.full((n, *to, groups, room), -1, "i2"),
        "flip": int(rng.choice([0, 128])), "has_zero": int(rng.integers(0, 2)), "zero_step": steps, "batch": n,
        "channels": channels, "groups": groups, "room": room, **dict(zip(("depth", "height", "width"), inside)),
        **dict(zip(("to_d", "to_h", "to_w"), to)), "pad_d": pd, "pad_h": ph, "pad_w": pw,
        "pixel": 1 if first else channels, "channel": d * h * w if first else 1,
    }  # fmt: skip


def widen_reference(
    x, zero, y, flip, has_zero, zero_step, batch, channels, groups, room, depth, height, width, to_d, to_h, to_w,
    pad_d, pad_h, pad_w, pixel, channel,
):  # fmt: skip
    kind = np.int8 if flip else np.uint8
    inside = (depth, height, width)
    source = x.view(kind).astype(np.int16)
    source = source.reshape(batch, *inside, channels) if channel == 1 else np.moveaxis(
        source.reshape(batch, channels, *inside), 1, -1
    )  # fmt: skip
    shift = zero.view(kind).astype(np.int16)[:, None] * has_zero
    result = np.zeros(y.shape, np.int16)
    place = tuple(slice(p, p + s) for p, s in zip((pad_d, pad_h, pad_w), inside))
    split = (source - shift).reshape(batch, *inside, groups, channels // groups)
    result[(slice(None), *place, slice(None), slice(channels // groups))] = split
    return {"y": result}


def widen_run(x, y, n, flip, shift):
    """y[i] = (x[i] ^ flip) - shift for i < n."""
    i, w = 0, lanes(y)
    while i + w <= n:
        vstore(y, i, vconvert(vload_n(x, i, lanes(y)) ^ flip, i16) - shift)
        i += w
    if i < n and n >= w:  # the last ones, some of them again
        vstore(y, n - w, vconvert(vload_n(x, n - w, lanes(y)) ^ flip, i16) - shift)
        i = n
    elif i < n and n >= 16:  # in a vector of 64 bytes are 32
        vstore(y, 0, vconvert(vload_n(x, 0, 16) ^ flip, i16) - shift)
        vstore(y, n - 16, vconvert(vload_n(x, n - 16, 16) ^ flip, i16) - shift)
        i = n
    while i < n:
        y[i] = (x[i] ^ flip) - shift
        i += 1


@kernel(reference=widen_reference, example=widen_example, outputs=("y",), tolerance=0, group="widen")
def widen(
    x: ptr_u8, zero: ptr_u8, y: ptr_i16, flip: i64, has_zero: i64, zero_step: i64, batch: i64, channels: i64,
    groups: i64, room: i64, depth: i64, height: i64, width: i64, to_d: i64, to_h: i64, to_w: i64,
    pad_d: i64, pad_h: i64, pad_w: i64, pixel: i64, channel: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """The left side in 16 bits: x less its zero point, with zeros around it.

    y: (batch, to_d, to_h, to_w, groups, room), room for the channels of a group and more, which become 0. Neighbouring
    pixels of x lie `pixel` elements apart, channels `channel`; images are dense. zero: one byte, or with `zero_step`
    one for each pixel of the only row; read where has_zero is set. Exact. Split over pixels of y.
    """
    pixels = batch * to_d * to_h * to_w
    image = channels * depth * height * width
    of = channels // groups
    step = groups * room
    dense = channel == 1 and of == room and zero_step == 0
    at, end = share(pixels, tid, nthreads), share(pixels, tid + 1, nthreads)
    while at < end:
        row, first = at // to_w, at % to_w
        last = min(to_w, first + end - at)
        h = row % to_h - pad_h
        d = row // to_h % to_d - pad_d
        source = x + (row // (to_h * to_d) * image + (d * height + h) * width * pixel)
        # columns of x that this run of pixels covers: [low, high)
        low, high = max(first - pad_w, 0), min(last - pad_w, width)
        if d < 0 or d >= depth or h < 0 or h >= height or low >= high:
            low, high = 0, 0
            clear(y + at * step, (last - first) * step)
        else:
            clear(y + at * step, (low + pad_w - first) * step)
            clear(y + (at + high + pad_w - first) * step, (last - pad_w - high) * step)
        target = y + (at + low + pad_w - first) * step
        shift = (zero[0] ^ flip if has_zero != 0 else 0 ^ flip) if low < high else 0
        if dense:
            widen_run(source + low * pixel, target, (high - low) * channels, flip, shift)
        else:
            for w in range(low, high):
                if has_zero != 0 and zero_step != 0:
                    shift = zero[w] ^ flip
                for q in range(groups):
                    run = target + q * room
                    if channel == 1:
                        widen_run(source + (w * pixel + q * of), run, of, flip, shift)
                    else:
                        for c in range(of):
                            run[c] = (source[w * pixel + (q * of + c) * channel] ^ flip) - shift
                    for c in range(of, room):
                        run[c] = 0
                target = target + step
        at += last - first


def clear(y, n):
    """y[i] = 0 for i < n."""
    i, w, half = 0, lanes(y), lanes(i32)
    while i + w <= n:
        vstore(y, i, vsplat(y, 0))
        i += w
    while i + half <= n:
        vstore(y, i, vconvert(vsplat(i32, 0), i16))
        i += half
    while i < n:
        y[i] = 0
        i += 1


# ---------------------------------------------------------------- what becomes of a sum


def factor_at(factors, column, n, step):
    """The factors of a vector of columns, or of n; one for all where step is 0."""
    return vload_part(factors, column, n) if step != 0 else vsplat(f32, factors[0])


def store_some(y, at, v, n):
    """The first n lanes of f32 to y[at:]."""
    if n >= lanes(f32):
        vstore(y, at, v)
    else:
        vstore_part(y, at, v, n)


def finish_i32(v, y, at, n, column, bias, factors, shift, has_bias, step):
    """y = sum + bias."""
    if has_bias != 0:
        v = v + vload_part(bias, column, n)
    store_some(y, at, v, n)


def finish_f32(v, y, at, n, column, bias, factors, shift, has_bias, step):
    """y = sum * factor + bias."""
    scaled = vconvert(v, f32) * factor_at(factors, column, n, step)
    if has_bias != 0:
        scaled = scaled + vload_part(bias, column, n)
    store_some(y, at, scaled, n)


def bytes_finish(T):
    """The finish for a result of element type T, u8 or i8."""

    def finish(v, y, at, n, column, bias, factors, shift, has_bias, step):
        """y = round((sum + bias) * factor) + zero point, to even on a tie, saturated to T."""
        if has_bias != 0:
            v = v + vload_part(bias, column, n)
        rounded = vround(vconvert(v, f32) * factor_at(factors, column, n, step)) + f32(shift[0])
        store_some(y, at, vconvert(rounded, T), n)

    return finish


def finished_reference(total, y, bias, factors, shift, has_bias):
    """The same for exact sums (..., filters) in NumPy."""
    if y.dtype == np.int32:
        return (total + (bias if has_bias else 0)).astype(np.int32)
    if y.dtype == np.float32:
        return total.astype(np.float32) * factors + (bias if has_bias else 0)
    rounded = np.rint((total + (bias if has_bias else 0)).astype(np.float32) * factors) + shift.astype(np.float32)
    return np.clip(rounded, *((-128, 127) if y.dtype == np.int8 else (0, 255))).astype(y.dtype)


def finish_example(rng, filters, shape, T):
    """The arguments of a finish: bias, factors, shift, y, has_bias, step."""
    step = int(rng.integers(0, 2))
    bias = rng.standard_normal(filters).astype("f") if T is f32 else rng.integers(-9999, 9999, filters).astype("i4")
    byte = np.int8 if T is i8 else np.uint8
    return {
        "bias": bias, "factors": rng.uniform(1e-4, 0.02, filters if step else 1).astype("f"),
        "shift": np.frombuffer(rng.bytes(1), byte).copy(), "y": np.full(shape, 77, T.dtype),
        "has_bias": int(rng.integers(0, 2)), "step": step,
    }  # fmt: skip


# ---------------------------------------------------------------- convolution and product


def convolution_reference(
    x, weight, zeros, bias, factors, shift, y, table, work, g, has_zero, has_bias, step
):  # fmt: skip
    n, c, filters, groups = (int(v) for v in g[:4])
    size, out, taps, stride, _, dilation = (tuple(int(v) for v in g[i : i + 3]) for i in range(4, 22, 3))
    cg, fg = c // groups, filters // groups
    w = weight.transpose(0, 2, 4, 1, 3).reshape(groups, *taps, cg, -1)[..., :fg].astype(np.int64)
    if has_zero:
        w = w - zeros.astype(np.int64).reshape(groups, 1, 1, 1, 1, fg)
    source = x.reshape(n, *size, groups, cg).astype(np.int64)
    total = np.zeros((n, *out, groups, fg), np.int64)
    for o in np.ndindex(*out):
        for t in np.ndindex(*taps):
            at = tuple(o[i] * stride[i] + t[i] * dilation[i] for i in range(3))
            total[(slice(None), *o)] += np.einsum("ngc,gcf->ngf", source[(slice(None), *at)], w[(slice(None), *t)])
    return {"y": finished_reference(total.reshape(y.shape), y, bias, factors, shift, has_bias)}


def convolution_example(rng, size, T):
    groups, n = (int(v) for v in rng.integers(1, 3, 2))
    cg, fg = int(rng.integers(1, 3 + 2 * size)), int(rng.integers(1, 4 + 2 * size))
    taps = [int(rng.integers(1, 4)) for _ in range(3)]
    taps[0] = min(taps[0], 2)
    stride, dilation = ([int(rng.integers(1, 3)) for _ in range(3)] for _ in range(2))
    inside = [(t - 1) * d + 1 + int(rng.integers(0, 4)) for t, d in zip(taps, dilation)]
    out = [(i - (t - 1) * d - 1) // s + 1 for i, t, d, s in zip(inside, taps, dilation, stride)]
    g = geometry(n, groups * cg, groups * fg, groups, inside, out, taps, stride, dilation)
    x = rng.integers(-255, 256, (n, *inside, groups, even(cg))).astype("i2")
    x[..., cg:] = 0
    weight = rng.integers(-128, 128, (groups * fg, cg, *taps)).astype("i1")
    done = finish_example(rng, groups * fg, (n, *out, groups * fg), T)
    return {
        "x": x, "weight": pack_filters(weight, groups), "zeros": rng.integers(-128, 128, groups * fg).astype("i4"),
        **{k: done[k] for k in ("bias", "factors", "shift", "y")},
        "table": np.zeros(8 * table_words(g), np.int64), "work": np.zeros(8 * work_words(g), np.int32), "g": g,
        "has_zero": int(rng.integers(0, 2)), "has_bias": done["has_bias"], "step": done["step"],
    }  # fmt: skip


def product(acc, x, table, pitch, b, entries, run, m):
    """acc + m pixels times a panel of filters: the sum over table entries and their runs (of even length)."""
    for e in range(entries):
        rows = rows_table(x, table + e * pitch, m)
        for p in range(0, run, 2):
            acc = tile_dot_i32(acc, rows, p, b + p * NR)
        b = b + run * NR
    return acc


def run_sum(x, n):
    """The sum of n numbers."""
    total = vsplat(i32, 0)
    i, w = 0, lanes(i32)
    while i + w <= n:
        total = total + vconvert(vload_n(x, i, lanes(i32)), i32)
        i += w
    rest = 0
    while i < n:
        rest += x[i]
        i += 1
    return hsum(total) + rest


def sum_rows(x, table, sums, entries, run, groups, count, block):
    """sums[group * block + i]: the sum of everything that row i of the block multiplies."""
    for group in range(groups):
        for i in range(count):
            total = 0
            for e in range(entries):
                total += run_sum(x + (group * run + table[e * count + i]), run)
            sums[group * block + i] = total


def convolution(T, B, Z, finish) -> KernelSpec:
    """Make the kernel with results of element type T; B is the type of its bias, Z that of its zero point."""

    def body(
        x: ptr_i16, weight: ptr_i8, zeros: ptr_i32, bias: Pointer(B), factors: ptr_f32, shift: Pointer(Z),
        y: Pointer(T), table: ptr_i64, work: ptr_i32, g: ptr_i64, has_zero: i64, has_bias: i64, step: i64,
        slot: i64, pieces: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y = finish(convolution of x with the weights).

        x: the widened image (batch, depth, height, width, groups, even channels); weight: see pack_filters; zeros:
        (filters,) the zero points of the packed weights, read where has_zero; bias and factors:
        (filters,), one factor for all where step is 0; shift: the zero point of y; y: (batch, out depth, out height,
        out width, filters); table: table_words, work: work_words per thread. See the finish functions for what is
        read. 2 * pixels * taps * channels / groups * filters operations, exact. Work is split over blocks of output
        pixels, or over panels of filters where there are few blocks.
        """
        groups, filters, run, block = g[GROUPS], g[FILTERS], g[RUN], g[BLOCK]
        pixels = g[BATCH] * g[OUT_D] * g[OUT_H] * g[OUT_W]
        per_row = g[TAPS_W] if run * groups == g[CHANNELS] else 1
        entries = g[TAPS_D] * g[TAPS_H] * per_row
        of_group = filters // groups
        panels = (of_group + NR - 1) // NR
        panel_bytes = entries * run * NR
        together = max(1, min(TOGETHER, TOGETHER_BYTES // panel_bytes))
        blocks = (pixels + block - 1) // block
        mine = table + slot * (block * g[TAPS_D] * g[TAPS_H] * g[TAPS_W])
        strip = work + slot * (MR * NR * TOGETHER + block * groups)
        sums = strip + MR * NR * TOGETHER
        # few blocks: all threads walk all blocks and share the panels
        by_block = blocks >= 2 * pieces
        block_from = share(blocks, tid, nthreads) if by_block else 0
        block_to = share(blocks, tid + 1, nthreads) if by_block else blocks
        panel_from = 0 if by_block else share(groups * panels, tid, nthreads)
        panel_to = groups * panels if by_block else share(groups * panels, tid + 1, nthreads)
        if panel_from == panel_to:
            return
        for unit in range(block_from, block_to):
            first = unit * block
            count = min(block, pixels - first)
            fill_table(mine, g, first, count, per_row, 0, 0)
            if has_zero != 0:
                sum_rows(x, mine, sums, entries, run, groups, count, block)
            q = panel_from
            while q < panel_to:
                group = q // panels
                last = min(q + together, panel_to, (group + 1) * panels)
                column = group * of_group + q % panels * NR
                n = min((last - q) * NR, (group + 1) * of_group - column)
                for i in range(0, count, MR):
                    m = min(MR, count - i)
                    own, pixel = mine + i, x + group * run
                    for s in range(q, last):
                        b, target = weight + s * panel_bytes, strip + (s - q) * NR
                        if m == 1:
                            lone = product(tile_row_i32(), pixel, own, count, b, entries, run, m)
                            tile_store_i32(target, NR * TOGETHER, lone, 1, NR)
                        else:
                            acc = product(tile_zero_i32(), pixel, own, count, b, entries, run, m)
                            tile_store_i32(target, NR * TOGETHER, acc, MR, NR)
                    for r in range(m):
                        row = strip + r * (NR * TOGETHER)
                        row_sum = sums[group * block + i + r]
                        at = (first + i + r) * filters + column
                        for j in range(0, n, lanes(i32)):
                            v = vload(row, j)
                            if has_zero != 0:
                                v = v - vload_part(zeros, column + j, n - j) * row_sum
                            finish(v, y, at + j, n - j, column + j, bias, factors, shift, has_bias, step)
                q = last

    def example(rng, size):
        return convolution_example(rng, size, T)

    return kernel(
        reference=convolution_reference, example=example, outputs=("y", "table", "work"), name=f"convolution_{T}",
        group=f"{T}", tolerance=1e-6 if T is f32 else 0,
    )(body)  # fmt: skip


convolution_i32 = convolution(i32, i32, u8, finish_i32)
convolution_f32 = convolution(f32, f32, u8, finish_f32)
convolution_u8 = convolution(u8, i32, u8, bytes_finish(u8))
convolution_i8 = convolution(i8, i32, i8, bytes_finish(i8))
