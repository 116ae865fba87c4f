"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.

A scale is a scalar (per tensor), a vector along one axis (since opset 13), or has the shape of the data with one axis
shortened by the block size (since opset 21). `quantized` is the rounding and saturating step that the other quantized
operators use too.
"""

from __future__ import annotations

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.cast import convert
from minifer.ops.numeric import check_count, check_type, kind_of, narrow, normal_axis, require, require_same_type, widen
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import axis_of

lower_dequantize, lower_dynamic_quantize, lower_quantize = deferred(
    "lower_quantize", "lower_dequantize", "lower_dynamic_quantize", "lower_quantize",
)  # fmt: skip

QUANTIZED = ("int8", "uint8", *dtypes.FLOAT8)
_RANGED = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2")
_TARGETS = (*_RANGED, *dtypes.FLOAT8, "float4e2m1", "float6e2m3", "float6e3m2")
_SOURCES = (*_TARGETS, "int32")
_PLAIN = ("float32", "float16", "bfloat16", "int32")
_SCALES = (*_PLAIN, "float8e8m0")
_OUTPUTS = ("float32", "float16", "bfloat16")


def integer_range(kind: str) -> tuple[int, int]:
    """The least and the greatest value of an integer element type."""
    bits = dtypes.bits(kind)
    return (0, (1 << bits) - 1) if kind.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def quantized(ratio: np.ndarray, zero: np.ndarray | None, kind: str, saturate: bool = True) -> np.ndarray:
    """A float array as element type `kind`: integers are rounded to even, moved by the zero point and saturated
    (NaN becomes 0); floats are moved and converted."""
    if kind not in _RANGED:
        moved = ratio if zero is None else ratio + widen(zero).astype(ratio.dtype)
        return convert(np.asarray(moved), kind, saturate=saturate)
    whole = np.rint(ratio).astype(np.float64)
    if zero is not None:
        whole = whole + widen(zero).astype(np.float64)
    return convert(np.asarray(np.clip(whole, *integer_range(kind))), kind)


def spread(parameter: np.ndarray, shape: tuple[int, ...], axis: int, block: int, what: str) -> np.ndarray:
    """A scale or zero point so that it broadcasts to data of a shape."""
    if parameter.ndim == 0 or (parameter.ndim == 1 and parameter.size == 1):
        return parameter.reshape(())
    if block:
        axis = normal_axis(axis, len(shape))
        blocks = tuple(-(-d // block) if i == axis else d for i, d in enumerate(shape))
        if parameter.shape != blocks:
            raise ShapeError(f"{what} has shape {parameter.shape}; blocks of {block} along axis {axis} need {blocks}")
        return np.repeat(parameter, block, axis).take(range(shape[axis]), axis)
    axis = 0 if len(shape) == 1 else normal_axis(axis, len(shape))
    if parameter.ndim != 1 or not shape or parameter.size != shape[axis]:
        raise ShapeError(f"{what} has shape {parameter.shape}; it must be a scalar or have one value per index of axis "
                         f"{axis} of the data of shape {shape}")  # fmt: skip
    return parameter.reshape((-1,) + (1,) * (len(shape) - axis - 1))


def _parameters(x, scale, zero, axis, block):
    """Scale and zero point laid along the data."""
    if block < 0:
        raise InputError(f"block_size is {block}; it must not be negative")
    if zero is not None and zero.shape != scale.shape and not zero.size == scale.size == 1:
        raise ShapeError(f"the zero point has shape {zero.shape}, the scale {scale.shape}; they must be equal")
    return (
        spread(scale, x.shape, axis, block, "the scale"),
        None if zero is None else spread(zero, x.shape, axis, block, "the zero point"),
    )


def _divided(x: np.ndarray, scale: np.ndarray, precision: str) -> np.ndarray:
    """x / scale, rounded to the type `precision`; integer scales are divided by in float64."""
    if precision in ("int32", "float64"):
        return np.asarray(widen(x).astype(np.float64) / widen(scale).astype(np.float64))
    dtype = dtypes.to_numpy("float32" if precision == "float8e8m0" else precision)
    top, bottom = (widen(v).astype(dtype).astype(np.float32) for v in (x, scale))
    return np.asarray(top / bottom).astype(dtype).astype(np.float32)


def _target(zero_kind: str | None, output_dtype: int) -> str:
    """The element type to quantize to; InputError where zero point and attribute contradict each other."""
    wanted = dtypes.name_of_code(output_dtype) if output_dtype else None
    if wanted and zero_kind and wanted != zero_kind:
        raise InputError(f"output_dtype is {wanted}, the zero point has element type {zero_kind}; they must be equal")
    return zero_kind or wanted or "uint8"


def _quantize_23(x, scale, zero=None, *, axis=1, saturate=1, block_size=0, output_dtype=0, precision=0):
    require(x, _PLAIN)
    require(scale, _SCALES, "the scale")
    kind = _target(None if zero is None else kind_of(zero), output_dtype)
    if kind not in _TARGETS:
        raise InputError(f"cannot quantize to {kind}")
    laid, moved = _parameters(x, scale, zero, axis, block_size)
    ratio = _divided(x, laid, dtypes.name_of_code(precision) if precision else kind_of(scale))
    return quantized(ratio, moved, kind, bool(saturate))


def _quantize_21(x, scale, zero=None, *, axis=1, saturate=1, block_size=0, output_dtype=0):
    return _quantize_23(
        x, scale, zero, axis=axis, saturate=saturate, block_size=block_size, output_dtype=output_dtype
    )  # fmt: skip


def _quantize_19(x, scale, zero=None, *, axis=1, saturate=1):
    return _quantize_23(x, scale, zero, axis=axis, saturate=saturate)


def _quantize_13(x, scale, zero=None, *, axis=1):
    return _quantize_23(x, scale, zero, axis=axis)


def _quantize_10(x, scale, zero=None):
    _require_scalar(scale)
    return _quantize_23(x, scale, zero)


def _require_scalar(scale):
    if scale.size != 1:
        raise ShapeError(f"the scale must be a scalar before opset 13, got shape {scale.shape}")


def _dequantize_23(x, scale, zero=None, *, axis=1, block_size=0, output_dtype=0):
    require(x, _SOURCES)
    require(scale, _SCALES, "the scale")
    out = dtypes.name_of_code(output_dtype) if output_dtype else kind_of(scale)
    if out not in _OUTPUTS:
        raise InputError(f"cannot dequantize to {out}; set output_dtype to a float type")
    laid, moved = _parameters(x, scale, zero, axis, block_size)
    wide = widen(x)
    if wide.dtype.kind in "iu":
        wide = wide.astype(np.int64)
    if moved is not None:
        require_same_type(x, zero)
        wide = wide - widen(moved).astype(wide.dtype)
    return narrow(np.asarray(wide).astype(np.float32) * widen(laid).astype(np.float32), dtypes.to_numpy(out))


def _dequantize_21(x, scale, zero=None, *, axis=1, block_size=0):
    return _dequantize_23(x, scale, zero, axis=axis, block_size=block_size)


def _dequantize_13(x, scale, zero=None, *, axis=1):
    return _dequantize_23(x, scale, zero, axis=axis)


def _dequantize_10(x, scale, zero=None):
    _require_scalar(scale)
    return _dequantize_23(x, scale, zero)


def _dynamic_quantize(x):
    require(x, ("float32",))
    low = np.minimum(x.min(initial=np.inf), np.float32(0))
    high = np.maximum(x.max(initial=-np.inf), np.float32(0))
    scale = np.asarray(((high - low) / np.float32(255)).astype(np.float32))
    zero = convert(np.asarray(np.rint(np.clip(-low / scale, 0, 255))), "uint8")
    return quantized(np.asarray(x / scale), zero, "uint8"), scale, zero


def _checked_parameters(call: Call, shape: tuple[Dim, ...] | None, per_axis: bool) -> None:
    """ShapeError where the shapes of scale (input 1) and zero point (input 2) cannot fit the data."""
    scale, block = call.shape(1), call.attr("block_size", 0)
    if block < 0:
        raise call.fail(f"block_size is {block}; it must not be negative")
    if call.has(2):
        zero = call.shape(2)
        one = all(s is not None and all(d == 1 for d in s) for s in (zero, scale))
        if zero is not None and scale is not None and not one and not _may_equal(zero, scale):
            raise call.fail("scale and zero point must have equal shapes")
    if scale is None or shape is None or all(d == 1 for d in scale):
        return
    if not per_axis and any(isinstance(d, int) for d in scale):
        raise call.fail("the scale must be a scalar before opset 13")
    axis = 0 if len(shape) == 1 else axis_of(call, call.attr("axis", 1), len(shape))
    size = shape[axis] if shape else None
    if block:
        blocked = -(-size // block) if isinstance(size, int) else None
        if not _may_equal(scale, shape[:axis] + (blocked,) + shape[axis + 1 :]):
            raise call.fail(f"the scale's shape does not fit blocks of {block} along axis {axis}")
    elif len(scale) != 1 or not shape or not _may_equal(scale, (size,)):
        raise call.fail(f"the scale must be a scalar or have one value per index of axis {axis}")


def _may_equal(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    return len(a) == len(b) and all(d == e or not isinstance(d, int) or not isinstance(e, int) for d, e in zip(a, b))


def _quantize_types(per_axis: bool):
    def infer(call: Call) -> Type:
        check_count(call, 2, 3)
        shape = check_type(call, 0, _PLAIN).shape
        check_type(call, 1, _SCALES)
        try:
            kind = _target(call.dtype(2) if call.has(2) else None, call.attr("output_dtype", 0))
        except InputError as error:
            raise call.fail(str(error)) from error
        if kind not in _TARGETS:
            raise call.fail(f"cannot quantize to {kind}")
        _checked_parameters(call, shape, per_axis)
        return TensorType(kind, shape)

    return infer


def _dequantize_types(per_axis: bool):
    def infer(call: Call) -> Type:
        check_count(call, 2, 3)
        kind = check_type(call, 0, _SOURCES)
        check_type(call, 1, _SCALES)
        if call.has(2) and call.dtype(2) != kind.dtype:
            raise call.fail("the zero point must have the element type of the data")
        code = call.attr("output_dtype", 0)
        out = dtypes.name_of_code(code) if code else call.dtype(1)
        if out not in _OUTPUTS:
            raise call.fail(f"cannot dequantize to {out}; set output_dtype to a float type")
        _checked_parameters(call, kind.shape, per_axis)
        return TensorType(out, kind.shape)

    return infer


def _dynamic_types(call: Call) -> list[Type]:
    check_count(call, 1, 1)
    kind = check_type(call, 0, ("float32",))
    return [TensorType("uint8", kind.shape), TensorType("float32", ()), TensorType("uint8", ())]


for _since, _reference in (
    (10, _quantize_10), (13, _quantize_13), (19, _quantize_19), (21, _quantize_21), (23, _quantize_23),
):  # fmt: skip
    _infer = _quantize_types(_since > 10)
    register(Op("QuantizeLinear", since=_since, infer=_infer, reference=_reference, lower=lower_quantize))
for _since, _reference in ((10, _dequantize_10), (13, _dequantize_13), (21, _dequantize_21), (23, _dequantize_23)):
    _infer = _dequantize_types(_since > 10)
    register(Op("DequantizeLinear", since=_since, infer=_infer, reference=_reference, lower=lower_dequantize))
register(
    Op(
        "DynamicQuantizeLinear",
        since=11,
        infer=_dynamic_types,
        reference=_dynamic_quantize,
        lower=lower_dynamic_quantize,
    )
)
