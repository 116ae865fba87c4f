"""What the bindings of all languages share: element types, parameter names, texts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from minifer.embed.abi import Interface, Tensor, unique_identifiers
from minifer.errors import UnsupportedError


@dataclass(frozen=True)
class Element:
    """An element type in each language; types that a language lacks are the integers of their bits."""

    c: str
    rust: str
    javascript: str  # the typed array


_UINT16 = Element("uint16_t", "u16", "Uint16Array")

ELEMENTS: dict[str, Element] = {
    "float32": Element("float", "f32", "Float32Array"),
    "float64": Element("double", "f64", "Float64Array"),
    "float16": _UINT16,
    "bfloat16": _UINT16,
    "int8": Element("int8_t", "i8", "Int8Array"),
    "int16": Element("int16_t", "i16", "Int16Array"),
    "int32": Element("int32_t", "i32", "Int32Array"),
    "int64": Element("int64_t", "i64", "BigInt64Array"),
    "uint8": Element("uint8_t", "u8", "Uint8Array"),
    "uint16": _UINT16,
    "uint32": Element("uint32_t", "u32", "Uint32Array"),
    "uint64": Element("uint64_t", "u64", "BigUint64Array"),
    "bool": Element("uint8_t", "bool", "Uint8Array"),
}


def element(tensor: Tensor) -> Element:
    """The element type of an input or output; UnsupportedError where the bindings have none, such as for strings."""
    if tensor.dtype not in ELEMENTS:
        raise UnsupportedError(
            f"{tensor.name!r} holds {tensor.dtype}, which a compiled model can neither take nor give; "
            f"it can: {', '.join(ELEMENTS)}"
        )
    return ELEMENTS[tensor.dtype]


def parameters(interface: Interface, *reserved: str) -> tuple[list[tuple[Tensor, str]], list[tuple[Tensor, str]]]:
    """Inputs and outputs with the names of their parameters in one function, which has other names, `reserved`, too."""
    tensors = [*interface.inputs, *interface.outputs]
    names = unique_identifiers([*reserved, *(t.identifier for t in tensors)], "tensor")[len(reserved) :]
    pairs = list(zip(tensors, names))
    count = len(interface.inputs)
    return pairs[:count], pairs[count:]


def brief(tensor: Tensor) -> str:
    """One line about a tensor in ASCII, that ends no comment: its name in the model, element type, shape."""
    name = json.dumps(tensor.name).replace("*/", "*\\/").replace("/*", "/\\*")
    return f"{name}: {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"
