"""Conv followed by what is linear per output channel: the factor goes into weight and bias.

With factor s and shift t per output channel:  W' = s * W  and  b' = b * s + t. BatchNormalization at inference is such
a map, with s = scale / sqrt(variance + epsilon) and t = shift - mean * s (Ioffe and Szegedy, "Batch
Normalization", 2015, section 3.1); so are Mul, Div, Add and Sub with a constant that has one number per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.room import Room

#: a factor (float64) and a shift, each a number or one per channel
Affine = tuple[Any, Any]


def fold_scale(graph: Graph) -> Graph:
    """Fold each such node that alone reads a Conv with constant weights."""
    if not any(node.op == "Conv" for node in graph.nodes):
        return graph
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.reads:
            readers[name] = readers.get(name, 0) + 1
    for name in graph.outputs:
        readers[name] = readers.get(name, 0) + 1
    constants = {n: v for n, v in graph.consts.items() if n not in graph.inputs}
    consts: dict[str, Any] = dict(graph.consts)
    room = Room()
    writers: dict[str, int] = {}  # result of a Conv -> its place in `nodes`
    nodes: list[Node | None] = []
    for node in graph.nodes:
        source = next((n for n in node.inputs if n in writers and readers[n] == 1), None)
        if source is not None:
            index = writers[source]
            conv = nodes[index]
            assert conv is not None
            affine = _affine(node, source, constants, conv)
            folded = None if affine is None else _fold(conv, node, affine, constants, consts, room)
            if folded is not None:
                nodes[index] = None
                writers[folded.outputs[0]] = len(nodes)
                nodes.append(folded)
                continue
        if node.op == "Conv" and not node.domain:
            writers[node.outputs[0]] = len(nodes)
        nodes.append(node)
    return graph.with_(nodes=tuple(n for n in nodes if n is not None), consts=consts) if None in nodes else graph


def _affine(node: Node, source: str, constants: dict[str, Any], conv: Node) -> Affine | None:
    """What a node does to each channel of its input, or None where it is no such map."""
    if node.domain:
        return None
    if node.op == "BatchNormalization":
        return _batch_norm(node, constants) if node.inputs[0] == source else None
    if node.op not in ("Mul", "Add", "Sub", "Div") or node.version < 7 or len(node.inputs) != 2:
        return None
    left = node.inputs[0] == source
    other = node.inputs[1] if left else node.inputs[0]
    weight = constants.get(conv.inputs[1])
    if other not in constants or weight is None:
        return None
    value = _per_channel(constants[other], weight)
    if value is None or (not left and node.op in ("Sub", "Div")):
        return None
    if node.op in ("Mul", "Div"):
        if node.op == "Div" and not value.all():
            return None
        return (value if node.op == "Mul" else 1 / value), 0.0
    return 1.0, value if node.op == "Add" else -value


def _per_channel(value: Any, weight: np.ndarray) -> np.ndarray | None:
    """A constant as one float64 number per output channel, if that is how it broadcasts, else None."""
    if not isinstance(value, np.ndarray) or value.dtype != weight.dtype or value.ndim > weight.ndim:
        return None
    if value.size == 1:
        return np.broadcast_to(value.reshape(()).astype(np.float64), (weight.shape[0],))
    shape = (1,) * (weight.ndim - value.ndim) + value.shape
    if shape != (1, weight.shape[0], *[1] * (weight.ndim - 2)):
        return None
    return value.reshape(-1).astype(np.float64)


def _batch_norm(norm: Node, constants: dict[str, Any]) -> Affine | None:
    if norm.version < 7 or norm.attrs.get("training_mode") or norm.attrs.get("spatial", 1) != 1:
        return None
    if len([n for n in norm.outputs if n]) != 1 or any(n not in constants for n in norm.inputs[1:5]):
        return None
    scale, shift, mean, variance = (constants[n].astype(np.float64) for n in norm.inputs[1:5])
    factor = scale / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
    return factor, shift - mean * factor


def _fold(
    conv: Node, node: Node, affine: Affine, constants: dict[str, Any], consts: dict[str, Any], room: Room
) -> Node | None:
    if any(n and n not in constants for n in conv.inputs[1:]):
        return None
    weight = constants[conv.inputs[1]]
    if weight.dtype not in (np.float32, np.float64):
        return None
    factor, shift = affine
    bias = constants[conv.inputs[2]].astype(np.float64) if len(conv.inputs) > 2 and conv.inputs[2] else 0.0
    names = (f"{node.outputs[0]}/weight", f"{node.outputs[0]}/bias")
    if node.op in ("Add", "Sub"):
        names = (conv.inputs[1], names[1])
    else:
        per_row = np.reshape(factor, (-1, *[1] * (weight.ndim - 1)))
        scaled = room.empty(weight.shape, weight.dtype)
        np.multiply(weight, per_row, out=scaled, dtype=np.float64, casting="same_kind")  # without a float64 copy
        consts[names[0]] = constants[names[0]] = scaled
    total = np.broadcast_to(bias * factor + shift, (weight.shape[0],))
    consts[names[1]] = constants[names[1]] = np.ascontiguousarray(total, weight.dtype)
    inputs = (conv.inputs[0], *names)
    return Node("Conv", inputs, node.outputs, conv.attrs, conv.name or node.name, "", conv.version)
