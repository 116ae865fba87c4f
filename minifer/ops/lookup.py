"""minifer.Lookup: any function of one byte, as the table of its 256 values.

passes.qdq makes it of what stands between a DequantizeLinear and a QuantizeLinear where that works element by element.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.ir import TensorType
from minifer.ops.numeric import check_type, require
from minifer.ops.registry import Call, Op, deferred, register

layout_of = deferred("lower_elementwise", "layout_of")

_BYTES = ("int8", "uint8")


def _lookup(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    require(x, _BYTES)
    return np.asarray(table[x.view(np.uint8)])


def _infer(call: Call) -> TensorType:
    kind = check_type(call, 0, _BYTES)
    if call.tensor(1).dtype not in _BYTES or call.shape(1) != (256,):
        raise call.fail("the table must hold 256 bytes")
    return TensorType(call.dtype(1), kind.shape)


def _lower(low: Any) -> None:
    from minifer.kernels import qlinear

    layout = layout_of(low)
    x = low.input(0, layout)
    low.call(qlinear.translate, x, low.input(1), low.output(0, layout), 1, x.size, x.size, 0)


register(Op("Lookup", since=1, domain="minifer", infer=_infer, reference=_lookup, lower=_lower))
