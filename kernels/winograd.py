"""3x3 convolution with stride 1 or 2 by Winograd's minimal filtering, on channels-last tensors.

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

With stride 2, y[i] = a d[2 i] + b d[2 i + 1] + c d[2 i + 2]: the even pixels meet two taps at neighbouring places, the
odd ones one tap, for which there is nothing to save. F(4, 2) has five points, so that four results take 5 + 4 products
instead of 12, and a tile of 4 x 4 results takes 81 instead of 144. Its points are 3/8, -3/8, 5/4, -5/4, infinity (rms
of the error, as above: 4e-7). F(2, 2) has the points 0, 1 and infinity: 25 products instead of 36 for 2 x 2 results.

A convolution is one kernel, whose threads each work through their own tiles, or two: one transforms the tiles of the
whole input, the other multiplies them by the weights and transforms the results. Two have the threads share
transformed tiles, and thus split the products by filters, so that each thread reads but its part of the weights.

Vectors run over channels in the input transformation and over filters in that of the output. float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minifer.kernels import conv
from minifer.kernels.activation import activate, activation_reference
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
from minifer.kernels.spec import KernelSpec, f32, i64, kernel, ptr_f32, ptr_i64

# indices into the geometry table, behind those of conv.py
TILES = conv.GEOMETRY_WORDS  # most tiles that are transformed at once
ROWS = TILES + 1  # most tiles that are multiplied at once
GROUP = TILES + 2  # panels of filters whose products are kept until they are transformed back
#: elements between neighbouring rows of scratch, so that they do not fall into the same set of the cache
GAP = 16

# the points of F(4, 3) are 0, P, -P, Q, -Q and infinity
P, Q = 0.75, 1.5
PP, QQ = P * P, Q * Q
# those of F(4, 2) are R, -R, S, -S and infinity
R, S = 0.375, 1.25
RR, SS = R * R, S * S

#: tiles of a block and panels of a group. The speed hardly depends on them: 24 to 96 tiles, 2 to 32 panels
BLOCK, PANELS = 54, 4


def geometry(batch, channels, filters, in_size, out_size, pads, stride=1, tiles=BLOCK, block=BLOCK, group=PANELS):
    """The table for a convolution; in_size, out_size and pads (those at the begin) are (height, width)."""
    image = [(1, *in_size), (1, *out_size), (1, 3, 3), (1, stride, stride), (0, *pads), (1, 1, 1)]
    return np.append(conv.geometry(batch, channels, filters, 1, *image), [tiles, block, group])


def side_of(size: int, stride: int = 1) -> int:
    """Pixels per side of a tile of the input, and points per side of a transformed tile."""
    return (size - 1) * stride + 3


def tiles_of(g: np.ndarray, size: int) -> int:
    """How many tiles of size x size results there are."""
    return int(g[BATCH] * -(-g[OUT_H] // size) * -(-g[OUT_W] // size))


def half_words(size: int, stride: int = 1) -> int:
    """Elements (f32) that one thread needs to transform a tile."""
    return f32.lanes * side_of(size, stride) ** 2


def tiles_words(g: np.ndarray, size: int, stride: int = 1) -> int:
    """Elements (f32) of TILES transformed tiles."""
    return side_of(size, stride) ** 2 * plane(int(g[TILES]), row_pitch(int(g[CHANNELS])))


def products_words(g: np.ndarray, size: int, stride: int = 1) -> int:
    """Elements (f32) that one thread needs to multiply and to transform the products."""
    return half_words(size, stride) + side_of(size, stride) ** 2 * plane(int(g[ROWS]), int(g[GROUP]) * int(NR))


def scratch_words(g: np.ndarray, size: int, stride: int = 1) -> int:
    """Elements (f32) that one thread needs to do it all."""
    return tiles_words(g, size, stride) + products_words(g, size, stride)


def table_words(size: int, stride: int = 1) -> int:
    """Elements of the table (i64) that one thread needs."""
    return side_of(size, stride) ** 2


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
_G4_STRIDE_2 = np.array(
    [
        *([1 / (2 * s * R * (RR - SS)), 0, 1 / (2 * (RR - SS))] for s in (1, -1)),
        *([1 / (2 * s * S * (SS - RR)), 0, 1 / (2 * (SS - RR))] for s in (1, -1)),
        [0, 0, 1],
        *([0, 1, 0] for _ in range(4)),
    ]
)
_G2_STRIDE_2 = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]])
#: by results per side and stride
G = {(2, 1): _G2, (4, 1): _G4, (2, 2): _G2_STRIDE_2, (4, 2): _G4_STRIDE_2}


def pack_weights(weight: np.ndarray, size: int, stride: int = 1) -> np.ndarray:
    """G w G^T of ONNX weights (filters, channels, 3, 3) as panels (panels, points, channels, NR).

    A panel holds NR filters side by side, zero-filled.
    """
    nr = int(NR)
    filters, channels = weight.shape[:2]
    both = np.kron(G[size, stride], G[size, stride]).astype(np.float32)  # points x taps
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


# ---------------------------------------------------------------- F(4, 2) and a tap between, in one dimension


def input_line_4_stride_2(d0, d1, d2, d3, d4, d5, d6, d7, d8):
    """B^T d: the even ones of nine pixels to the five points R, -R, S, -S, infinity; the odd ones as they are."""
    odd_r, even_r = vfma(d2, -SS, d6), vfma(d0, -SS, d4)
    odd_s, even_s = vfma(d2, -RR, d6), vfma(d0, -RR, d4)
    return (
        vfma(even_r, R, odd_r),
        vfma(even_r, -R, odd_r),
        vfma(even_s, S, odd_s),
        vfma(even_s, -S, odd_s),
        vfma(d0, RR * SS, vfma(d4, -RR - SS, d8)),
        d1,
        d3,
        d5,
        d7,
    )


def output_line_4_stride_2(m0, m1, m2, m3, m4, m5, m6, m7, m8):
    """A^T m: nine points to four results."""
    even_r, odd_r, even_s, odd_s = m0 + m1, m0 - m1, m2 + m3, m2 - m3
    return (
        m5 + even_r + even_s,
        vfma(odd_s, S, vfma(odd_r, R, m6)),
        vfma(even_s, SS, vfma(even_r, RR, m7)),
        vfma(odd_s, S * SS, vfma(odd_r, R * RR, m4 + m8)),
    )


def gather_9(x, offsets):
    """The nine vectors of a column of a tile of 9 x 9 pixels."""
    a, b, c = vload(x, offsets[0]), vload(x, offsets[9]), vload(x, offsets[18])
    d, e, f = vload(x, offsets[27]), vload(x, offsets[36]), vload(x, offsets[45])
    return a, b, c, d, e, f, vload(x, offsets[54]), vload(x, offsets[63]), vload(x, offsets[72])


def load_9(p, step):
    """Nine vectors, `step` elements apart."""
    a, b, c = vload(p, 0), vload(p, step), vload(p, 2 * step)
    d, e, f = vload(p, 3 * step), vload(p, 4 * step), vload(p, 5 * step)
    return a, b, c, d, e, f, vload(p, 6 * step), vload(p, 7 * step), vload(p, 8 * step)


def store_9(p, step, v):
    """Nine vectors, `step` elements apart."""
    store_4(p, step, (v[0], v[1], v[2], v[3]))
    store_4(p + 4 * step, step, (v[4], v[5], v[6], v[7]))
    vstore(p, 8 * step, v[8])


# ---------------------------------------------------------------- F(2, 2) and a tap between, in one dimension


def input_line_2_stride_2(d0, d1, d2, d3, d4):
    """B^T d: the even ones of five pixels to the points 0, 1, infinity; the odd ones as they are."""
    return d0 - d2, d2, d4 - d2, d1, d3


def output_line_2_stride_2(m0, m1, m2, m3, m4):
    """A^T m: five points to two results."""
    return m0 + m1 + m3, m1 + m2 + m4


def gather_5(x, offsets):
    """The five vectors of a column of a tile of 5 x 5 pixels."""
    a, b, c = vload(x, offsets[0]), vload(x, offsets[5]), vload(x, offsets[10])
    return a, b, c, vload(x, offsets[15]), vload(x, offsets[20])


def load_5(p, step):
    """Five vectors, `step` elements apart."""
    a, b, c = vload(p, 0), vload(p, step), vload(p, 2 * step)
    return a, b, c, vload(p, 3 * step), vload(p, 4 * step)


def store_5(p, step, v):
    """Five vectors, `step` elements apart."""
    store_4(p, step, (v[0], v[1], v[2], v[3]))
    vstore(p, 4 * step, v[4])


# ---------------------------------------------------------------- two dimensions


def in_two_dimensions(side, size, lines, moves):
    """(B^T d B, A^T m A) by the lines of one dimension: down the columns, then along the rows.

    lines: the transformation of `side` pixels to as many points, and that of the points to `size` results; moves: how
    `side` vectors are gathered, loaded and stored, and `size` stored.
    """
    input_line, output_line = lines
    gather, load, store, store_results = moves

    def transform_input(x, offsets, half, u, step):
        """u = B^T d B for one vector of channels of a tile.

        offsets: (side, side), where the tile's pixels lie in x; half: that many vectors of scratch; point p goes to
        u[p * step].
        """
        w = lanes(x)
        for j in range(side):  # B^T d
            store(half + j * w, side * w, input_line(*gather(x, offsets + j)))
        for i in range(side):  # (B^T d) B
            store(u + i * side * step, step, input_line(*load(half + i * side * w, w)))

    def transform_output(m, step, half):
        """A^T m A for one vector of filters of a tile, to the first vectors of `half`. Point p lies at m[p * step]."""
        w = lanes(m)
        for j in range(side):  # A^T m
            store_results(half + j * w, side * w, output_line(*load(m + j * step, side * step)))
        for i in range(size):  # (A^T m) A; row i is read before the results of row i overwrite it
            store_results(half + i * size * w, w, output_line(*load(half + i * side * w, w)))

    return transform_input, transform_output


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
    size, stride, x, weight, bias, residual, y, zeros, table, scratch, g, code, first, second, has_bias, has_residual
):  # fmt: skip
    """The convolution by its definition, on weights transformed back."""
    channels, filters = int(g[CHANNELS]), int(g[FILTERS])
    back = np.linalg.pinv(np.kron(G[size, stride], G[size, stride]))
    taps = np.einsum("tp,qpcn->qntc", back, weight.astype(np.float64)).reshape(-1, 9, channels)
    panels = conv.pack_weights(np.moveaxis(taps, 1, 2).reshape(-1, channels, 3, 3)[:filters], 1)
    result = conv.conv_reference(
        x, panels, bias, residual, y, zeros, table, g[:TILES], code, first, second, has_bias, has_residual
    )
    # a result also bears errors of its tile's neighbours
    expected, magnitude = result["y"]
    return {"y": (expected, np.full_like(magnitude, magnitude.max()))}


def winograd_example(size, stride, rng, limit):
    channels, filters = int(rng.integers(f32.lanes, f32.lanes + 4 * limit)), int(rng.integers(1, 8 * limit))
    pads = [int(p) for p in rng.integers(0, 3, 2)]
    inside = [int(s) for s in rng.integers(3, 5 + limit, 2)]
    out = [(i + p + int(rng.integers(0, 2)) - 3) // stride + 1 for i, p in zip(inside, pads)]
    n = int(rng.integers(1, 3))
    block, group = int(rng.integers(1, 14)), int(rng.integers(1, 4))
    g = geometry(n, channels, filters, inside, out, pads, stride, block, block, group)
    shape = (n, *out, filters)
    return {
        "x": rng.standard_normal((n, *inside, channels)).astype("f"),
        "weight": pack_weights(rng.standard_normal((filters, channels, 3, 3)).astype("f"), size, stride),
        "bias": rng.standard_normal(filters).astype("f"),
        "residual": rng.standard_normal(shape).astype("f"),
        "y": np.full(shape, np.nan, "f"),
        "zeros": np.zeros(channels, "f"),
        "table": np.zeros(8 * table_words(size, stride), np.int64),
        "scratch": np.zeros(8 * scratch_words(g, size, stride), "f"),
        "g": g,
        "code": int(rng.integers(0, 2)),
        "first": 0.25,
        "second": 6.0,
        "has_bias": int(rng.integers(0, 2)),
        "has_residual": int(rng.integers(0, 2)),
    }


def matrix_of(line, count: int) -> np.ndarray:
    """The matrix of a linear function of `count` numbers."""
    return np.array([line(*row) for row in np.eye(count)]).T


def corners(g: np.ndarray, size: int) -> list[tuple[int, int, int]]:
    """(image, row, column) of the first result of each tile."""
    return [(n, h, w) for n in range(g[BATCH]) for h in range(0, g[OUT_H], size) for w in range(0, g[OUT_W], size)]


def tiles_reference(size, stride, line, x, u, zeros, table, scratch, g):
    """B^T d B for each tile, in the rows of u; what lies between the rows stays."""
    side, channels = side_of(size, stride), int(g[CHANNELS])
    b = matrix_of(line, side)
    bottom, right = (int(g[o] * stride + side * stride) for o in (OUT_H, OUT_W))
    padded = np.pad(x.astype("d"), ((0, 0), (int(g[PAD_H]), bottom), (int(g[PAD_W]), right), (0, 0)))
    expected, magnitude = u.astype("d").reshape(side * side, -1), np.ones((side * side, u.size // side**2))
    for t, (n, h, w) in enumerate(corners(g, size)):
        d = padded[n, h * stride : h * stride + side, w * stride : w * stride + side]
        at = (slice(None), slice(t * row_pitch(channels), t * row_pitch(channels) + channels))
        expected[at] = np.einsum("pi,ijc,qj->pqc", b, d, b).reshape(-1, channels)
        magnitude[at] = np.abs(d).max() + 1
    return {"u": (expected.reshape(u.shape), magnitude.reshape(u.shape))}


def tiles_example(size, stride, rng, limit):
    drawn = winograd_example(size, stride, rng, limit)
    drawn["g"][TILES] = tiles_of(drawn["g"], size)
    drawn["u"] = rng.standard_normal(tiles_words(drawn["g"], size, stride)).astype("f")
    drawn["scratch"] = np.zeros(8 * half_words(size, stride), "f")
    return {name: drawn[name] for name in ("x", "u", "zeros", "table", "scratch", "g")}


def products_reference(
    size, stride, line, u, weight, bias, residual, y, scratch, g, code, first, second, has_bias, has_residual
):
    """A^T m A of the products for each tile, and what follows."""
    side, channels, filters = side_of(size, stride), int(g[CHANNELS]), int(g[FILTERS])
    a = matrix_of(line, side)
    result, magnitude = np.zeros(y.shape), np.zeros(y.shape)
    for t, (n, h, w) in enumerate(corners(g, size)):
        row = u.reshape(side * side, -1)[:, t * row_pitch(channels) :][:, :channels].astype("d")
        part = y[n, h : h + size, w : w + size].shape
        for out, v, k, lines in ((result, row, weight, a), (magnitude, abs(row), abs(weight), abs(a))):
            m = np.einsum("pc,qpcn->pqn", v, k.astype("d")).reshape(side, side, -1)[..., :filters]
            done = np.einsum("yp,pzf,xz->yxf", lines, m, lines)
            out[n, h : h + size, w : w + size] = done[: part[0], : part[1]]
    if has_bias:
        result, magnitude = result + bias, magnitude + abs(bias)
    if has_residual:
        result, magnitude = result + residual, magnitude + abs(residual)
    return {"y": (activation_reference(result, code, first, second), np.maximum(magnitude, 1))}


def products_example(size, stride, rng, limit):
    drawn = winograd_example(size, stride, rng, limit)
    drawn["g"][TILES] = tiles_of(drawn["g"], size)
    drawn["u"] = rng.standard_normal(tiles_words(drawn["g"], size, stride)).astype("f")
    drawn["scratch"] = np.zeros(8 * products_words(drawn["g"], size, stride), "f")
    order = ("u", "weight", "bias", "residual", "y", "scratch", "g")
    return {name: drawn[name] for name in (*order, "code", "first", "second", "has_bias", "has_residual")}


class Kernels(NamedTuple):
    """The kernels of one size of tiles: `whole`, or `tiles` and then `products`."""

    whole: KernelSpec
    tiles: KernelSpec
    products: KernelSpec


def winograd(name, size, stride, lines, moves, tolerance) -> Kernels:
    """Make the kernels for tiles of size x size results; lines, moves: see in_two_dimensions."""
    side = side_of(size, stride)
    points = side * side
    transform_input, transform_output = in_two_dimensions(side, size, lines, moves)

    def transform_tiles(x, zeros, u, half, offsets, g, tile_from, tile_to):
        """Transform tiles of the input; the first of them goes to the first row of u's matrices."""
        w = lanes(x)
        channels = g[CHANNELS]
        across, down = (g[OUT_W] + size - 1) // size, (g[OUT_H] + size - 1) // size
        row = row_pitch(channels)
        u_step = plane(g[TILES], row)
        # pixels are counted from the lower of the two arrays that they may lie in
        base = as_ptr(min(address_of(x), address_of(zeros)), f32)
        origin = (address_of(x) - address_of(base)) // 4
        nothing = (address_of(zeros) - address_of(base)) // 4
        for tile in range(tile_from, tile_to):
            h0 = tile // across % down * (size * stride) - g[PAD_H]
            w0 = tile % across * (size * stride) - g[PAD_W]
            tile_offsets(offsets, g, h0, w0, tile // across // down, side, origin, nothing)
            to = u + (tile - tile_from) * row
            for c0 in range(0, channels, w):
                c = min(c0, channels - w)  # the last vector overlaps the one before
                transform_input(base + c, offsets, half, to + c, u_step)

    def multiply_tiles(
        u, weight, bias, residual, y, scratch, g, code, first, second, has_bias, has_residual,
        tile_from, tile_to, panel_from, panel_to,
    ):  # fmt: skip
        """The results of tiles, the first of which is in the first row of u's matrices, for some panels of filters."""
        w = lanes(y)
        channels, filters = g[CHANNELS], g[FILTERS]
        across, down = (g[OUT_W] + size - 1) // size, (g[OUT_H] + size - 1) // size
        row = row_pitch(channels)
        u_step, m_step = plane(g[TILES], row), plane(g[ROWS], g[GROUP] * NR)
        half, m = scratch, scratch + points * lanes(f32)
        for q in range(panel_from, panel_to, g[GROUP]):
            group = min(g[GROUP], panel_to - q)
            b = weight + q * (points * channels * NR)
            multiply(u, row, u_step, b, m, m_step, group, points, channels, tile_to - tile_from)
            for tile in range(tile_from, tile_to):
                h, v = tile // across % down * size, tile % across * size
                corner = ((tile // across // down * g[OUT_H] + h) * g[OUT_W] + v) * filters
                products = m + (tile - tile_from) * group * NR
                for f in range(q * NR, min((q + group) * NR, filters), w):
                    transform_output(products + (f - q * NR), m_step, half)
                    finish(
                        half, size, y + (corner + f), bias + f, residual + (corner + f), min(size, g[OUT_H] - h),
                        min(size, g[OUT_W] - v), g[OUT_W] * filters, filters, filters - f,
                        code, first, second, has_bias, has_residual,
                    )  # fmt: skip

    def whole(
        x: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, zeros: ptr_f32, table: ptr_i64,
        scratch: ptr_f32, g: ptr_i64, code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64,
        slot: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y = activate(conv(x, weight) + bias + residual), 3x3 taps, in two dimensions.

        x: (batch, height, width, channels), at least a vector of them; weight: see pack_weights; bias: (filters,);
        residual, y: (batch, out height, out width, filters); zeros: CHANNELS zeros; table, scratch: table_words and
        scratch_words per thread. 2 * tiles * points * channels * filters FLOPs in products. Error, measured against
        the largest result: 4e-6 for F(4x4) and 2e-6 for F(2x2) at 512 channels, 2e-6 for the plain sum; every result
        bears the rounding errors of its tile's. Work is split over tiles, and each thread reads all weights.
        """
        tiles = g[BATCH] * ((g[OUT_H] + size - 1) // size) * ((g[OUT_W] + size - 1) // size)
        strips = (tiles + MR - 1) // MR
        tile_from = share(strips, tid, nthreads) * MR
        tile_to = min(tiles, share(strips, tid + 1, nthreads) * MR)
        if tile_from >= tile_to:
            return
        most = min(g[TILES], g[ROWS])
        block = min(most, block_size(tile_to - tile_from, most, MR))
        # scratch of this thread: transformed tiles, then half-transformed ones, then products
        u_words = points * plane(g[TILES], row_pitch(g[CHANNELS]))
        u = scratch + slot * (u_words + points * (lanes(f32) + plane(g[ROWS], g[GROUP] * NR)))
        for t0 in range(tile_from, tile_to, block):
            t1 = min(t0 + block, tile_to)
            transform_tiles(x, zeros, u, u + u_words, table + slot * points, g, t0, t1)
            multiply_tiles(
                u, weight, bias, residual, y, u + u_words, g, code, first, second, has_bias, has_residual,
                t0, t1, 0, (g[FILTERS] + NR - 1) // NR,
            )  # fmt: skip

    def tiles(
        x: ptr_f32, u: ptr_f32, zeros: ptr_f32, table: ptr_i64, scratch: ptr_f32, g: ptr_i64,
        slot: i64, tid: i64, nthreads: i64,
    ):  # fmt: skip
        """u = B^T d B for all tiles d of x, TILES of them: tiles_words, (points, tiles, channels) with gaps.

        table, scratch: table_words and half_words per thread; the others as above. Split over tiles.
        """
        count = g[BATCH] * ((g[OUT_H] + size - 1) // size) * ((g[OUT_W] + size - 1) // size)
        t0, t1 = share(count, tid, nthreads), share(count, tid + 1, nthreads)
        half = scratch + slot * (points * lanes(f32))
        transform_tiles(x, zeros, u + t0 * row_pitch(g[CHANNELS]), half, table + slot * points, g, t0, t1)

    def products(
        u: ptr_f32, weight: ptr_f32, bias: ptr_f32, residual: ptr_f32, y: ptr_f32, scratch: ptr_f32, g: ptr_i64,
        code: i64, first: f32, second: f32, has_bias: i64, has_residual: i64, slot: i64, pieces: i64, tid: i64,
        nthreads: i64,
    ):  # fmt: skip
        """The convolution from the transformed tiles on. scratch: products_words per thread; the others as above.

        Split over panels of filters, or over tiles where there are more tiles than filters, or few panels.
        """
        count = g[BATCH] * ((g[OUT_H] + size - 1) // size) * ((g[OUT_W] + size - 1) // size)
        panels, strips = (g[FILTERS] + NR - 1) // NR, (count + MR - 1) // MR
        by_tiles = count >= g[FILTERS] or panels < 4 * pieces
        tile_from = share(strips, tid, nthreads) * MR if by_tiles else 0
        tile_to = min(count, share(strips, tid + 1, nthreads) * MR) if by_tiles else count
        panel_from = 0 if by_tiles else share(panels, tid, nthreads)
        panel_to = panels if by_tiles else share(panels, tid + 1, nthreads)
        if panel_from == panel_to or tile_from >= tile_to:
            return
        block = min(g[ROWS], block_size(tile_to - tile_from, g[ROWS], MR))
        own = scratch + slot * (points * (lanes(f32) + plane(g[ROWS], g[GROUP] * NR)))
        for t0 in range(tile_from, tile_to, block):
            multiply_tiles(
                u + t0 * row_pitch(g[CHANNELS]), weight, bias, residual, y, own, g, code, first, second, has_bias,
                has_residual, t0, min(t0 + block, tile_to), panel_from, panel_to,
            )  # fmt: skip

    def bound(function, *given):
        return lambda *arguments, **named: function(size, stride, *given, *arguments, **named)

    one = kernel(
        reference=bound(winograd_reference), example=bound(winograd_example), outputs=("y", "table", "scratch"),
        tolerance=tolerance, group=name, name=name, coarse=True,
    )(whole)  # fmt: skip
    first = kernel(
        reference=bound(tiles_reference, lines[0]), example=bound(tiles_example), outputs=("u", "table", "scratch"),
        tolerance=tolerance, group=name, name=f"{name}_tiles",
    )(tiles)  # fmt: skip
    second = kernel(
        reference=bound(products_reference, lines[1]), example=bound(products_example), outputs=("y", "scratch"),
        tolerance=tolerance, group=name, name=f"{name}_products", coarse=True,
    )(products)  # fmt: skip
    return Kernels(one, first, second)


#: by results per side and stride
KERNELS = {
    (2, 1): winograd(
        "winograd_2", 2, 1, (input_line_2, output_line_2), (gather_4, load_4, store_4, store_2), 2e-6
    ),
    (4, 1): winograd(
        "winograd_4", 4, 1, (input_line_4, output_line_4), (gather_6, load_6, store_6, store_4), 4e-6
    ),
    (2, 2): winograd(
        "winograd_2_stride_2", 2, 2, (input_line_2_stride_2, output_line_2_stride_2),
        (gather_5, load_5, store_5, store_2), 2e-6,
    ),
    (4, 2): winograd(
        "winograd_4_stride_2", 4, 2, (input_line_4_stride_2, output_line_4_stride_2),
        (gather_9, load_9, store_9, store_4), 4e-6,
    ),
}  # fmt: skip
