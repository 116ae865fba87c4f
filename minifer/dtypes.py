"""ONNX element types: their names, codes (onnx.proto TensorProto.DataType) and NumPy dtypes.

minifer names an element type by a string: "float32", "bfloat16", "string" and so on. The types that
NumPy lacks are `ml_dtypes` types, imported when first met. Sub-byte types (int4, uint2, float4e2m1 ...)
are held unpacked, one element a byte. Strings are object arrays of `str`.
"""

from __future__ import annotations

import functools

import numpy as np

from minifer.errors import UnsupportedError

#: name -> (TensorProto.DataType code, bits per element as stored in a file, 0 for strings)
TYPES: dict[str, tuple[int, int]] = {
    "float32": (1, 32), "uint8": (2, 8), "int8": (3, 8), "uint16": (4, 16), "int16": (5, 16), "int32": (6, 32),
    "int64": (7, 64), "string": (8, 0), "bool": (9, 8), "float16": (10, 16), "float64": (11, 64),
    "uint32": (12, 32), "uint64": (13, 64), "complex64": (14, 64), "complex128": (15, 128), "bfloat16": (16, 16),
    "float8e4m3fn": (17, 8), "float8e4m3fnuz": (18, 8), "float8e5m2": (19, 8), "float8e5m2fnuz": (20, 8),
    "uint4": (21, 4), "int4": (22, 4), "float4e2m1": (23, 4), "float8e8m0": (24, 8), "uint2": (25, 2), "int2": (26, 2),
    "float6e2m3": (27, 6), "float6e3m2": (28, 6),
}  # fmt: skip

_ML_NAMES = {
    "bfloat16": "bfloat16", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "uint4": "uint4", "int4": "int4",
    "float4e2m1": "float4_e2m1fn", "float8e8m0": "float8_e8m0fnu", "uint2": "uint2", "int2": "int2",
    "float6e2m3": "float6_e2m3fn", "float6e3m2": "float6_e3m2fn",
}  # fmt: skip
_FROM_ML = {v: k for k, v in _ML_NAMES.items()}
_BY_CODE = {code: name for name, (code, _) in TYPES.items()}

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOAT8 = ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz")


def name_of_code(code: int) -> str:
    """The name of a TensorProto.DataType code; UnsupportedError for one that no released ONNX defines."""
    if code not in _BY_CODE:
        raise UnsupportedError(f"element type code {code} is not known; the model may need a newer minifer")
    return _BY_CODE[code]


def code_of_name(name: str) -> int:
    """The TensorProto.DataType code of an element type name."""
    return TYPES[name][0]


def bits(name: str) -> int:
    """Bits per element in a file (4 for int4); 0 for strings."""
    return TYPES[name][1]


@functools.cache
def to_numpy(name: str) -> np.dtype:
    """The NumPy dtype of an element type name: `object` for strings, an `ml_dtypes` one where NumPy has none."""
    if name == "string":
        return np.dtype(object)
    if name in _ML_NAMES:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, _ML_NAMES[name]))
    return np.dtype(name)


def from_numpy(dtype: np.dtype | type) -> str:
    """The element type name of a NumPy dtype; any string or object dtype is "string"."""
    return _name_of(np.dtype(dtype))


@functools.cache
def _name_of(dtype: np.dtype) -> str:  # NumPy builds a dtype's name anew each time
    if dtype.kind in "OUST":
        return "string"
    name = _FROM_ML.get(dtype.name, dtype.name)
    if name not in TYPES:
        raise UnsupportedError(f"NumPy dtype {dtype} has no ONNX element type")
    return name
