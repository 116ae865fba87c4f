"""Cast, CastLike and BitCast; `convert` is the conversion that quantization and others use too.

What the specification leaves undefined is settled here, so that every executor can do the same:

* A float outside the range of a 32- or 64-bit integer saturates (uint32 keeps the low bits of the saturated int64);
  for narrower integers the low bits of the saturated int32 are kept, as C on x86 does. NaN becomes 0.
* A number written as text is the shortest one that reads back; the special values are NaN, INF and -INF; a bool is
  1 or 0. Text read as an integer may be a float, which is truncated; text out of range, or no number, is an error.
* A negative number has no float8e8m0 value and becomes NaN; -0 is taken as 0.
"""

from __future__ import annotations

import functools

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, UnsupportedError
from minifer.ir import TensorType, Type
from minifer.ops.numeric import check_count, kind_of
from minifer.ops.registry import Call, Op, deferred, register

lower_cast = deferred("lower_elementwise", "lower_cast")

_SUB_BYTE = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
_FLOATING = (*dtypes.FLOATS, *dtypes.FLOAT8, "float8e8m0", "float4e2m1", "float6e2m3", "float6e3m2")
_NARROW_FLOATS = tuple(k for k in _FLOATING if k not in ("float16", "float32", "float64"))
_MANY = 1 << 14  # float16 numbers from which on a table of all is worth making
_LEGACY_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}  # the other names of Cast-1 are ours in capitals


def convert(x: np.ndarray, to: str, *, saturate: bool = True, round_mode: str = "up") -> np.ndarray:
    """`x` with element type `to`, by the rules of Cast. `saturate` is for 8-bit floats, `round_mode` for float8e8m0."""
    x, kind = np.asarray(x), kind_of(x)
    if kind.startswith("complex") or to.startswith("complex"):
        raise InputError(f"cannot cast {kind} to {to}")
    if kind == to:
        return x
    if to == "string":
        return _to_text(x, kind)
    if kind == "string":
        return _from_text(x, to, saturate, round_mode)
    if kind in _SUB_BYTE:
        x = x.astype(np.int8 if kind.startswith("int") else np.uint8)
    elif kind == "float16" and x.size >= _MANY:
        x = _halves(x)
    elif kind in _NARROW_FLOATS or kind == "float16":
        x = x.astype(np.float32)
    if to == "bool":
        return np.asarray(x != 0)
    if to in _FLOATING:
        return _to_float(x, to, saturate, round_mode)
    return _to_integer(x, to)


@functools.cache
def _every_half() -> np.ndarray:
    """All float16 numbers in the order of their bits, as float32."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _halves(x: np.ndarray) -> np.ndarray:
    """float16 as float32, looked up, in less than half of the time that NumPy takes to convert one after the other."""
    bits = np.ascontiguousarray(x, np.float16).reshape(-1).view(np.uint16)
    y = np.empty(bits.size, np.float32)
    for i in range(0, bits.size, _MANY):  # so few at once that the indices stay in the cache
        _every_half().take(bits[i : i + _MANY], out=y[i : i + _MANY], mode="clip")
    return y.reshape(x.shape)


def _to_float(x: np.ndarray, to: str, saturate: bool, round_mode: str) -> np.ndarray:
    dtype = dtypes.to_numpy(to)
    if to not in _NARROW_FLOATS:
        return x.astype(dtype, copy=False)
    if to == "float8e8m0":
        return _to_power_of_two(x.astype(np.float64), saturate, round_mode)
    wide = _round_to_odd(x.astype(np.float64)) if x.dtype != np.float32 else x
    y = wide.astype(dtype)
    if saturate and to in dtypes.FLOAT8:
        import ml_dtypes

        over = ~np.isfinite(y.astype(np.float32)) & ~np.isnan(wide)
        largest = np.float32(ml_dtypes.finfo(dtype).max)
        y = np.where(over, np.copysign(largest, wide), y.astype(np.float32)).astype(dtype)
    return y


def _round_to_odd(x: np.ndarray) -> np.ndarray:
    """float64 as float32, inexact values to the neighbour with an odd last bit: a second rounding to a type with at
    least two bits less then gives what one rounding would (Boldo and Melquiond 2008)."""
    y = np.asarray(x.astype(np.float32))
    inexact = (y != x) & ~np.isnan(x)
    toward_zero = y.view(np.uint32) - (inexact & (np.abs(y.astype(np.float64)) > np.abs(x))).astype(np.uint32)
    return np.asarray(toward_zero | inexact.astype(np.uint32)).view(np.float32)


def _to_power_of_two(x: np.ndarray, saturate: bool, round_mode: str) -> np.ndarray:
    """float64 to float8e8m0: the exponent alone, with bias 127; code 255 is NaN."""
    thresholds = {"up": 0.5, "nearest": 0.75, "down": 1.0}
    if round_mode not in thresholds:
        raise InputError(f"round_mode is {round_mode!r}; it must be 'up', 'down' or 'nearest'")
    fraction, exponent = np.frexp(np.where(np.isfinite(x), x, 1))  # x = fraction * 2^exponent, fraction in [0.5, 1)
    limit = thresholds[round_mode]
    code = exponent + np.where((fraction > limit) | ((fraction == limit) & (round_mode == "nearest")), 127, 126)
    code = np.where(x == 0, -1, np.where(np.isposinf(x), 255, code))
    code = np.clip(code, 0, 254) if saturate else np.where((code < 0) | (code > 254), 255, code)
    code = np.where(np.isnan(x) | (x < 0), 255, code)
    return code.astype(np.uint8).view(dtypes.to_numpy("float8e8m0"))


def _to_integer(x: np.ndarray, to: str) -> np.ndarray:
    if x.dtype.kind == "f":
        via = {"int32": "int32", "int64": "int64", "uint64": "uint64", "uint32": "int64"}.get(to, "int32")
        x = _saturating(x, np.dtype(via))
    if to in _SUB_BYTE:
        bits = _SUB_BYTE[to]
        low = x.astype(np.int8) & np.int8((1 << bits) - 1)
        if to.startswith("int"):
            sign = np.int8(1 << (bits - 1))
            low = (low ^ sign) - sign
        x = np.asarray(low)
    return x.astype(dtypes.to_numpy(to))


def _saturating(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float to integer, rounded toward zero, the limits of `dtype` beyond its range, 0 for NaN."""
    limits = np.iinfo(dtype)
    wide = np.trunc(x.astype(np.float64))
    inside = (wide >= float(limits.min)) & (wide < float(limits.max) + (1 if dtype.itemsize < 8 else 0))
    y = np.where(inside, wide, 0).astype(dtype)
    y = np.where(wide < float(limits.min), limits.min, y)
    return np.where(~inside & (wide > 0), limits.max, y).astype(dtype)


def _to_text(x: np.ndarray, kind: str) -> np.ndarray:
    out = np.empty(x.shape, object)
    if kind in _FLOATING:
        texts = [str(v) for v in x.reshape(-1)]
        special = {"nan": "NaN", "-nan": "NaN", "inf": "INF", "-inf": "-INF"}
        texts = [special.get(t, t) for t in texts]
    else:
        texts = [str(int(v)) for v in x.reshape(-1)]
    out.reshape(-1)[...] = texts
    return out


def _from_text(x: np.ndarray, to: str, saturate: bool, round_mode: str) -> np.ndarray:
    if to in dtypes.INTEGERS or to in _SUB_BYTE:
        return _integers_from_text(x, to)
    values = np.array([_number(text) for text in x.reshape(-1)], np.float64).reshape(x.shape)
    return convert(values, to, saturate=saturate, round_mode=round_mode)


def _number(text: str) -> float:
    try:
        if "_" not in text:
            return float(text)
    except ValueError:
        pass
    raise InputError(f"cannot cast {text!r} to a number")


def _integers_from_text(x: np.ndarray, to: str) -> np.ndarray:
    def parse(text: str) -> int:
        stripped = text.strip()
        if stripped.lstrip("+-").isdecimal() and stripped.isascii():
            return int(stripped)
        value = _number(text)
        if not np.isfinite(value):
            raise InputError(f"cannot cast {text!r} to {to}: it is not finite")
        return int(value)

    signed = not to.startswith("u")
    low = -(1 << (dtypes.bits(to) - 1)) if signed else 0
    high = (1 << (dtypes.bits(to) - signed)) - 1
    values = [parse(text) for text in x.reshape(-1)]
    for value in values:
        if not low <= value <= high:
            raise InputError(f"cannot cast '{value}' to {to}: it is outside [{low}, {high}]")
    return np.array(values, np.int64 if signed else np.uint64).reshape(x.shape).astype(dtypes.to_numpy(to))


def _code(to: int) -> str:
    return dtypes.name_of_code(int(to))


def _name_of_legacy(to: str) -> str:
    """The element type that Cast-1 names in capitals."""
    name = _LEGACY_NAMES.get(to.upper(), to.lower())
    if name not in dtypes.TYPES:
        raise UnsupportedError(f"element type {to!r} is not known")
    return name


def _cast_1(x, *, to):
    return convert(x, _name_of_legacy(to) if isinstance(to, str) else _code(to))


def _cast_6(x, *, to):
    return convert(x, _code(to))


def _cast_19(x, *, to, saturate=1):
    return convert(x, _code(to), saturate=bool(saturate))


def _cast_24(x, *, to, saturate=1, round_mode="up"):
    return convert(x, _code(to), saturate=bool(saturate), round_mode=round_mode)


def _cast_like_15(x, like):
    return convert(x, kind_of(like))


def _cast_like_19(x, like, *, saturate=1):
    return convert(x, kind_of(like), saturate=bool(saturate))


def _cast_like_24(x, like, *, saturate=1, round_mode="up"):
    return convert(x, kind_of(like), saturate=bool(saturate), round_mode=round_mode)


def _bit_cast(x, *, to):
    kind, target = kind_of(x), _code(to)
    if "string" in (kind, target) or dtypes.bits(kind) != dtypes.bits(target):
        raise InputError(f"cannot reinterpret {kind} as {target}: the sizes in bits must be equal")
    if target == "bool":
        return np.asarray(x.view(np.uint8) != 0)
    return np.array(x, order="C").view(dtypes.to_numpy(target))


def _cast_types(call: Call) -> Type:
    check_count(call, 1, 1)
    to = call.attr("to")
    if to is None:
        raise call.fail("attribute 'to' is missing")
    name = _name_of_legacy(to) if isinstance(to, str) else _code(to)
    if name.startswith("complex") or call.dtype(0).startswith("complex"):
        raise call.fail(f"cannot cast {call.dtype(0)} to {name}")
    return TensorType(name, call.shape(0))


def _cast_like_types(call: Call) -> Type:
    check_count(call, 2, 2)
    return TensorType(call.dtype(1), call.shape(0))


def _bit_cast_types(call: Call) -> Type:
    check_count(call, 1, 1)
    kind, target = call.dtype(0), _code(call.attr("to", 0))
    if "string" in (kind, target) or dtypes.bits(kind) != dtypes.bits(target):
        raise call.fail(f"cannot reinterpret {kind} as {target}: the sizes in bits must be equal")
    return TensorType(target, call.shape(0))


for _since, _reference in ((1, _cast_1), (6, _cast_6), (19, _cast_19), (24, _cast_24)):
    register(Op("Cast", since=_since, infer=_cast_types, reference=_reference, lower=lower_cast))
for _since, _like in ((15, _cast_like_15), (19, _cast_like_19), (24, _cast_like_24)):
    register(Op("CastLike", since=_since, infer=_cast_like_types, reference=_like, lower=lower_cast))
register(Op("BitCast", since=26, infer=_bit_cast_types, reference=_bit_cast))
