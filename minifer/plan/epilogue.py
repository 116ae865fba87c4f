"""Epilogues: what follows a Conv, Gemm or MatMul and is done while its result is still in registers.

In this order: a bias per channel, a residual of the result's shape, an activation. Each comes from a node that alone
reads the result so far; that node is absorbed (see Lowering.absorb) and never becomes a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minifer.ir import Node, TensorType
from minifer.kernels import activation
from minifer.plan.plan import Slot
from minifer.record import Record

if TYPE_CHECKING:
    from minifer.plan.lower import Lowering

INFINITY = float("inf")


class Epilogue(Record, frozen=False):
    """What to do with each result. `bias` is (channels,) float32 or None; `residual` names a value or is ""."""

    bias: np.ndarray | None = None
    residual: str = ""
    code: int = activation.CLAMP
    first: float = -INFINITY  # the activation's parameters; for CLAMP the bounds
    second: float = INFINITY

    @property
    def active(self) -> bool:
        """True where there is an activation."""
        return self.code != activation.CLAMP or self.first != -INFINITY or self.second != INFINITY

    def residual_slot(self, low: Lowering, layout: str, gaps: bool = False) -> Slot | None:
        """The residual in a layout, or None; `gaps`: its rows may lie apart."""
        return low.planner.slot(self.residual, layout, gaps) if self.residual else None


def take_epilogue(low: Lowering, channel_axis: int | None, residual: bool = True) -> Epilogue:
    """Absorb the nodes that follow output 0 as far as an epilogue can do their work.

    `channel_axis` is the axis (of the ONNX shape) that a bias runs along; None: no bias is taken.
    """
    found = Epilogue()
    while not found.active or found.code == activation.HARD_SWISH:
        follower = low.follower()
        if found.active:
            if follower is None or not _scale(low, follower[1], found):
                return found
            low.absorb(follower[0])
            continue
        if follower is None:
            gate = _silu(low)
            if gate is not None:
                found.code = activation.SILU
                low.absorb(gate[0])
                low.absorb(gate[1])
            return found
        index, node = follower
        if not (_activation(low, node, found) or _add(low, node, found, channel_axis, residual)):
            return found
        low.absorb(index)
    return found


def _add(low: Lowering, node: Node, found: Epilogue, channel_axis: int | None, residual: bool) -> bool:
    if node.op != "Add" or node.domain or node.version < 7:
        return False
    name = low.outputs[0]
    other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
    planner, kind = low.planner, low.out_type()
    value = planner.known.get(other)
    if value is not None:
        bias = _per_channel(value, kind.dims, channel_axis)
        if bias is None or found.residual:
            return False
        found.bias = bias if found.bias is None else found.bias + bias
        return True
    if not residual or found.residual or planner.types.get(other) != kind or not planner.in_memory(other):
        return False
    found.residual = other
    return True


def _per_channel(value: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray | None:
    """`value` as (channels,) if broadcasting it adds one number per channel, else None."""
    if axis is None or value.dtype != np.float32 or value.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - value.ndim) + value.shape
    if any(d != 1 for i, d in enumerate(full) if i != axis) or full[axis] not in (1, shape[axis]):
        return None
    return np.ascontiguousarray(np.broadcast_to(value.reshape(-1), (shape[axis],)))


def _activation(low: Lowering, node: Node, found: Epilogue) -> bool:
    if low.out_type().dtype != "float32" or node.inputs[0] != low.outputs[0]:
        return False
    if node.op == "Clip" and not node.domain:
        bounds = _clip_bounds(low, node)
        if bounds is None:
            return False
        found.first, found.second = bounds
        return found.active
    if node.domain:
        return False
    attrs = node.attrs
    simple = {
        "Relu": (activation.CLAMP, 0.0, INFINITY),
        "LeakyRelu": (activation.LEAKY, attrs.get("alpha", 0.01), 0.0),
        "Sigmoid": (activation.SIGMOID, 0.0, 0.0),
        "Tanh": (activation.TANH, 0.0, 0.0),
        "HardSigmoid": (activation.HARD_SIGMOID, attrs.get("alpha", 0.2), attrs.get("beta", 0.5)),
        "HardSwish": (activation.HARD_SWISH, 1.0, 0.0),
        "Elu": (activation.ELU, attrs.get("alpha", 1.0), 0.0),
        "Gelu": (activation.GELU_TANH if attrs.get("approximate") == "tanh" else activation.GELU, 0.0, 0.0),
    }
    if node.op == "Swish" and attrs.get("alpha", 1.0) == 1.0:
        simple["Swish"] = (activation.SILU, 0.0, 0.0)
    if node.op not in simple:
        return False
    found.code, found.first, found.second = simple[node.op]
    return True


def _clip_bounds(low: Lowering, node: Node) -> tuple[float, float] | None:
    """The bounds of a Clip where they are known: attributes before opset 11, inputs since."""
    if node.version < 11:
        return float(node.attrs.get("min", -INFINITY)), float(node.attrs.get("max", INFINITY))
    bounds = []
    for i, default in ((1, -INFINITY), (2, INFINITY)):
        name = node.inputs[i] if i < len(node.inputs) else ""
        if not name:
            bounds.append(default)
        elif name in low.planner.known:
            bounds.append(float(np.asarray(low.planner.known[name]).reshape(-1)[0]))
        else:
            return None
    return bounds[0], bounds[1]


def _scale(low: Lowering, node: Node, found: Epilogue) -> bool:
    """Take a product with, or the sum with, one known number into the parameters of HARD_SWISH."""
    if node.op not in ("Mul", "Add") or node.domain or node.version < 7:
        return False
    name = low.outputs[0]
    value = low.planner.known.get(node.inputs[1] if node.inputs[0] == name else node.inputs[0])
    if value is None or value.dtype != np.float32 or value.size != 1 or value.ndim > len(low.out_type().dims):
        return False
    number = float(value.reshape(-1)[0])
    if node.op == "Mul":
        found.first, found.second = found.first * number, found.second * number
    else:
        found.second += number
    return True


def _silu(low: Lowering) -> tuple[int, int] | None:
    """x * sigmoid(x): the indices of the Sigmoid and the Mul where they alone read x."""
    scope, name = low.planner.scope, low.outputs[0]
    uses = scope.uses.get(name, [])
    if len(uses) != 2 or uses[1] >= low.planner.horizon:
        return None
    if name in scope.graph.outputs or low.out_type().dtype != "float32":
        return None
    first, second = (scope.nodes[i] for i in uses)
    if first.op != "Sigmoid" or second.op != "Mul" or first.domain or second.domain:
        return None
    gate = first.outputs[0]
    alone = scope.uses.get(gate) == [uses[1]] and gate not in scope.graph.outputs
    if not alone or sorted(second.inputs) != sorted((name, gate)):
        return None
    kind: TensorType = low.out_type()
    low.planner.set_type(gate, kind)
    return uses[0], uses[1]
