"""The intermediate representation: Model, Graph, Node and the types of values.

All classes are frozen records; a pass makes a new graph. Edges are value names. A graph is in static single
assignment form: each name is written once (by a graph input, a constant or one node), and nodes stand in
an order in which every value is written before it is read. Subgraphs (the bodies of If, Loop and Scan) are
Graph attributes; they may read names of the graphs around them. Local functions are inlined when a model
is read, so a graph holds operators alone, each with the opset version it was written for.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from minifer import dtypes
from minifer.errors import ModelError
from minifer.lazy import cached_property
from minifer.record import Record

Dim = int | str | None  # a size, a symbol, or unknown
_SIZES = frozenset({int})  # the types of the dimensions of a concrete shape
_ARRAYS = (np.ndarray, np.generic)
NOTHING: Mapping[str, Any] = MappingProxyType({})


class TensorType(Record):
    """A dense tensor: element type name and shape. `shape` None means unknown rank."""

    dtype: str
    shape: tuple[Dim, ...] | None = None

    if not TYPE_CHECKING:  # as Record's own, but quicker: very many are made

        def __init__(self, dtype, shape=None):
            self.dtype, self.shape = dtype, shape

    @cached_property
    def concrete(self) -> bool:
        """True where every dimension is a known size."""
        return self.shape is not None and _SIZES.issuperset(map(type, self.shape))

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of a concrete type as plain integers."""
        assert self.concrete and self.shape is not None, f"{self} is not concrete"
        return self.shape  # type: ignore[return-value]

    @property
    def rank(self) -> int | None:
        """The number of dimensions; None where unknown."""
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"


class SparseTensorType(Record):
    """A sparse tensor (COO); held as a `SparseTensor`."""

    dtype: str
    shape: tuple[Dim, ...] | None = None

    def __str__(self) -> str:
        return f"sparse {TensorType(self.dtype, self.shape)}"


class SequenceType(Record):
    """A sequence of values of one type; held as a Python list."""

    element: Type | None

    def __str__(self) -> str:
        return f"sequence({'?' if self.element is None else self.element})"


class OptionalType(Record):
    """A value that may be absent; held as the value itself, or None."""

    element: Type | None

    def __str__(self) -> str:
        return f"optional({'?' if self.element is None else self.element})"


class MapType(Record):
    """A map from int64 or string keys; held as a Python dict."""

    key: str
    value: Type | None

    def __str__(self) -> str:
        return f"map({self.key}, {'?' if self.value is None else self.value})"


Type = TensorType | SparseTensorType | SequenceType | OptionalType | MapType


class SparseTensor(Record, eq=False):
    """COO sparse tensor: `values` (nnz,), `indices` (nnz,) linear or (nnz, rank), `shape`."""

    values: np.ndarray
    indices: np.ndarray
    shape: tuple[int, ...]

    def dense(self) -> np.ndarray:
        """The dense array with zeros (or empty strings) where nothing is stored."""
        zero: Any = "" if self.values.dtype == object else 0
        out = np.full(self.shape, zero, self.values.dtype)
        index = self.indices if self.indices.ndim == 1 else np.ravel_multi_index(tuple(self.indices.T), self.shape)
        out.reshape(-1)[index] = self.values
        return out


def type_of_value(value: Any) -> Type:
    """The concrete type of a runtime value (ndarray, list, dict, SparseTensor or None)."""
    if isinstance(value, _ARRAYS):
        return TensorType(dtypes.from_numpy(value.dtype), value.shape)
    if isinstance(value, list):
        kinds = {type_of_value(item) for item in value}
        if len(kinds) > 1:  # tensors of different shapes: only what they share
            kinds = {TensorType(k.dtype) if isinstance(k, TensorType) else None for k in kinds}  # type: ignore[misc]
        return SequenceType(kinds.pop() if len(kinds) == 1 else None)
    if isinstance(value, dict):
        key, item = next(iter(value.items()), (0, None))
        return MapType("string" if isinstance(key, str) else "int64", None if item is None else type_of_value(item))
    if isinstance(value, SparseTensor):
        return SparseTensorType(dtypes.from_numpy(value.values.dtype), value.shape)
    if value is None:
        return OptionalType(None)
    if isinstance(value, str | int | float):  # a value of a map; ONNX maps hold scalars
        return TensorType("string" if isinstance(value, str) else "int64" if isinstance(value, int) else "float32", ())
    raise TypeError(f"{type(value).__name__} is no ONNX value")


class Node(Record, eq=False):
    """One operator call. `inputs` and `outputs` are value names, "" where an optional one is left out.

    `version` is the opset version of `domain` that the node was written for ("" is ai.onnx).
    Attribute values: int, float, str, bytes (where not valid UTF-8), ndarray, Graph, Type, SparseTensor,
    or a tuple of those.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = NOTHING
    name: str = ""
    domain: str = ""
    version: int = 0

    if not TYPE_CHECKING:  # as Record's own, but quicker: very many are made

        def __init__(self, op, inputs, outputs, attrs=NOTHING, name="", domain="", version=0):
            self.op, self.inputs, self.outputs, self.attrs = op, inputs, outputs, attrs
            self.name, self.domain, self.version = name, domain, version

    @cached_property
    def subgraphs(self) -> tuple[Graph, ...]:
        """The graphs among the attributes."""
        return _graphs_among(self.attrs)

    @property
    def subgraphs_any(self) -> bool:
        """True where the node carries a graph."""
        return bool(self.subgraphs)

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of the graphs around that the graphs among the attributes read, once for each graph."""
        return tuple(n for g in self.subgraphs for n in g.captured()) if self.subgraphs else ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All names that the node reads: its inputs ("" where one is left out) and what its graphs capture."""
        return (*self.inputs, *self.captured) if self.subgraphs else self.inputs

    @property
    def label(self) -> str:
        """How messages name this node: operator, opset and node name."""
        domain = f"{self.domain}::" if self.domain else ""
        return f"{domain}{self.op}-{self.version} '{self.name or next(filter(None, self.outputs), '')}'"

    def __str__(self) -> str:
        attrs = ", ".join(f"{k}={_attr_text(v)}" for k, v in self.attrs.items())
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(self.inputs)}){' {' + attrs + '}' if attrs else ''}"


def _graphs_among(attrs: Mapping[str, Any]) -> tuple[Graph, ...]:
    found: list[Graph] = []
    for value in attrs.values():
        if isinstance(value, Graph):
            found.append(value)
        elif isinstance(value, tuple):
            found += [v for v in value if isinstance(v, Graph)]
    return tuple(found)


def _attr_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<{value.dtype}{list(value.shape)}>" if value.size > 8 else str(value.tolist())
    return f"<graph {value.name}>" if isinstance(value, Graph) else repr(value)


class Graph(Record, eq=False):
    """Inputs, outputs and constants are names; `types` gives the declared type of a name where one is known.

    A name in both `inputs` and `consts` is an input with a default value.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    consts: Mapping[str, Any] = NOTHING
    types: Mapping[str, Type] = NOTHING
    name: str = ""

    def captured(self) -> tuple[str, ...]:
        """Names of outer graphs that this graph (or a graph inside it) reads, in order of first use."""
        return self._captured

    @cached_property
    def _captured(self) -> tuple[str, ...]:
        known = set(self.inputs) | set(self.consts)
        out: dict[str, None] = {}
        for node in self.nodes:
            out.update((n, None) for n in node.reads if n and n not in known)
            known.update(node.outputs)
        out.update((n, None) for n in self.outputs if n and n not in known)
        return tuple(out)

    def check(self, *outer: Set[str]) -> None:
        """Raise ModelError unless single assignment, definition before use, and defined outputs hold.

        `outer`: the names that the graphs around this one have defined so far, the innermost first.
        """
        if "" in self.inputs:
            raise ModelError(f"graph '{self.name}' has an input without a name")
        own = {*self.consts, *self.inputs, ""}  # "" stands where an input or output is left out
        known = (own, *outer)
        for node in self.nodes:
            for name in () if own.issuperset(node.inputs) else node.inputs:
                if not any(name in names for names in known):
                    raise ModelError(f"{node.label} reads '{name}', which nothing before it writes")
            for sub in node.subgraphs:
                sub.check(*known)
            for name in node.outputs:
                if name and (name in own or (outer and any(name in names for names in outer))):
                    raise ModelError(f"{node.label} writes '{name}', which is already defined")
            own.update(node.outputs)
        for name in self.outputs:
            if not name or not any(name in names for names in known):
                raise ModelError(f"graph output '{name}' is not written by any node")

    def __str__(self) -> str:
        def show(name: str) -> str:
            return f"{name}: {self.types[name]}" if name in self.types else name

        lines = [f"graph {self.name}({', '.join(map(show, self.inputs))}) -> ({', '.join(map(show, self.outputs))})"]
        lines += [f"  const {name}: {type_of_value(value)}" for name, value in self.consts.items()]
        for node in self.nodes:
            lines.append(f"  {node}")
            for sub in node.subgraphs:
                lines += ["    " + line for line in str(sub).splitlines()]
        return "\n".join(lines)


class Model(Record, eq=False):
    """A graph with what the file says about it. `opsets` maps domain -> version imported by the main graph."""

    graph: Graph
    opsets: Mapping[str, int]
    ir_version: int = 0
    producer: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc: str = ""
    metadata: Mapping[str, str] = NOTHING
