"""3x3 convolution with stride 1 by Winograd's minimal filtering, on channels-last tensors.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): a tile of m x m results needs not 9 m^2
products per channel and filter but (m + 2)^2, one for each point of a transformed tile:

    y = A^T [ (G w G^T) * (B^T d B) ] A        d: (m + 2, m + 2) pixels of the input, w: (3, 3) taps, *: by element

The transformation runs over pixels alone, so summing over channels may come between: for each of the (m + 2)^2 points,
tiles x channels times channels x filters is a matrix product. F(2x2, 3x3) has 16 points (2.25 times fewer products),
F(4x4, 3x3) has 36 (4 times fewer). G w G^T is computed once, at load.

The matrices follow from the numbers at which polynomials are evaluated (Winograd, "Arithmetic Complexity of
Computations", 1980). F(2x2, 3x3) takes 0, 1, -1, infinity. The usual choice for F(4x4, 3x3), 0, 1, -1, 2, -2,
infinity, loses digits where 2^3 meets 1. Here it is 0, 3/4, -3/4, 3/2, -3/2, infinity: as many operations, constants
that float32 holds exactly too, and less than half of the error (64 channels, normal data, rms of the error over rms of
the results: 1.9e-6 with the usual points, 8e-7 with these).

Vectors run over channels in the input transformation and over filters in that of the output. float32.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels import conv
from minifer.kernels.activation import activate
from minifer.kernels.conv import BATCH, CHANNELS, FILTERS, IN_H, IN_W, OUT_H, OUT_W, PAD_H, PAD_W
from minifer.kernels.gemm import accumulate_ahead, block_size, next_rows
from minifer.kernels.simd import (
    MR,
    NR,
    SHORT,
    address_of,
    as_ptr,
    lanes,
    rows_strided,
    share,
    tile_store,
    tile_zero,
    tile_zero_short,
    vfma,
    vload,
    vload_part,
    vsplat,
    vstore,
    vstore_part,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64

# indices into the geometry table, behind those of conv.py
TILES = conv.GEOMETRY_WORDS  # most tiles of a block: what is transformed at once
GROUP = TILES + 1  # panels of filters whose products are kept until they are transformed back
#: elements between neighbouring rows of scratch, so that they do not fall into the same set of the cache
GAP = 16
LANES = 8  # of a vector of float32

# the points of F(4x4, 3x3) are 0, P, -P, Q, -Q and infinity
P, Q = 0.75, 1.5
PP, QQ = P * P, Q * Q

#: tiles of a block and panels of a group. The speed hardly depends on them: 24 to 96 tiles, 2 to 32 panels
BLOCK, PANELS = 54, 4


def geometry(batch, channels, filters, in_size, out_size, pads, tiles=BLOCK, group=PANELS) -> np.ndarray:
    """The table for a convolution; in_size, out_size and pads (those at the begin) are (height, width)."""
    image = [(1, *in_size), (1, *out_size), (1, 3, 3), (1, 1, 1), (0, *pads), (1, 1, 1)]
    return np.append(conv.geometry(batch, channels, filters, 1, *image), [tiles, group])


def scratch_words(g: np.ndarray, size: int) -> int:
    """Elements of scratch (f32) that one thread needs for tiles of size x size results."""
    tiles, points = int(g[TILES]), (size + 2) ** 2
    return points * (LANES + plane(tiles, row_pitch(int(g[CHANNELS]))) + plane(tiles, int(g[GROUP]) * int(NR)))


def table_words(size: int) -> int:
    """Elements of the table (i64) that one thread needs."""
    return (size + 2) ** 2


def row_pitch(count):
    """Elements from one row of scratch to the next, for rows of `count`."""
    return (count + GAP - 1) // GAP * GAP + GAP


def plane(rows, pitch):
    """Elements from one point's matrix to the next in scratch: an odd number of cache lines."""
    return ((rows * pitch + GAP - 1) // GAP // 2 * 2 + 1) * GAP


# ---------------------------------------------------------------- weights

_G2 = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_G4 = np.array(
    [
        [1 / (PP * QQ), 0, 0],
        *([1 / (2 * PP * (PP - QQ)), s * P / (2 * PP * (PP - QQ)), 1 / (2 * (PP - QQ))] for s in (1, -1)),
        *([1 / (2 * QQ * (QQ - PP)), s * Q / (2 * QQ * (QQ - PP)), 1 / (2 * (QQ - PP))] for s in (1, -1)),
        [0, 0, 1],
    ]
)
G = {2: _G2, 4: _G4}


def pack_weights(weight: np.ndarray, size: int) -> np.ndarray:
    """G w G^T of ONNX weights (filters, channels, 3, 3) as panels (panels, points, channels, NR) for F(size, 3).

    A panel holds NR filters side by side, zero-filled.
    """
    nr = int(NR)
    filters, channels = weight.shape[:2]
    both = np.kron(G[size], G[size]).astype(np.float32)  # points x taps
    out = np.zeros((-(-filters // nr), len(both), channels, nr), np.float32)
    taps = np.zeros((9, channels, nr), np.float32)
    for panel in range(len(out)):
        some = weight[panel * nr : (panel + 1) * nr]
        taps[:, :, : len(some)] = conv.taps_first(some)
        taps[:, :, len(some) :] = 0
        np.matmul(both, taps.reshape(9, -1), out=out[panel].reshape(len(both), -1))
    return out


# ---------------------------------------------------------------- F(4, 3) in one dimension


def input_line_4(d0, d1, d2, d3, d4, d5):
    """B^T d: six pixels to the six points 0, P, -P, Q, -Q, infinity."""
    even_p, odd_p = vfma(d2, -QQ, d4), vfma(d1, -QQ, d3)
    even_q, odd_q = vfma(d2, -PP, d4), vfma(d1, -PP, d3)
    return (
        vfma(d0, PP * QQ, vfma(d2, -PP - QQ, d4)),
        vfma(odd_p, P, even_p),
        vfma(odd_p, -P, even_p),
        vfma(odd_q, Q, even_q),
        vfma(odd_q, -Q, even_q),
        vfma(d1, PP * QQ, vfma(d3, -PP - QQ, d5)),
    )


def output_line_4(m0, m1, m2, m3, m4, m5):
    """A^T m: six points to four results, whose rows are the powers 0, 1, 2, 3 of the points."""
    even_p, odd_p, even_q, odd_q = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + even_p + even_q,
        vfma(odd_q, Q, odd_p * P),
        vfma(even_q, QQ, even_p * PP),
        vfma(odd_q, Q * QQ, vfma(odd_p, P * PP, m5)),
    )


def transform_input_4(x, offsets, half, u, step):
    """u = B^T d B for one vector of channels of a tile.

    offsets: (6, 6), where the tile's pixels lie in x; half: 36 vectors of scratch; point p goes to u[p * step].
    """
    w = lanes(x)
    for j in range(6):  # B^T d: down the columns
        store_6(half + j * w, 6 * w, input_line_4(*gather_6(x, offsets + j)))
    for i in range(6):  # (B^T d) B: along the rows
        store_6(u + i * 6 * step, step, input_line_4(*load_6(half + i * 6 * w, w)))


def transform_output_4(m, step, half):
    """A^T m A for one vector of filters of a tile, to the first 16 vectors of `half`. Point p lies at m[p * step]."""
    w = lanes(m)
    for j in range(6):  # A^T m
        store_4(half + j * w, 6 * w, output_line_4(*load_6(m + j * step, 6 * step)))
    for i in range(4):  # (A^T m) A; row i is read before the results of row i overwrite it
        store_4(half + i * 4 * w, w, output_line_4(*load_6(half + i * 6 * w, w)))


def gather_6(x, offsets):
    """The six vectors of a column of a tile of 6 x 6 pixels."""
    a, b, c = vload(x, offsets[0]), vload(x, offsets[6]), vload(x, offsets[12])
    return a, b, c, vload(x, offsets[18]), vload(x, offsets[24]), vload(x, offsets[30])


def load_6(p, step):
    """Six vectors, `step` elements apart."""
    a, b, c = vload(p, 0), vload(p, step), vload(p, 2 * step)
    return a, b, c, vload(p, 3 * step), vload(p, 4 * step), vload(p, 5 * step)


def store_6(p, step, v):
    """Six vectors, `step` elements apart."""
    vstore(p, 0, v[0])
    vstore(p, step, v[1])
    vstore(p, 2 * step, v[2])
    vstore(p, 3 * step, v[3])
    vstore(p, 4 * step, v[4])
    vstore(p, 5 * step, v[5])


# ---------------------------------------------------------------- F(2, 3) in one dimension


def input_line_2(d0, d1, d2, d3):
    """B^T d: four pixels to the points 0, 1, -1, infinity."""
    return d0 - d2, d1 + d2, d2 - d1, d3 - d1


def output_line_2(m0, m1, m2, m3):
    """A^T m: four points to two results."""
    return m0 + m1 + m2, m1 - m2 + m3


def transform_input_2(x, offsets, half, u, step):
    """u = B^T d B for one vector of channels of a tile; as transform_input_4, with (4, 4) pixels and 16 points."""
    w = lanes(x)
    for j in range(4):
        store_4(half + j * w, 4 * w, input_line_2(*gather_4(x, offsets + j)))
    for i in range(4):
        store_4(u + i * 4 * step, step, input_line_2(*load_4(half + i * 4 * w, w)))


def transform_output_2(m, step, half):
    """A^T m A for one vector of filters of a tile, to the first 4 vectors of `half`."""
    w = lanes(m)
    for j in range(4):
        store_2(half + j * w, 4 * w, output_line_2(*load_4(m + j * step, 4 * step)))
    for i in range(2):
        store_2(half + i * 2 * w, w, output_line_2(*load_4(half + i * 4 * w, w)))


def gather_4(x, offsets):
    """The four vectors of a column of a tile of 4 x 4 pixels."""
    return vload(x, offsets[0]), vload(x, offsets[4]), vload(x, offsets[8]), vload(x, offsets[12])


def load_4(p, step):
    """Four vectors, `step` elements apart."""
    return vload(p, 0), vload(p, step), vload(p, 2 * step), vload(p, 3 * step)


def store_4(p, step, v):
    """Four vectors, `step` elements apart."""
    vstore(p, 0, v[0])
    vstore(p, step, v[1])
    vstore(p, 2 * step, v[2])
    vstore(p, 3 * step, v[3])


def store_2(p, step, v):
    """Two vectors, `step` elements apart."""
    vstore(p, 0, v[0])
    vstore(p, step, v[1])


# ---------------------------------------------------------------- the convolution


def tile_offsets(offsets, g, h0, w0, image, side, origin, nothing):
    """Where the pixels of a tile lie, which begins at (h0, w0) of an image; those outside of it lie at `nothing`."""
    height, width, channels = g[IN_H], g[IN_W], g[CHANNELS]
    for i in range(side):
        h = h0 + i
        line = origin + (image * height + h) * width * channels
        inside = h >= 0 and h < height
        for j in range(side):
            w = w0 + j
            offsets[i * side + j] = line + w * channels if inside and w >= 0 and w < width else nothing


def multiply(u, row, u_step, weight, m, m_step, group, points, channels, count):
    """For each point: m (count tiles, group * NR) = u (count tiles, channels) times `group` panels of weights.

    While the first tiles meet a panel, the next one is fetched.
    """
    size = channels * NR
    for p in range(points):
        for j in range(group):
            b = weight + (j * points + p) * size
            following = points * size if j + 1 < group else (1 - (group - 1) * points) * size
            i, turn = 0, 0
            while i < count:
                valid = next_rows(count - i)
                ahead = b + (following if turn < 2 else 0) + turn % 2 * (channels // 2 * NR)
                rows = rows_strided(u + (p * u_step + i * row), row, valid)
                to = m + (p * m_step + (i * group + j) * NR)
                if valid <= SHORT:
                    tile_store(
                        to, group * NR, accumulate_ahead(tile_zero_short(), rows, b, channels, ahead, 2), valid, NR
                    )
                else:
                    tile_store(to, group * NR, accumulate_ahead(tile_zero(), rows, b, channels, ahead, 2), valid, NR)
                i += valid
                turn += 1


def finish(done, size, y, bias, residual, rows, columns, line, filters, n, code, first, second, has_bias, has_residual):
    """Bias, residual and activation of rows x columns results, n filters each; `done` holds size x size vectors."""
    w = lanes(y)
    offset = vsplat(f32, 0)
    if has_bias != 0:
        offset = vload_part(bias, 0, n)
    for i in range(rows):
        for j in range(columns):
            at = i * line + j * filters
            v = vload(done, (i * size + j) * w) + offset
            if has_residual != 0:
                v = v + (vload(residual, at) if n >= w else vload_part(residual, at, n))
            v = activate(v, code, first, second)
            if n >= w:
                vstore(y, at, v)
            else:
                vstore_part(y, at, v, n)


def winograd_reference(
    size, x, weight, bias, residual, y, zeros, table, scratch, g, code, first, second, has_bias, has_residual
):  # fmt: skip
    """The convolution by its definition, on weights transformed back."""
    channels, filters = int(g[CHANNELS]), int(g[FILTERS])
    back = np.linalg.pinv(np.kron(G[size], G[size]))
    taps = np.einsum("tp,qpcn->qntc", back, weight.astype(np.float64)).reshape(-1, 9, channels)
    panels = conv.pack_weights(np.moveaxis(taps, 1, 2).reshape(-1, channels, 3, 3)[:filters], 1)
    result = conv.conv_reference(
        x, panels, bias, residual, y, zeros, table, g[:TILES], code, first, second, has_bias, has_residual
    )
    # a result also bears errors of its tile's neighbours
    expected, magnitude = result["y"]
    return {"y": (expected, np.full_like(magnitude, magnitude.max()))}


def winograd_example(size, rng, limit):
    channels, filters = int(rng.integers(LANES, LANES + 4 * limit)), int(rng.integers(1, 8 * limit))
    pads = [int(p) for p in rng.integers(0, 3, 2)]
    inside = [int(s) for s in rng.integers(3, 5 + limit, 2)]
    out = [i + p + int(rng.integers(0, 2)) - 2 for i, p in zip(inside, pads)]
    n = int(rng.integers(1, 3))
    g = geometry(n, channels, filters, inside, out, pads, int(rng.integers(1, 14)), int(rng.integers(1, 4)))
    shape = (n, *out, filters)
    return {
        "x": rng.standard_normal((n, *inside, channels)).astype("f"),
        "weight": pack_weights(rng.standard_normal((filters, channels, 3, 3)).astype("f"), size),
        "bias": rng.standard_normal(filters).astype("f"),
        "residual": rng.standard_normal(shape).astype("f"),
        "y": np.full(shape, np.nan, "f"),
        "zeros": np.zeros(channels, "f"),
        "table": np.zeros(8 * table_words(size), np.int64),
        "scratch": np.zeros(8 * scratch_words(g, size), "f"),
        "g": g,
        "code": int(rng.integers(0, 2)),
        "first": 0.25,
        "second": 6.0,
        "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)),
    }


def winograd(name, size, transform_input, transform_output, tolerance):
    """Make the kernel for tiles of size x size results."""
    side = size + 2
    points = side * side

    def reference(**arguments):
        return winograd_reference(size, **arguments)

    def example(rng, limit):
        return winograd_example(size, rng, limit)

    def body(
        x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, zeros: ptr_f32, table: ptr_i64,
        scratch: ptr_f32, g: ptr_i64, code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64,
        slot: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y = activate(conv(x, weight) + bias + residual), 3x3 taps, stride 1, in two dimensions.

        x: (batch, height, width, channels), at least 8 channels; weight: see pack_weights; bias: (filters,);
        residual, y: (batch, out height, out width, filters); zeros: CHANNELS zeros; table, scratch: table_words and
        scratch_words per thread. 2 * tiles * points * channels * filters FLOPs in products. Error, measured against
        the largest result: 4e-6 for F(4x4) and 2e-6 for F(2x2) at 512 channels, 2e-6 for the plain sum; every result
        bears the rounding errors of its tile's. Work is split over tiles; where there are few, over panels of filters,
        and each thread transforms the input for itself.
        """
        w = lanes(x)
        channels, filters = g[CHANNELS], g[FILTERS]
        across, down = (g[OUT_W] + size - 1) // size, (g[OUT_H] + size - 1) // size
        tiles = g[BATCH] * down * across
        panels = (filters + NR - 1) // NR
        # to share tiles means that each thread reads all weights; to share panels, that each transforms all tiles
        by_tiles = tiles >= filters or panels < 4 * nthreads
        strips = (tiles + MR - 1) // MR
        tile_from = share(strips, tid, nthreads) * MR if by_tiles else 0
        tile_to = min(tiles, share(strips, tid + 1, nthreads) * MR) if by_tiles else tiles
        panel_from = 0 if by_tiles else share(panels, tid, nthreads)
        panel_to = panels if by_tiles else share(panels, tid + 1, nthreads)
        if panel_from == panel_to or tile_from >= tile_to:
            return
        block = min(g[TILES], block_size(tile_to - tile_from, g[TILES], MR))
        # scratch of this thread: half-transformed tile, transformed tiles u, products m
        row = row_pitch(channels)
        u_step, m_step = plane(g[TILES], row), plane(g[TILES], g[GROUP] * NR)
        half = scratch + slot * (points * (LANES + u_step + m_step))
        u = half + points * LANES
        m = u + points * u_step
        offsets = table + slot * points
        # pixels are counted from the lower of the two arrays that they may lie in
        base = as_ptr(min(address_of(x), address_of(zeros)), f32)
        origin = (address_of(x) - address_of(base)) // 4
        nothing = (address_of(zeros) - address_of(base)) // 4
        for t0 in range(tile_from, tile_to, block):
            count = min(block, tile_to - t0)
            for i in range(count):
                tile = t0 + i
                h, v = tile // across % down * size, tile % across * size
                tile_offsets(offsets, g, h - g[PAD_H], v - g[PAD_W], tile // across // down, side, origin, nothing)
                for c0 in range(0, channels, w):
                    c = min(c0, channels - w)  # the last vector overlaps the one before
                    transform_input(base + c, offsets, half, u + (i * row + c), u_step)
            for q in range(panel_from, panel_to, g[GROUP]):
                group = min(g[GROUP], panel_to - q)
                b = weight + q * (points * channels * NR)
                multiply(u, row, u_step, b, m, m_step, group, points, channels, count)
                for i in range(count):
                    tile = t0 + i
                    h, v = tile // across % down * size, tile % across * size
                    corner = ((tile // across // down * g[OUT_H] + h) * g[OUT_W] + v) * filters
                    for f in range(q * NR, min((q + group) * NR, filters), w):
                        transform_output(m + (i * group * NR + f - q * NR), m_step, half)
                        finish(
                            half, size, y + (corner + f), bias + f, residual + (corner + f), min(size, g[OUT_H] - h),
                            min(size, g[OUT_W] - v), g[OUT_W] * filters, filters, filters - f,
                            code, first, second, has_bias, has_residual,
                        )  # fmt: skip

    outputs = ("y", "table", "scratch")
    facts = {"reference": reference, "example": example, "outputs": outputs, "tolerance": tolerance}
    return kernel(**facts, name=name, group=name, coarse=True)(body)


winograd_2 = winograd("winograd_2", 2, transform_input_2, transform_output_2, 2e-6)
winograd_4 = winograd("winograd_4", 4, transform_input_4, transform_output_4, 4e-6)
KERNELS = {2: winograd_2, 4: winograd_4}
