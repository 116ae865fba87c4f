"""Movement of data that exporters leave behind, taken out or put where it does not part what belongs together.

* What follows from shapes alone is a constant.
* A Reshape, Expand or Resize to the shape that is there is nothing.
* An activation behind a Reshape or Transpose of a product stands before it: there it is the product's own.
* A residual behind a Transpose of a product likewise, where it comes from such a Transpose, or from a convolution:
  in memory it lies as the product does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.passes.clean import remove_identity
from minifer.passes.match import Matcher, Types, other, replace_nodes

ACTIVATIONS = ("Gelu", "Swish", "Relu", "HardSwish", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "Mish")
MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
PRODUCTS = ("Conv", "MatMul", "Gemm")


def fold_shapes(graph: Graph, types: Types | None = None) -> Graph:
    """Nodes whose value follows from the shapes of the inputs become constants."""
    found = (types or Types(graph)).matcher(graph)
    consts: dict[str, Any] = {}
    replaced: dict[int, list[Node]] = {}
    for node in graph.nodes:
        values = [found.value(n) for n in node.outputs if n]
        if not node.subgraphs_any and values and all(isinstance(v, np.ndarray) for v in values):
            replaced[id(node)] = []
            consts.update(zip(filter(None, node.outputs), values))
    return replace_nodes(graph, replaced, consts)


def remove_reshapes(graph: Graph, types: Types | None = None) -> Graph:
    """Readers of a Reshape, Expand or Resize that changes nothing read its input instead."""
    found = (types or Types(graph)).matcher(graph)
    replaced: dict[int, list[Node]] = {}
    for node in graph.nodes:
        moves = node.op in ("Reshape", "Expand") or (node.op == "Resize" and _by_sizes(node))
        if moves and not node.domain and node.outputs[0] not in graph.outputs:
            kind = found.type(node.outputs[0])
            if kind is not None and kind.concrete and kind == found.type(node.inputs[0]):
                replaced[id(node)] = [Node("Identity", node.inputs[:1], node.outputs, {}, node.name, "", 14)]
    return remove_identity(replace_nodes(graph, replaced)) if replaced else graph


def _by_sizes(resize: Node) -> bool:
    """Whether a Resize is told sizes, each stretched by itself: to the same size it gives its input."""
    by_ratio = resize.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    crops = resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return len(resize.inputs) > 3 and bool(resize.inputs[3]) and not by_ratio and not crops


def _bias_or_product(found: Matcher, name: str) -> bool:
    """Whether a value that is read once is a product, perhaps with a constant added to it."""
    node = found.alone(name, *PRODUCTS, "Add")
    if node is not None and node.op == "Add":
        return any(n in found.constants and found.alone(other(node, n), "MatMul") for n in node.inputs)
    return node is not None


def activations_first(graph: Graph, types: Types | None = None) -> Graph:
    """activation(move(product)) -> move(activation(product))."""
    if not any(node.op in ACTIVATIONS for node in graph.nodes):
        return graph
    found = (types or Types(graph)).matcher(graph)
    replaced: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.op not in ACTIVATIONS or node.domain:
            continue
        moves: list[Node] = []
        name = node.inputs[0]
        while (move := found.alone(name, *MOVES)) is not None:
            moves.insert(0, move)
            name = move.inputs[0]
        if not moves or not _bias_or_product(found, name):
            continue
        made = [Node(node.op, (name,), (f"{name}/activated",), node.attrs, node.name, "", node.version)]
        for i, move in enumerate(moves):
            out = node.outputs[0] if move is moves[-1] else f"{node.outputs[0]}/move{i}"
            inputs = (made[-1].outputs[0], *move.inputs[1:])
            made.append(Node(move.op, inputs, (out,), move.attrs, move.name, "", move.version))
        replaced[id(node)] = made
    return replace_nodes(graph, replaced)


def residuals_first(graph: Graph, types: Types | None = None) -> Graph:
    """Transpose(product) + r -> Transpose(product + r'), r' being r transposed back."""
    found = (types or Types(graph)).matcher(graph)
    replaced: dict[int, list[Node]] = {}
    moved: dict[str, tuple[int, ...]] = {}  # sums that a Transpose writes now
    for node in graph.nodes:
        if node.op != "Add" or node.domain or node.version < 7:
            continue
        for name, residual in (node.inputs, node.inputs[::-1]):
            move = found.alone(name, "Transpose")
            perm = move.attrs.get("perm") if move is not None else None
            if move is None or perm is None or not _bias_or_product(found, move.inputs[0]):
                continue
            rank = len(perm)
            source, kind = found.made(residual, "Transpose", "Conv"), found.type(residual)
            channels_last = rank > 2 and perm == (0, rank - 1, *range(1, rank - 1))
            known = source is not None and (source.op == "Conv" or source.attrs.get("perm") == perm)
            if not channels_last or not (known or moved.get(residual) == perm):
                continue
            if kind is None or not kind.concrete or kind != found.type(name):
                continue
            out = node.outputs[0]
            if residual in moved:
                straight = f"{residual}/sum"
            elif source is not None and source.op == "Transpose":
                straight = source.inputs[0]
            else:  # written right behind the convolution, so that it is there when the product is made
                straight = f"{residual}/last"
                back = Node("Transpose", (residual,), (straight,), {"perm": (0, *range(2, rank), 1)}, node.name, "", 13)
                own = replaced.setdefault(id(found.writer[residual]), [found.writer[residual]])
                if not any(straight in n.outputs for n in own):
                    own.append(back)
            total = Node("Add", (move.inputs[0], straight), (f"{out}/sum",), {}, node.name, "", node.version)
            replaced[id(node)] = [total, Node("Transpose", (f"{out}/sum",), (out,), {"perm": perm}, move.name, "", 13)]
            moved[out] = perm
            break
    return replace_nodes(graph, replaced)
