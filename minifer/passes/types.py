"""Types of every value of a graph, as far as they are known before a run (symbols kept)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minifer.errors import MiniferError
from minifer.ir import Graph, TensorType, Type, type_of_value
from minifer.ops import registry
from minifer.ops.registry import Call, Context

_ARRAYS = (np.ndarray, np.generic)
SMALL = 4096  # elements: larger values are not followed while inferring


#: Results of `infer_graph` by graph and types: nested loops would ask for the innermost body exponentially often.
Memo = dict[Any, Any]


def infer_types(
    graph: Graph, types: Mapping[str, Type], known: Mapping[str, Any] | None = None, memo: Memo | None = None
) -> tuple[dict[str, Type], dict[str, Any]]:
    """Types and known values of all names of a graph, from those of its inputs and of outer names.

    Raises ShapeError where a node's inputs cannot fit it. A value of unknown type is left out.
    """
    types = dict(types)
    values = dict(known or {})
    shared: Memo = {} if memo is None else memo
    for name, value in graph.consts.items():
        if name not in graph.inputs:
            types[name] = type_of_value(value)
            values[name] = value

    def infer_sub(sub: Graph, kinds: Sequence[Type | None]) -> list[Type | None]:
        return infer_graph(sub, kinds, types, values, shared)

    for node in graph.nodes:
        op = registry.select(node)
        if op is None:
            continue
        inputs = [values.get(n) for n in node.inputs]
        call = Call(node, [types.get(n) for n in node.inputs], inputs, infer_sub)
        if op.known is not None and (value := op.known(call)) is not None:
            values[node.outputs[0]] = value
            types[node.outputs[0]] = type_of_value(value)
            continue
        kinds = op.infer(call) if op.infer is not None else None
        listed = kinds if isinstance(kinds, list | tuple) else [kinds]
        complete = all(v is not None and _small(v) for v, n in zip(inputs, node.inputs) if n)
        if complete and op.deterministic and not node.subgraphs_any and not any(map(_large, listed)):
            results = op.call(Context(node, lambda sub, args: []), inputs)
            for name, value in zip(node.outputs, results):
                if name and value is not None:
                    types[name] = type_of_value(value)
                    if _small(value):
                        values[name] = value
            continue
        for name, kind in zip(node.outputs, listed):
            if name and kind is not None:
                types[name] = kind
            elif name and name in graph.types:
                types[name] = graph.types[name]
    return types, values


def infer_graph(
    graph: Graph, inputs: Sequence[Type | None], outer: Mapping[str, Type], known: Mapping[str, Any], memo: Memo
) -> list[Type | None]:
    """Output types of a subgraph from the types of its inputs and of the outer names that it reads."""
    if id(graph) not in memo:
        memo[id(graph)] = (graph, graph.captured())  # the graph too: an id is good as long as its object lives
    reads = [(outer.get(n), known.get(n)) for n in memo[id(graph)][1]]
    key = (id(graph), tuple(inputs), tuple((kind, _content(value)) for kind, value in reads))
    if key not in memo:
        try:
            memo[key] = _infer_graph(graph, inputs, outer, known, memo), reads
        except MiniferError as error:
            memo[key] = error, reads
    found = memo[key][0]
    if isinstance(found, MiniferError):
        raise found
    return list(found)


def _infer_graph(
    graph: Graph, inputs: Sequence[Type | None], outer: Mapping[str, Type], known: Mapping[str, Any], memo: Memo
) -> list[Type | None]:
    types = dict(outer)
    for name, kind in zip(graph.inputs, inputs):
        declared = graph.types.get(name)
        chosen = kind if kind is not None else declared
        if chosen is not None:
            types[name] = chosen
        else:
            types.pop(name, None)
    found, _ = infer_types(graph, types, {k: v for k, v in known.items() if k not in graph.inputs}, memo)
    return [found.get(n, graph.types.get(n)) for n in graph.outputs]


def _content(value: Any) -> Any:
    """What tells a value from others: its elements where they are few, else the object."""
    if _small(value) and value.dtype != object:
        return (value.dtype, value.shape, value.tobytes())
    return id(value)


def _large(kind: Type | None) -> bool:
    return isinstance(kind, TensorType) and kind.concrete and math.prod(kind.dims) > SMALL


def _small(value: Any) -> bool:
    return isinstance(value, _ARRAYS) and value.size <= SMALL
