"""MatMul and Gemm as kernel calls.

A constant right side is packed once; the left side is then one tall matrix. What is multiplied with a right side that
only the run knows (attention) goes to the batched kernel, which packs panels as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer.kernels import gemm, move
from minifer.kernels import matrix as matrix_registers
from minifer.kernels.matmul import matmul
from minifer.kernels.simd import NR
from minifer.kernels.target import host
from minifer.ops.lower_fused import gemm_tail
from minifer.ops.registry import Call, Declined

#: what follows a product: (bias slot, residual slot), (code, first, second, has_bias, has_residual)
Tail = tuple[tuple[Any, Any], tuple[Any, ...]]


def lower_matmul(low: Any) -> Declined | None:
    """float32 MatMul of any ranks."""
    if low.dtype(0) != "float32":
        return Declined(f"no matrix product kernel for {low.dtype(0)}")
    a_shape, b_shape = low.shape(0), low.shape(1)
    a_shape = (1, *a_shape) if len(a_shape) == 1 else a_shape
    b_shape = (*b_shape, 1) if len(b_shape) == 1 else b_shape
    m, k, n = a_shape[-2], a_shape[-1], b_shape[-1]
    if low.value(1) is not None and all(d == 1 for d in b_shape[:-2]):
        rows = math.prod(a_shape[:-1])
        product(low, low.input(0, gaps=True), (), lambda b: np.asarray(b).reshape(k, n), rows, n, k, None)
        return None
    batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    offsets = np.stack([_offsets(a_shape, batch), _offsets(b_shape, batch)], axis=1)
    if all(d == 1 for d in b_shape[:-2]):  # one right side for all: one tall product
        m, offsets = m * len(offsets), offsets[:1]
    a, b = low.input(0), low.input(1)
    c = low.output(0)
    scratch = low.scratch(4 * low.threads * k * int(NR), "float32")
    low.call(matmul, a, b, c, None, low.const(offsets), scratch, len(offsets), m, n, k, k, n, 1, 1.0, 0.0, 0, 0)
    return None


def _offsets(shape: tuple[int, ...], batch: tuple[int, ...]) -> np.ndarray:
    """Where the matrix of each product of the batch begins, in elements."""
    size = shape[-2] * shape[-1]
    count = math.prod(shape[:-2])
    starts = (np.arange(count, dtype=np.int64) * size).reshape(shape[:-2])
    return np.broadcast_to(starts, batch).reshape(-1)


Matrix = Callable[[np.ndarray], np.ndarray]


def dense(low: Any, a: Any, key: tuple[Any, ...], matrix: Matrix, c: Any, sizes: Sequence[int], tail: Tail) -> None:
    """c = A (m, k) times constant input 1; `matrix` makes B (k, n) of that input, `key` names how. Rows may have gaps.

    sizes: m, n, k. tail: (bias slot, residual slot), (code, first, second, has_bias, has_residual).
    """
    m, n, k = sizes
    (bias, residual), (code, first, second, has_bias, has_residual) = tail
    apart = (k + a.gap, n + c.gap, n + residual.gap if residual else n)
    numbers = (m, n, k, *apart, has_bias, has_residual, code, first, second)
    b = packed(low, key, matrix)
    if worth_matrix(m, n, k):
        low.note(lambda: "on the matrix registers: each float as three bfloat16")
        scratch = low.scratch(4 * low.threads * matrix_registers.scratch_words(m, n, k), "float32")
        low.call(matrix_registers.gemm_matrix, a, b, c, bias, residual, scratch, *numbers)
    else:
        low.call(gemm.gemm, a, b, c, bias, residual, *numbers)


def worth_matrix(m: int, n: int, k: int) -> bool:
    """Whether a product is faster on the matrix registers.

    They multiply whole blocks of 32 x 32 x 32 (half ones, where no more of the last is there) 2.9 times as fast as the
    vectors do; to split those of rows takes as long as to multiply one, those of columns twice as long, and a lone
    panel is not worth it. Chosen so that networks are fastest on Granite Rapids: 64 x 64 by 64 x 64 takes as long, 49 x
    2048 by 2048 x 512 takes 0.85 of the time, 197 x 3072 by 3072 x 768 half of it.
    """
    if not host().matrix or n <= NR:
        return False
    strips, panels, steps = -(-m // 32), -(-n // 32), -(-k // 32)
    products = -(-m // 16) * -(-n // 16) / 4
    return steps * (3 * products + 3 * strips + 6 * panels) < 8.7 * m * n * k / 32**3


def packed(low: Any, key: tuple[Any, ...], matrix: Matrix) -> Any:
    """Constant input 1 as the panels of B (k, n), which `matrix` makes of it; `key` names how."""
    return low.pack(1, ("gemm", int(NR), *key), lambda b: gemm.pack(matrix(b)))


def product(
    low: Any, a: Any, key: tuple[Any, ...], matrix: Matrix, m: int, n: int, k: int, bias: np.ndarray | None
) -> None:
    """Output 0 = A (m, k) times constant input 1 (see dense), with what follows it; bias: (n,) or None."""
    rank = len(low.out_shape())
    columns_last = rank > 0 and low.out_shape()[-1] == n and len(low.shape(1)) > 1
    tail = gemm_tail(low) or (low.epilogue(rank - 1) if columns_last else low.epilogue(None))
    if bias is not None:
        tail.bias = bias if tail.bias is None else tail.bias + bias
    offset = low.const(tail.bias) if tail.bias is not None else None
    gaps = rank > 1 and columns_last
    residual = tail.residual_slot(low, "plain", gaps)
    c = low.output(0, over=residual, gaps=gaps)
    flags = (int(offset is not None), int(residual is not None))
    ends = (tail.code, tail.first, tail.second, *flags)
    dense(low, a, key, matrix, c, (m, n, k), ((offset, residual), ends))


def rows_of_product(call: Call) -> int:
    """Op.rows of MatMul and Gemm: 1 where B is known, for then A is read where it lies."""
    a, b = call.tensor(0).dims, call.value(1)
    return int(b is not None and len(a) > 1 and all(d == 1 for d in b.shape[:-2]) and not call.attr("transA", 0))


def lower_gemm(low: Any) -> Declined | None:
    """float32 Gemm: alpha * A' @ B' + beta * C."""
    if low.dtype(0) != "float32":
        return Declined(f"no matrix product kernel for {low.dtype(0)}")
    alpha, beta = low.attr("alpha", 1.0), low.attr("beta", 1.0)
    flip_a, flip_b = low.attr("transA", 0), low.attr("transB", 0)
    m, n = low.out_shape()
    k = low.shape(0)[-2 if flip_a else -1]
    a = low.input(0, gaps=not flip_a)
    if flip_a:
        flipped = low.scratch(4 * m * k, "float32").view((m, k))
        low.call(move.transpose_matrices["u32"], a, flipped, 1, k, m)
        a = flipped
    c = low.value(2) if low.has(2) and beta != 0 else None
    row = None if c is None else _row(c, n, beta)
    if low.value(1) is not None and (row is not None or not low.has(2) or beta == 0):

        def matrix(b: np.ndarray) -> np.ndarray:
            b = b.T if flip_b else b
            return b * np.float32(alpha) if alpha != 1 else b

        product(low, a, (alpha, flip_b), matrix, m, n, k, row)
        return None
    b = low.input(1)
    addend, add_row, add_column = None, 0, 0
    if low.has(2) and beta != 0:
        shape = (1,) * (2 - len(low.shape(2))) + low.shape(2)
        addend, add_column = low.input(2), int(shape[1] != 1)
        add_row = shape[1] if shape[0] != 1 else 0
    y = low.output(0)
    scratch = low.scratch(4 * low.threads * k * int(NR), "float32")
    b_row, b_column = (1, k) if flip_b else (n, 1)
    offsets = low.const(np.zeros((1, 2), np.int64))
    numbers = (1, m, n, k, k, b_row, b_column, alpha, 0.0 if addend is None else beta, add_row, add_column)
    tail = gemm_tail(low)
    made = low.scratch(4 * m * n, "float32") if tail else y
    low.call(matmul, a, b, made, addend, offsets, scratch, *numbers)
    if tail:
        from minifer.kernels import unary

        low.call(unary.activation, made, y, m * n, tail.code, tail.first, tail.second)
    return None


def _row(c: np.ndarray, n: int, beta: float) -> np.ndarray | None:
    """beta * C as a row of n numbers where it is the same for all rows, else None."""
    full: np.ndarray = c.reshape([1] * (2 - c.ndim) + list(c.shape))
    if full.shape[0] != 1:
        return None
    return np.ascontiguousarray(np.broadcast_to(full[0] * np.float32(beta), (n,)))
