"""What fused operators of com.microsoft name in their attributes, as the tail of a kernel: residual and activation."""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.kernels import activation
from minifer.record import Record

INFINITY = float("inf")

#: name -> code in kernels/activation.py, its parameters where they are fixed, else the defaults of what a node may give
_CODES: dict[str, tuple[int, tuple[float, ...], tuple[float, ...]]] = {
    "Relu": (activation.CLAMP, (0.0, INFINITY), ()),
    "Sigmoid": (activation.SIGMOID, (0.0, 0.0), ()),
    "Tanh": (activation.TANH, (0.0, 0.0), ()),
    "Softplus": (activation.SOFTPLUS, (0.0, 0.0), ()),
    "HardSwish": (activation.HARD_SWISH, (1.0, 0.0), ()),
    "LeakyRelu": (activation.LEAKY, (), (0.01, 0.0)),
    "Elu": (activation.ELU, (), (1.0, 0.0)),
    "HardSigmoid": (activation.HARD_SIGMOID, (), (0.2, 0.5)),
    "Clip": (activation.CLAMP, (), (-INFINITY, INFINITY)),
}


class FusedTail(Record, frozen=False):
    """As the epilogue that a lowering finds behind a node (see Lowering.epilogue), but told by the node itself."""

    bias: np.ndarray | None = None
    code: int = activation.CLAMP
    first: float = -INFINITY
    second: float = INFINITY
    addend: int | None = None  # the input that is added before the activation

    def residual_slot(self, low: Any, layout: str, gaps: bool = False) -> Any:
        """The residual in a layout, or None; `gaps`: its rows may lie apart."""
        return None if self.addend is None else low.input(self.addend, layout, gaps)


def activation_tail(name: Any, parameters: Any) -> FusedTail | None:
    """The tail of an activation by name; None where no kernel has it."""
    if not name:
        return FusedTail()
    if name not in _CODES:
        return None
    code, fixed, defaults = _CODES[name]
    given = list(parameters)[:2]
    first, second = fixed or tuple(
        d if v is None else float(v) for v, d in zip([*given, *[None] * (2 - len(given))], defaults)
    )
    return FusedTail(None, code, first, second)


def conv_tail(low: Any) -> FusedTail | None:
    """The tail that a FusedConv names; None for any other node, or an activation that no kernel has."""
    if low.node.op != "FusedConv":
        return None
    tail = activation_tail(low.attr("activation"), low.attr("activation_params") or ())
    if tail is not None and low.has(3):
        tail.addend = 3
    return tail


def gemm_tail(low: Any) -> FusedTail | None:
    """The tail that a FusedGemm names; None for any other node, or an activation that no kernel has."""
    if low.node.op != "FusedGemm":
        return None
    name = low.attr("activation")
    return activation_tail(name, (low.attr("activation_alpha"), low.attr("activation_beta")))
