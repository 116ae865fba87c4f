"""Put the body of a chosen branch in place of its If node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minifer.ir import Graph, Node


def rename(node: Node, names: Mapping[str, str]) -> Node:
    """The node with its value names (those inside its subgraphs too) mapped; unmapped names stay."""
    if not node.subgraphs and names.keys().isdisjoint(node.inputs) and names.keys().isdisjoint(node.outputs):
        return node
    attrs: dict[str, Any] = {}
    for key, value in node.attrs.items():
        if isinstance(value, Graph):
            value = rename_graph(value, names)
        elif isinstance(value, tuple) and any(isinstance(v, Graph) for v in value):
            value = tuple(rename_graph(v, names) for v in value)
        attrs[key] = value
    inputs = tuple(names.get(n, n) for n in node.inputs)
    outputs = tuple(names.get(n, n) for n in node.outputs)
    return Node(node.op, inputs, outputs, attrs, node.name, node.domain, node.version)


def rename_graph(graph: Graph, names: Mapping[str, str]) -> Graph:
    """A subgraph with the outer names that it reads mapped; what it defines itself keeps its names."""
    own = {*graph.inputs, *graph.consts, *(n for node in graph.nodes for n in node.outputs)}
    outer = {k: v for k, v in names.items() if k not in own}
    if not outer:
        return graph
    nodes = tuple(rename(node, outer) for node in graph.nodes)
    return graph.with_(nodes=nodes, outputs=tuple(outer.get(n, n) for n in graph.outputs))


def inline_branch(node: Node, graph: Graph) -> tuple[list[Node], dict[str, Any]]:
    """Nodes and constants that compute an If node's outputs by `graph`, under names fresh in the outer graph."""
    prefix = f"{next(filter(None, node.outputs), node.name)}/"
    own = [*graph.consts, *(n for inner in graph.nodes for n in inner.outputs if n)]
    names = {n: prefix + n for n in own}
    nodes = [rename(inner, names) for inner in graph.nodes]
    for inner, outer in zip(graph.outputs, node.outputs):
        if outer:
            nodes.append(Node("Identity", (names.get(inner, inner),), (outer,), {}, node.name, "", node.version))
    return nodes, {prefix + n: value for n, value in graph.consts.items()}
