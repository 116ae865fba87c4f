"""Matrix products with constant weights, brought into the form in which what follows them can be absorbed.

* Reshape to rows, Gemm, Reshape back: a MatMul and an Add on the tensor as it is, so that a residual or an activation
  behind it meets the product itself.
* A product whose columns are split apart (q, k and v of attention): a product for each part, with its columns of the
  weights. What they write lies in memory as its readers want it.
* A product that is multiplied by constants column by column: these go into the weights and the bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.passes.match import Matcher, Types, other, rewrite


def gemm_rows(graph: Graph, types: Types | None = None) -> Graph:
    """Gemm between two Reshapes that make a matrix of its input and undo it -> MatMul and Add."""
    return rewrite(graph, types, ("Gemm",), _rows)


def _rows(found: Matcher, gemm: Node, consts: dict[str, Any]) -> tuple[Node, list[Node]] | None:
    """The Reshape behind a Gemm, and what takes the place of all three nodes."""
    before, after = found.made(gemm.inputs[0], "Reshape"), found.reader(gemm.outputs[0], "Reshape")
    weight = found.constants.get(gemm.inputs[1])
    attrs = gemm.attrs
    plain = attrs.get("alpha", 1.0) == 1 and attrs.get("beta", 1.0) == 1 and not attrs.get("transA", 0)
    if before is None or after is None or weight is None or not plain or after.inputs[0] != gemm.outputs[0]:
        return None
    weight = weight.T if attrs.get("transB", 0) else weight
    x, flat, y = found.shape(before.inputs[0]), found.shape(before.outputs[0]), found.shape(after.outputs[0])
    rows, columns = weight.shape
    if not x or not y or flat is None or len(flat) != 2 or not all(isinstance(d, int) for d in (*x, *y)):
        return None
    if x[-1] != rows or y[-1] != columns or x[:-1] != y[:-1]:
        return None
    name = gemm.outputs[0]
    right = gemm.inputs[1]
    if attrs.get("transB", 0):
        right = f"{right}/transposed"
        consts[right] = weight
    out = after.outputs[0]
    if len(gemm.inputs) < 3 or not gemm.inputs[2]:
        return after, [Node("MatMul", (before.inputs[0], right), (out,), {}, gemm.name, "", 13)]
    addend = found.shape(gemm.inputs[2])
    if addend not in ((columns,), (1, columns)):
        return None
    product = Node("MatMul", (before.inputs[0], right), (f"{name}/product",), {}, gemm.name, "", 13)
    return after, [product, Node("Add", (f"{name}/product", gemm.inputs[2]), (out,), {}, gemm.name, "", 14)]


def _product(found: Matcher, name: str) -> tuple[Node | None, np.ndarray | None, np.ndarray | None]:
    """The MatMul by constants, perhaps plus a constant bias, that writes a value read once: (node, weights, bias)."""
    product, bias = found.alone(name, "MatMul", "Add"), None
    if product is not None and product.op == "Add":
        plus = product
        name = next((n for n in plus.inputs if found.alone(n, "MatMul")), "")
        bias = found.constants.get(other(plus, name)) if name else None
        product = found.alone(name, "MatMul") if bias is not None else None
    return product, found.constants.get(product.inputs[1]) if product is not None else None, bias


def _affine(
    x: str, weight: np.ndarray, bias: np.ndarray | None, out: str, name: str, consts: dict[str, Any]
) -> list[Node]:
    """out = x @ weight + bias, as nodes; the constants go into `consts`."""
    consts[f"{out}/weight"] = weight
    if bias is None:
        return [Node("MatMul", (x, f"{out}/weight"), (out,), {}, name, "", 13)]
    consts[f"{out}/bias"] = np.ascontiguousarray(bias)
    product = Node("MatMul", (x, f"{out}/weight"), (f"{out}/product",), {}, name, "", 13)
    return [product, Node("Add", (f"{out}/product", f"{out}/bias"), (out,), {}, name, "", 14)]


def split_columns(graph: Graph, types: Types | None = None) -> Graph:
    """MatMul with constant weights, perhaps plus a constant bias, that a Split cuts into columns -> a MatMul a part."""
    return rewrite(graph, types, ("Split",), _parts)


def _parts(found: Matcher, split: Node, consts: dict[str, Any]) -> tuple[Node, list[Node]] | None:
    shape = found.shape(split.inputs[0])
    product, weight, bias = _product(found, split.inputs[0])
    if product is None or weight is None or weight.ndim != 2 or not shape or len(shape) < 2:
        return None
    columns = weight.shape[1]
    if split.attrs.get("axis", 0) not in (-1, len(shape) - 1) or (bias is not None and bias.shape != (columns,)):
        return None
    sizes = [found.shape(n) for n in split.outputs]
    if any(not s or not isinstance(s[-1], int) for s in sizes):
        return None
    made: list[Node] = []
    start = 0
    for out, size in zip(split.outputs, sizes):
        assert size
        end = start + size[-1]
        cut = None if bias is None else bias[start:end]
        made += _affine(product.inputs[0], weight[:, start:end], cut, out, product.name, consts)
        start = end
    return (split, made) if start == columns else None


def fold_columns(graph: Graph, types: Types | None = None) -> Graph:
    """(x W + b) * c with constants, c one number or one a column -> x (W c) + b c."""
    return rewrite(graph, types, ("Mul", "Div"), _scaled)


def _scaled(found: Matcher, scale: Node, consts: dict[str, Any]) -> tuple[Node, list[Node]] | None:
    if scale.version < 7:
        return None
    name = next((n for n in scale.inputs if found.alone(n, "MatMul", "Add")), "")
    factor = found.constants.get(other(scale, name)) if name else None
    if factor is None or factor.dtype != np.float32 or (scale.op == "Div" and name != scale.inputs[0]):
        return None
    product, weight, bias = _product(found, name)
    if product is None or weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    shape = found.shape(scale.outputs[0])
    if not shape or factor.ndim > len(shape):
        return None
    columns = weight.shape[1]
    if factor.size != 1 and factor.shape != (1,) * (factor.ndim - 1) + (columns,):
        return None
    if bias is not None and bias.shape != (columns,):
        return None
    if scale.op == "Div":
        if not factor.all():
            return None
        factor = 1 / factor
    row = factor.reshape(-1)
    scaled = None if bias is None else bias * row
    return scale, _affine(product.inputs[0], weight * row, scaled, scale.outputs[0], product.name, consts)
