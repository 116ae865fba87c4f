"""Products of bytes four and eight steps at a time, for machines that multiply bytes: exact, like those of qproduct.py.

There are two kinds of such machines. Those that are EXACT (AVX-512 with VNNI) have the instruction `vpdpbusd`: it
multiplies 64 unsigned bytes by 64 signed ones and adds every four products (a quad) to a sum of 32 bits. Any weights
will do; `pack` leaves their steps in order, and row and panel are walked along side by side.

The others have `pmaddubsw`, which multiplies 32 bytes and adds neighbouring products in 16 bits, where the sum
saturates: 255 * 127 * 2 does not fit. Engines that use it all the same bid their users quantise to seven bits. But the
weights are known when a model is loaded, and almost all pairs of them are small enough: a sum cannot leave 16 bits
where neither the positive nor the negative ones of its weights add up to more than 128, whatever the left side is. So
`pack` sorts the steps of a panel, quad by quad:

    doubles   two quads whose sums fit into 16 bits even when they are added: eight steps for three multiplications
    singles   the others: four steps for two multiplications
    halves    a quad whose own pairs could saturate is two singles, w // 2 and w - w // 2, which cannot

Large quads are matched with small ones (in normally distributed weights that fill the range, 96 % find a partner).
Each panel has its own order, so it says where in a row its quads begin. Quads are sorted within chunks of a thousand
steps, for the cache's sake.

The left side stays in unsigned bytes. Its zero point z is not taken off: sum (x - z) w = sum x w - z sum w, and the
sums of the weights are known (Jacob et al., 2018, section 2.3); pixels outside of an image are z. Signed bytes are
read as unsigned ones with their first bit turned, 128 more, as is z.
"""

from collections.abc import Iterator

import numpy as np

from minifer.kernels.conv import (
    BATCH,
    BLOCK,
    CHANNELS,
    FILTERS,
    GROUPS,
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
from minifer.kernels.integer import signed
from minifer.kernels.qproduct import (
    BLOCK_BYTES,
    ROW,
    bytes_end,
    float_end,
    in_blocks,
    patches,
    product_example,
    product_reference,
)
from minifer.kernels.simd import (
    EXACT,
    MATRIX,
    MR,
    NR,
    SHORT,
    SIDE,
    SUM_ROWS,
    bitcast,
    cast,
    lanes,
    matrix_bytes,
    matrix_close,
    matrix_load,
    matrix_open,
    matrix_store,
    prefetch,
    rows_strided,
    share,
    tile_add_i32,
    tile_dot4_i32,
    tile_dot8_i32,
    tile_row_i32,
    tile_store_i32,
    tile_zero_i32,
    tile_zero_short_i32,
    vload,
    vload_n,
    vstore,
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
    ptr_i32,
    ptr_i64,
    ptr_u8,
    u8,
)

#: the most that weights of one sign in a 16-bit sum may add up to: 128 * 255 < 2^15
LIMIT = 128
#: how often quads that found no partner look for another
ROUNDS = 6
#: words of scratch behind a tile of sums: two bounds, and what else `finish` wants there
BEHIND = 8

#: quads of a chunk, at most
CHUNK = 256
#: bytes of weights that all rows of a block meet before the next ones: they stay in the second-level cache
TOGETHER = 128 * 1024

#: rows that the register tile multiplies faster than the matrix registers
FEW_ROWS = 4

#: how far ahead of the product weights are fetched: machines do so by themselves, but not beyond a page
AHEAD = 4096

# words of a chunk in the table: how many doubles and singles, and from PLACES on, where in a row each quad begins
DOUBLES, SINGLES, PLACES = range(3)


def tile_rows():
    """Rows that are multiplied at once: pairs in 16 bits take registers from the tile."""
    return SUM_ROWS if EXACT else SHORT


def depth(g: np.ndarray) -> int:
    """Length of a row of the patch matrix: taps times channels of a group, a multiple of four."""
    return -(-int(g[TAPS_D] * g[TAPS_H] * g[TAPS_W] * g[CHANNELS] // g[GROUPS]) // 4) * 4


def geometry(
    batch, channels, filters, groups, in_size, out_size, taps, strides, pads, dilations, threads=1
) -> np.ndarray:
    """The table for a convolution, with the size of its blocks."""
    g = conv_geometry(batch, channels, filters, groups, in_size, out_size, taps, strides, pads, dilations)
    more = 4 if EXACT else 1  # the second-level cache is larger there
    return in_blocks(g, int(tile_rows()), depth(g) + 2 * filters, threads, more * BLOCK_BYTES, 2 * more)


def strip_words(g: np.ndarray) -> int:
    """i32 words of scratch that one thread needs: a tile of sums, two bounds, and what is added to all sums."""
    filters, groups = int(g[FILTERS]), int(g[GROUPS])
    return int(SUM_ROWS) * int(NR) + BEHIND + groups * -(-filters // groups // int(NR)) * int(NR)


def chunks_of(long):
    """Chunks in a row of `long` bytes."""
    return (long // 4 + CHUNK - 1) // CHUNK


def block_bytes(g: np.ndarray) -> int:
    """Bytes of scratch that one thread needs for the patch matrix."""
    return int(g[BLOCK]) * depth(g)


# ---------------------------------------------------------------- the weights


def pack(weight: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """(data, table) of ONNX weights (filters, channels / groups, *taps) of int8, or of uint8 with zero point 128.

    A panel holds NR filters side by side, zero-filled, and a row runs over taps in row-major order with channels
    innermost. data: int8, quads (NR, 4) of panel after panel. table: int32, the sums of the weights (panels, NR);
    unless EXACT also (panels,) of where the words of a panel begin in the table, and the words: where the panel begins
    in data (in quads), then those of each chunk, see DOUBLES.
    """
    nr, filters = int(NR), weight.shape[0]
    of_group = filters // groups
    panels = groups * -(-of_group // nr)
    by_tap = np.moveaxis(signed(weight).reshape(groups, of_group, weight.shape[1], -1), 2, 3)
    flat = by_tap.reshape(groups, of_group, -1)
    count = -(-flat.shape[2] // 4)
    rows = np.zeros((groups, panels // groups * nr, count * 4), np.int8)
    rows[:, :of_group, : flat.shape[2]] = flat
    sums = rows.sum(2, dtype=np.int32).reshape(-1)
    quads = np.ascontiguousarray(rows.reshape(panels, nr, count, 4).transpose(0, 2, 1, 3))
    return (quads.reshape(-1), sums) if EXACT else _sorted(quads, sums)


def _sorted(quads: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(data, table) of quads (panels, quads, NR, 4) that are sorted so that sums of pairs fit into 16 bits."""
    panels, count = quads.shape[:2]
    chunks = int(chunks_of(4 * count))
    size = -(-count // chunks)
    parts = [_pack_chunk(quads[:, start : start + size], 4 * start) for start in range(0, count, size)]
    starts, data, words = [], [], []
    place, start = 0, len(sums) + panels
    for panel in range(panels):
        own = [np.array([place])]
        for part in parts:
            content, doubles, places = part[panel]
            own += [np.array([doubles, len(content) - 2 * doubles]), places]
            data.append(content)
            place += len(content)
        starts.append(start)
        words.append(np.concatenate(own))
        start += len(words[-1])
    table = np.concatenate([sums, starts, *words]).astype(np.int32)
    return np.concatenate(data).reshape(-1), table


def _chunks(table: np.ndarray, panels: int, chunks: int) -> Iterator[tuple[int, int, int, int, np.ndarray]]:
    """(panel, where its quads begin in data, doubles, singles, places) of every chunk."""
    for panel in range(panels):
        start = int(table[panels * int(NR) + panel])
        place, start = int(table[start]), start + 1
        for _ in range(chunks):
            doubles, singles = (int(n) for n in table[start : start + PLACES])
            count = 2 * doubles + singles
            yield panel, place, doubles, singles, table[start + PLACES :][:count]
            place, start = place + count, start + PLACES + count


def worth(weight: np.ndarray) -> bool:
    """Whether this kernel takes less time than that of qproduct.py, judged by a panel's worth of the weights.

    It always does where machines are EXACT. Else, cycles per step on Zen 3, for four rows: 1.5 in a double, 2 in a
    single, 2.8 there (2.4 are asked for). Weights of one scale for all filters, or of seven bits, are nearly all
    doubles; where each filter fills the range of eight bits, most quads are halves.
    """
    if EXACT:
        return True
    nr = int(NR)
    some = weight[:: max(1, len(weight) // nr)][:nr].reshape(min(len(weight), nr), -1)[:, : 4 * CHUNK]
    _, table = pack(some.reshape(*some.shape, 1), 1)
    _, _, doubles, singles, _ = next(_chunks(table, 1, 1))
    return 12 * doubles + 8 * singles < 2.4 * some.shape[1]


def _pack_chunk(quads: np.ndarray, origin: int) -> list[tuple[np.ndarray, int, np.ndarray]]:
    """For each panel of quads (panels, quads, NR, 4): the quads in order, how many doubles, where in a row each begins,
    `origin` being the first."""
    loads = _loads(quads)
    large = (loads > LIMIT).any(2)
    panel, first, second = _match(np.minimum(loads, LIMIT), ~large)
    partner = np.full(large.shape, -1)
    partner[panel, first] = second
    single = ~large
    single[panel, first] = single[panel, second] = False
    packed = []
    for own, mate, alone, halved in zip(quads, partner, single, large):
        doubles = np.flatnonzero(mate >= 0)
        order = np.concatenate([np.stack([doubles, mate[doubles]], 1).reshape(-1), np.flatnonzero(alone)])
        halves = np.flatnonzero(halved)
        low = own[halves] >> 1
        content = np.concatenate([own[order], low, own[halves] - low])
        packed.append((content, len(doubles), origin + 4 * np.concatenate([order, halves, halves])))
    return packed


def _loads(quads: np.ndarray) -> np.ndarray:
    """What weights of one sign add up to in each 16-bit sum: (panels, quads, 4 NR), positive ones, then negative."""
    both = np.empty((*quads.shape[:2], 2, int(NR), 2), np.uint8)
    for i, part in enumerate((np.maximum(quads, 0), np.minimum(quads, 0))):
        magnitude = np.abs(part).view(np.uint8)  # that of -128 is 128
        first, second = magnitude[..., 0::2], magnitude[..., 1::2]
        np.add(first, second, out=both[:, :, i])
        both[:, :, i][first & second == 128] = 255  # 128 + 128 does not fit
    return both.reshape(*quads.shape[:2], -1)


def _match(loads: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(panel, quad, quad) of free quads that may be added in 16 bits: large ones meet small ones, in a few rounds."""
    panels = len(free)
    peaks = loads.max(2)
    free = free.copy()
    found = []
    for turn in range(ROUNDS):
        order = np.argsort(np.where(free, peaks, 255), axis=1, kind="stable")
        half = free.sum(1) // 2
        panel = np.repeat(np.arange(panels), half)
        if not len(panel):
            break
        at = np.arange(len(panel)) - np.repeat(np.cumsum(half) - half, half)  # 0, 1, ... half - 1 in each panel
        small = order[panel, at]
        large = order[panel, free.sum(1)[panel] - 1 - (at + turn) % half[panel]]
        fits = (loads[panel, small] <= LIMIT - loads[panel, large]).all(1)
        panel, small, large = panel[fits], small[fits], large[fits]
        free[panel, small] = free[panel, large] = False
        found.append((panel, np.minimum(small, large), np.maximum(small, large)))
    return tuple(np.concatenate(part) for part in zip(*found)) if found else (np.zeros(0, int),) * 3


# ---------------------------------------------------------------- the left side


def copy_run(x, y, n, flip, zero):
    """y[i] = x[i] ^ flip for i < n; zero is of no use here."""
    i, w = 0, lanes(y)
    while i + w <= n:
        vstore(y, i, vload(x, i) ^ flip)
        i += w
    if i < n and n >= w:  # the last ones, some of them again
        vstore(y, n - w, vload(x, n - w) ^ flip)
        i = n
    elif i < n and n >= 32:
        vstore(y, 0, vload_n(x, 0, 32) ^ flip)
        vstore(y, n - 32, vload_n(x, n - 32, 32) ^ flip)
        i = n
    elif i < n and n >= 16:
        vstore(y, 0, vload_n(x, 0, 16) ^ flip)
        vstore(y, n - 16, vload_n(x, n - 16, 16) ^ flip)
        i = n
    while i < n:
        y[i] = x[i] ^ flip
        i += 1


def set_run(y, n, value):
    """y[i] = value for i < n."""
    for i in range(n):
        y[i] = value


fill = patches(copy_run, set_run)


# ---------------------------------------------------------------- the kernel


def panel_product(acc, rows, b, long, later, pace):
    """acc + the rows times a panel b of `long` steps in order; fetches weights needed later, `pace` bytes a step."""
    for p in range(0, long, 4):
        acc = tile_dot4_i32(acc, rows, p, b + p * NR)
        prefetch(b, p * NR + AHEAD)
        prefetch(b, p * NR + AHEAD + 64)
        prefetch(later, p * pace)
    return acc


def exact_tile(rows, long, m, b, offsets, sums, later, pace):
    """sums (m, NR) = offsets + m rows, `long` bytes apart, times a panel. A function of its own, with all registers."""
    left = rows_strided(rows, long, m)
    if m > SHORT:
        tile = panel_product(tile_add_i32(tile_zero_i32(), offsets, 0), left, b, long, later, pace)
        tile_store_i32(sums, NR, tile, MR, NR)
    elif m > 1:
        short = panel_product(tile_add_i32(tile_zero_short_i32(), offsets, 0), left, b, long, later, pace)
        tile_store_i32(sums, NR, short, SHORT, NR)
    else:
        row_product(left, long, b, offsets, sums)


def matrix_tile(rows, long, m, b, offsets, sums, later, pace):
    """exact_tile for m <= SIDE rows, on the matrix registers: 64 steps at a time, where all rows are there."""
    whole = long // 64 * 64 if m == SIDE else 0
    if whole > 0:
        matrix_load(cast(offsets, f32), 0)
        for p in range(0, whole, 64):
            matrix_bytes(rows + p, long, b + p * NR)
            for line in range(pace):
                prefetch(later, p * pace + line * 64)
        matrix_store(cast(sums, f32))
        if whole == long:
            return
    step = NR if whole > 0 else 0
    for i in range(0, m, MR):  # what is left
        count, target = min(MR, m - i), sums + i * NR
        before = target if whole > 0 else offsets
        left, b_left = rows_strided(rows + (i * long + whole), long, count), b + whole * NR
        if count > SHORT:
            tile = panel_product(tile_add_i32(tile_zero_i32(), before, step), left, b_left, long - whole, later, pace)
            tile_store_i32(target, NR, tile, MR, NR)
        else:
            short = tile_add_i32(tile_zero_short_i32(), before, step)
            short = panel_product(short, left, b_left, long - whole, later, pace)
            tile_store_i32(target, NR, short, SHORT, NR)


def rows_around(m, long, before, whole):
    """How many rows to multiply for m, and how many of them lie before: all that the matrix registers take, where there
    are so many `before`, or behind in the block (not so in the image, which is read itself where it is the `whole`)."""
    if m <= FEW_ROWS or long < 64 or (whole and before < SIDE - m):
        return m, 0
    return SIDE, SIDE - m if whole else 0


def row_product(row, long, b, offsets, sums):
    """The same for one row, in four sums each, which need not wait for one another."""
    first, second = tile_add_i32(tile_row_i32(), offsets, 0), tile_row_i32()
    third, fourth = tile_row_i32(), tile_row_i32()
    p = 0
    while p + 16 <= long:
        first = tile_dot4_i32(first, row, p, b + p * NR)
        second = tile_dot4_i32(second, row, p + 4, b + (p + 4) * NR)
        third = tile_dot4_i32(third, row, p + 8, b + (p + 8) * NR)
        fourth = tile_dot4_i32(fourth, row, p + 12, b + (p + 12) * NR)
        p += 16
    while p < long:
        first = tile_dot4_i32(first, row, p, b + p * NR)
        p += 4
    tile_store_i32(sums, NR, first, 1, NR)
    tile_store_i32(sums, NR, tile_add_i32(second, sums, 0), 1, NR)
    tile_store_i32(sums, NR, tile_add_i32(third, sums, 0), 1, NR)
    tile_store_i32(sums, NR, tile_add_i32(fourth, sums, 0), 1, NR)


def quads_product(acc, rows, b, words, chunks):
    """acc + the rows times a panel b, whose chunks' words are these."""
    for _ in range(chunks):
        doubles, places = words[DOUBLES], words + PLACES
        count = 2 * doubles + words[SINGLES]
        for i in range(doubles):
            acc = tile_dot8_i32(acc, rows, places[2 * i], places[2 * i + 1], b + i * 8 * NR)
        for i in range(2 * doubles, count):
            acc = tile_dot4_i32(acc, rows, places[i], b + i * 4 * NR)
        words, b = places + count, b + count * 4 * NR
    return acc


def sorted_tile(rows, long, m, b, words, chunks, offsets, sums):
    """The same with a panel whose quads are sorted."""
    left = rows_strided(rows, long, m)
    if m == 1:
        row = quads_product(tile_row_i32(), left, b, words, chunks)
        tile_store_i32(sums, NR, tile_add_i32(row, offsets, 0), 1, NR)
    else:
        tile = quads_product(tile_zero_short_i32(), left, b, words, chunks)
        tile_store_i32(sums, NR, tile_add_i32(tile, offsets, 0), SHORT, NR)


def quads_reference(
    x, zero, data, table, bias, factors, end, residual, y, a, strip, g, flip, has_residual, lowest, highest
):
    """That of qproduct.py, with the weights in its own order."""
    groups, filters = int(g[GROUPS]), int(g[FILTERS])
    panels, nr = -(-(filters // groups) // int(NR)), int(NR)
    rows = np.zeros((groups * panels, depth(g), nr), np.int64)
    if EXACT:
        rows[...] = data.reshape(len(rows), -1, nr, 4).transpose(0, 1, 3, 2).reshape(rows.shape)
    else:
        for i, place, _, _, places in _chunks(table, len(rows), int(chunks_of(depth(g)))):
            for j, at in enumerate(places):
                rows[i, at : at + 4] += data.reshape(-1, nr, 4)[place + j].T
    weight = rows.reshape(groups, panels, -1, 2, nr).transpose(0, 1, 2, 4, 3)
    return product_reference(
        x, zero, weight, bias, factors, end, residual, y, a, strip, g, flip, has_residual, lowest, highest
    )


def quads_example(rng, size, T):
    drawn = product_example(rng, size, T)
    g = drawn["g"]
    taps = [int(g[i]) for i in (TAPS_D, TAPS_H, TAPS_W)]
    g[BLOCK] = -(-g[BLOCK] // int(tile_rows())) * int(tile_rows())
    shape = (int(g[FILTERS]), int(g[CHANNELS] // g[GROUPS]), *taps)
    spread = rng.choice([10, 30, 60, 200])
    weight = np.clip(np.rint(rng.standard_normal(shape) * spread), -128, 127).astype(np.int8)
    data, table = pack(weight, int(g[GROUPS]))
    drawn |= {"data": data, "table": table}
    drawn |= {"a": np.zeros(8 * block_bytes(g), "u1"), "strip": np.zeros(8 * strip_words(g), "i4")}
    order = ("x", "zero", "data", "table", "bias", "factors", "end", "residual", "y", "a", "strip", "g", "flip")
    return {name: drawn[name] for name in (*order, "has_residual", "lowest", "highest")}


def quads(T, B, finish) -> KernelSpec:
    """Make the kernel with results of element type T and a bias of type B."""

    def body(
        x: ptr_u8, zero: ptr_u8, data: ptr_i8, table: ptr_i32, bias: Pointer(B), factors: ptr_f32, end: ptr_f32,
        residual: Pointer(T), y: Pointer(T), a: ptr_u8, strip: ptr_i32, g: ptr_i64, flip: i64,
        has_residual: i64, lowest: f32, highest: f32, slot: i64, pieces: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y = finish(convolution of x - zero with the weights).

        x: (batch, depth, height, width, channels), read as i8 where flip is 0x80; data, table: see pack; a:
        block_bytes and strip: strip_words per thread; all else as in qproduct.py. Sums are exact.
        2 * pixels * taps * channels / groups * filters operations. Work is split over blocks of output pixels, or
        over panels of filters where there are few blocks.
        """
        groups, filters, block = g[GROUPS], g[FILTERS], g[BLOCK]
        pixels = g[BATCH] * g[OUT_D] * g[OUT_H] * g[OUT_W]
        taps, of = g[TAPS_D] * g[TAPS_H] * g[TAPS_W], g[CHANNELS] // groups
        long = (taps * of + 3) // 4 * 4
        of_group = filters // groups
        panels = (of_group + NR - 1) // NR
        blocks, chunks, most = (pixels + block - 1) // block, chunks_of(long), tile_rows()
        by_block = blocks >= 2 * pieces or (blocks > 1 and panels * groups < 2 * pieces)
        block_from = share(blocks, tid, nthreads) if by_block else 0
        block_to = share(blocks, tid + 1, nthreads) if by_block else blocks
        panel_from = 0 if by_block else share(groups * panels, tid, nthreads)
        panel_to = groups * panels if by_block else share(groups * panels, tid + 1, nthreads)
        sums = strip + slot * (SUM_ROWS * NR + BEHIND + groups * panels * NR)
        sums[SUM_ROWS * NR] = bitcast(lowest, i32)
        sums[SUM_ROWS * NR + 1] = bitcast(highest, i32)
        shift, offsets = zero[0] ^ flip, sums + (SUM_ROWS * NR + BEHIND)
        for i in range(panel_from * NR, panel_to * NR):
            offsets[i] = -shift * table[i]
        step = 0 if has_residual == ROW else filters
        whole = taps == 1 and groups == 1 and long == of and flip == 0
        whole = whole and g[STRIDE_D] * g[STRIDE_H] * g[STRIDE_W] == 1
        whole = whole and g[PAD_D] + g[PAD_H] + g[PAD_W] == 0 and g[OUT_W] == g[IN_W] and g[OUT_H] == g[IN_H]
        together = max(1, TOGETHER // (long * NR))
        if MATRIX:
            matrix_open()
        for unit in range(block_from, block_to):
            start = unit * block
            count = min(block, pixels - start)
            rows, filled = a + slot * (block * long), -1
            if whole:
                rows = x + start * of
            q = panel_from
            while q < panel_to:
                group = q // panels
                if not whole and group != filled:
                    filled = group
                    fill(x, rows, shift, flip, g, start, count, group, long)
                end_q = min(min(q + together, panel_to), (group + 1) * panels)
                tiles = (count + most - 1) // most  # whose products fetch the next panels, each its share
                later, pace = data + end_q * (long * NR), (NR + tiles - 1) // tiles
                lines = (most * long + 63) // 64
                lines = (lines + end_q - q - 1) // (end_q - q)  # of the next rows, fetched while a panel is multiplied
                for i in range(0, count, most):
                    m, tile = min(most, count - i), rows + i * long
                    for p in range(q, end_q):
                        column = p % panels * NR
                        n, column = min(NR, of_group - column), group * of_group + column
                        for line in range((p - q) * lines, (p - q + 1) * lines):
                            prefetch(tile + most * long, line * 64)
                        if MATRIX and m > 1:
                            full, back = rows_around(m, long, start + i, whole)
                            b = data + p * (long * NR)
                            matrix_tile(tile - back * long, long, full, b, offsets + p * NR, sums, later, pace)
                            later = later + long * pace
                            for e in range(0, m * NR if back > 0 else 0, lanes(sums)):
                                vstore(sums, e, vload(sums, back * NR + e))
                        elif EXACT:
                            exact_tile(tile, long, m, data + p * (long * NR), offsets + p * NR, sums, later, pace)
                            later = later + long * pace
                        else:
                            words = table + table[groups * panels * NR + p]
                            b = data + words[0] * (4 * NR)
                            sorted_tile(tile, long, m, b, words + 1, chunks, offsets + p * NR, sums)
                        at = (start + i) * filters + column
                        other = residual + (column if has_residual == ROW else at)
                        finish(
                            sums, y + at, other, bias + column, factors + column, end, m, n, filters, step,
                            has_residual,
                        )  # fmt: skip
                q = end_q
        if MATRIX:
            matrix_close()

    def example(rng, size):
        return quads_example(rng, size, T)

    return kernel(
        reference=quads_reference, example=example, outputs=("y", "a", "strip"), name=f"quads_{T}", group=f"{T}",
        tolerance=4e-7 if T is f32 else 0,
    )(body)  # fmt: skip


quads_u8 = quads(u8, i32, bytes_end(u8))
quads_i8 = quads(i8, i32, bytes_end(i8))
quads_f32 = quads(f32, f32, float_end)
