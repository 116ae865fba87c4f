"""Quantised products of com.microsoft.

DynamicQuantizeMatMul, MatMulIntegerToFloat, QGemm, MatMulNBits, DynamicQuantizeLSTM. Meaning: ContribOperators.md of
ONNX Runtime. Sums of products of integers are exact (taken in float64).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minifer.errors import InputError, ShapeError, UnsupportedError
from minifer.ir import Dim, TensorType
from minifer.ops.microsoft_dense import DOMAIN, check_addend, gemm_shape, matmul_shape
from minifer.ops.microsoft_quant import saturate, scalar
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.rnn import check_shapes, direction_count, run_lstm
from minifer.ops.shapes import Fail
from minifer.ops.window import wide

lower_dynamic_quantize_matmul, lower_matmul_integer_to_float, lower_qgemm = deferred(
    "lower_integer", "lower_dynamic_quantize_matmul", "lower_matmul_integer_to_float", "lower_qgemm",
)  # fmt: skip
lower_n_bits = deferred("lower_nbits", "lower_n_bits")


def _per_column(value: np.ndarray | None, columns: int, name: str) -> np.ndarray:
    """A scalar, or a vector over the last axis, as float64."""
    if value is None:
        return np.zeros(())
    if value.size == 1:
        return value.astype(np.float64).reshape(())
    if value.shape[-1] != columns or value.size != columns:
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar or [{columns}] is needed")
    return value.astype(np.float64).reshape(columns)


# --- products ---


def dynamic_quantize(x: np.ndarray) -> tuple[np.ndarray, np.float32, np.float32]:
    """x as uint8 values (held as float32), scale and zero point, over the range of x with 0 in it."""
    low = np.minimum(x.min(initial=0), 0).astype(np.float32)
    high = np.maximum(x.max(initial=0), 0).astype(np.float32)
    scale = np.float32(1) if high == low else (high - low) / np.float32(255)
    zero = np.rint(np.clip(-low / scale, 0, 255)).astype(np.float32)
    return np.clip(np.rint(x / scale) + zero, 0, 255), scale, zero


def _integer_product(a, b, a_zero, b_zero) -> np.ndarray:
    """(a - a_zero) @ (b - b_zero), exact in float64; zero points scalar or per column of b."""
    return np.matmul(a.astype(np.float64) - a_zero, b.astype(np.float64) - b_zero)


def _add_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is None:
        return y
    if bias.shape != y.shape[-1:]:
        raise ShapeError(f"the bias has shape {list(bias.shape)}; [{y.shape[-1]}] is needed")
    return y + wide(bias)


def _dynamic_quantize_matmul(a, b, b_scale, b_zero=None, bias=None):
    q, scale, zero = dynamic_quantize(a)
    total = _integer_product(q, b, zero, _per_column(b_zero, b.shape[-1], "b_zero_point"))
    factor = scale * _per_column(b_scale, b.shape[-1], "b_scale").astype(np.float32)
    return _add_bias(total.astype(np.float32) * factor, bias)


def _matmul_integer_to_float(a, b, a_scale, b_scale, a_zero=None, b_zero=None, bias=None):
    left = (a - _per_column(a_zero, a.shape[-1], "a_zero_point")) * _per_column(a_scale, a.shape[-1], "a_scale")
    right = (b - _per_column(b_zero, b.shape[-1], "b_zero_point")) * _per_column(b_scale, b.shape[-1], "b_scale")
    return _add_bias(np.matmul(left, right).astype(np.float32), bias).astype(a_scale.dtype)


def _infer_product(dtype_of: int):
    def infer(call: Call) -> TensorType:
        a, b = call.shape(0), call.shape(1)
        return TensorType(call.dtype(dtype_of), None if a is None or b is None else matmul_shape(call, a, b))

    return infer


register(
    Op(
        "DynamicQuantizeMatMul",
        since=1,
        domain=DOMAIN,
        infer=_infer_product(0),
        reference=_dynamic_quantize_matmul,
        lower=lower_dynamic_quantize_matmul,
    )
)
register(
    Op(
        "MatMulIntegerToFloat",
        since=1,
        domain=DOMAIN,
        infer=_infer_product(2),
        reference=_matmul_integer_to_float,
        lower=lower_matmul_integer_to_float,
    )
)


def _qgemm(
    a, a_scale, a_zero, b, b_scale, b_zero, c=None, y_scale=None, y_zero=None, *, alpha=1.0, transA=0, transB=0
):  # fmt: skip
    gemm_shape(ShapeError, a.shape, b.shape, transA, transB)
    left, right = (a.T if transA else a), (b.T if transB else b)
    columns = right.shape[1]
    shift = _per_column(b_zero, columns, "b_zero_point")
    total = _integer_product(left, right, scalar(a_zero, "a_zero_point"), shift)
    if c is not None:
        if np.broadcast_shapes(c.shape, total.shape) != total.shape:
            raise ShapeError(f"C of shape {list(c.shape)} does not broadcast to {list(total.shape)}")
        total = total + c
    scale = np.float32(alpha * scalar(a_scale, "a_scale"))
    factor = scale * _per_column(b_scale, columns, "b_scale").astype(np.float32)
    if y_scale is None:
        return total.astype(np.float32) * factor
    if y_zero is None:
        raise InputError("y_scale is given without y_zero_point")
    y = np.rint(total.astype(np.float32) * (factor / np.float32(scalar(y_scale, "y_scale"))))
    return saturate(y + scalar(y_zero, "y_zero_point"), y_zero.dtype)


def _infer_qgemm(call: Call) -> TensorType:
    a, b = call.shape(0), call.shape(3)
    dtype = call.dtype(8) if call.has(8) else "float32"
    if a is None or b is None:
        return TensorType(dtype, (None, None))
    shape = gemm_shape(call.fail, a, b, call.attr("transA", 0), call.attr("transB", 0))
    check_addend(call, 6, shape)
    return TensorType(dtype, shape)


register(Op("QGemm", since=1, domain=DOMAIN, infer=_infer_qgemm, reference=_qgemm, lower=lower_qgemm))


# --- MatMulNBits ---


def unpack_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (..., bytes) -> uint8 (..., bytes*8/bits): numbers of `bits` bits, the lowest bits first."""
    if 8 % bits == 0:
        parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)
    ones = np.unpackbits(packed, axis=-1, bitorder="little")
    count = ones.shape[-1] // bits
    fields = ones[..., : count * bits].reshape(*packed.shape[:-1], count, bits)
    return (fields << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


def _zero_points(zero: np.ndarray | None, n: int, blocks: int, bits: int) -> np.ndarray:
    """(N, blocks) zero points in float32, from packed, unpacked or omitted ones."""
    if zero is None:
        return np.full((n, blocks), 1 << (bits - 1), np.float32)
    if zero.dtype != np.uint8:
        if zero.size != n * blocks:
            raise ShapeError(f"zero_points has shape {list(zero.shape)}; {[n, blocks]} is needed")
        return wide(zero).reshape(n, blocks)
    width = -(-blocks * bits // 8)
    if zero.size != n * width:
        raise ShapeError(f"zero_points has shape {list(zero.shape)}; {[n, width]} packed bytes are needed")
    return unpack_bits(zero.reshape(n, width), bits)[:, :blocks].astype(np.float32)


def _check_n_bits(fail: Fail, a: Sequence[Dim] | None, b: Sequence[Dim] | None, k: int, n: int, bits: int, block: int):
    if not 2 <= bits <= 8:
        raise fail(f"bits {bits} is outside 2 to 8")
    if block < 16 or block & (block - 1):
        raise fail(f"block_size {block} is no power of two from 16 on")
    if k < 1 or n < 1:
        raise fail(f"K {k} and N {n} must be above 0")
    if a is not None and (not a or (isinstance(a[-1], int) and a[-1] != k)):
        raise fail(f"A has shape {list(a)}; its last axis must be K = {k}")
    want = (n, -(-k // block), block * bits // 8)
    if b is not None and (len(b) != 3 or any(isinstance(p, int) and p not in (0, q) for p, q in zip(b, want))):
        raise fail(f"B has shape {list(b)}; {list(want)} is needed")


def dequantize_blocks(b, scales, zero_points, g_idx, k: int, n: int, bits: int, block: int) -> np.ndarray:
    """The float32 weights (N, K) of a block-wise quantised matrix."""
    blocks = b.shape[1]
    if scales.size != n * blocks:
        raise ShapeError(f"scales has shape {list(scales.shape)}; {[n, blocks]} is needed")
    q = unpack_bits(b, bits).reshape(n, blocks * block)[:, :k].astype(np.float32)
    scale, zero = wide(scales).reshape(n, blocks), _zero_points(zero_points, n, blocks, bits)
    if g_idx is None:
        owner = np.arange(k) // block
    else:
        owner = g_idx[:k]
        if owner.shape != (k,) or owner.min() < 0 or owner.max() >= blocks:
            raise InputError(f"g_idx must hold {k} block numbers in [0, {blocks})")
    return (q - zero[:, owner]) * scale[:, owner]


def _matmul_n_bits(
    a, b, scales, zero_points=None, g_idx=None, bias=None, *, K, N, block_size, accuracy_level=0, bits=4,
    weight_prepacked=0,
):  # fmt: skip
    if weight_prepacked:
        raise UnsupportedError("weight_prepacked weights are laid out for one GPU; export the model without")
    _check_n_bits(ShapeError, a.shape, b.shape, K, N, bits, block_size)
    if b.size:
        weight = dequantize_blocks(b, scales, zero_points, g_idx, K, N, bits, block_size)
        y = wide(a) @ weight.T
    else:  # an omitted projection
        y = np.zeros((*a.shape[:-1], N), np.float32)
    return _add_bias(y, bias).astype(a.dtype, copy=False)


def _infer_n_bits(call: Call) -> TensorType:
    a, n = call.shape(0), call.attr("N", 0)
    size = call.attr("block_size", 0)
    _check_n_bits(call.fail, a, call.shape(1), call.attr("K", 0), n, call.attr("bits", 4), size)
    return TensorType(call.dtype(0), None if a is None else (*a[:-1], n))


register(
    Op(
        "MatMulNBits",
        since=1,
        domain=DOMAIN,
        infer=_infer_n_bits,
        reference=_matmul_n_bits,
        lower=lower_n_bits.of(unpack_bits, _zero_points),
    )
)


# --- DynamicQuantizeLSTM ---


def _through_uint8(x: np.ndarray) -> np.ndarray:
    """x as it comes back from dynamic quantisation."""
    q, scale, zero = dynamic_quantize(x)
    return (q - zero) * scale


def _weights(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, name: str) -> np.ndarray:
    """(D, I, 4*H) quantised -> (D, 4*H, I) float32; scales (D,) or (D, 4*H)."""
    if w.ndim != 3:
        raise ShapeError(f"{name} has rank {w.ndim}; 3 is needed")
    for what, v in (("scale", scale), ("zero point", zero)):
        if v.shape not in ((w.shape[0],), (w.shape[0], w.shape[2])):
            raise ShapeError(f"{name}'s {what} has shape {list(v.shape)}; {[w.shape[0]]} or one per column is needed")
    return ((wide(w) - wide(zero).reshape(w.shape[0], 1, -1)) * scale.reshape(w.shape[0], 1, -1)).swapaxes(1, 2)


def _dynamic_quantize_lstm(
    x, w, r, b=None, sequence_lens=None, initial_h=None, initial_c=None, p=None, w_scale=None, w_zero=None,
    r_scale=None, r_zero=None, *, activation_alpha=None, activation_beta=None, activations=None, clip=None,
    direction="forward", hidden_size=None, input_forget=0,
):  # fmt: skip
    if any(v is None for v in (w_scale, w_zero, r_scale, r_zero)):
        raise InputError("the scales and zero points of W and R are needed (inputs 8 to 11)")
    functions = (activations, activation_alpha, activation_beta)
    return run_lstm(
        x, _weights(w, w_scale, w_zero, "W"), _weights(r, r_scale, r_zero, "R"), b, sequence_lens, initial_h,
        initial_c, p, functions, clip=clip, direction=direction, hidden_size=hidden_size, input_forget=input_forget,
        prepare=_through_uint8,
    )  # fmt: skip


def _infer_dynamic_quantize_lstm(call: Call) -> list[TensorType]:
    directions = direction_count(call.fail, call.attr("direction", "forward"), 0)
    names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    shapes = {name: call.shape(i) if call.has(i) else None for i, name in enumerate(names)}
    for name in "WR":
        shape = shapes[name]
        if shape is not None and len(shape) == 3:
            shapes[name] = (shape[0], shape[2], shape[1])
    time, batch, hidden = check_shapes(call.fail, shapes, 4, directions, call.attr("hidden_size"), 0)
    state = TensorType("float32", (directions, batch, hidden))
    return [TensorType("float32", (time, directions, batch, hidden)), state, state]


register(
    Op(
        "DynamicQuantizeLSTM",
        since=1,
        domain=DOMAIN,
        infer=_infer_dynamic_quantize_lstm,
        reference=_dynamic_quantize_lstm,
    )
)
