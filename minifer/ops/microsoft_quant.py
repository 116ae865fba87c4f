"""Quantised elementwise operators and pools of com.microsoft.

QuantizeLinear, DequantizeLinear, QLinearAdd, QLinearMul, QLinearSigmoid, QLinearLeakyRelu, QLinearConcat,
QLinearAveragePool, QLinearGlobalAveragePool, NhwcMaxPool. Meaning: ContribOperators.md of ONNX Runtime.
A quantised tensor q stands for (q - zero point) * scale. Results are rounded once, to even on a tie, and saturated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.activation import sigmoid
from minifer.ops.microsoft_dense import DOMAIN
from minifer.ops.pool import average_pool, max_pool
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import broadcast, product, same_as, wrap_axis
from minifer.ops.window import wide, window_of_call

lower_dequantize, lower_quantize = deferred("lower_quantize", "lower_dequantize", "lower_quantize")
lower_average_pool, lower_combine, lower_concat, lower_global_average_pool, lower_table = deferred(
    "lower_qlinear", "lower_average_pool", "lower_combine", "lower_concat", "lower_global_average_pool",
    "lower_table",
)  # fmt: skip

# --- scales and zero points ---


def scalar(value: np.ndarray | None, name: str) -> float:
    """A one-element tensor as a number; 0 where it is omitted."""
    if value is None:
        return 0.0
    if value.size != 1:
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar is needed")
    return float(value.reshape(()).astype(np.float64))


def dequantize(q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, name: str) -> np.ndarray:
    """(q - zero) * scale of a tensor with one scale, in float32."""
    return (q.astype(np.float32) - np.float32(scalar(zero, f"{name}'s zero point"))) * np.float32(
        scalar(scale, f"{name}'s scale")
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
    return saturate(np.rint(x / np.float32(scalar(scale, "the output's scale"))) + scalar(zero, "zero point"), dtype)


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


def _check_along(call: Call) -> None:
    """Raise unless scale and zero point are scalars, or as long as the axis that they run along."""
    x = call.shape(0)
    for i, name in ((1, "scale"), (2, "zero point")):
        shape = call.shape(i) if call.has(i) else None
        if x is None or shape is None or any(not isinstance(d, int) for d in shape) or product(shape) == 1:
            continue
        length = x[wrap_axis(call.attr("axis", 1), len(x), call.fail)]
        if len(shape) != 1 or (isinstance(length, int) and shape[0] != length):
            raise call.fail(f"the {name} has shape {list(shape)}; a scalar or [{length}] is needed")


def _infer_quantize(call: Call) -> TensorType:
    _check_along(call)
    return TensorType(call.dtype(2) if call.has(2) else "uint8", call.shape(0))


def _infer_dequantize(call: Call) -> TensorType:
    _check_along(call)
    return TensorType(call.dtype(1), call.shape(0))


for _name, _infer, _reference, _lower in (
    ("QuantizeLinear", _infer_quantize, _quantize_linear, lower_quantize),
    ("DequantizeLinear", _infer_dequantize, _dequantize_linear, lower_dequantize),
):
    register(Op(_name, since=1, domain=DOMAIN, infer=_infer, reference=_reference, lower=_lower))


# --- elementwise ---


def _qlinear_binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    def reference(a, a_scale, a_zero=None, b=None, b_scale=None, b_zero=None, c_scale=None, c_zero=None):
        x, y = dequantize(a, a_scale, a_zero, "A"), dequantize(b, b_scale, b_zero, "B")
        return quantize(function(x, y), c_scale, c_zero, a.dtype)

    return reference


def _infer_qlinear_binary(call: Call) -> TensorType:
    return TensorType(call.dtype(0), broadcast(call, call.shape(0), call.shape(3)))


def _qlinear_unary(function: Callable[..., np.ndarray]):
    def reference(x, x_scale, x_zero=None, y_scale=None, y_zero=None, **attrs):
        return quantize(function(dequantize(x, x_scale, x_zero, "X"), **attrs), y_scale, y_zero, x.dtype)

    return reference


_run_leaky = _qlinear_unary(lambda x, alpha: np.where(x < 0, np.float32(alpha) * x, x))


def _qlinear_sigmoid(x, x_scale, x_zero=None, y_scale=None, y_zero=None):
    return _qlinear_unary(sigmoid)(x, x_scale, x_zero, y_scale, y_zero)


def _qlinear_leaky_relu(x, x_scale, x_zero=None, y_scale=None, y_zero=None, *, alpha=0.01):
    return _run_leaky(x, x_scale, x_zero, y_scale, y_zero, alpha=alpha)


for _name, _function, _code in (("QLinearAdd", np.add, "ADD"), ("QLinearMul", np.multiply, "MULTIPLY")):
    register(
        Op(
            _name,
            since=1,
            domain=DOMAIN,
            infer=_infer_qlinear_binary,
            reference=_qlinear_binary(_function),
            lower=lower_combine.of(_code),
        )
    )
for _name, _table in (("QLinearSigmoid", _qlinear_sigmoid), ("QLinearLeakyRelu", _qlinear_leaky_relu)):
    _by_table = lower_table.of(_table)
    register(Op(_name, since=1, domain=DOMAIN, infer=same_as(0), reference=_table, lower=_by_table))


def _qlinear_concat(y_scale, y_zero, *inputs, axis):
    if not inputs or len(inputs) % 3:
        raise InputError(f"{len(inputs)} inputs follow; each part brings three: tensor, scale, zero point")
    parts = []
    for i in range(0, len(inputs), 3):
        x, scale, zero = inputs[i : i + 3]
        same = scalar(scale, "scale") == scalar(y_scale, "y_scale") and zero == y_zero
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


register(
    Op(
        "QLinearConcat",
        since=1,
        domain=DOMAIN,
        infer=_infer_qlinear_concat,
        reference=_qlinear_concat,
        lower=lower_concat.of(_qlinear_concat),
    )
)


# --- pools ---


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def _qlinear_average_pool(x, x_scale, x_zero=None, y_scale=None, y_zero=None, *, channels_last=0, **pool):
    data = dequantize(_channels_first(x) if channels_last else x, x_scale, x_zero, "X")
    y = quantize(average_pool(data, **pool), y_scale, y_zero, x.dtype)
    return _channels_last(y) if channels_last else y


def _qlinear_global_average_pool(x, x_scale, x_zero, y_scale, y_zero, *, channels_last=0):
    if x.ndim < 3:
        raise ShapeError(f"the input has rank {x.ndim}; batch, channels and spatial axes are needed")
    axes = tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim))
    shift, factor = scalar(x_zero, "x_zero_point"), scalar(x_scale, "x_scale") / scalar(y_scale, "y_scale")
    mean = (x.astype(np.float64) - shift).mean(axis=axes, keepdims=True)
    return saturate(np.rint((mean * factor).astype(np.float32)) + scalar(y_zero, "y_zero_point"), x.dtype)


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


register(
    Op(
        "QLinearAveragePool",
        since=1,
        domain=DOMAIN,
        infer=_infer_pool,
        reference=_qlinear_average_pool,
        lower=lower_average_pool,
    )
)
register(
    Op(
        "QLinearGlobalAveragePool",
        since=1,
        domain=DOMAIN,
        infer=_infer_global_pool,
        reference=_qlinear_global_average_pool,
        lower=lower_global_average_pool,
    )
)
register(Op("NhwcMaxPool", since=1, domain=DOMAIN, infer=_infer_pool, reference=_nhwc_max_pool))
