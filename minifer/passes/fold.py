"""Constant folding: nodes whose inputs are all constants are run once, here, by their references."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import MiniferError
from minifer.ir import Graph, Node, TensorType, type_of_value
from minifer.ops import registry
from minifer.ops.registry import Call, Context
from minifer.passes.clean import map_graphs, same_nodes
from minifer.passes.inline import inline_branch
from minifer.room import Room

#: a result with more elements than this and many more than its inputs (a broadcast of a scalar) stays in the graph
LIMIT = 1 << 27
#: bytes that all results together may take, or so many times those of the constants: a few nodes can grow without end
LEAST_BUDGET, TIMES = 1 << 30, 16
#: operators whose result has as many elements as their first input, and the bytes of the largest element
SAME_SIZE, LARGEST = frozenset(("Cast", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")), 16


class _Budget:
    """How many bytes may still be made, and where they go."""

    def __init__(self, left: int):
        self.left = left
        self.room = Room()


def fold_constants(graph: Graph, max_bytes: int | None = None) -> Graph:
    """Replace nodes with constant inputs by their values, and If nodes with a constant condition by their branch.

    The values take at most `max_bytes`; what would take more is left to the run.
    """
    stored = sum(getattr(v, "nbytes", 0) for v in graph.consts.values())
    budget = max(LEAST_BUDGET, TIMES * stored)
    return _fold(graph, {}, _Budget(budget if max_bytes is None else min(budget, max_bytes)))


def _fold(graph: Graph, outer: Mapping[str, Any], budget: _Budget) -> Graph:
    inputs = set(graph.inputs)
    consts = dict(graph.consts)
    known = {**outer, **{n: v for n, v in consts.items() if n not in inputs}}
    for name in inputs:
        known.pop(name, None)
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
        results = None if node.subgraphs_any else _evaluate(node, known, budget)
        if results is None:
            nodes.append(map_graphs(node, lambda inner: _fold(inner, known, budget)))
            continue
        for name, value in zip(node.outputs, results):
            if name:
                known[name] = consts[name] = value
    return graph if same_nodes(nodes, graph.nodes) else graph.with_(nodes=tuple(nodes), consts=consts)


def _evaluate(node: Node, known: Mapping[str, Any], budget: _Budget) -> list[np.ndarray] | None:
    stored = node.attrs.get("value")
    if node.op == "Constant" and not node.domain and isinstance(stored, np.ndarray) and len(node.attrs) == 1:
        budget.left -= stored.nbytes
        return [stored]
    if any(n and n not in known for n in node.inputs):
        return None
    op = registry.select(node)
    if op is None or not op.deterministic:
        return None
    values = [known[n] if n else None for n in node.inputs]
    try:
        if op.infer is not None and values and _too_large(op, node, values, budget):
            return None
        results = op.call(Context(node, lambda graph, inputs: []), values)
    except MiniferError:
        return None  # the run reports it, if the node runs at all
    made = [budget.room.adopt(np.asarray(r)) for r in results if isinstance(r, np.ndarray | np.generic)]
    budget.left -= sum(r.nbytes for r in made)
    return made if len(made) == len(results) else None  # a file could not hold a sequence


def _too_large(op: registry.Op, node: Node, values: list[Any], budget: _Budget) -> bool:
    assert op.infer is not None
    first = values[0]
    if node.op in SAME_SIZE and isinstance(first, np.ndarray) and LARGEST * first.size <= budget.left:
        return False
    kinds = op.infer(Call(node, [None if v is None else type_of_value(v) for v in values], values))
    listed = kinds if isinstance(kinds, list | tuple) else [kinds]
    known = [k for k in listed if isinstance(k, TensorType) and k.concrete]
    made = sum(math.prod(k.dims) for k in known)
    size = sum(math.prod(k.dims) * max(1, dtypes.bits(k.dtype) // 8) for k in known)
    given = sum(v.size for v in values if isinstance(v, np.ndarray))
    return size > budget.left or (made > LIMIT and made > 4 * given)
