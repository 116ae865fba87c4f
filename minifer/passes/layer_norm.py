"""LayerNormalization and RMSNormalization written out in elementary operators, put together again.

    LayerNorm  d / sqrt(mean(d^2) + epsilon) * scale + bias,  d = x - mean(x)      (Ba, Kiros and Hinton 2016)
    RMSNorm    x / sqrt(mean(x^2) + epsilon) * scale                                (Zhang and Sennrich 2019)

The square is a Pow or a Mul, the root a divisor or its reciprocal a factor. Scale and bias are taken where they are
constants of the normalised shape; a scale that is missing is all ones. Means run over the last axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.ops.shapes import integers
from minifer.passes.match import Matcher, Types, declined, other, rewrite
from minifer.record import Record


class _Norm(Record, frozen=False):
    """A normalisation of x over its last `axes` axes that ends with `last`."""

    x: str
    axes: int
    epsilon: float
    last: Node
    centred: bool


def layer_norm(graph: Graph, types: Types | None = None) -> Graph:
    """Replace each such normalisation of float32 numbers by its operator."""
    return rewrite(graph, types, ("Div", "Mul"), _normalised)


def _normalised(found: Matcher, node: Node, consts: dict[str, Any]) -> tuple[Node, list[Node]] | None:
    norm = _core(found, node)
    fused = _finish(found, norm, consts) if norm is not None else None
    return (fused[0], [fused[1]]) if fused is not None else None


def _core(found: Matcher, node: Node) -> _Norm | None:
    """The normalisation that a quotient or product ends, without scale and bias."""
    sides = [node.inputs] if node.op == "Div" else [node.inputs, node.inputs[::-1]]
    for top, bottom in sides:
        root = bottom if node.op == "Div" else _inverted(found, bottom)
        sqrt = found.alone(root, "Sqrt") if root else None
        plus = found.alone(sqrt.inputs[0], "Add") if sqrt is not None else None
        if plus is None:
            continue
        for mean, small in (plus.inputs, plus.inputs[::-1]):
            epsilon = found.number(small)
            square = _mean_of(found, mean)
            source = None if square is None or epsilon is None else _squared(found, square[0])
            if source is None or source != top:
                continue
            assert square is not None and epsilon is not None
            minus = found.made(source, "Sub")
            if minus is not None:
                centre = _mean_of(found, minus.inputs[1])
                if centre is not None and centre == (minus.inputs[0], square[1]):
                    if set(found.readers(source)) == {found.writer[square[0]], node}:
                        return _Norm(minus.inputs[0], square[1], epsilon, node, True)
                    declined(node, "the difference from the mean is read elsewhere")
                    continue
            return _Norm(source, square[1], epsilon, node, False)
    return None


def _inverted(found: Matcher, name: str) -> str:
    """What a value is the reciprocal of, or ""."""
    node = found.alone(name, "Reciprocal", "Div")
    if node is None:
        return ""
    if node.op == "Reciprocal":
        return node.inputs[0]
    return node.inputs[1] if found.number(node.inputs[0]) == 1.0 else ""


def _mean_of(found: Matcher, name: str) -> tuple[str, int] | None:
    """What a value is the mean of, and over how many last axes."""
    node = found.alone(name, "ReduceMean")
    if node is None or node.attrs.get("keepdims", 1) != 1:
        return None
    shape = found.shape(node.inputs[0])
    axes = node.attrs.get("axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = found.value(node.inputs[1])
    if shape is None or axes is None:
        return None
    listed = sorted(a % len(shape) for a in integers(axes)) if shape else []
    count = len(listed)
    return (node.inputs[0], count) if count and listed == list(range(len(shape) - count, len(shape))) else None


def _squared(found: Matcher, name: str) -> str | None:
    """What a value is the square of."""
    node = found.alone(name, "Pow", "Mul")
    if node is None:
        return None
    if node.op == "Mul":
        return node.inputs[0] if node.inputs[0] == node.inputs[1] else None
    exponent = found.constants.get(node.inputs[1])
    return node.inputs[0] if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2 else None


def _finish(found: Matcher, norm: _Norm, consts: dict[str, Any]) -> tuple[Node, Node] | None:
    """The last node that goes, and the operator in its place, with scale and bias where they follow."""
    shape, node = found.shape(norm.x), norm.last
    if shape is None or not found.is_float(norm.x):
        declined(node, "the shape or type of what is normalised is not known")
        return None
    sizes = shape[-norm.axes :]
    if not all(isinstance(d, int) for d in sizes):
        declined(node, "the normalised sizes are not known")
        return None
    scale = _constant_after(found, node, "Mul", sizes)
    if scale is not None:
        node = scale[0]
    bias = _constant_after(found, node, "Add", sizes) if norm.centred else None
    name = norm.last.outputs[0]
    inputs = [norm.x, f"{name}/scale"]
    consts[inputs[1]] = np.ones(sizes, np.float32) if scale is None else scale[1]
    if bias is not None:
        node = bias[0]
        inputs.append(f"{name}/bias")
        consts[inputs[2]] = bias[1]
    op, version = ("LayerNormalization", 17) if norm.centred else ("RMSNormalization", 23)
    attrs = {"axis": -norm.axes, "epsilon": norm.epsilon}
    return node, Node(op, tuple(inputs), node.outputs, attrs, node.name, "", version)


def _constant_after(found: Matcher, node: Node, op: str, sizes: tuple[Any, ...]) -> tuple[Node, np.ndarray] | None:
    """The node `op` that alone reads a result, and the constant of the given sizes that it takes."""
    follower = found.reader(node.outputs[0], op)
    if follower is None:
        return None
    value = found.constants.get(other(follower, node.outputs[0]))
    shape = found.shape(node.outputs[0])
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or shape is None or value.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - value.ndim) + value.shape
    if any(d != 1 for d in full[: -len(sizes)]) or full[-len(sizes) :] != sizes:
        return None
    return follower, value.reshape(sizes)
