"""Whether a model can be run, and whether what a caller passes fits it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, MiniferError, UnsupportedError
from minifer.ir import (
    Graph,
    MapType,
    Node,
    OptionalType,
    SequenceType,
    SparseTensor,
    SparseTensorType,
    Type,
    type_of_value,
)
from minifer.ops import registry


def check_supported(graph: Graph) -> None:
    """Raise UnsupportedError that lists every operator minifer lacks, with counts and the first node of each;
    ModelError for a node that does not fit its operator (number of inputs, attributes)."""
    missing: Counter[tuple[str, str, int]] = Counter()
    first: dict[tuple[str, str, int], str] = {}
    found: list[tuple[registry.Op, Node]] = []

    def visit(g: Graph) -> None:
        for node in g.nodes:
            op = registry.select(node)
            if op is not None:
                found.append((op, node))
            else:
                key = (node.domain, node.op, node.version)
                missing[key] += 1
                first.setdefault(key, node.name or next(filter(None, node.outputs), "?"))
            for sub in node.subgraphs:
                visit(sub)

    visit(graph)
    if missing:
        lines = [
            f"  {domain + '::' if domain else ''}{op} (opset {version}): {count} node{'s' if count > 1 else ''}, "
            f"first '{first[domain, op, version]}'"
            for (domain, op, version), count in sorted(missing.items())
        ]
        raise UnsupportedError(
            "the model uses operators that minifer does not have:\n" + "\n".join(lines)
            + "\nRegister them with minifer.register(minifer.Op(...)), or export the model without them."
        )  # fmt: skip
    for op, node in found:
        op.check(node)


def check_value(value: Any, name: str, kind: Type | None) -> Any:
    """`value` as the engine holds it, checked against a declared type; InputError where it does not fit."""
    if isinstance(kind, OptionalType):
        return None if value is None else check_value(value, name, kind.element)
    if isinstance(kind, SequenceType):
        if not isinstance(value, list | tuple):
            raise InputError(f"input '{name}' is a sequence: pass a list, not {type(value).__name__}")
        return [check_value(v, f"{name}[{i}]", kind.element) for i, v in enumerate(value)]
    if isinstance(kind, MapType):
        if not isinstance(value, dict):
            raise InputError(f"input '{name}' is a map: pass a dict, not {type(value).__name__}")
        return _onnx_value(value, name)
    if isinstance(kind, SparseTensorType):
        if not isinstance(value, SparseTensor):
            raise InputError(f"input '{name}' is sparse: pass a minifer.ir.SparseTensor, not {type(value).__name__}")
        return value
    if value is None:
        if kind is None:
            return None
        raise InputError(f"input '{name}' is None, expected {kind}")
    if kind is None and isinstance(value, list | dict):
        return _onnx_value(value, name)
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, and whatever an object's __array__ raises
        wanted = f"; the model expects {kind}" if kind is not None else ""
        raise InputError(f"input '{name}' cannot be made an array: {error}{wanted}") from error
    if array.dtype == object and (kind is None or kind.dtype != "string"):
        odd = next((type(v).__name__ for v in array.reshape(-1).tolist() if not isinstance(v, str | bytes)), "")
        if odd:
            wanted = f", the model expects {kind}" if kind is not None else ""
            raise InputError(f"input '{name}' is an array of Python objects ({odd}){wanted}; pass numbers or strings")
    if array.dtype.kind in "OUST" or (kind is not None and kind.dtype == "string"):
        array = _strings(array, name)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        dtype = dtypes.from_numpy(array.dtype)
    except UnsupportedError as error:
        raise InputError(f"input '{name}': {error}") from error
    if kind is None:
        return array
    if dtype != kind.dtype:
        raise InputError(
            f"input '{name}' has dtype {dtype}, the model expects {kind}; convert it with .astype({kind.dtype!r})"
        )
    if kind.shape is not None:
        fits = len(kind.shape) == array.ndim and all(
            not isinstance(want, int) or want == got for want, got in zip(kind.shape, array.shape)
        )
        if not fits:
            raise InputError(f"input '{name}' has shape {list(array.shape)}, the model expects {kind}")
    return array


def _onnx_value(value: Any, name: str) -> Any:
    try:
        type_of_value(value)
    except (TypeError, MiniferError) as error:
        raise InputError(f"input '{name}' holds what ONNX has no type for: {error}") from error
    return value


def _strings(array: np.ndarray, name: str) -> np.ndarray:
    def text(v: Any) -> str:
        if isinstance(v, bytes):
            return v.decode("utf-8", "replace")
        if isinstance(v, str):
            return v
        raise InputError(f"input '{name}' must hold strings, found {type(v).__name__}")

    return np.array([text(v) for v in array.reshape(-1).tolist()], object).reshape(array.shape)
