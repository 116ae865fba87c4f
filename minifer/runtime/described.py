"""Types of values as plain tuples, for files that hold no classes."""

from __future__ import annotations

from typing import Any

from minifer.ir import MapType, OptionalType, SequenceType, SparseTensorType, TensorType, Type


def described(kind: Type | None) -> Any:
    """A type as tuples, strings and numbers."""
    if isinstance(kind, TensorType | SparseTensorType):
        shape = None if kind.shape is None else tuple(kind.shape)
        return ("tensor" if isinstance(kind, TensorType) else "sparse", kind.dtype, shape)
    if isinstance(kind, SequenceType | OptionalType):
        return ("sequence" if isinstance(kind, SequenceType) else "optional", described(kind.element))
    if isinstance(kind, MapType):
        return ("map", kind.key, described(kind.value))
    return None


def type_of(description: Any) -> Type | None:
    """The inverse of `described`."""
    if description is None:
        return None
    name, *facts = description
    if name in ("tensor", "sparse"):
        return (TensorType if name == "tensor" else SparseTensorType)(*facts)
    if name in ("sequence", "optional"):
        return (SequenceType if name == "sequence" else OptionalType)(type_of(facts[0]))
    return MapType(facts[0], type_of(facts[1]))
