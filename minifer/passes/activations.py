"""Activations that exporters write out in elementary operators, put together again."""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import Graph, Node


def hard_swish(graph: Graph) -> Graph:
    """x * clip(x + 3, 0, 6) / 6 in any order of its factors -> HardSwish (ONNX operator of that name, since 14)."""
    constants = {n: v for n, v in graph.consts.items() if n not in graph.inputs}
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.reads:
            readers[name] = readers.get(name, 0) + 1
    for name in graph.outputs:
        readers[name] = readers.get(name, 0) + 1
    writer: dict[str, Node] = {}
    nodes: list[Node] = []
    gone: set[str] = set()
    for node in graph.nodes:
        found = _match(node, writer, readers, constants)
        if found is not None:
            source, inner = found
            gone.update(inner)
            node = Node("HardSwish", (source,), node.outputs, {}, node.name, "", max(14, node.version))
        nodes.append(node)
        writer.update((n, node) for n in node.outputs)
    return graph.with_(nodes=tuple(n for n in nodes if not gone.intersection(n.outputs))) if gone else graph


def _match(
    node: Node, writer: dict[str, Node], readers: dict[str, int], constants: dict[str, Any]
) -> tuple[str, set[str]] | None:
    """(x, names of the intermediate results) where `node` is the last step of the pattern."""

    def number(name: str) -> float | None:
        value = constants.get(name)
        if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype != np.float32:
            return None
        return float(value.reshape(-1)[0])

    def alone(name: str, op: str) -> Node | None:
        made = writer.get(name)
        return made if made is not None and made.op == op and not made.domain and readers.get(name) == 1 else None

    def gate(name: str) -> tuple[str, set[str]] | None:
        """x and the names inside where `name` is clip(x + 3, 0, 6)."""
        clip = alone(name, "Clip")
        if clip is None:
            return None
        if clip.version < 11:
            low, high = clip.attrs.get("min"), clip.attrs.get("max")
        else:
            low, high = (number(n) for n in (*clip.inputs[1:3], "", "")[:2])
        add = alone(clip.inputs[0], "Add")
        if (low, high) != (0.0, 6.0) or add is None or add.version < 7:
            return None
        for x, three in (add.inputs, add.inputs[::-1]):
            if number(three) == 3.0:
                return x, {name, add.outputs[0]}
        return None

    if node.domain or len(node.inputs) != 2:
        return None
    last = [
        product
        for product, divisor in (node.inputs, node.inputs[::-1])
        if (node.op == "Div" and product == node.inputs[0] and number(divisor) == 6.0)
        or (node.op == "Mul" and abs((number(divisor) or 0.0) - 1 / 6) < 1e-7)
    ]
    for name in last:
        product = alone(name, "Mul")
        if product is None:
            continue
        for x, other in (product.inputs, product.inputs[::-1]):
            found = gate(other)
            if found is not None and found[0] == x:
                return x, {*found[1], name}
    return None
