"""Dead code, identities and equal nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from operator import is_
from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.ops import registry
from minifer.passes.inline import rename


def remove_dead(graph: Graph) -> Graph:
    """Drop nodes whose results nobody reads, and constants that nobody reads."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            node = map_graphs(node, remove_dead)
            kept.append(node)
            needed.update(node.reads)
            needed.discard("")  # an input that is left out
    kept.reverse()
    consts = {n: v for n, v in graph.consts.items() if n in needed or n in graph.inputs}
    if len(consts) == len(graph.consts) and same_nodes(kept, graph.nodes):
        return graph
    return graph.with_(nodes=tuple(kept), consts=consts)


def map_graphs(node: Node, function: Callable[[Graph], Graph]) -> Node:
    """The node with `function` of the graphs among its attributes; the very node where they stay what they are."""
    if not node.subgraphs_any:
        return node
    attrs = {}
    for key, value in node.attrs.items():
        if isinstance(value, Graph):
            value = function(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
            made = tuple(map(function, value))
            value = value if same_nodes(made, value) else made
        attrs[key] = value
    if same_nodes(attrs.values(), node.attrs.values()):
        return node
    return Node(node.op, node.inputs, node.outputs, attrs, node.name, node.domain, node.version)


def same_nodes(a: Collection[Any], b: Collection[Any]) -> bool:
    """Whether two collections hold the very same objects."""
    return len(a) == len(b) and all(map(is_, a, b))


def remove_identity(graph: Graph) -> Graph:
    """Readers of an Identity (or a Dropout that does nothing) read its input instead; graph outputs keep theirs."""
    names: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = rename(node, names) if names else node
        if _is_identity(node) and node.outputs[0] not in graph.outputs:
            names[node.outputs[0]] = node.inputs[0]
            continue
        nodes.append(node)
    return graph.with_(nodes=tuple(nodes)) if names else graph


def _is_identity(node: Node) -> bool:
    if node.domain or not node.inputs or not node.inputs[0]:
        return False
    if node.op == "Identity":
        return True
    # inference mode: opset 7 to 11 always; from 12 where no training flag is given
    quiet = node.op == "Dropout" and node.version >= 7 and len([n for n in node.inputs[2:] if n]) == 0
    return quiet and len([n for n in node.outputs if n]) == 1


def merge_equal(graph: Graph) -> Graph:
    """Common subexpressions: a node equal to an earlier one is dropped, and its readers read the earlier one."""
    names: dict[str, str] = {}
    seen: dict[Any, Node] = {}
    nodes = []
    for node in graph.nodes:
        node = rename(node, names) if names else node
        key = _key(node)
        twin = seen.get(key) if key is not None else None
        fits = twin is not None and len(twin.outputs) == len(node.outputs)
        if fits and not any(n in graph.outputs for n in node.outputs):
            assert twin is not None
            if all(bool(a) == bool(b) for a, b in zip(twin.outputs, node.outputs)):
                names.update((b, a) for a, b in zip(twin.outputs, node.outputs) if b)
                continue
        if key is not None and twin is None:
            seen[key] = node
        nodes.append(node)
    return graph.with_(nodes=tuple(nodes)) if names else graph


def _key(node: Node) -> Any:
    op = registry.select(node)
    if op is None or not op.deterministic or node.subgraphs_any:
        return None
    attrs = []
    for name, value in sorted(node.attrs.items()):
        if isinstance(value, np.ndarray):
            if value.size > 64 or value.dtype == object:
                return None
            value = (value.dtype.name, value.shape, value.tobytes())
        try:
            hash(value)
        except TypeError:
            return None
        attrs.append((name, type(value).__name__, value))
    return (node.domain, node.op, node.version, node.inputs, tuple(attrs))
