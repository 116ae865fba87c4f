"""How much arithmetic an operator is: counted from its shapes, whatever kernel does it.

A convolution by Winograd's algorithm multiplies less than is counted here. So a rate in FLOP/s is that of the
plain formula, which makes engines and kernels comparable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from minifer.ir import Node, TensorType, Type

CONVOLUTIONS = ("Conv", "FusedConv", "ConvInteger", "QLinearConv", "ConvTranspose")
PRODUCTS = (
    "MatMul", "Gemm", "MatMulInteger", "QLinearMatMul",
    "FusedMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits",
)  # fmt: skip
RECURRENT = ("RNN", "GRU", "LSTM")
_WEIGHTS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}


def weights_input(node: Node) -> int:
    """Which input of a convolution, matrix product or recurrent layer holds the weights."""
    return _WEIGHTS.get(node.op, 1)


def node_flops(node: Node, types: Mapping[str, Type]) -> int:
    """Floating point (or integer) operations of a convolution, matrix product or recurrent layer, two per
    multiply-add; 0 for anything else, and where a shape is not known. `types`: of the node's inputs and outputs.

    Every output element of a convolution sums one product per kernel tap and input channel of its group; of a matrix
    product, one per element of the contracted dimension; a transposed convolution is counted from its input; a
    recurrent layer multiplies each input and state of each step with its weights.
    """

    def dims(names: tuple[str, ...], i: int) -> tuple[int, ...]:
        kind = types.get(names[i]) if i < len(names) else None
        return kind.dims if isinstance(kind, TensorType) and kind.concrete else ()

    if (node.domain, node.op) == ("minifer", "Attention"):  # q k^T, and the weights times v; all of it where causal
        q, v = dims(node.inputs, 0), dims(node.inputs, 2)
        keys = v[1 if node.attrs.get("v_heads", 1) == 2 else -2] if v else 0
        return 2 * math.prod(q[:-1]) * keys * (q[-1] + v[-1]) if q and v else 0
    if node.domain not in ("", "com.microsoft"):
        return 0
    if node.op in CONVOLUTIONS:
        filters = dims(node.inputs, weights_input(node))
        positions = dims(node.inputs, 0) if node.op == "ConvTranspose" else dims(node.outputs, 0)
        return 2 * math.prod(positions) * math.prod(filters[1:]) if filters and positions else 0
    if node.op in PRODUCTS:
        left, out = dims(node.inputs, 0), dims(node.outputs, 0)
        if not left:
            return 0
        return 2 * math.prod(out) * (left[-2] if node.attrs.get("transA") and len(left) > 1 else left[-1])
    if node.op in RECURRENT:
        x, weights, recurrence = (dims(node.inputs, i) for i in range(3))
        if not (x and weights and recurrence):
            return 0
        steps = x[0] * x[1]  # times sequences, in either layout
        return 2 * steps * (math.prod(weights) + math.prod(recurrence))
    return 0
