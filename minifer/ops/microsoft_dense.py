"""Operators of com.microsoft that models exported or optimised by ONNX Runtime carry: products and activations.

FusedMatMul, FusedGemm, FusedConv, Gelu, FastGelu, BiasGelu, QuickGelu. Meaning: ContribOperators.md of ONNX Runtime.
16-bit floats are computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from minifer.errors import ShapeError, UnsupportedError
from minifer.ir import Dim, TensorType
from minifer.ops.activation import sigmoid, softplus
from minifer.ops.conv import conv_reference, infer_conv
from minifer.ops.math import erf
from minifer.ops.numeric import narrow
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import Fail, broadcast, same_as
from minifer.ops.window import wide

lower_erf_gelu, lower_fast_gelu, lower_fused_conv, lower_fused_gemm, lower_fused_matmul, lower_quick_gelu = deferred(
    "lower_microsoft", "lower_erf_gelu", "lower_fast_gelu", "lower_fused_conv", "lower_fused_gemm",
    "lower_fused_matmul", "lower_quick_gelu",
)  # fmt: skip

DOMAIN = "com.microsoft"


# --- activations ---


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)).astype(x.dtype))


def _fast_gelu(x: np.ndarray) -> np.ndarray:
    """The tanh approximation, with the constants that the operator's description gives."""
    return 0.5 * x * (1 + np.tanh(0.797885 * x + 0.035677 * x * x * x))


def _with_bias(function: Callable[[np.ndarray], np.ndarray]):
    """A reference of x and an optional vector that is added first."""

    def reference(x, bias=None):
        data = wide(x)
        if bias is not None:
            if bias.ndim != 1 or not x.ndim or bias.shape[0] != x.shape[-1]:
                raise ShapeError(f"the bias has shape {list(bias.shape)}; the last axis of {list(x.shape)} is needed")
            data = data + wide(bias)
        return narrow(function(data), x.dtype)

    return reference


def _infer_biased(call: Call) -> TensorType:
    x = call.tensor(0)
    bias = call.shape(1) if call.has(1) else None
    if bias is not None and x.shape is not None:
        if len(bias) != 1 or not x.shape:
            raise call.fail(f"the bias has shape {list(bias)}; a vector as long as the last axis is needed")
        if isinstance(bias[0], int) and isinstance(x.shape[-1], int) and bias[0] != x.shape[-1]:
            raise call.fail(f"the bias has {bias[0]} elements and the last axis {x.shape[-1]}; they must be equal")
    return x


def _quick_gelu(x, *, alpha=1.702):
    data = wide(x)
    return narrow(data * sigmoid(alpha * data), x.dtype)


for _name, _function, _lower in (
    ("Gelu", _gelu, lower_erf_gelu),
    ("FastGelu", _fast_gelu, lower_fast_gelu),
    ("BiasGelu", _gelu, lower_erf_gelu),
):
    register(Op(_name, since=1, domain=DOMAIN, infer=_infer_biased, reference=_with_bias(_function), lower=_lower))
register(Op("QuickGelu", since=1, domain=DOMAIN, infer=same_as(0), reference=_quick_gelu, lower=lower_quick_gelu))


#: What a fused operator may end in: name -> (function of x and the parameters, default parameters)
_TAILS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    "Relu": (lambda x: np.maximum(x, 0), ()),
    "Sigmoid": (sigmoid, ()),
    "Tanh": (np.tanh, ()),
    "Softplus": (softplus, ()),
    "Softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "LeakyRelu": (lambda x, a: np.where(x < 0, a * x, x), (0.01,)),
    "ThresholdedRelu": (lambda x, a: np.where(x > a, x, 0), (1.0,)),
    "Elu": (lambda x, a: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x), (1.0,)),
    "Celu": (lambda x, a: np.maximum(x, 0) + np.minimum(0, a * np.expm1(x / a)), (1.0,)),
    "HardSigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), ()),
    "Clip": (lambda x, low, high: np.clip(x, low, high), (-np.inf, np.inf)),
    "Selu": (
        lambda x, a, g: g * np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
        (1.67326319217681884765625, 1.05070102214813232421875),
    ),
}


def _tail(x: np.ndarray, name: str | None, parameters: Sequence[float | None]) -> np.ndarray:
    """Apply the activation of a fused operator; parameters left out take its defaults."""
    if not name:
        return x
    if name not in _TAILS:
        raise UnsupportedError(f"the fused activation '{name}' is unknown; known are {', '.join(_TAILS)}")
    function, defaults = _TAILS[name]
    given = list(parameters)[: len(defaults)]
    values = [d if v is None else v for v, d in zip([*given, *[None] * (len(defaults) - len(given))], defaults)]
    return function(x, *values).astype(x.dtype, copy=False)


# --- FusedMatMul ---


def _batch_order(rank: int, trans_batch: int) -> list[int]:
    """The axes of an operand whose first axis stands for its rows (transBatch), or as they are."""
    return [*range(1, rank - 1), 0, rank - 1] if trans_batch and rank > 2 else list(range(rank))


def _operand(x: np.ndarray, trans: int, trans_batch: int) -> np.ndarray:
    x = x.transpose(_batch_order(x.ndim, trans_batch))
    return x.swapaxes(-1, -2) if trans and x.ndim > 1 else x


def _fused_matmul(a, b, *, alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0):
    y = np.matmul(_operand(wide(a), transA, transBatchA), _operand(wide(b), transB, transBatchB))
    return narrow(y if alpha == 1 else y * y.dtype.type(alpha), a.dtype)


def matmul_shape(call: Call, a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape of a @ b by NumPy's rules."""
    if not a or not b:
        raise call.fail("an operand is a scalar; a matrix product needs at least one axis")
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if isinstance(left[-1], int) and isinstance(right[-2], int) and left[-1] != right[-2]:
        raise call.fail(f"the inner sizes {left[-1]} and {right[-2]} differ")
    rows = () if len(a) == 1 else (left[-2],)
    columns = () if len(b) == 1 else (right[-1],)
    return (broadcast(call, tuple(left[:-2]), tuple(right[:-2])) or ()) + rows + columns


def _infer_fused_matmul(call: Call) -> TensorType:
    shapes = []
    for i, side in enumerate("AB"):
        shape = call.shape(i)
        if shape is None:
            return TensorType(call.dtype(0))
        turned = [shape[axis] for axis in _batch_order(len(shape), call.attr(f"transBatch{side}", 0))]
        if call.attr(f"trans{side}", 0) and len(turned) > 1:
            turned[-2:] = turned[-1], turned[-2]
        shapes.append(turned)
    return TensorType(call.dtype(0), matmul_shape(call, *shapes))


register(
    Op(
        "FusedMatMul",
        since=1,
        domain=DOMAIN,
        infer=_infer_fused_matmul,
        reference=_fused_matmul,
        lower=lower_fused_matmul,
    )
)


# --- FusedGemm ---


def gemm_shape(fail: Fail, a: Sequence[Dim], b: Sequence[Dim], trans_a: int, trans_b: int) -> tuple[Dim, Dim]:
    """(M, N) of a product of two matrices; raises where they do not fit."""
    if len(a) != 2 or len(b) != 2:
        raise fail(f"A and B have ranks {len(a)} and {len(b)}; two matrices are needed")
    rows, inner = (a[1], a[0]) if trans_a else (a[0], a[1])
    depth, columns = (b[1], b[0]) if trans_b else (b[0], b[1])
    if isinstance(inner, int) and isinstance(depth, int) and inner != depth:
        raise fail(f"the inner sizes {inner} and {depth} differ")
    return rows, columns


def check_addend(call: Call, i: int, shape: Sequence[Dim]) -> None:
    """Raise unless input `i` (where given) broadcasts to a product of this shape."""
    c = call.shape(i) if call.has(i) else None
    if c is None:
        return
    pairs = zip(reversed(c), reversed(shape))
    if len(c) > len(shape) or any(isinstance(a, int) and isinstance(b, int) and a not in (1, b) for a, b in pairs):
        raise call.fail(f"C of shape {list(c)} does not broadcast to {list(shape)}")


def _fused_gemm(
    a, b, c=None, *, activation=None, activation_alpha=None, activation_beta=None, activation_gamma=None, alpha=1.0,
    beta=1.0, transA=0, transB=0,
):  # fmt: skip
    gemm_shape(ShapeError, a.shape, b.shape, transA, transB)
    left, right = (a if a.dtype.kind in "iu" else wide(a)), (b if b.dtype.kind in "iu" else wide(b))
    y = (left.T if transA else left) @ (right.T if transB else right)
    y = y if alpha == 1 else (alpha * y).astype(y.dtype)
    if c is not None:
        if np.broadcast_shapes(c.shape, y.shape) != y.shape:
            raise ShapeError(f"C of shape {list(c.shape)} does not broadcast to {list(y.shape)}")
        y = (y + beta * (c if c.dtype.kind in "iu" else wide(c))).astype(y.dtype)
    second = activation_gamma if activation == "Selu" else activation_beta
    return narrow(_tail(y, activation, [activation_alpha, second]), a.dtype)


def _infer_fused_gemm(call: Call) -> TensorType:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None:
        return TensorType(call.dtype(0), (None, None))
    shape = gemm_shape(call.fail, a, b, call.attr("transA", 0), call.attr("transB", 0))
    check_addend(call, 2, shape)
    return TensorType(call.dtype(0), shape)


register(
    Op(
        "FusedGemm",
        since=1,
        domain=DOMAIN,
        infer=_infer_fused_gemm,
        reference=_fused_gemm,
        lower=lower_fused_gemm,
    )
)


# --- FusedConv ---


def _fused_conv(x, w, b=None, z=None, *, activation=None, activation_params=(), **conv):
    y = wide(conv_reference(x, w, b, **conv))
    if z is not None:
        if z.shape != y.shape:
            raise ShapeError(f"Z has shape {list(z.shape)} and the convolution {list(y.shape)}; they must be equal")
        y = y + wide(z)
    return narrow(_tail(y, activation, activation_params or ()), x.dtype)


register(Op("FusedConv", since=1, domain=DOMAIN, infer=infer_conv, reference=_fused_conv, lower=lower_fused_conv))
