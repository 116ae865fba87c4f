"""Casting between element types, element by element.

The kernels are named by ONNX's types, `CAST["float32", "int64"]`; float16 and bfloat16 are held as u16. Rules as in
minifer's Cast: floats are cut to integers, saturating at 32 and 64 bits; narrower integers take the low bits of
that; NaN becomes 0; to bool, whatever is not 0 is 1. Cost: the memory traffic.
"""

import numpy as np

from minifer.kernels.elementwise import piece_start
from minifer.kernels.simd import (
    Scalar,
    bf16_to_f32,
    bitcast,
    f16_to_f32,
    f32_to_bf16,
    f32_to_f16,
    like,
    vabs,
    vall,
    vconvert,
    vload_n,
    vmax_quick,
    vmin_quick,
    vselect,
    vstore,
    vtrunc,
)
from minifer.kernels.spec import KernelSpec, Pointer, f32, f64, i8, i16, i32, i64, kernel, u8, u16, u32

#: ONNX name -> how it is held
HELD: dict[str, Scalar] = {
    "float32": f32, "float64": f64, "int64": i64, "int32": i32, "int16": i16, "int8": i8, "uint32": u32, "uint16": u16,
    "uint8": u8, "bool": u8, "float16": u16, "bfloat16": u16,
}  # fmt: skip

#: (from, to) -> kernel
CAST: dict[tuple[str, str], KernelSpec] = {}

LANES = 16  # elements converted at a time


# ---------------------------------------------------------------- the steps: functions of a vector


def to(element):
    """Plain conversion."""

    def step(v):
        return vconvert(v, element)

    return step


#: adding it to a float64 of magnitude below 2**51 leaves the nearest integer in the low bits of the sum
_ALIGN = 6755399441055744.0
_ALIGN_BITS = 0x4338000000000000
#: the same for float32 and 2**22
_ALIGN_SINGLE = 12582912.0
_ALIGN_SINGLE_BITS = 0x4B400000


def cut_to_i32(v):
    """Float lanes to i32: cut, saturating, NaN to 0. By additions, which all targets have for vectors."""
    if vall(vabs(v) < 2e6):
        return bitcast(vconvert(vtrunc(v), f32) + _ALIGN_SINGLE, i32) - _ALIGN_SINGLE_BITS
    wide = vconvert(vtrunc(vselect(v == v, v, like(v, 0))), f64)
    wide = vmin_quick(2147483647.0, vmax_quick(-2147483648.0, wide))
    return vconvert(bitcast(wide + _ALIGN, i64), i32)


def cut_to_i64(v):
    """Float lanes to i64: cut, saturating, NaN to 0."""
    if vall(vabs(v) < 1e15):
        return bitcast(vconvert(vtrunc(v), f64) + _ALIGN, i64) - _ALIGN_BITS
    return vconvert(v, i64)


def cut_to(element):
    """Float lanes to an integer type: the low bits of what saturates at 32 bits (at 64 for u32 and i64)."""
    middle = cut_to_i64 if element in (i64, u32) else cut_to_i32

    def step(v):
        return vconvert(middle(v), element)

    return step


def to_bool(v):
    """1 for all but 0."""
    return vconvert(vselect(v != 0, v * 0 + 1, v * 0), u8)


def float_to_bool(v):
    """1 for all but 0; NaN is not 0."""
    return vconvert(vselect(v != 0.0, vconvert(v, i32) * 0 + 1, vconvert(v, i32) * 0), u8)


def half(v):
    return f16_to_f32(v)


def to_half(v):
    return f32_to_f16(v)


def brain(v):
    return bf16_to_f32(v)


def to_brain(v):
    return f32_to_bf16(v)


def step_of(source, target):
    """The function of a vector that casts `source` to `target` (ONNX names)."""
    S, T = HELD[source], HELD[target]
    if source in ("float16", "bfloat16"):
        return half if source == "float16" else brain
    if target in ("float16", "bfloat16"):
        return to_half if target == "float16" else to_brain
    if target == "bool":
        return to_bool if S.integer else float_to_bool
    return cut_to(T) if T.integer and not S.integer else to(T)


# ---------------------------------------------------------------- references


def seen_as(x, name):
    """An array as it is held, as numbers: float16 and bfloat16 as float32."""
    if name == "float16":
        return x.view(np.float16).astype("f")
    if name == "bfloat16":
        return (x.astype(np.uint32) << 16).view("f")
    return x


def cut(x, dtype):
    """Floats to integers of `dtype` (32 or 64 bits): without the fraction, saturating, NaN to 0."""
    info = np.iinfo(dtype)
    wide = np.trunc(np.nan_to_num(x.astype("d"), nan=0.0, posinf=np.inf, neginf=-np.inf))
    inside = (wide >= info.min) & (wide < float(info.max))
    return np.where(inside, np.where(inside, wide, 0).astype(dtype), np.where(wide < 0, info.min, info.max))


def rounded_to_brain(x):
    """float32 to bfloat16 bits, to nearest even."""
    bits = x.view(np.uint32).astype(np.uint64)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, near).astype(np.uint16)


def expected(x, source, target):
    """The cast by NumPy."""
    x, T = seen_as(x, source), HELD[target].dtype
    if target == "float16":
        return x.astype(np.float16).view(np.uint16)
    if target == "bfloat16":
        return rounded_to_brain(x)
    if target == "bool":
        return (x != 0).astype("u1")
    if x.dtype.kind == "f" and T.kind in "iu":
        return cut(x, np.int64 if target in ("int64", "uint32") else np.int32).astype(T)
    return x.astype(T)


def draw(rng, name, n):
    """Random elements as they are held: around the limits of all integers, fractions, NaN, infinities."""
    T = HELD[name]
    if name == "bool":
        return rng.integers(0, 2, n).astype("u1")
    if T.integer and name not in ("float16", "bfloat16"):
        info = np.iinfo(T.dtype)
        return np.where(rng.random(n) < 0.5, rng.integers(0, 5, n), rng.integers(info.min, info.max, n)).astype(T.dtype)
    x = rng.standard_normal(n) * 2.0 ** rng.integers(-8, 70, n)
    x = np.where(rng.random(n) < 0.2, rng.choice([0.0, -0.0, np.nan, np.inf, -np.inf, 0.5, -1.0], n), x)
    with np.errstate(all="ignore"):
        if name == "float16":
            return x.astype(np.float16).view(np.uint16)
        return rounded_to_brain(x.astype("f")) if name == "bfloat16" else x.astype(T.dtype)


# ---------------------------------------------------------------- the kernels


def cast_of(source, target, group):
    """Make the kernel that casts `source` to `target`."""
    S, T = HELD[source], HELD[target]
    f = step_of(source, target)

    def example(rng, size):
        n = int(rng.integers(0, 20 * size))
        return {"x": draw(rng, source, n), "y": np.zeros(n, T.dtype), "n": n}

    def reference(x, y, n):
        return {"y": expected(x, source, target)}

    def body(x: Pointer(S), y: Pointer(T), n: i64, tid: i64, nthreads: i64):
        """y[i] = x[i] in another element type, for i < n."""
        i, end = piece_start(n, tid, nthreads), piece_start(n, tid + 1, nthreads)
        while i + LANES <= end:
            vstore(y, i, f(vload_n(x, i, LANES)))
            i += LANES
        while i < end:
            vstore(y, i, f(vload_n(x, i, 1)))
            i += 1

    name = f"cast_{source}_{target}"
    CAST[source, target] = kernel(reference=reference, example=example, tolerance=0, name=name, group=group)(body)


_CASTS = {
    "float": ("float32", ("float64", "float16", "bfloat16")),
    "integer": ("int64", ("int32", "float32", "bool")),
    "single": ("float32", ("int64", "int32", "bool", "uint8", "int8")),
    "word": ("int32", ("int64", "float32", "bool", "uint8", "int8", "uint16", "int16", "float64")),
    "bytes": ("uint8", ("float32", "int32", "int64")),
    "signed": ("int8", ("float32", "int32", "int64")),
    "short": ("int16", ("float32", "int32")),
    "unsigned": ("uint16", ("float32", "int32")),
    "double": ("float64", ("float32", "int64", "int32", "bool")),
    "long": ("int64", ("float64", "uint8", "int8", "uint32")),
}
for _group, (_source, _targets) in _CASTS.items():
    for _target in _targets:
        cast_of(_source, _target, _group)
cast_of("float16", "float32", "float")
cast_of("bfloat16", "float32", "float")
cast_of("uint32", "int64", "long")
#: a bool is held as a byte 0 or 1
CAST.update({("bool", t): CAST["uint8", t] for s, t in list(CAST) if s == "uint8"})
