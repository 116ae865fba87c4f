"""Constant folding: nodes whose inputs are all constants are run once, here, by their references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minifer.errors import MiniferError
from minifer.ir import Graph, Node, TensorType
from minifer.ops import registry
from minifer.ops.registry import Call, Context
from minifer.passes.inline import inline_branch

#: a result with more elements than this and many more than its inputs (a broadcast of a scalar) stays in the graph
LIMIT = 1 << 27


def fold_constants(graph: Graph) -> Graph:
    """Replace nodes with constant inputs by their values, and If nodes with a constant condition by their branch."""
    return _fold(graph, {})


def _fold(graph: Graph, outer: Mapping[str, Any]) -> Graph:
    inputs = set(graph.inputs)
    consts = dict(graph.consts)
    known = {**outer, **{n: v for n, v in consts.items() if n not in inputs}}
    for name in inputs:
        known.pop(name, None)
    types = dict(graph.types)
    nodes: list[Node] = []
    pending = list(reversed(graph.nodes))
    while pending:
        node = pending.pop()
        if node.op == "If" and not node.domain and node.inputs and node.inputs[0] in known:
            condition = np.asarray(known[node.inputs[0]])
            if condition.size == 1:
                branch = node.attrs["then_branch" if condition.reshape(-1)[0] else "else_branch"]
                inlined, values = inline_branch(node, branch)
                consts.update(values)
                known.update(values)
                pending.extend(reversed(inlined))
                continue
        results = None if node.subgraphs_any else _evaluate(node, known)
        if results is None:
            nodes.append(_fold_inside(node, known))
            continue
        for name, value in zip(node.outputs, results):
            if name:
                known[name] = consts[name] = value
    return graph.with_(nodes=tuple(nodes), consts=consts, types=types)


def _fold_inside(node: Node, known: Mapping[str, Any]) -> Node:
    if not node.subgraphs_any:
        return node
    attrs = {}
    for key, value in node.attrs.items():
        if isinstance(value, Graph):
            value = _fold(value, known)
        elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
            value = tuple(_fold(v, known) for v in value)
        attrs[key] = value
    return Node(node.op, node.inputs, node.outputs, attrs, node.name, node.domain, node.version)


def _evaluate(node: Node, known: Mapping[str, Any]) -> list[Any] | None:
    op = registry.select(node)
    if op is None or not op.deterministic or any(n and n not in known for n in node.inputs):
        return None
    values = [known[n] if n else None for n in node.inputs]
    try:
        if op.infer is not None and values and _grows(op, node, values):
            return None
        results = op.call(Context(node, lambda graph, inputs: []), values)
    except MiniferError:
        return None  # the run reports it, if the node runs at all
    return results if all(r is not None for r, n in zip(results, node.outputs) if n) else None


def _grows(op: registry.Op, node: Node, values: list[Any]) -> bool:
    from minifer.ir import type_of_value

    assert op.infer is not None
    kinds = op.infer(Call(node, [None if v is None else type_of_value(v) for v in values], values))
    listed = kinds if isinstance(kinds, list | tuple) else [kinds]
    made = sum(int(np.prod(k.dims)) for k in listed if isinstance(k, TensorType) and k.concrete)
    given = sum(v.size for v in values if isinstance(v, np.ndarray))
    return made > LIMIT and made > 4 * given
