"""Squeeze-and-excitation with a residual: x + x g -> x (g + 1), where the gate g has one number per channel.

Such a gate comes from the mean of each channel (Hu, Shen and Sun, "Squeeze-and-Excitation Networks", 2018). The sum is
then one of few numbers, and the whole image is read and written once less. Differs by rounding alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.passes.match import Matcher, Types, other, rewrite


def excite(graph: Graph, types: Types | None = None) -> Graph:
    """Rewrite each such sum of float32 images."""
    return rewrite(graph, types, ("Add",), _gated)


def _gated(found: Matcher, node: Node, consts: dict[str, Any]) -> tuple[Node, list[Node]] | None:
    match = _match(found, node)
    if match is None:
        return None
    x, gate = match
    made, one = f"{node.outputs[0]}/gate", f"{node.outputs[0]}/one"
    consts[one] = np.ones((), np.float32)
    plus = Node("Add", (gate, one), (made,), {}, f"{node.name}/gate", "", node.version)
    return node, [plus, Node("Mul", (x, made), node.outputs, {}, node.name, "", node.version)]


def _match(found: Matcher, node: Node) -> tuple[str, str] | None:
    """(x, gate) where the node is x + x * gate."""
    if node.version < 7 or node.inputs[0] == node.inputs[1]:
        return None
    for x in node.inputs:
        product = found.alone(other(node, x), "Mul")
        if product is None or product.inputs.count(x) != 1 or not found.is_float(x):
            continue
        gate = other(product, x)
        image, numbers = found.shape(x), found.shape(gate)
        if image is not None and numbers is not None and len(image) == len(numbers) > 2 and {*numbers[2:]} == {1}:
            return x, gate
    return None
