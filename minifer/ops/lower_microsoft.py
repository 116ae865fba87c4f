"""Activations, products and convolution of com.microsoft as kernel calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.kernels import activation, move, unary
from minifer.kernels.binary import BINARY
from minifer.kernels.elementwise import broadcast_table
from minifer.kernels.matmul import matmul
from minifer.kernels.simd import NR
from minifer.ops.lower_conv import lower_conv
from minifer.ops.lower_elementwise import UNBOUNDED, apply_activation, apply_unary
from minifer.ops.lower_fused import conv_tail, gemm_tail
from minifer.ops.lower_matmul import lower_gemm, product
from minifer.ops.registry import Declined

# ---------------------------------------------------------------- activations


def _with_bias(low: Any, code: int) -> Declined | None:
    """An activation of the input plus an optional vector along its last axis."""
    if not low.has(1):
        return apply_activation(low, code)
    x, n = low.input(0), low.shape(0)[-1]
    if low.dtype(0) != "float32" or low.dtype(1) != "float32":
        return Declined(f"no kernel of {low.node.op} with a bias for {low.dtype(0)}")
    made, table = low.scratch(x.nbytes, "float32"), broadcast_table((x.size // n, n), (n, 1), (0, 1))
    low.call(BINARY["add_f32"], x, low.input(1), made, low.const(table), *UNBOUNDED)
    low.call(unary.activation, made, low.output(0), x.size, code, 0, 0)
    return None


def lower_erf_gelu(low: Any) -> Declined | None:
    """Gelu and BiasGelu."""
    return _with_bias(low, activation.GELU)


def lower_fast_gelu(low: Any) -> Declined | None:
    """FastGelu: by the hyperbolic tangent."""
    return _with_bias(low, activation.GELU_TANH)


def lower_quick_gelu(low: Any) -> Declined | None:
    """QuickGelu: x * sigmoid(alpha * x)."""
    return apply_unary(low, "swish", low.attr("alpha", 1.702))


# ---------------------------------------------------------------- FusedMatMul


def _turned(low: Any, i: int, side: str) -> tuple[list[int], list[int]]:
    """Dimensions and strides of an operand after its transpositions."""
    shape = list(low.shape(i))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if len(shape) > 2 and low.attr(f"transBatch{side}", 0):  # the first axis stands for the rows
        order = [*range(1, len(shape) - 1), 0, len(shape) - 1]
        shape, strides = [shape[a] for a in order], [strides[a] for a in order]
    if len(shape) > 1 and low.attr(f"trans{side}", 0):
        shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
    return shape, strides


def _starts(shape: Sequence[int], strides: Sequence[int], batch: tuple[int, ...]) -> np.ndarray:
    """Where each matrix of the batch begins."""
    starts = np.zeros(tuple(shape), np.int64)
    for axis, (n, step) in enumerate(zip(shape, strides)):
        starts += (np.arange(n) * step).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return np.broadcast_to(starts, batch).reshape(-1)


def lower_fused_matmul(low: Any) -> Declined | None:
    """float32 FusedMatMul with any transpositions."""
    if low.dtype(0) != "float32" or low.dtype(1) != "float32":
        return Declined(f"no matrix product kernel for {low.dtype(0)}")
    a_shape, a_strides = _turned(low, 0, "A")
    b_shape, b_strides = _turned(low, 1, "B")
    if len(a_shape) == 1:
        a_shape, a_strides = [1, *a_shape], [0, *a_strides]
    if len(b_shape) == 1:
        b_shape, b_strides = [*b_shape, 1], [*b_strides, 0]
    m, k, n = a_shape[-2], a_shape[-1], b_shape[-1]
    alpha = low.attr("alpha", 1.0)
    batch = np.broadcast_shapes(tuple(a_shape[:-2]), tuple(b_shape[:-2]))
    a = low.input(0)
    if a_strides[-1] != 1 and k > 1:
        if low.attr("transBatchA", 0) and len(a_shape) > 2:
            return Declined("no matrix product kernel for an operand transposed as well as turned")
        count = math.prod(a_shape[:-2])
        flipped = low.scratch(4 * a.size, "float32")
        low.call(move.transpose_matrices["u32"], a, flipped, count, k, m)
        a, a_strides = flipped, [*a_strides[:-2], k, 1]
    plain = a_strides[-2] == k and not (low.attr("transBatchA", 0) and len(a_shape) > 2)
    if low.value(1) is not None and len(low.shape(1)) == 2 and plain:
        flip = low.attr("transB", 0)

        def matrix(b: np.ndarray) -> np.ndarray:
            b = b.T if flip else b
            return b * np.float32(alpha) if alpha != 1 else b

        rows = m * math.prod(batch)
        product(low, a, (alpha, flip), matrix, rows, n, k, None)
        return None
    offsets = np.stack([_starts(s[:-2], t[:-2], batch) for s, t in ((a_shape, a_strides), (b_shape, b_strides))], 1)
    b, c = low.input(1), low.output(0)
    scratch = low.scratch(4 * low.threads * k * int(NR), "float32")
    numbers = (len(offsets), m, n, k, a_strides[-2], b_strides[-2], b_strides[-1], alpha, 0.0, 0, 0)
    low.call(matmul, a, b, c, None, low.const(offsets), scratch, *numbers)
    return None


# ---------------------------------------------------------------- FusedGemm, FusedConv


def lower_fused_gemm(low: Any) -> Declined | None:
    """float32 FusedGemm whose activation a kernel has."""
    if gemm_tail(low) is None:
        return Declined(f"no matrix product kernel ends in {low.attr('activation')}")
    return lower_gemm(low)


def lower_fused_conv(low: Any) -> Declined | None:
    """float32 FusedConv whose activation a kernel has."""
    if conv_tail(low) is None:
        return Declined(f"no convolution kernel ends in {low.attr('activation')}")
    if low.has(3) and low.shape(3) != low.out_shape():
        return Declined("Z has another shape than the result")
    return lower_conv(low)
