"""Conv + BatchNormalization -> Conv: at inference both are linear, so the scale goes into weight and bias.

With s = scale / sqrt(variance + epsilon):  W' = s * W  and  b' = (b - mean) * s + shift, per output channel
(Ioffe and Szegedy, "Batch Normalization", 2015, section 3.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import Graph, Node


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold each BatchNormalization that alone reads a Conv with constant weights."""
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in (*node.inputs, *(n for sub in node.subgraphs for n in sub.captured())):
            readers[name] = readers.get(name, 0) + 1
    for name in graph.outputs:
        readers[name] = readers.get(name, 0) + 1
    constants = {n: v for n, v in graph.consts.items() if n not in graph.inputs}
    writers: dict[str, int] = {}
    nodes: list[Node | None] = []
    consts: dict[str, Any] = dict(graph.consts)
    for node in graph.nodes:
        index = writers.get(node.inputs[0]) if node.inputs else None
        conv = nodes[index] if index is not None else None
        if conv is not None and index is not None and readers[node.inputs[0]] == 1:
            folded = _fold(conv, node, constants, consts)
            if folded is not None:
                nodes[index] = None
                writers[folded.outputs[0]] = len(nodes)
                nodes.append(folded)
                continue
        if node.op == "Conv" and not node.domain:
            writers[node.outputs[0]] = len(nodes)
        nodes.append(node)
    return graph.with_(nodes=tuple(n for n in nodes if n is not None), consts=consts)


def _fold(conv: Node, norm: Node, constants: dict[str, Any], consts: dict[str, Any]) -> Node | None:
    if norm.op != "BatchNormalization" or norm.domain or norm.version < 7 or norm.attrs.get("training_mode"):
        return None
    if len([n for n in norm.outputs if n]) != 1 or norm.attrs.get("spatial", 1) != 1:
        return None
    given = [*conv.inputs[1:], *norm.inputs[1:]]
    if any(n and n not in constants for n in given) or not all(norm.inputs[1:5]):
        return None
    weight = constants[conv.inputs[1]]
    if weight.dtype not in (np.float32, np.float64):
        return None
    scale, shift, mean, variance = (constants[n].astype(np.float64) for n in norm.inputs[1:5])
    bias = constants[conv.inputs[2]].astype(np.float64) if len(conv.inputs) > 2 and conv.inputs[2] else 0.0
    factor = scale / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
    names = (f"{norm.outputs[0]}/weight", f"{norm.outputs[0]}/bias")
    per_row = factor.reshape(-1, *[1] * (weight.ndim - 1))
    consts[names[0]] = constants[names[0]] = (weight * per_row).astype(weight.dtype)
    consts[names[1]] = constants[names[1]] = ((bias - mean) * factor + shift).astype(weight.dtype)
    inputs = (conv.inputs[0], *names)
    return Node("Conv", inputs, norm.outputs, conv.attrs, conv.name or norm.name, "", conv.version)
