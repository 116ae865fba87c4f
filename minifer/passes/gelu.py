"""Activations that are x times a gate of x, put together again: Gelu in both forms, Swish and QuickGelu, Mish.

Exporters write them in many ways: the half before or after, a quotient or a product, the cube as a power or as two
products. So what stands inside and outside of the gate is read as a polynomial in x, and its coefficients compared.

    Gelu   x/2 (1 + erf(x / sqrt 2))                                  (Hendrycks and Gimpel 2016)
    Gelu   x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))            (the same, approximate="tanh")
    Swish  x sigmoid(alpha x)                                         (Ramachandran, Zoph and Le 2017)
    Mish   x tanh(log(1 + e^x))                                       (Misra 2019)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from minifer.ir import Graph, Node
from minifer.passes.match import Matcher, Types, other, rewrite

#: power of x -> coefficient
Polynomial = dict[int, float]

DEPTH = 6  # nodes that an expression inside a gate may be deep
FACTORS = 3  # products that may follow a gate
DEGREE = 3

_ERF = {1: 1 / math.sqrt(2)}
_TANH = {1: math.sqrt(2 / math.pi), 3: math.sqrt(2 / math.pi) * 0.044715}


def gates(graph: Graph, types: Types | None = None) -> Graph:
    """Replace each such activation of float32 numbers by its operator."""
    return rewrite(graph, types, ("Erf", "Tanh", "Sigmoid"), _activation)


def _activation(found: Matcher, gate: Node, consts: dict[str, Any]) -> tuple[Node, list[Node]] | None:
    match = _gelu(found, gate) or _swish(found, gate) or _mish(found, gate)
    return (match[0], [match[1]]) if match is not None and _fits(found, match[1]) else None


def _fits(found: Matcher, fused: Node) -> bool:
    """Whether x is float32, and the result has its shape (constants of rank 1 may raise a scalar to a vector)."""
    x, y = found.shape(fused.inputs[0]), found.shape(fused.outputs[0])
    return found.is_float(fused.inputs[0]) and (x != () or y == ())


def _gelu(found: Matcher, gate: Node) -> tuple[Node, Node] | None:
    """The last node of a Gelu around an Erf or Tanh, and the Gelu."""
    if gate.op == "Sigmoid":
        return None
    plus = found.reader(gate.outputs[0], "Add")
    if plus is None or found.number(other(plus, gate.outputs[0])) != 1.0:
        return None
    wanted = _ERF if gate.op == "Erf" else _TANH
    for x in _names(found, gate.inputs[0], DEPTH):
        if _same(_polynomial(found, gate.inputs[0], x, DEPTH), wanted):
            last = _times(found, plus, x, 0.5)
            if last is not None:
                attrs = {} if gate.op == "Erf" else {"approximate": "tanh"}
                return last, Node("Gelu", (x,), last.outputs, attrs, last.name, "", 20)
    return None


def _swish(found: Matcher, gate: Node) -> tuple[Node, Node] | None:
    """The last node of a Swish around a Sigmoid, and the Swish."""
    if gate.op != "Sigmoid":
        return None
    for x in _names(found, gate.inputs[0], 1):
        inside = _polynomial(found, gate.inputs[0], x, 1)
        last = _times(found, gate, x, 1.0)
        if last is not None and inside is not None and set(inside) == {1}:
            return last, Node("Swish", (x,), last.outputs, {"alpha": inside[1]}, last.name, "", 24)
    return None


def _mish(found: Matcher, gate: Node) -> tuple[Node, Node] | None:
    """The last node of a Mish around a Tanh, and the Mish."""
    soft = found.alone(gate.inputs[0], "Softplus")
    if gate.op != "Tanh" or soft is None:
        return None
    last = _times(found, gate, soft.inputs[0], 1.0)
    return None if last is None else (last, Node("Mish", soft.inputs, last.outputs, {}, last.name, "", 18))


def _times(found: Matcher, gate: Node, x: str, factor: float) -> Node | None:
    """The node that ends the product factor * x * gate; what lies between is read by nobody else."""
    rest: Polynomial = {0: 1.0}
    for _ in range(FACTORS):
        node = found.reader(gate.outputs[0], "Mul", "Div")
        if node is None:
            return None
        if node.op == "Div":
            divisor = found.number(node.inputs[1]) if node.inputs[0] == gate.outputs[0] else None
            more = None if not divisor else {0: 1 / divisor}
        else:
            more = _polynomial(found, other(node, gate.outputs[0]), x, 2)
        product = None if more is None else _product(rest, more)
        if product is None:
            return None
        rest, gate = product, node
        if _same(rest, {1: factor}):
            return node
    return None


def _names(found: Matcher, name: str, depth: int) -> Iterator[str]:
    """The values that an expression is made of, itself first: what may be its x."""
    if name in found.constants:
        return
    yield name
    node = found.made(name, "Add", "Sub", "Mul", "Div", "Pow")
    if node is not None and depth:
        for inner in dict.fromkeys(node.inputs):
            yield from _names(found, inner, depth - 1)


def _polynomial(found: Matcher, name: str, x: str, depth: int) -> Polynomial | None:
    """A value as a polynomial in x; None where it is none, or its expression is deeper or its degree higher."""
    if name == x:
        return {1: 1.0}
    number = found.number(name)
    if number is not None:
        return {0: number}
    node = found.made(name, "Add", "Sub", "Mul", "Div", "Pow")
    if node is None or not depth or node.version < 7:
        return None
    a = _polynomial(found, node.inputs[0], x, depth - 1)
    b = _polynomial(found, node.inputs[1], x, depth - 1)
    if a is None or b is None:
        return None
    if node.op in ("Add", "Sub"):
        sign = 1 if node.op == "Add" else -1
        return {p: a.get(p, 0.0) + sign * b.get(p, 0.0) for p in {*a, *b}}
    if node.op == "Mul":
        return _product(a, b)
    if set(b) != {0}:
        return None
    if node.op == "Div":
        return _product(a, {0: 1 / b[0]}) if b[0] else None
    power = b[0]
    if power not in (1.0, 2.0, 3.0):
        return None
    raised: Polynomial | None = a
    for _ in range(int(power) - 1):
        raised = None if raised is None else _product(raised, a)
    return raised


def _product(a: Polynomial, b: Polynomial) -> Polynomial | None:
    total: Polynomial = {}
    for p, u in a.items():
        for q, v in b.items():
            total[p + q] = total.get(p + q, 0.0) + u * v
    return total if max(total) <= DEGREE else None


def _same(a: Polynomial | None, b: Polynomial) -> bool:
    """Whether two polynomials agree to the accuracy of float32 constants, as exporters round them."""
    if a is None:
        return False
    powers = {*a, *b}
    return all(abs(a.get(p, 0.0) - b.get(p, 0.0)) <= 2e-6 * abs(b.get(p, 0.0)) for p in powers)
