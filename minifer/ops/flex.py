"""FlexAttention (ai.onnx.preview): attention with subgraphs that change the scores and the probabilities.

q (N, H, L, E), k (N, G, S, E), v (N, G, S, F) -> y (N, H, L, F). Scores are rounded to the inputs' type and then
brought to softmax_precision, in which the subgraphs, the softmax and the second product run.
"""

from __future__ import annotations

import math

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.attention import clash, group_matmul, rounder, softmax
from minifer.ops.registry import Call, Op, register
from minifer.ops.window import wide


def _precision(code: int | None, dtype: np.dtype) -> np.dtype:
    """The type that scores are handled in."""
    if not code:
        return np.dtype(np.float64 if dtype == np.float64 else np.float32)
    name = dtypes.name_of_code(code)
    if name not in dtypes.FLOATS:
        raise InputError(f"softmax_precision {code} ({name}) is no floating-point type")
    return dtypes.to_numpy(name)


def _modify(ctx, graph, x: np.ndarray, name: str) -> np.ndarray:
    """The output of a modifier subgraph, which must keep shape and type."""
    if graph is None:
        return x
    outputs = ctx.run(graph, [x])
    if len(outputs) != 1:
        raise InputError(f"{name} gave {len(outputs)} outputs; one is needed")
    y = np.asarray(outputs[0])
    if y.shape != x.shape or y.dtype != x.dtype:
        raise ShapeError(f"{name} gave {y.dtype}{list(y.shape)}; it must keep {x.dtype}{list(x.shape)}")
    return y


def _flex_attention(q, k, v, *, ctx, prob_mod=None, scale=None, score_mod=None, softmax_precision=None):
    for name, x in (("Q", q), ("K", k), ("V", v)):
        if x.ndim != 4:
            raise ShapeError(f"{name} has rank {x.ndim}; 4 is needed")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ShapeError(f"Q {list(q.shape)}, K {list(k.shape)} and V {list(v.shape)} do not fit together")
    dtype, precision = q.dtype, _precision(softmax_precision, q.dtype)
    to_t, to_p = rounder(dtype), rounder(precision)
    root = math.sqrt(scale if scale else 1 / math.sqrt(max(1, q.shape[3])))
    factor = wide(np.array(root).astype(dtype))
    score = group_matmul(to_t(wide(q) * factor), to_t(wide(k) * factor).swapaxes(2, 3))
    score = _modify(ctx, score_mod, score.astype(dtype).astype(precision), "score_mod")
    prob = _modify(ctx, prob_mod, softmax(wide(score)).astype(precision), "prob_mod")
    y = group_matmul(wide(prob), to_p(wide(v).astype(wide(prob).dtype)))
    return y.astype(precision).astype(dtype)


def _infer_flex_attention(call: Call) -> TensorType:
    q, k, v = call.shape(0), call.shape(1), call.shape(2)
    for name, shape in (("Q", q), ("K", k), ("V", v)):
        if shape is not None and len(shape) != 4:
            raise call.fail(f"{name} has rank {len(shape)}; 4 is needed")
    if q is not None and k is not None and v is not None:
        if clash(q[0], k[0]) or clash(q[3], k[3]) or any(clash(a, b) for a, b in zip(k[:3], v[:3])):
            raise call.fail("Q, K and V do not agree in batch, heads, length or head size")
        if isinstance(q[1], int) and isinstance(k[1], int) and (k[1] == 0 or q[1] % k[1]):
            raise call.fail(f"{q[1]} query heads do not divide among {k[1]} key/value heads")
    head = (None,) * 3 if q is None else q[:3]
    return TensorType(call.dtype(0), head + (None if v is None else v[3],))


register(
    Op(
        "FlexAttention",
        since=1,
        domain="ai.onnx.preview",
        infer=_infer_flex_attention,
        reference=_flex_attention,
    )
)
