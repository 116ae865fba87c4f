"""Matrix product with weights of few bits, quantised in blocks along k: C = A @ W + bias, A and C float32.

Weights are read in their few bits, which is what counts where A has few rows: a piece of a panel is turned into float32
in scratch memory and multiplied by the float tile of gemm.py with all rows of A.
"""

import numpy as np

from minifer.kernels.gemm import accumulate
from minifer.kernels.simd import (
    MR,
    NR,
    rows_strided,
    share,
    tile_add,
    tile_bias,
    tile_store,
    tile_zero,
    vconvert,
    vload_n,
    vstore,
)
from minifer.kernels.spec import f32, i32, i64, kernel, ptr_f32, ptr_u8

#: steps of k that are turned into float32 at a time: an even number
DEPTH = 512


def panels(n: int) -> int:
    """Panels of n columns."""
    return -(-n // int(NR))


def pack_codes(codes: np.ndarray, halves: bool) -> np.ndarray:
    """Codes (n, k) of uint8 as panels (panels, k, NR), or (panels, k / 2 rounded up, NR) where they are below 16.

    With `halves` the low half of a byte belongs to an even step of k, the high half to the next one.
    """
    nr, (n, k) = int(NR), codes.shape
    full = np.zeros((panels(n) * nr, k + k % 2), np.uint8)
    full[:n, :k] = codes
    if halves:
        full = full[:, 0::2] | full[:, 1::2] << 4
    else:
        full = full[:, :k]
    return np.ascontiguousarray(full.reshape(panels(n), nr, -1).transpose(0, 2, 1))


def pack_blocks(values: np.ndarray) -> np.ndarray:
    """Scales or zero points (n, blocks) as float32 panels (panels, blocks, NR)."""
    nr, (n, blocks) = int(NR), values.shape
    full = np.zeros((panels(n) * nr, blocks), np.float32)
    full[:n] = values
    return np.ascontiguousarray(full.reshape(panels(n), nr, blocks).transpose(0, 2, 1))


def product_reference(a, codes, scales, zeros, bias, y, scratch, m, n, k, block, halves, has_bias):
    rows = np.stack([codes & 15, codes >> 4], 2).reshape(codes.shape[0], -1, codes.shape[2]) if halves else codes
    owner = np.arange(k) // block
    weight = (rows[:, :k].astype("d") - zeros[:, owner]) * scales[:, owner]
    wide = weight.transpose(1, 0, 2).reshape(k, -1)[:, :n]
    addend = bias.astype("d") * has_bias
    magnitude = np.abs(a).astype("d") @ np.abs(wide) + np.abs(addend) + 1
    return {"y": (a.astype("d") @ wide + addend, magnitude)}


def product_example(rng, size):
    m, n, k = (int(v) for v in rng.integers(1, (3 * size, 6 * size, 20 * size)))
    if rng.random() < 0.15:
        m, n, k = min(m, 8), min(n, 17), DEPTH + int(rng.integers(1, 60))
    block, halves = int(rng.choice([16, 32])), int(rng.integers(0, 2))
    blocks = -(-k // block)
    return {
        "a": rng.standard_normal((m, k)).astype("f"),
        "codes": pack_codes(rng.integers(0, 16 if halves else 256, (n, k)).astype("u1"), bool(halves)),
        "scales": pack_blocks(rng.uniform(0.01, 0.1, (n, blocks))),
        "zeros": pack_blocks(rng.uniform(0, 9, (n, blocks))),
        "bias": rng.standard_normal(n).astype("f"), "y": np.full((m, n), np.nan, "f"),
        "scratch": np.zeros(8 * DEPTH * int(NR), "f"), "m": m, "n": n, "k": k, "block": block, "halves": halves,
        "has_bias": int(rng.integers(0, 2)),
    }  # fmt: skip


@kernel(reference=product_reference, example=product_example, outputs=("y", "scratch"), tolerance=4e-7)
def product_of_codes(
    a: ptr_f32, codes: ptr_u8, scales: ptr_f32, zeros: ptr_f32, bias: ptr_f32, y: ptr_f32, scratch: ptr_f32,
    m: i64, n: i64, k: i64, block: i64, halves: i64, has_bias: i64, slot: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = a @ w + bias, with w[p, j] = (code - zero) * scale, whose zero and scale are those of block p // block.

    a: (m, k); codes: see pack_codes; scales, zeros: see pack_blocks; bias: (n,), read where has_bias; y: (m, n);
    scratch: DEPTH * NR per thread; block is even. 2 m n k FLOPs. Each sum runs in the order of k. Split over panels.
    """
    count = (n + NR - 1) // NR
    blocks = (k + block - 1) // block
    lines = (k + 1) // 2 if halves != 0 else k
    panel = scratch + slot * (DEPTH * NR)
    for q in range(share(count, tid, nthreads), share(count, tid + 1, nthreads)):
        j = q * NR
        columns = min(NR, n - j)
        for first in range(0, k, DEPTH):
            steps = min(DEPTH, k - first)
            for p in range(steps):
                at = first + p
                line = codes + (q * lines + (at // 2 if halves != 0 else at)) * NR
                own = (q * blocks + at // block) * NR
                shift = 4 * (at % 2) if halves != 0 else 0
                decode(line, scales + own, zeros + own, panel + p * NR, shift, 15 if halves != 0 else 255)
            for i in range(0, m, MR):
                valid = min(MR, m - i)
                target = y + (i * n + j)
                acc = tile_zero()
                if first > 0:
                    acc = tile_add(acc, target, n, valid, columns)
                acc = accumulate(acc, rows_strided(a + i * k, k, valid), first, panel, steps)
                if has_bias != 0 and first + steps >= k:
                    acc = tile_bias(acc, bias + j, columns)
                tile_store(target, n, acc, valid, columns)


def decode(codes, scales, zeros, y, shift, mask):
    """NR codes as float32."""
    for j in range(0, NR, 4):
        number = (vconvert(vload_n(codes, j, 4), i32) >> shift) & mask
        vstore(y, j, (vconvert(number, f32) - vload_n(zeros, j, 4)) * vload_n(scales, j, 4))
