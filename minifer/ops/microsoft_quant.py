"""Quantised operators of com.microsoft.

QuantizeLinear, DequantizeLinear, DynamicQuantizeMatMul, MatMulIntegerToFloat, MatMulNBits, QGemm, QLinearAdd,
QLinearMul, QLinearSigmoid, QLinearLeakyRelu, QLinearConcat, QLinearAveragePool, QLinearGlobalAveragePool, NhwcMaxPool,
DynamicQuantizeLSTM. Meaning: ContribOperators.md of ONNX Runtime.
A quantised tensor q stands for (q - zero point) * scale. Sums of products are exact (taken in float64), results are
rounded once, to even on a tie, and saturated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError, UnsupportedError
from minifer.ir import Dim, TensorType
from minifer.ops.activation import sigmoid
from minifer.ops.microsoft_dense import DOMAIN, gemm_shape, matmul_shape
from minifer.ops.pool import average_pool, max_pool
from minifer.ops.registry import Call, Op, register
from minifer.ops.rnn import check_shapes, direction_count, run_lstm
from minifer.ops.shapes import Fail, broadcast, same_as, wrap_axis
from minifer.ops.window import wide, window_of_call

# --- scales and zero points ---


def _scalar(value: np.ndarray | None, name: str) -> float:
    """A one-element tensor as a number; 0 where it is omitted."""
    if value is None:
        return 0.0
    if value.size != 1:
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar is needed")
    return float(value.reshape(()).astype(np.float64))


def dequantize(q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, name: str) -> np.ndarray:
    """(q - zero) * scale of a tensor with one scale, in float32."""
    return (q.astype(np.float32) - np.float32(_scalar(zero, f"{name}'s zero point"))) * np.float32(
        _scalar(scale, f"{name}'s scale")
    )


def _limits(dtype: np.dtype) -> tuple[int, int]:
    """Least and greatest value of an integer type, int4 and uint4 included."""
    name = dtypes.from_numpy(dtype)
    bits = dtypes.bits(name)
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def saturate(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Whole numbers brought into the range of an integer type; NaN becomes 0."""
    low, high = _limits(dtype)
    clipped = np.clip(np.nan_to_num(x, nan=0.0, posinf=high, neginf=low), low, high)
    return (
        clipped.astype(np.int32).astype(dtype) if dtypes.bits(dtypes.from_numpy(dtype)) < 8 else clipped.astype(dtype)
    )


def quantize(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    """round(x / scale) + zero, saturated; one scale."""
    return saturate(np.rint(x / np.float32(_scalar(scale, "the output's scale"))) + _scalar(zero, "zero point"), dtype)


def _per_column(value: np.ndarray | None, columns: int, name: str) -> np.ndarray:
    """A scalar, or a vector over the last axis, as float64."""
    if value is None:
        return np.zeros(())
    if value.size == 1:
        return value.astype(np.float64).reshape(())
    if value.shape[-1] != columns or value.size != columns:
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar or [{columns}] is needed")
    return value.astype(np.float64).reshape(columns)


# --- QuantizeLinear and DequantizeLinear ---


def _along(value: np.ndarray, x: np.ndarray, axis: int | None, name: str) -> np.ndarray:
    """A scale or zero point that broadcasts against x: a scalar, or a vector along `axis` (1 where not given)."""
    if value.size == 1:
        return wide(value).reshape(())
    at = wrap_axis(1 if axis is None else axis, x.ndim)
    if value.shape != (x.shape[at],):
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar or [{x.shape[at]}] is needed")
    return wide(value).reshape([-1 if i == at else 1 for i in range(x.ndim)])


def _quantize_linear(x, scale, zero=None, *, axis=None):
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    y = np.rint(wide(x) / _along(scale, x, axis, "y_scale"))
    return saturate(y if zero is None else y + _along(zero, x, axis, "y_zero_point"), dtype)


def _dequantize_linear(x, scale, zero=None, *, axis=None):
    shift = np.float32(0) if zero is None else _along(zero, x, axis, "x_zero_point")
    return ((wide(x) - shift) * _along(scale, x, axis, "x_scale")).astype(scale.dtype)


def _infer_quantize(call: Call) -> TensorType:
    return TensorType(call.dtype(2) if call.has(2) else "uint8", call.shape(0))


def _infer_dequantize(call: Call) -> TensorType:
    return TensorType(call.dtype(1), call.shape(0))


register(Op("QuantizeLinear", since=1, domain=DOMAIN, infer=_infer_quantize, reference=_quantize_linear))
register(Op("DequantizeLinear", since=1, domain=DOMAIN, infer=_infer_dequantize, reference=_dequantize_linear))


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
    )
)
register(
    Op("MatMulIntegerToFloat", since=1, domain=DOMAIN, infer=_infer_product(2), reference=_matmul_integer_to_float)
)


def _qgemm(
    a, a_scale, a_zero, b, b_scale, b_zero, c=None, y_scale=None, y_zero=None, *, alpha=1.0, transA=0, transB=0
):  # fmt: skip
    gemm_shape(ShapeError, a.shape, b.shape, transA, transB)
    left, right = (a.T if transA else a), (b.T if transB else b)
    columns = right.shape[1]
    shift = _per_column(b_zero, columns, "b_zero_point")
    total = _integer_product(left, right, _scalar(a_zero, "a_zero_point"), shift)
    if c is not None:
        if np.broadcast_shapes(c.shape, total.shape) != total.shape:
            raise ShapeError(f"C of shape {list(c.shape)} does not broadcast to {list(total.shape)}")
        total = total + c
    scale = np.float32(alpha * _scalar(a_scale, "a_scale"))
    factor = scale * _per_column(b_scale, columns, "b_scale").astype(np.float32)
    if y_scale is None:
        return total.astype(np.float32) * factor
    if y_zero is None:
        raise InputError("y_scale is given without y_zero_point")
    y = np.rint(total.astype(np.float32) * (factor / np.float32(_scalar(y_scale, "y_scale"))))
    return saturate(y + _scalar(y_zero, "y_zero_point"), y_zero.dtype)


def _infer_qgemm(call: Call) -> TensorType:
    a, b = call.shape(0), call.shape(3)
    dtype = call.dtype(8) if call.has(8) else "float32"
    if a is None or b is None:
        return TensorType(dtype, (None, None))
    return TensorType(dtype, gemm_shape(call.fail, a, b, call.attr("transA", 0), call.attr("transB", 0)))


register(Op("QGemm", since=1, domain=DOMAIN, infer=_infer_qgemm, reference=_qgemm))


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


register(Op("MatMulNBits", since=1, domain=DOMAIN, infer=_infer_n_bits, reference=_matmul_n_bits))


# --- elementwise ---


def _qlinear_binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    def reference(a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero=None):
        x, y = dequantize(a, a_scale, a_zero, "A"), dequantize(b, b_scale, b_zero, "B")
        return quantize(function(x, y), c_scale, c_zero, a.dtype)

    return reference


def _infer_qlinear_binary(call: Call) -> TensorType:
    return TensorType(call.dtype(0), broadcast(call, call.shape(0), call.shape(3)))


def _qlinear_unary(function: Callable[..., np.ndarray]):
    def reference(x, x_scale, x_zero, y_scale, y_zero=None, **attrs):
        return quantize(function(dequantize(x, x_scale, x_zero, "X"), **attrs), y_scale, y_zero, x.dtype)

    return reference


_run_leaky = _qlinear_unary(lambda x, alpha: np.where(x < 0, np.float32(alpha) * x, x))


def _qlinear_sigmoid(x, x_scale, x_zero, y_scale, y_zero=None):
    return _qlinear_unary(sigmoid)(x, x_scale, x_zero, y_scale, y_zero)


def _qlinear_leaky_relu(x, x_scale, x_zero, y_scale, y_zero=None, *, alpha=0.01):
    return _run_leaky(x, x_scale, x_zero, y_scale, y_zero, alpha=alpha)


for _name, _reference in (("QLinearAdd", _qlinear_binary(np.add)), ("QLinearMul", _qlinear_binary(np.multiply))):
    register(Op(_name, since=1, domain=DOMAIN, infer=_infer_qlinear_binary, reference=_reference))
register(Op("QLinearSigmoid", since=1, domain=DOMAIN, infer=same_as(0), reference=_qlinear_sigmoid))
register(Op("QLinearLeakyRelu", since=1, domain=DOMAIN, infer=same_as(0), reference=_qlinear_leaky_relu))


def _qlinear_concat(y_scale, y_zero, *inputs, axis):
    if not inputs or len(inputs) % 3:
        raise InputError(f"{len(inputs)} inputs follow; each part brings three: tensor, scale, zero point")
    parts = []
    for i in range(0, len(inputs), 3):
        x, scale, zero = inputs[i : i + 3]
        same = _scalar(scale, "scale") == _scalar(y_scale, "y_scale") and zero == y_zero
        parts.append(x if same else quantize(dequantize(x, scale, zero, "a part"), y_scale, y_zero, y_zero.dtype))
    return np.concatenate(parts, axis=wrap_axis(axis, parts[0].ndim))


def _infer_qlinear_concat(call: Call) -> TensorType:
    shapes = [call.shape(i) for i in range(2, len(call.node.inputs), 3)]
    if (len(call.node.inputs) - 2) % 3 or not shapes:
        raise call.fail("each part brings three inputs: tensor, scale, zero point")
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return TensorType(call.dtype(1))
    axis = wrap_axis(call.attr("axis", 0), len(known[0]), call.fail)
    out: list[Dim] = list(known[0])
    for shape in known[1:]:
        if len(shape) != len(out):
            raise call.fail("the parts differ in rank")
        for i, size in enumerate(shape):
            if i == axis:
                here = out[i]
                out[i] = here + size if isinstance(here, int) and isinstance(size, int) else None
            elif isinstance(size, int):
                if isinstance(out[i], int) and out[i] != size:
                    raise call.fail(f"the parts differ in axis {i}: {out[i]} and {size}")
                out[i] = size
    return TensorType(call.dtype(1), tuple(out))


register(Op("QLinearConcat", since=1, domain=DOMAIN, infer=_infer_qlinear_concat, reference=_qlinear_concat))


# --- pools ---


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def _qlinear_average_pool(x, x_scale, x_zero, y_scale, y_zero=None, *, channels_last=0, **pool):
    data = dequantize(_channels_first(x) if channels_last else x, x_scale, x_zero, "X")
    y = quantize(average_pool(data, **pool), y_scale, y_zero, x.dtype)
    return _channels_last(y) if channels_last else y


def _qlinear_global_average_pool(x, x_scale, x_zero, y_scale, y_zero, *, channels_last=0):
    if x.ndim < 3:
        raise ShapeError(f"the input has rank {x.ndim}; batch, channels and spatial axes are needed")
    axes = tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim))
    shift, factor = _scalar(x_zero, "x_zero_point"), _scalar(x_scale, "x_scale") / _scalar(y_scale, "y_scale")
    mean = (x.astype(np.float64) - shift).mean(axis=axes, keepdims=True)
    return saturate(np.rint((mean * factor).astype(np.float32)) + _scalar(y_zero, "y_zero_point"), x.dtype)


def _nhwc_max_pool(x, **pool):
    return _channels_last(max_pool(np.ascontiguousarray(_channels_first(x)), **pool))


def _infer_pool(call: Call) -> TensorType:
    x, kernel = call.shape(0), call.attr("kernel_shape")
    if not kernel:
        raise call.fail("the attribute kernel_shape is missing")
    last = call.attr("channels_last", 0) or call.node.op == "NhwcMaxPool"
    if x is None:
        return TensorType(call.dtype(0), (None,) * (2 + len(kernel)))
    if len(x) < 3:
        raise call.fail(f"the input has rank {len(x)}; batch, channels and spatial axes are needed")
    window = window_of_call(call, x[1:-1] if last else x[2:], kernel)
    return TensorType(call.dtype(0), (x[0], *window.out, x[-1]) if last else (*x[:2], *window.out))


def _infer_global_pool(call: Call) -> TensorType:
    x = call.shape(0)
    if x is None:
        return TensorType(call.dtype(0))
    if len(x) < 3:
        raise call.fail(f"the input has rank {len(x)}; batch, channels and spatial axes are needed")
    ones = (1,) * (len(x) - 2)
    return TensorType(call.dtype(0), (x[0], *ones, x[-1]) if call.attr("channels_last", 0) else (*x[:2], *ones))


register(Op("QLinearAveragePool", since=1, domain=DOMAIN, infer=_infer_pool, reference=_qlinear_average_pool))
register(
    Op(
        "QLinearGlobalAveragePool",
        since=1,
        domain=DOMAIN,
        infer=_infer_global_pool,
        reference=_qlinear_global_average_pool,
    )
)
register(Op("NhwcMaxPool", since=1, domain=DOMAIN, infer=_infer_pool, reference=_nhwc_max_pool))


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
    x, w, r, b, sequence_lens, initial_h, initial_c, p, w_scale, w_zero, r_scale, r_zero, *, activation_alpha=None,
    activation_beta=None, activations=None, clip=None, direction="forward", hidden_size=None, input_forget=0,
):  # fmt: skip
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
