"""Quantised graphs as tools write them (QDQ) become graphs of integer operators.

In a QDQ graph every tensor passes through QuantizeLinear and DequantizeLinear, and the operators between work on
floats. `integer_operators` reads the graph by its QuantizeLinear nodes: where what stands before one is an operator
on dequantised tensors, one operator on bytes takes the place of all of them.

* Conv, MatMul, Gemm become QLinearConv, QLinearMatMul, QGemm: exact integer sums, scaled once. The floats of the
  original are rounded at every step, so a result may differ by one quantum where the exact value lies near a tie.
  A float bias is first rounded to the scale of the sums, as quantising tools do.
* Add, Mul, Concat and average pools become the QLinear operator, which computes what stood there, step by step.
* What moves elements or picks the largest moves bytes: the scale is positive, so the order is kept.
* What works element by element on one tensor is a function of a byte: its 256 values are computed here, by the
  operators' own references, and stand in the graph as a table (minifer.Lookup). So whole chains become one step,
  and a Relu or Clip behind an integer operator a table, or nothing where the quantised range lies inside its bounds.

Without a QuantizeLinear behind it, a product of dequantised tensors stays in int32 up to one scaling to float32
(MatMulIntegerToFloat, QGemm). `dynamic_products` does the same for what the run quantises: DynamicQuantizeLinear,
MatMulInteger, Cast, Mul, Add.

Whatever reads a float still finds it: DequantizeLinear nodes stay where somebody needs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer.errors import MiniferError
from minifer.ir import Graph, Node
from minifer.ops import registry
from minifer.ops.registry import Context
from minifer.passes.clean import remove_dead
from minifer.passes.match import Matcher, Types, replace_nodes
from minifer.record import Record

MICROSOFT = "com.microsoft"
BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
#: operators that only move elements of their first input, or pick among them
MOVING = frozenset((
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "Identity",
    "MaxPool", "DepthToSpace", "SpaceToDepth",
))  # fmt: skip
#: operators that work element by element
ELEMENTWISE = frozenset((
    "Abs", "Add", "Acos", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg",
    "Not", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Sub", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where",
))  # fmt: skip


class Quantised(Record):
    """What a DequantizeLinear says of its result: the bytes, and the names and values of scale and zero point."""

    bytes: str
    scale: str
    zero: str
    scales: np.ndarray
    zeros: np.ndarray
    axis: int

    @property
    def whole(self) -> bool:
        """True where one scale serves the whole tensor."""
        return self.scales.size == 1


class ByteFunction(Record):
    """A value that is a function of one byte of a tensor, element by element: its result for each of the bytes."""

    root: str
    values: np.ndarray


@functools.cache
def every_byte(dtype: np.dtype) -> np.ndarray:
    """The 256 bytes in order of their bits, as int8 or uint8."""
    values = np.arange(256).astype(np.uint8).view(dtype)
    values.flags.writeable = False
    return values


class Rewriter:
    """One walk over the graph, in order. What is replaced falls away as dead code afterwards."""

    def __init__(self, graph: Graph):
        self.match = Matcher(graph, Types(graph))
        self.graph = graph
        self.consts: dict[str, Any] = {}
        self.nodes: list[Node] = []
        self.found: dict[str, Quantised] = {}
        self.dtypes: dict[str, np.dtype] = {}  # of the bytes that DequantizeLinear nodes read
        self.functions: dict[str, ByteFunction] = {}
        self.constants = dict(self.match.constants)
        for node in graph.nodes:
            if node.op == "Constant" and not node.domain and isinstance(node.attrs.get("value"), np.ndarray):
                self.constants[node.outputs[0]] = node.attrs["value"]

    def run(self) -> Graph:
        """The new graph."""
        for node in self.graph.nodes:
            if node.domain in ("", MICROSOFT) and node.op == "DequantizeLinear":
                self.note(node)
                self.nodes.append(node)
            elif node.domain in ("", MICROSOFT) and node.op == "QuantizeLinear":
                self.nodes += self.integers(node) or [node]
                self.note_bytes(node)
            else:
                self.nodes += self.product_to_float(node) or self.picked(node) or [node]
                self.follow(node)
        return remove_dead(self.graph.with_(nodes=tuple(self.nodes), consts={**self.graph.consts, **self.consts}))

    # -- names ----------------------------------------------------------------------------------------------

    def const(self, name: str, value: np.ndarray) -> str:
        """A new constant."""
        self.consts[name] = self.constants[name] = np.ascontiguousarray(value)
        return name

    def parameters(self, node: Node) -> tuple[np.ndarray, np.ndarray, str] | None:
        """Scale, zero point and its name, of a QuantizeLinear or DequantizeLinear where they are constants."""
        scale = self.constants.get(node.inputs[1])
        if not isinstance(scale, np.ndarray) or scale.dtype != np.float32 or node.attrs.get("block_size", 0):
            return None
        if node.attrs.get("precision", 0) not in (0, 1) or not (scale > 0).all():
            return None
        if len(node.inputs) > 2 and node.inputs[2]:
            zero = self.constants.get(node.inputs[2])
            return (scale, zero, node.inputs[2]) if isinstance(zero, np.ndarray) else None
        if node.op == "DequantizeLinear":
            kind = self.match.type(node.inputs[0])
            dtype = {"int8": np.int8, "uint8": np.uint8, "int32": np.int32}.get(kind.dtype if kind else "")
        else:
            dtype = np.uint8 if node.attrs.get("output_dtype", 0) in (0, 2) else None
        if dtype is None:
            return None
        zero = np.zeros(scale.shape, dtype)
        return scale, zero, self.const(f"{node.outputs[0]}/zero", zero)

    def note(self, node: Node) -> None:
        """Remember a DequantizeLinear."""
        given = self.parameters(node)
        if given is None or (node.attrs.get("output_dtype", 0) not in (0, 1)):
            return
        scale, zero, zero_name = given
        about = Quantised(node.inputs[0], node.inputs[1], zero_name, scale, zero, node.attrs.get("axis", 1))
        self.found[node.outputs[0]] = about
        self.dtypes[about.bytes] = zero.dtype
        value = self.constants.get(about.bytes)
        if isinstance(value, np.ndarray) and value.size == 1 and about.whole:
            number = self.evaluate(node, [value, scale.reshape(()), zero.reshape(())])
            if number is not None:
                self.constants[node.outputs[0]] = number
        elif about.whole and zero.dtype in BYTES:
            inner = self.functions.get(about.bytes)
            every = every_byte(zero.dtype) if inner is None else inner.values
            if every.dtype == zero.dtype:
                values = (every.astype(np.float32) - zero.reshape(()).astype(np.float32)) * scale.reshape(())
                self.functions[node.outputs[0]] = ByteFunction(about.bytes if inner is None else inner.root, values)

    def note_bytes(self, node: Node) -> None:
        """Remember that what a table makes of a byte is still a function of that byte."""
        made = self.nodes[-1]
        if made.op == "Identity" and made.outputs == node.outputs:
            dtype = self.constants[node.inputs[2]].dtype if len(node.inputs) > 2 else np.dtype(np.uint8)
            values = every_byte(dtype)
            self.functions[node.outputs[0]] = ByteFunction(made.inputs[0], values)
        if made.op == "Lookup" and made.domain == "minifer" and made.outputs == node.outputs:
            self.functions[node.outputs[0]] = ByteFunction(made.inputs[0], self.constants[made.inputs[1]])

    # -- functions of one byte ------------------------------------------------------------------------------

    def evaluate(self, node: Node, inputs: Sequence[Any]) -> np.ndarray | None:
        """A node's result by its reference."""
        op = registry.select(node)
        if op is None:
            return None
        try:
            return np.asarray(op.call(Context(node, lambda graph, args: []), inputs)[0])
        except MiniferError:  # the run will say it
            return None

    def follow(self, node: Node) -> None:
        """Remember a node whose result is a function of one byte."""
        if node.domain or node.op not in ELEMENTWISE or len(node.outputs) != 1:
            return
        roots: set[str] = set()
        values: list[Any] = []
        for name in node.inputs:
            function, value = self.functions.get(name), self.constants.get(name)
            if function is not None:
                roots.add(function.root)
                values.append(function.values)
            elif not name:
                values.append(None)
            elif isinstance(value, np.ndarray) and value.size == 1:
                values.append(value)
                roots |= set() if value.ndim == 0 else {""}
            else:
                return
        ranked = "" in roots
        roots.discard("")
        if len(roots) != 1:
            return
        root = roots.pop()
        if ranked and not self._broad(root, max(v.ndim for v in values if v is not None)):
            return
        scalars = [v.reshape(()) if v is not None and v.size == 1 else v for v in values]
        made = self.evaluate(node, scalars)
        if made is not None and made.shape == (256,):
            self.functions[node.outputs[0]] = ByteFunction(root, made)

    def _broad(self, root: str, rank: int) -> bool:
        """Whether a tensor has so many dimensions that a constant of a rank does not add any."""
        shape = self.match.shape(root)
        return shape is not None and len(shape) >= rank

    def table(self, root: str, values: np.ndarray, outputs: Sequence[str]) -> Node:
        """A Lookup."""
        name = self.const(f"{outputs[0]}/table", values)
        return Node("Lookup", (root, name), tuple(outputs), {}, outputs[0], "minifer", 1)

    # -- what stands before a QuantizeLinear ----------------------------------------------------------------

    def integers(self, node: Node) -> list[Node] | None:
        """The nodes that take the place of a QuantizeLinear and what it reads; None: nothing fits."""
        given = self.parameters(node)
        if given is None or given[0].size != 1 or given[1].dtype not in BYTES:
            return None
        scale, zero, zero_name = given
        end = Quantised("", node.inputs[1], zero_name, scale, zero, 0)
        source = node.inputs[0]
        function = self.functions.get(source)
        if function is not None:
            made = self.evaluate(node, [function.values, scale.reshape(()), zero.reshape(())])
            if made is not None and made.dtype in BYTES:
                if np.array_equal(made, every_byte(made.dtype)):
                    if made.dtype == self.dtypes.get(function.root):
                        return [Node("Identity", (function.root,), node.outputs, {}, node.name, "", 13)]
                return [self.table(function.root, made, node.outputs)]
        clamps: list[Node] = []
        before = self.match.alone(source, *_RULES, *MOVING, "Relu", "Clip")
        while before is not None and before.op in ("Relu", "Clip") and self._bounds_known(before):
            clamps.insert(0, before)
            before = self.match.alone(before.inputs[0], *_RULES, "Relu", "Clip")
        if before is None or before.op in ("Relu", "Clip"):
            return None
        if before.op in MOVING:
            return None if clamps else self.moved(before, node, end)
        values = self._clamped(node, clamps, end)
        if values is None:
            return None
        plain = bool(np.array_equal(values, every_byte(zero.dtype)))
        output = node.outputs[0] if plain else f"{node.outputs[0]}/before"
        made_by = _RULES[before.op](self, before, end, output)
        if made_by is None:
            return None
        return [made_by] if plain else [made_by, self.table(output, values, node.outputs)]

    def _bounds_known(self, node: Node) -> bool:
        return all(not n or n in self.constants for n in node.inputs[1:])

    def _clamped(self, node: Node, clamps: Sequence[Node], end: Quantised) -> np.ndarray | None:
        """What clamping does to the quantised bytes. As quantising keeps the order, it may come first."""
        values: Any = every_byte(end.zeros.dtype)
        scale, zero = end.scales.reshape(()), end.zeros.reshape(())
        for clamp in clamps:
            lowest, highest = np.array([-np.inf], np.float32), np.array([np.inf], np.float32)
            bounds = [self.constants[n] if n else None for n in clamp.inputs[1:]]
            for edge, pick in ((lowest, np.maximum), (highest, np.minimum)):
                bound = self.evaluate(clamp, [edge, *bounds])
                byte = None if bound is None else self.evaluate(node, [bound, scale, zero])
                if byte is None:
                    return None
                values = pick(values, byte)
        return np.asarray(values, end.zeros.dtype)

    def moved(self, node: Node, quantize: Node, end: Quantised) -> list[Node] | None:
        """An operator that moves elements, on bytes; a table behind it where the scale changes."""
        source = self.found.get(node.inputs[0])
        if source is None or not source.whole or source.zeros.dtype not in BYTES or len(node.outputs) != 1:
            return None
        if node.op == "MaxPool" and node.version < 12:
            return None
        same = source.zeros.dtype == end.zeros.dtype and source.scales == end.scales and source.zeros == end.zeros
        every = every_byte(source.zeros.dtype)
        inner = f"{quantize.outputs[0]}/moved"
        moved = Node(
            node.op, (source.bytes, *node.inputs[1:]), quantize.outputs if same else (inner,), node.attrs, node.name,
            "", node.version,
        )  # fmt: skip
        if same:
            return [moved]
        floats = (every.astype(np.float32) - source.zeros.astype(np.float32)) * source.scales.reshape(())
        values = self.evaluate(quantize, [floats.reshape(-1), end.scales.reshape(()), end.zeros.reshape(())])
        return None if values is None else [moved, self.table(inner, values, quantize.outputs)]

    # -- without a QuantizeLinear behind --------------------------------------------------------------------

    def product_to_float(self, node: Node) -> list[Node] | None:
        """A product of dequantised tensors whose result somebody reads as floats."""
        if node.domain or node.op not in ("MatMul", "Gemm"):
            return None
        reader = self.match.reader(node.outputs[0], "QuantizeLinear", "Relu", "Clip")
        if reader is not None:  # it may be a pattern's beginning
            while reader is not None and reader.op != "QuantizeLinear":
                reader = self.match.reader(reader.outputs[0], "QuantizeLinear", "Relu", "Clip")
            if reader is not None:
                return None
        if node.op == "Gemm":
            made = _gemm(self, node, None, node.outputs[0])
            return None if made is None else [made]
        pair = _operands(self, node)
        if pair is None:
            return None
        a, b = pair
        inputs = (a.bytes, b.bytes, a.scale, b.scale, a.zero, _zero_like(self, b, node))
        return [Node("MatMulIntegerToFloat", inputs, node.outputs, {}, node.name, MICROSOFT, 1)]

    def picked(self, node: Node) -> list[Node] | None:
        """Rows of a quantised table are picked as bytes: the table is never dequantised as a whole."""
        if node.domain or node.op != "Gather":
            return None
        table = self.found.get(node.inputs[0])
        if table is None or table.bytes not in self.constants or not table.whole or table.zeros.dtype not in BYTES:
            return None
        inner, (output,) = f"{node.outputs[0]}/bytes", node.outputs
        gather = Node("Gather", (table.bytes, node.inputs[1]), (inner,), node.attrs, node.name, "", node.version)
        wide = Node("DequantizeLinear", (inner, table.scale, table.zero), (output,), {}, f"{node.name}/wide", "", 13)
        self.note(wide)
        return [gather, wide]


# ---------------------------------------------------------------- operators


def _operands(self: Rewriter, node: Node) -> tuple[Quantised, Quantised] | None:
    """What a product multiplies: bytes with one scale, and bytes with one scale or, if constant, one per column."""
    a, b = (self.found.get(n) for n in node.inputs[:2])
    if a is None or b is None or not a.whole or any(q.zeros.dtype not in BYTES for q in (a, b)):
        return None
    if not b.whole:
        matrix = self.constants.get(b.bytes)
        if matrix is None or matrix.ndim != 2 or b.axis % 2 != 1:
            return None
    return a, b


def _zero_like(self: Rewriter, about: Quantised, node: Node) -> str:
    """The zero point in the shape of the scale, which integer operators want."""
    if about.zeros.size in (1, about.scales.size):
        return about.zero
    return self.const(f"{node.outputs[0]}/zeros", np.broadcast_to(about.zeros, about.scales.shape))


def _bias(self: Rewriter, name: str, a: Quantised, scales: np.ndarray, output: str, count: int) -> str | None:
    """A bias in the scale of the sums, int32; None where it is not constant or does not fit."""
    sums = a.scales.reshape(()).astype(np.float64) * scales.astype(np.float64).reshape(-1)
    about = self.found.get(name)
    if about is not None and about.bytes in self.constants and about.zeros.dtype == np.int32:
        value = self.constants[about.bytes]
        near = np.allclose(np.broadcast_to(about.scales.reshape(-1), sums.shape), sums, rtol=1e-5, atol=0)
        if value.shape == (count,) and near and not about.zeros.any():
            return about.bytes
    if about is not None and about.bytes in self.constants:
        if not about.whole and self.constants[about.bytes].ndim != 1:
            return None
        wide = self.constants[about.bytes].astype(np.float64) - about.zeros.reshape(-1)
        value = wide * about.scales.reshape(-1)
    else:
        value = self.constants.get(name)
    if value is None or value.size not in (1, count) or value.shape[-1:] not in ((count,), (1,), ()):
        return None
    whole = np.rint(np.broadcast_to(value.reshape(-1).astype(np.float64), (count,)) / sums)
    if not (np.abs(whole) < 1 << 30).all():
        return None
    return self.const(f"{output}/bias", whole.astype(np.int32))


def _conv(self: Rewriter, node: Node, end: Quantised, output: str) -> Node | None:
    a, w = (self.found.get(n) for n in node.inputs[:2])
    if a is None or w is None or not a.whole or any(q.zeros.dtype not in BYTES for q in (a, w)):
        return None
    weight = self.constants.get(w.bytes)
    if weight is None or not (w.whole or w.axis % weight.ndim == 0):
        return None
    inputs = [a.bytes, a.scale, a.zero, w.bytes, w.scale, _zero_like(self, w, node), end.scale, end.zero]
    if len(node.inputs) > 2 and node.inputs[2]:
        scales = np.broadcast_to(w.scales.reshape(-1), weight.shape[:1])
        bias = _bias(self, node.inputs[2], a, scales, output, weight.shape[0])
        if bias is None:
            return None
        inputs.append(bias)
    return Node("QLinearConv", tuple(inputs), (output,), node.attrs, node.name, "", 10)


def _matmul(self: Rewriter, node: Node, end: Quantised, output: str) -> Node | None:
    pair = _operands(self, node)
    if pair is None:
        return None
    a, b = pair
    inputs = (a.bytes, a.scale, a.zero, b.bytes, b.scale, _zero_like(self, b, node), end.scale, end.zero)
    return Node("QLinearMatMul", inputs, (output,), {}, node.name, "", 10)


def _gemm(self: Rewriter, node: Node, end: Quantised | None, output: str) -> Node | None:
    a, b = (self.found.get(n) for n in node.inputs[:2])
    if a is None or b is None or not a.whole or any(q.zeros.dtype not in BYTES for q in (a, b)):
        return None
    matrix = self.constants.get(b.bytes)
    flip = node.attrs.get("transB", 0)
    if matrix is None or matrix.ndim != 2 or not (b.whole or b.axis % 2 == (0 if flip else 1)):
        return None
    if node.attrs.get("alpha", 1.0) != 1 or node.attrs.get("beta", 1.0) != 1 or node.version < 7:
        return None
    columns, bias = matrix.shape[0 if flip else 1], ""
    if len(node.inputs) > 2 and node.inputs[2]:
        scales = np.broadcast_to(b.scales.reshape(-1), (columns,))
        found = _bias(self, node.inputs[2], a, scales, output, columns)
        if found is None:
            return None
        bias = found
    inputs: tuple[str, ...] = (a.bytes, a.scale, a.zero, b.bytes, b.scale, _zero_like(self, b, node), bias)
    attrs = {"transA": node.attrs.get("transA", 0), "transB": flip, "alpha": 1.0}
    tail = (end.scale, end.zero) if end is not None else ()
    while not tail and not inputs[-1]:
        inputs = inputs[:-1]
    return Node("QGemm", inputs + tail, (output,), attrs, node.name, MICROSOFT, 1)


def _binary(name: str) -> Rule:
    def rule(self: Rewriter, node: Node, end: Quantised, output: str) -> Node | None:
        if node.version < 7:
            return None
        a, b = (self.found.get(n) for n in node.inputs)
        if a is None or b is None or not a.whole or not b.whole:
            return None
        if not a.zeros.dtype == b.zeros.dtype == end.zeros.dtype:
            return None
        inputs = (a.bytes, a.scale, a.zero, b.bytes, b.scale, b.zero, end.scale, end.zero)
        return Node(name, inputs, (output,), {}, node.name, MICROSOFT, 1)

    return rule


def _pool(name: str) -> Rule:
    def rule(self: Rewriter, node: Node, end: Quantised, output: str) -> Node | None:
        a = self.found.get(node.inputs[0])
        if a is None or not a.whole or a.zeros.dtype != end.zeros.dtype:
            return None
        if not {"ceil_mode", "count_include_pad", "auto_pad", "kernel_shape", "pads", "strides"} >= set(node.attrs):
            return None
        inputs = (a.bytes, a.scale, a.zero, end.scale, end.zero)
        return Node(name, inputs, (output,), node.attrs, node.name, MICROSOFT, 1)

    return rule


def _concat(self: Rewriter, node: Node, end: Quantised, output: str) -> Node | None:
    parts = [self.found.get(n) for n in node.inputs]
    inputs = [end.scale, end.zero]
    for part in parts:
        if part is None or not part.whole or part.zeros.dtype != end.zeros.dtype:
            return None
        inputs += [part.bytes, part.scale, part.zero]
    return Node("QLinearConcat", tuple(inputs), (output,), {"axis": node.attrs["axis"]}, node.name, MICROSOFT, 1)


Rule = Callable[[Rewriter, Node, Quantised, str], "Node | None"]
_RULES: dict[str, Rule] = {
    "Conv": _conv, "MatMul": _matmul, "Gemm": _gemm, "Add": _binary("QLinearAdd"), "Mul": _binary("QLinearMul"),
    "Concat": _concat, "GlobalAveragePool": _pool("QLinearGlobalAveragePool"),
    "AveragePool": _pool("QLinearAveragePool"),
}  # fmt: skip


def integer_operators(graph: Graph) -> Graph:
    """Put integer operators in the place of what stands between DequantizeLinear and QuantizeLinear."""
    if not any(n.op == "DequantizeLinear" and n.domain in ("", MICROSOFT) for n in graph.nodes):
        return graph
    return Rewriter(graph).run()


# ---------------------------------------------------------------- what the run quantises


def dynamic_products(graph: Graph, types: Types) -> Graph:
    """Cast(MatMulInteger) * (scale of A * scale of B) + bias becomes MatMulIntegerToFloat: the same steps in one."""
    if not any(n.op == "MatMulInteger" for n in graph.nodes):
        return graph
    match = Matcher(graph, types)
    replaced: dict[int, list[Node]] = {}
    for product in graph.nodes:
        if product.op != "MatMulInteger" or product.domain:
            continue
        made = _dynamic(match, product)
        if made is not None:
            replaced[id(made[0])] = [made[1]]
    return replace_nodes(graph, replaced)


def _dynamic(match: Matcher, product: Node) -> tuple[Node, Node] | None:
    """(the last node of the pattern, what takes its place)."""
    cast = match.reader(product.outputs[0], "Cast")
    multiply = match.reader(cast.outputs[0], "Mul") if cast is not None and cast.attrs.get("to") == 1 else None
    if cast is None or multiply is None:
        return None
    factor = multiply.inputs[0 if multiply.inputs[1] == cast.outputs[0] else 1]
    scales = match.made(factor, "Mul")
    weight = match.shape(product.inputs[1])
    if scales is None or not weight or len(weight) != 2 or product.inputs[1] not in match.constants:
        return None
    pair = [n for n in scales.inputs if n in match.constants], [n for n in scales.inputs if n not in match.constants]
    if len(pair[0]) != 1 or match.shape(pair[1][0]) not in ((), (1,)) or not match.is_float(pair[1][0]):
        return None
    b_scale = match.constants[pair[0][0]]
    if b_scale.dtype != np.float32 or b_scale.shape not in ((weight[1],), (1,), ()):
        return None
    zeros = [*product.inputs[2:], "", ""][:2]
    inputs = [*product.inputs[:2], pair[1][0], pair[0][0], *zeros]
    last, rank = multiply, len(match.shape(product.inputs[0]) or ())
    add = match.reader(multiply.outputs[0], "Add")
    if add is not None and rank >= 1:
        bias = add.inputs[0 if add.inputs[1] == multiply.outputs[0] else 1]
        if bias in match.constants and match.shape(bias) == (weight[1],) and match.is_float(bias):
            inputs.append(bias)
            last = add
    while not inputs[-1]:
        inputs.pop()
    return last, Node("MatMulIntegerToFloat", tuple(inputs), last.outputs, {}, product.name, MICROSOFT, 1)
