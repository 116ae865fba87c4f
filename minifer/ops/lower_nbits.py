"""com.microsoft MatMulNBits as a kernel call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minifer.kernels import nbits
from minifer.kernels.simd import NR
from minifer.ops.registry import Declined


def lower_n_bits(
    unpack: Callable[[np.ndarray, int], np.ndarray], zero_points: Callable[[Any, int, int, int], np.ndarray]
) -> Callable[[Any], Declined | None]:
    """The lowering; `unpack` takes packed bytes apart, `zero_points` gives them as (N, blocks) float32."""

    def lower(low: Any) -> Declined | None:
        k, n, bits, block = low.attr("K"), low.attr("N"), low.attr("bits", 4), low.attr("block_size")
        if low.dtype(0) != "float32" or low.attr("weight_prepacked", 0):
            return Declined(f"no kernel of MatMulNBits for {low.dtype(0)}, or for weights packed elsewhere")
        if any(low.has(i) and low.value(i) is None for i in (1, 2, 3, 4)):
            return Declined("the weights are not constant")
        blocks = -(-k // block)
        if low.shape(1) != (n, blocks, block * bits // 8) or low.value(2).size != n * blocks:
            return Declined(f"weights of shape {low.shape(1)} with scales of shape {low.shape(2)}")
        if low.has(5) and (low.dtype(5) != "float32" or low.shape(5) != (n,)):
            return Declined(f"the bias is {low.dtype(5)}{low.shape(5)}")
        if low.has(4) and not np.array_equal(np.asarray(low.value(4))[:k], np.arange(k) // block):
            return Declined("g_idx spreads the blocks over k")
        zero = low.value(3) if low.has(3) else None
        packed_size = n * (-(-blocks * bits // 8) if zero is not None and zero.dtype == np.uint8 else blocks)
        if zero is not None and zero.size != packed_size:
            return Declined(f"zero points of shape {low.shape(3)}")
        halves = bits <= 4

        def codes(b: np.ndarray) -> np.ndarray:
            return nbits.pack_codes(unpack(b, bits).reshape(n, blocks * block)[:, :k], halves)

        x, y = low.input(0), low.output(0)
        scales = low.pack(2, ("blocks", int(NR)), lambda v: nbits.pack_blocks(v.astype(np.float32).reshape(n, blocks)))
        zeros = low.const(nbits.pack_blocks(zero_points(zero, n, blocks, bits)))
        slots = (x, low.pack(1, ("codes", int(NR)), codes), scales, zeros, low.input(5) if low.has(5) else None, y)
        scratch = low.scratch(4 * low.threads * nbits.DEPTH * int(NR), "float32")
        low.call(nbits.product_of_codes, *slots, scratch, x.size // k, n, k, block, int(halves), int(low.has(5)))
        return None

    return lower
