"""ai.onnx.preview.training.Gradient, as a graph rewrite: reverse-mode differentiation that writes ONNX nodes.

A Gradient node names tensors of the graph that it stands in: y, and the independent ones xs and zs. In its place come
the nodes that compute dy/dx for each x (of the sum of y's elements, where y has several). What is written are plain
operators, so that derivatives run natively, fold, and can be differentiated again.

`_RULES` lists the operators that have a derivative here, `_CONSTANT` those whose derivative is zero everywhere it
exists; any other operator between xs and y raises UnsupportedError. Broadcasting is undone by the operator
minifer::SumTo. Source: Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import MiniferError, ModelError, UnsupportedError
from minifer.ir import Graph, Node, TensorType, Type
from minifer.ops import registry
from minifer.passes.inline import rename

DOMAIN = "ai.onnx.preview.training"
_VERSION = 18  # of the nodes written


class _Tape:
    """Writes nodes under fresh names, and knows the types of values as far as they can be inferred."""

    def __init__(self, types: Mapping[str, Type], consts: dict[str, Any]):
        self.types: dict[str, Type | None] = dict(types)
        self.consts = consts
        self.nodes: list[Node] = []
        self.prefix = ""
        self._count = 0

    def fresh(self) -> str:
        self._count += 1
        return f"{self.prefix}/{self._count}"

    def add(self, node: Node) -> None:
        """Append a node and infer the types of its outputs."""
        self.nodes.append(node)
        op = registry.select(node)
        if op is None or op.infer is None or any(node.subgraphs):
            return
        kinds = [self.types.get(n) for n in node.inputs]
        try:
            found = op.infer(registry.Call(node, kinds, [self.consts.get(n) for n in node.inputs]))
        except MiniferError:
            return  # the planner says it, if it still holds when shapes are known
        for name, kind in zip(node.outputs, found if isinstance(found, list | tuple) else [found]):
            if name and kind is not None:
                self.types[name] = kind

    def many(self, op: str, inputs: Sequence[str], outputs: int, domain: str = "", **attrs: Any) -> tuple[str, ...]:
        """Write a node; returns the names of its outputs."""
        names = tuple(self.fresh() for _ in range(outputs))
        self.add(Node(op, tuple(inputs), names, attrs, "", domain, 1 if domain else _VERSION))
        return names

    def __call__(self, op: str, *inputs: str, **attrs: Any) -> str:
        return self.many(op, inputs, 1, **attrs)[0]

    def sum_to(self, gradient: str, like: str) -> str:
        """`gradient` summed to the shape of `like`."""
        return self.many("SumTo", (gradient, like), 1, "minifer")[0]

    def number(self, value: float, like: str) -> str:
        """A scalar of the element type of `like`."""
        name = self.fresh()
        self.consts[name] = np.array(value)
        self.types[name] = TensorType("float64", ())
        return self("CastLike", name, like)

    def filled(self, value: float, like: str) -> str:
        """A tensor of one value with the shape and element type of `like`."""
        return self("Expand", self.number(value, like), self("Shape", like))

    def rank(self, name: str, node: Node) -> int:
        kind = self.types.get(name)
        if not isinstance(kind, TensorType) or kind.shape is None:
            raise UnsupportedError(f"{node.label}: the derivative needs the rank of '{name}', which is not known")
        return len(kind.shape)

    def may_be_float(self, name: str) -> bool:
        kind = self.types.get(name)
        return not isinstance(kind, TensorType) or kind.dtype in dtypes.FLOATS


# A rule writes the gradients of a node's inputs from that of its output 0: one name per input, None for none.
Rule = Callable[[_Tape, Node, str], "list[str | None]"]


def _binary(left: Callable, right: Callable) -> Rule:
    """A broadcasting operator, from functions of (tape, gradient, a, b, y)."""

    def rule(t: _Tape, node: Node, g: str) -> list[str | None]:
        if node.attrs.get("broadcast"):
            raise UnsupportedError(f"{node.label}: the broadcasting of opsets below 7 has no derivative here")
        a, b = node.inputs
        return [t.sum_to(f(t, g, a, b, node.outputs[0]), x) for f, x in ((left, a), (right, b))]

    return rule


def _unary(formula: Callable[[_Tape, str, str, str], str]) -> Rule:
    """An elementwise operator, from a function of (tape, gradient, x, y)."""
    return lambda t, node, g: [formula(t, g, node.inputs[0], node.outputs[0])]


def _where_positive(t: _Tape, g: str, x: str, otherwise: str) -> str:
    return t("Where", t("Greater", x, t.number(0, x)), g, otherwise)


def _leaky_relu(t: _Tape, node: Node, g: str) -> list[str | None]:
    slope = t.number(node.attrs.get("alpha", 0.01), g)
    return [_where_positive(t, g, node.inputs[0], t("Mul", g, slope))]


def _pow(t: _Tape, node: Node, g: str) -> list[str | None]:
    x, p = node.inputs
    less = t("Pow", x, t("Sub", p, t.number(1, p)))
    by_base = t.sum_to(t("Mul", g, t("Mul", t("CastLike", p, x), less)), x)
    if not t.may_be_float(p):
        return [by_base, None]
    zero = t.number(0, x)  # x^p log x is taken as 0 at x = 0, where it tends to for p > 0
    safe = t("Where", t("Equal", x, zero), t.number(1, x), x)
    by_exponent = t("Mul", t("Mul", g, node.outputs[0]), t("Log", safe))
    return [by_base, t.sum_to(t("CastLike", by_exponent, p), p)]


def _sum(t: _Tape, node: Node, g: str) -> list[str | None]:
    return [t.sum_to(g, x) for x in node.inputs]


def _mean(t: _Tape, node: Node, g: str) -> list[str | None]:
    share = t("Mul", g, t.number(1 / len(node.inputs), g))
    return [t.sum_to(share, x) for x in node.inputs]


def _extreme(t: _Tape, node: Node, g: str) -> list[str | None]:
    """Max and Min: the gradient goes to the inputs that are the extreme, in equal shares."""
    hits = [t("CastLike", t("Equal", x, node.outputs[0]), g) for x in node.inputs]
    total = hits[0] if len(hits) == 1 else t("Sum", *hits)
    share = t("Div", g, total)
    return [t.sum_to(t("Mul", share, hit), x) for hit, x in zip(hits, node.inputs)]


def _where(t: _Tape, node: Node, g: str) -> list[str | None]:
    condition, x, y = node.inputs
    zero = t.number(0, g)
    return [None, t.sum_to(t("Where", condition, g, zero), x), t.sum_to(t("Where", condition, zero, g), y)]


def _matmul(t: _Tape, node: Node, g: str) -> list[str | None]:
    a, b = node.inputs
    m, n = ("m" if t.rank(a, node) > 1 else ""), ("n" if t.rank(b, node) > 1 else "")
    left, right = (f"...{m}k" if m else "k"), (f"...k{n}" if n else "k")
    by_a = t("Einsum", g, b, equation=f"...{m}{n},{right}->...{m}k")
    by_b = t("Einsum", a, g, equation=f"{left},...{m}{n}->...k{n}")
    return [t.sum_to(by_a, a), t.sum_to(by_b, b)]


def _gemm(t: _Tape, node: Node, g: str) -> list[str | None]:
    a, b = node.inputs[:2]
    left = "km" if node.attrs.get("transA") else "mk"
    right = "nk" if node.attrs.get("transB") else "kn"
    scaled = t("Mul", g, t.number(node.attrs.get("alpha", 1.0), g))
    out: list[str | None] = [
        t("Einsum", scaled, b, equation=f"mn,{right}->{left}"),
        t("Einsum", a, scaled, equation=f"{left},mn->{right}"),
    ]
    if len(node.inputs) > 2:
        out.append(t.sum_to(t("Mul", g, t.number(node.attrs.get("beta", 1.0), g)), node.inputs[2]))
    return out


def _einsum(t: _Tape, node: Node, g: str) -> list[str | None]:
    """The gradient of an operand is the product of the others and g, summed to the operand's own letters."""
    left, arrow, right = node.attrs["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    dots = "..." if "..." in left else ""
    out: list[str | None] = []
    for i, (term, x) in enumerate(zip(terms, node.inputs)):
        others = [right, *terms[:i], *terms[i + 1 :]]
        letters = term.replace("...", "")
        if not arrow or len(set(letters)) < len(letters) or not set("".join(others)).issuperset(letters):
            raise UnsupportedError(f"{node.label}: no derivative for the equation '{node.attrs['equation']}'")
        target = term if "..." in term else dots + term
        product = t("Einsum", g, *node.inputs[:i], *node.inputs[i + 1 :], equation=f"{','.join(others)}->{target}")
        out.append(t.sum_to(product, x))
    return out


def _transpose(t: _Tape, node: Node, g: str) -> list[str | None]:
    order = node.attrs.get("perm")
    return [t("Transpose", g) if order is None else t("Transpose", g, perm=tuple(int(i) for i in np.argsort(order)))]


def _reshaped(t: _Tape, node: Node, g: str) -> list[str | None]:
    """Operators that only change the shape."""
    return [t("Reshape", g, t("Shape", node.inputs[0]), allowzero=1)]


def _stretched(t: _Tape, node: Node, g: str) -> list[str | None]:
    """Expand: the inverse of broadcasting."""
    return [t.sum_to(g, node.inputs[0])]


def _shrunk(t: _Tape, node: Node, g: str) -> list[str | None]:
    """SumTo: broadcasting."""
    return [t("Expand", g, t("Shape", node.inputs[0])), None]


def _reduce(t: _Tape, node: Node, g: str) -> list[str | None]:
    """ReduceSum and ReduceMean: the gradient is spread back over the reduced axes."""
    x, kept = node.inputs[0], t.fresh()
    t.add(node.with_(outputs=(kept,), attrs={**node.attrs, "keepdims": 1}, name=""))
    spread = t("Expand", t("Reshape", g, t("Shape", kept), allowzero=1), t("Shape", x))
    if node.op == "ReduceMean":
        ratio = t("Div", t("CastLike", t("Size", kept), g), t("CastLike", t("Size", x), g))
        spread = t("Mul", spread, ratio)
    return [spread]


def _softmax(t: _Tape, node: Node, g: str) -> list[str | None]:
    if node.version < 13:
        raise UnsupportedError(f"{node.label}: only opset 13 and later have a derivative here")
    y, axis = node.outputs[0], t.fresh()
    t.consts[axis] = np.array([node.attrs.get("axis", -1)], np.int64)
    if node.op == "Softmax":
        return [t("Mul", y, t("Sub", g, t("ReduceSum", t("Mul", g, y), axis)))]
    return [t("Sub", g, t("Mul", t("Exp", y), t("ReduceSum", g, axis)))]


def _cast(t: _Tape, node: Node, g: str) -> list[str | None]:
    return [t("CastLike", g, node.inputs[0]) if t.may_be_float(node.inputs[0]) else None]


def _concat(t: _Tape, node: Node, g: str) -> list[str | None]:
    axis = node.attrs.get("axis", 1)
    ends = {} if axis == -1 else {"end": axis + 1}
    sizes = t("Concat", *(t("Shape", x, start=axis, **ends) for x in node.inputs), axis=0)
    return list(t.many("Split", (g, sizes), len(node.inputs), axis=axis))


_RULES: dict[tuple[str, str], Rule] = {("minifer", "SumTo"): _shrunk} | {
    ("", name): rule
    for name, rule in {
        "Add": _binary(lambda t, g, a, b, y: g, lambda t, g, a, b, y: g),
        "Sub": _binary(lambda t, g, a, b, y: g, lambda t, g, a, b, y: t("Neg", g)),
        "Mul": _binary(lambda t, g, a, b, y: t("Mul", g, b), lambda t, g, a, b, y: t("Mul", g, a)),
        "Div": _binary(
            lambda t, g, a, b, y: t("Div", g, b), lambda t, g, a, b, y: t("Neg", t("Div", t("Mul", g, y), b))
        ),
        "Pow": _pow, "Sum": _sum, "Mean": _mean, "Max": _extreme, "Min": _extreme, "Where": _where,
        "MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum, "Transpose": _transpose, "Concat": _concat,
        "Reshape": _reshaped, "Flatten": _reshaped, "Squeeze": _reshaped, "Unsqueeze": _reshaped, "Expand": _stretched,
        "ReduceSum": _reduce, "ReduceMean": _reduce, "Softmax": _softmax, "LogSoftmax": _softmax,
        "Cast": _cast, "CastLike": _cast, "LeakyRelu": _leaky_relu,
        "Identity": _unary(lambda t, g, x, y: g),
        "Neg": _unary(lambda t, g, x, y: t("Neg", g)),
        "Abs": _unary(lambda t, g, x, y: t("Mul", g, t("Sign", x))),
        "Reciprocal": _unary(lambda t, g, x, y: t("Neg", t("Mul", g, t("Mul", y, y)))),
        "Exp": _unary(lambda t, g, x, y: t("Mul", g, y)),
        "Log": _unary(lambda t, g, x, y: t("Div", g, x)),
        "Sqrt": _unary(lambda t, g, x, y: t("Div", t("Mul", g, t.number(0.5, g)), y)),
        "Sin": _unary(lambda t, g, x, y: t("Mul", g, t("Cos", x))),
        "Cos": _unary(lambda t, g, x, y: t("Neg", t("Mul", g, t("Sin", x)))),
        "Tanh": _unary(lambda t, g, x, y: t("Mul", g, t("Sub", t.number(1, y), t("Mul", y, y)))),
        "Sigmoid": _unary(lambda t, g, x, y: t("Mul", g, t("Mul", y, t("Sub", t.number(1, y), y)))),
        "Softplus": _unary(lambda t, g, x, y: t("Mul", g, t("Sigmoid", x))),
        "Relu": _unary(lambda t, g, x, y: _where_positive(t, g, x, t.number(0, g))),
        "Erf": _unary(lambda t, g, x, y: t(
            "Mul", t("Mul", g, t.number(2 / math.sqrt(math.pi), g)), t("Exp", t("Neg", t("Mul", x, x))))),
    }.items()
}  # fmt: skip

_CONSTANT = {
    "Shape", "Size", "Constant", "ConstantOfShape", "Range", "NonZero", "ArgMax", "ArgMin", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf", "Sign", "Floor", "Ceil",
    "Round",
}  # fmt: skip


def expand_gradients(graph: Graph) -> Graph:
    """The graph with each Gradient node replaced by the nodes that compute it; other graphs come back as they are.

    Raises ModelError for a Gradient node whose names do not fit the graph, UnsupportedError for an operator between
    xs and y that has no derivative here.
    """
    if not _has_gradient(graph):
        return graph
    consts = dict(graph.consts)
    tape = _Tape({**graph.types, **{n: _type_of(v) for n, v in consts.items()}}, consts)
    for node in graph.nodes:
        if node.domain == DOMAIN and node.op == "Gradient":
            _expand(tape, node, graph)
        else:
            tape.add(_with_expanded_subgraphs(node))
    return graph.with_(nodes=tuple(tape.nodes), consts=consts)


def _type_of(value: Any) -> Type:
    from minifer.ir import type_of_value

    return type_of_value(value)


def _has_gradient(graph: Graph) -> bool:
    return any(
        (n.domain == DOMAIN and n.op == "Gradient") or any(_has_gradient(sub) for sub in n.subgraphs)
        for n in graph.nodes
    )  # fmt: skip


def _with_expanded_subgraphs(node: Node) -> Node:
    if not any(_has_gradient(sub) for sub in node.subgraphs):
        return node
    attrs = {}
    for key, value in node.attrs.items():
        if isinstance(value, Graph):
            value = expand_gradients(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
            value = tuple(map(expand_gradients, value))
        attrs[key] = value
    return node.with_(attrs=attrs)


def _expand(tape: _Tape, node: Node, graph: Graph) -> None:
    """Write the nodes that compute one Gradient node."""
    xs, zs = tuple(node.attrs.get("xs", ())), tuple(node.attrs.get("zs", ()))
    y = node.attrs.get("y")
    if not xs or not isinstance(y, str) or len(node.inputs) != len(xs) + len(zs) or len(node.outputs) > len(xs):
        raise ModelError(f"{node.label}: needs attributes xs and y, an input for each of xs and zs, an output per x")
    tape.prefix = f"{node.name or next(filter(None, node.outputs), 'Gradient')}/gradient"
    nodes = _between(tape, node, (*xs, *zs), y)
    given = dict(zip((*xs, *zs), node.inputs))
    if any(name != value for name, value in given.items()):  # the same function at another point
        for step in nodes:
            given.update((n, tape.fresh()) for n in step.outputs if n)
        nodes = [rename(step, given) for step in nodes]
        for step in nodes:
            tape.add(step)
    gradients = _backward(tape, nodes, [given.get(x, x) for x in xs], given.get(y, y))
    for x, out in zip(xs, node.outputs):
        if out:
            source = gradients.get(given[x]) or tape.filled(0, given[x])
            tape.add(Node("Identity", (source,), (out,), {}, node.name, "", _VERSION))


def _between(tape: _Tape, node: Node, independent: tuple[str, ...], y: str) -> list[Node]:
    """The nodes written so far that lead from the independent tensors to y, in their order."""
    found: list[Node] = []
    wanted = {y}
    for step in reversed(tape.nodes):
        if any(n in wanted and n not in independent for n in step.outputs if n):
            found.append(step)
            wanted.update(filter(None, step.inputs))
            for sub in step.subgraphs:
                wanted.update(sub.captured())
    if not found and y not in independent:
        raise ModelError(f"{node.label}: no node before it writes y = '{y}'")
    return found[::-1]


def _backward(tape: _Tape, nodes: list[Node], xs: list[str], y: str) -> dict[str, str]:
    """Gradients of y by name, for all values that depend on xs."""
    moving = set(xs)
    for step in nodes:
        reads = {*step.inputs, *(n for sub in step.subgraphs for n in sub.captured())}
        if reads & moving and not (step.op in _CONSTANT and not step.domain):
            moving.update(n for n in step.outputs if n and n not in xs)
    gradients: dict[str, str] = {}
    if y in moving:
        gradients[y] = tape.filled(1, y)
    for step in reversed(nodes):
        written = [n for n in step.outputs if n in gradients and n not in xs]
        if not written:
            continue
        rule = _RULES.get((step.domain, step.op))
        if rule is None or written != [step.outputs[0]]:
            raise UnsupportedError(
                f"{step.label}: minifer has no derivative of it. Gradient covers "
                + ", ".join(sorted(op for _, op in _RULES))
            )
        for name, gradient in zip(step.inputs, rule(tape, step, gradients[written[0]])):
            if name in moving and gradient is not None:
                known = gradients.get(name)
                gradients[name] = gradient if known is None else tape("Add", known, gradient)
    return gradients
