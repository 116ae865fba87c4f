"""Small models as the bytes of a file, for tests that go through `minifer.load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minifer.ir import Graph, Model, Node, SequenceType, TensorType, Type
from minifer.onnx_io import write_model

EXECUTORS = ("reference", "native")


def node(op: str, inputs: str, outputs: str, domain: str = "", version: int = 21, **attrs: Any) -> Node:
    """A node; names are separated by blanks, `-` leaves an input or output out."""
    reads, writes = (tuple("" if n == "-" else n for n in names.split()) for names in (inputs, outputs))
    return Node(op, reads, writes, attrs, f"{op.lower()}_{next(filter(None, writes), '')}", domain, version)


def kind(text: str) -> Type:
    """A type from `float32[n,3]`, `int64[]`, `float32` (any rank) or `seq float32`."""
    if text.startswith("seq "):
        return SequenceType(kind(text[4:]))
    dtype, _, dims = text.partition("[")
    if not dims:
        return TensorType(dtype)
    sizes = [d.strip() for d in dims.rstrip("]").split(",") if d.strip()]
    return TensorType(dtype, tuple(int(d) if d.isdigit() else d for d in sizes))


def graph(nodes: Sequence[Node], inputs: Mapping[str, str], outputs: str, consts: Mapping[str, Any] | None = None,
          types: Mapping[str, str] | None = None) -> Graph:  # fmt: skip
    """A graph, or a body; `inputs` and `types` map names to types as `kind` reads them."""
    declared = {name: kind(text) for name, text in {**inputs, **(types or {})}.items()}
    values = {name: np.asarray(value) for name, value in (consts or {}).items()}
    return Graph(tuple(inputs), tuple(outputs.split()), tuple(nodes), values, declared, "g")


def file(*args: Any, opsets: Mapping[str, int] | None = None, **kwargs: Any) -> bytes:
    """The bytes of a model with the graph that `graph` makes of the arguments."""
    return write_model(Model(graph(*args, **kwargs), dict(opsets or {"": 21}), 10))


def ints(*values: int) -> np.ndarray:
    """A vector of int64."""
    return np.array(values, np.int64)


def floats(*shape: int) -> np.ndarray:
    """A float32 array of a shape, holding small numbers of both signs, always the same."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
