"""Types and plain attribute values: TypeProto to ir types, AttributeProto to Python values, and back.

Graphs among the attributes are the business of `read` and `write`, which hand in how to convert one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import ModelError, UnsupportedError
from minifer.ir import (
    Dim,
    Graph,
    MapType,
    OptionalType,
    SequenceType,
    SparseTensor,
    SparseTensorType,
    TensorType,
    Type,
)
from minifer.onnx_io.external import ExternalFiles
from minifer.onnx_io.schema import MESSAGES
from minifer.onnx_io.tensor import read_sparse, read_tensor, write_sparse, write_tensor

AttributeProto: Any = MESSAGES["AttributeProto"]
TypeProto: Any = MESSAGES["TypeProto"]
Tensor: Any = MESSAGES["TypeProto.Tensor"]
Nested: Any = MESSAGES["TypeProto.Sequence"]
Map: Any = MESSAGES["TypeProto.Map"]
Shape: Any = MESSAGES["TensorShapeProto"]
Dimension: Any = MESSAGES["TensorShapeProto.Dimension"]

#: AttributeProto.AttributeType -> the field that holds the value
_FIELDS = {
    1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs",
    11: "sparse_tensor", 12: "sparse_tensors", 13: "tp", 14: "type_protos",
}  # fmt: skip
_CODES = {field: code for code, field in _FIELDS.items()}


# ---- types


def read_type(proto: Any, who: str) -> Type | None:
    """The ir type of a TypeProto; None where it says nothing (no element type)."""
    said = [name for name in proto.__dict__ if name.endswith("_type")]
    if not said:
        return None
    kind = said[-1]  # the last one holds, as in every oneof
    value = getattr(proto, kind)
    if kind in ("tensor_type", "sparse_tensor_type"):
        if not value.elem_type:
            return None
        made = TensorType if kind == "tensor_type" else SparseTensorType
        return made(_dtype(value.elem_type, who), _read_shape(value.shape))
    if kind in ("sequence_type", "optional_type"):
        element = None if value.elem_type is None else read_type(value.elem_type, who)
        return SequenceType(element) if kind == "sequence_type" else OptionalType(element)
    if kind == "map_type":
        element = None if value.value_type is None else read_type(value.value_type, who)
        return MapType(_dtype(value.key_type, who), element)
    raise UnsupportedError(f"{who} has the opaque type '{value.domain}.{value.name}', which minifer cannot hold")


def _dtype(code: int, who: str) -> str:
    try:
        return dtypes.name_of_code(code)
    except UnsupportedError as error:
        raise UnsupportedError(f"{who}: {error}") from None


def _read_shape(shape: Any) -> tuple[Dim, ...] | None:
    return None if shape is None else tuple(map(_read_dim, shape.dim))


def _read_dim(dim: Any) -> Dim:
    if dim.has("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # -1 is some exporters' "unknown"
    return dim.dim_param or None


def write_type(kind: Type | None) -> Any:
    """The TypeProto of an ir type; an unknown element of a sequence is left out."""
    if isinstance(kind, TensorType | SparseTensorType):
        value = Tensor(elem_type=dtypes.code_of_name(kind.dtype))
        if kind.shape is not None:
            value.shape = Shape(dim=[_write_dim(d) for d in kind.shape])
        if isinstance(kind, TensorType):
            return TypeProto(tensor_type=value)
        return TypeProto(sparse_tensor_type=value)
    if isinstance(kind, SequenceType | OptionalType):
        nested = Nested() if kind.element is None else Nested(elem_type=write_type(kind.element))
        return TypeProto(sequence_type=nested) if isinstance(kind, SequenceType) else TypeProto(optional_type=nested)
    if isinstance(kind, MapType):
        entry = Map(key_type=dtypes.code_of_name(kind.key))
        if kind.value is not None:
            entry.value_type = write_type(kind.value)
        return TypeProto(map_type=entry)
    return TypeProto()


def _write_dim(dim: Dim) -> Any:
    if dim is None:
        return Dimension()
    return Dimension(dim_value=dim) if isinstance(dim, int) else Dimension(dim_param=dim)


# ---- attributes


def read_attribute(proto: Any, who: str, files: ExternalFiles, read_graph: Callable[[Any], Graph]) -> Any:
    """The Python value of an AttributeProto (see ir.Node). `who` names the node in messages."""
    field = _field_of(proto, who)
    value = getattr(proto, field)
    if field in ("f", "i"):
        return value
    if field in ("floats", "ints"):
        return tuple(value)
    if field == "s":
        return _text(value)
    if field == "strings":
        return tuple(map(_text, value))
    where = f"attribute '{proto.name}' of {who}"

    def convert(item: Any) -> Any:
        if item is None:
            raise ModelError(f"{where} holds no value")
        if field in ("t", "tensors"):
            return read_tensor(item, files, where)
        if field in ("sparse_tensor", "sparse_tensors"):
            return read_sparse(item, files, where)
        return read_type(item, where) if field in ("tp", "type_protos") else read_graph(item)

    return tuple(map(convert, value)) if field.endswith("s") else convert(value)


def _field_of(proto: Any, who: str) -> str:
    said = _FIELDS.get(proto.type)
    if said is not None and proto.has(said):
        return said
    held = [field for field in _CODES if proto.has(field)]
    if proto.type == 0:  # the first ONNX files do not say it
        if len(held) != 1:
            raise ModelError(f"attribute '{proto.name}' of {who} has no type and {len(held)} values")
        return held[0]
    if said is None:
        raise UnsupportedError(f"attribute '{proto.name}' of {who} has the unknown type {proto.type}")
    if held:
        raise ModelError(f"attribute '{proto.name}' of {who} should hold '{said}' and holds '{held[0]}'")
    return said  # a default value, which some writers leave out


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def write_attribute(name: str, value: Any, who: str, write_graph: Callable[[Graph], Any]) -> Any:
    """The AttributeProto of a Python value; UnsupportedError for a value of another kind."""

    def convert(field: str, item: Any) -> Any:
        if field in ("t", "tensors"):
            return write_tensor(item)
        if field in ("sparse_tensor", "sparse_tensors"):
            return write_sparse(item)
        if field in ("tp", "type_protos"):
            return write_type(item)
        if field in ("g", "graphs"):
            return write_graph(item)
        if field in ("s", "strings"):
            return item.encode("utf-8", "surrogateescape") if isinstance(item, str) else bytes(item)
        if field in ("f", "floats"):
            return _float(float(item))
        return _int(int(item))

    proto = AttributeProto(name=name)
    if isinstance(value, tuple | list):
        fields = [_field_for(item) for item in value]
        many = {"f": "floats", "i": "ints", "s": "strings", "t": "tensors", "g": "graphs"}
        many |= {"sparse_tensor": "sparse_tensors", "tp": "type_protos"}
        kinds = set(fields) or {"i"}  # of an empty list the kind is lost; operators read it as any
        kinds = {"f"} if kinds == {"f", "i"} else kinds
        if len(kinds) == 1 and None not in kinds:
            field = many[kinds.pop()]  # type: ignore[index]
            proto.type = _CODES[field]
            setattr(proto, field, [convert(field, item) for item in value])
            return proto
    else:
        single = _field_for(value)
        if single is not None:
            proto.type = _CODES[single]
            setattr(proto, single, convert(single, value))
            return proto
    raise UnsupportedError(f"attribute '{name}' of {who} is no value that ONNX can store: {value!r}")


def _field_for(value: Any) -> str | None:
    if isinstance(value, np.ndarray):
        return "t"
    if isinstance(value, bool | int | np.integer | np.bool_):
        return "i"
    if isinstance(value, float | np.floating):
        return "f"
    if isinstance(value, str | bytes):
        return "s"
    if isinstance(value, Graph):
        return "g"
    if isinstance(value, SparseTensor):
        return "sparse_tensor"
    if isinstance(value, TensorType | SparseTensorType | SequenceType | OptionalType | MapType):
        return "tp"
    return None


def _float(value: float) -> float:
    # as float32 does it: too large becomes infinite, where struct would raise
    return math.copysign(math.inf, value) if math.isfinite(value) and abs(value) >= 3.4028235677973366e38 else value


def _int(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise UnsupportedError(f"the integer {value} does not fit into 64 bits")
    return value
