"""What passes that look for patterns share: who writes and reads a value, which values are constants, of which type."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minifer.errors import MiniferError
from minifer.ir import Graph, Node, TensorType, Type, type_of_value
from minifer.lazy import cached_property
from minifer.ops.registry import Declined
from minifer.passes.clean import remove_dead
from minifer.passes.types import infer_types


class Types:
    """Types and values of a graph's names as they follow from its inputs, found when first asked for.

    A pass keeps the meaning of the names that it keeps, so what was found for a graph holds for those made from it.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._matcher: Matcher | None = None

    def matcher(self, graph: Graph) -> Matcher:
        """A matcher for a graph: that of the pass before, where it changed nothing."""
        if self._matcher is None or self._matcher.graph is not graph:
            self._matcher = Matcher(graph, self)
        return self._matcher

    @cached_property
    def facts(self) -> tuple[Mapping[str, Type], Mapping[str, Any]]:
        """Name -> type, and name -> value where it is known."""
        graph = self._graph
        declared = {n: graph.types[n] for n in graph.inputs if n in graph.types}
        try:
            return infer_types(graph, declared)
        except MiniferError:  # a node that cannot run: the run says so
            return {}, {}


class Matcher:
    """A graph seen from its values. Constants are those that no caller can override."""

    def __init__(self, graph: Graph, types: Types | None = None):
        self.graph = graph
        self.types = types or Types(graph)
        self.constants: dict[str, Any] = {n: v for n, v in graph.consts.items() if n not in graph.inputs}
        self.writer = {name: node for node in graph.nodes for name in node.outputs if name}
        self._readers: dict[str, list[Node | None]] = {}
        for node in graph.nodes:
            for name in node.reads:
                self._readers.setdefault(name, []).append(node)
        for name in graph.outputs:
            self._readers.setdefault(name, []).append(None)  # the caller

    def number(self, name: str) -> float | None:
        """The value of a float constant with one element, of rank 0 or 1."""
        value = self.constants.get(name)
        if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind != "f" or value.ndim > 1:
            return None
        return float(value.reshape(()))

    def made(self, name: str, *ops: str) -> Node | None:
        """The node of the default domain that writes a value, if it is one of `ops`."""
        node = self.writer.get(name)
        return node if node is not None and node.op in ops and not node.domain else None

    def alone(self, name: str, *ops: str) -> Node | None:
        """As `made`, where the value is read once."""
        return self.made(name, *ops) if len(self._readers.get(name, ())) == 1 else None

    def readers(self, name: str) -> list[Node | None]:
        """The nodes that read a value, one entry for each time; None stands for the caller."""
        return self._readers.get(name, [])

    def reader(self, name: str, *ops: str) -> Node | None:
        """The node that alone reads a value, once, if it is one of `ops`."""
        found = self.readers(name)
        node = found[0] if len(found) == 1 else None
        return node if node is not None and node.op in ops and not node.domain else None

    def type(self, name: str) -> TensorType | None:
        """The type of a tensor, as far as it is known."""
        if name in self.constants:
            kind: Any = type_of_value(self.constants[name])
        else:
            kind = self.types.facts[0].get(name)
        return kind if isinstance(kind, TensorType) else None

    def shape(self, name: str) -> tuple[Any, ...] | None:
        """Its sizes, symbols and Nones; None where the rank is unknown."""
        kind = self.type(name)
        return None if kind is None else kind.shape

    def value(self, name: str) -> Any:
        """The value of a constant, or of what follows from constants and shapes; None where it is not known."""
        return self.constants[name] if name in self.constants else self.types.facts[1].get(name)

    def is_float(self, name: str) -> bool:
        """True for float32, the type that fused kernels know."""
        kind = self.type(name)
        return kind is not None and kind.dtype == "float32"


def other(node: Node, name: str) -> str:
    """The other input of a node with two."""
    return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


def replace_nodes(
    graph: Graph, replaced: Mapping[int, Iterable[Node]], consts: Mapping[str, Any] | None = None
) -> Graph:
    """The graph with some nodes (by id) replaced, more constants, and without what is read no more."""
    if not replaced:
        return graph
    nodes = [new for node in graph.nodes for new in replaced.get(id(node), (node,))]
    return remove_dead(graph.with_(nodes=tuple(nodes), consts={**graph.consts, **(consts or {})}))


def declined(node: Node, why: str) -> Declined:
    """Why a pattern that was begun did not hold; shown by MINIFER_DEBUG=3."""
    if int(os.environ.get("MINIFER_DEBUG") or 0) >= 3:
        print(f"{node.label} is not fused: {why}", file=sys.stderr)
    return Declined(why)


#: (matcher, node, new constants) -> (the node replaced, the nodes in its place), or None
Change = Callable[[Matcher, Node, dict[str, Any]], "tuple[Node, list[Node]] | None"]


def rewrite(graph: Graph, types: Types | None, ops: Sequence[str], change: Change) -> Graph:
    """The graph with what `change` puts in place of nodes of the ONNX operators `ops`."""
    found = (types or Types(graph)).matcher(graph)
    consts: dict[str, Any] = {}
    replaced: dict[int, list[Node]] = {}
    for node in graph.nodes:
        made = change(found, node, consts) if node.op in ops and not node.domain else None
        if made is not None:
            replaced[id(made[0])] = made[1]
    return replace_nodes(graph, replaced, consts)
