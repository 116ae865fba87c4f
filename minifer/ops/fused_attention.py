"""Attention as passes find it in a graph: minifer::Attention, the meaning of the nodes that it replaces.

    y = softmax(scale * q k^T + bias) v        (Vaswani et al. 2017)

The last two axes of q, k, v and y are rows and columns. A tensor of rank 4 has its heads on axis 1, (N, H, L, E), or
on axis 2, (N, L, H, E), as the attribute *_heads says. The other axes and those of bias broadcast as in MatMul and Add.
Where causal is 1, query i sees the keys up to position + i. A query that sees no key gives NaN, as a softmax of -inf
does, or 0 where hidden_zero is 1.
"""

from __future__ import annotations

import numpy as np

from minifer.errors import ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import broadcast

lower_fused_attention = deferred("lower_fused_attention", "lower_fused_attention")

DOMAIN = "minifer"


def heads_first(x: np.ndarray, axis: int) -> np.ndarray:
    """(N, L, H, E) -> (N, H, L, E) where the heads lie on axis 2, and back."""
    return x.swapaxes(1, 2) if axis == 2 else x


def _attention(
    q, k, v, bias=None, *, scale=1.0, q_heads=1, k_heads=1, v_heads=1, y_heads=1, causal=0, position=0, hidden_zero=0
):  # fmt: skip
    q, k, v = (heads_first(x, axis) for x, axis in ((q, q_heads), (k, k_heads), (v, v_heads)))
    if q.ndim < 2 or k.ndim < 2 or v.ndim < 2:
        raise ShapeError(f"q, k and v have ranks {q.ndim}, {k.ndim}, {v.ndim}; each needs rows and columns")
    score = q @ k.swapaxes(-1, -2) * q.dtype.type(scale)
    if bias is not None:
        score = score + bias
    if causal:
        queries, keys = np.arange(score.shape[-2])[:, None], np.arange(score.shape[-1])
        score = np.where(keys <= queries + position, score, score.dtype.type(-np.inf))
    e = np.exp(score - score.max(axis=-1, keepdims=True, initial=-np.inf))
    weight = e / e.sum(axis=-1, keepdims=True)
    if hidden_zero:
        weight = np.where(np.isnan(weight), weight.dtype.type(0), weight)
    return np.ascontiguousarray(heads_first(weight @ v, y_heads))


def _heads(call: Call, i: int, name: str) -> tuple[Dim, ...] | None:
    """The shape of an input with its heads first."""
    shape, axis = call.shape(i), call.attr(f"{name}_heads", 1)
    if shape is None:
        return None
    if len(shape) < 2 or axis not in (1, 2) or (axis == 2 and len(shape) != 4):
        raise call.fail(f"{name} of rank {len(shape)} cannot have its heads on axis {axis}")
    return shape if axis == 1 else (shape[0], shape[2], shape[1], shape[3])


def _infer(call: Call) -> TensorType:
    q, k, v = _heads(call, 0, "q"), _heads(call, 1, "k"), _heads(call, 2, "v")
    dtype = call.dtype(0)
    if q is None or k is None or v is None:
        return TensorType(dtype)
    for a, b, what in ((q[-1], k[-1], "columns of q and k"), (k[-2], v[-2], "rows of k and v")):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            raise call.fail(f"{what} must be equal, they are {a} and {b}")
    outer = broadcast(call, q[:-2], k[:-2])
    score: tuple[Dim, ...] | None = None if outer is None else (*outer, q[-2], k[-2])
    if call.has(3):
        score = broadcast(call, score, call.shape(3))
    if score is None:
        return TensorType(dtype)
    outer = broadcast(call, score[:-2], v[:-2])
    assert outer is not None
    y = (*outer, score[-2], v[-1])
    if call.attr("y_heads", 1) == 2:
        if len(y) != 4:
            raise call.fail(f"a result of rank {len(y)} cannot have its heads on axis 2")
        y = (y[0], y[2], y[1], y[3])
    return TensorType(dtype, y)


register(Op("Attention", since=1, domain=DOMAIN, infer=_infer, reference=_attention, lower=lower_fused_attention))
