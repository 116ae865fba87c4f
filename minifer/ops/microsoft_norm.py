"""Layer normalisations of com.microsoft, fused with what stands before them in a transformer.

SkipLayerNormalization and SkipSimplifiedLayerNormalization (a residual sum first), EmbedLayerNormalization (the sum
of word, position and segment embeddings first). Meaning: ContribOperators.md of ONNX Runtime.
Shapes: input (N, L, H) or (L, H), gamma and beta (H,). Sums are taken in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.microsoft_dense import DOMAIN
from minifer.ops.norm import layer_norm, rms_norm
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import Fail
from minifer.ops.window import wide

lower_embed_layer_norm = deferred("lower_embed", "lower_embed_layer_norm")
lower_skip_layer_norm, lower_skip_rms_norm = deferred("lower_norm", "lower_skip_layer_norm", "lower_skip_rms_norm")

_EPSILON = 1e-12


def _check_vectors(fail: Fail, x: Sequence[Dim], vectors: Sequence[tuple[str, Sequence[Dim] | None]]) -> None:
    """Raise unless the vectors (None: omitted or unknown) are as long as the last axis of x."""
    if not x:
        raise fail("the input is a scalar; (batch, sequence, hidden) is needed")
    for name, shape in vectors:
        if shape is None:
            continue
        if len(shape) != 1 or (isinstance(shape[0], int) and isinstance(x[-1], int) and shape[0] != x[-1]):
            raise fail(f"{name} has shape {list(shape)}; [{x[-1]}] is needed")


def _residual(x: np.ndarray, skip: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x + skip + bias in float32; skip may lack the batch axis or have size 1 there."""
    if np.broadcast_shapes(x.shape, skip.shape) != x.shape or skip.shape[-2:] != x.shape[-2:]:
        raise ShapeError(f"skip of shape {list(skip.shape)} does not fit the input's {list(x.shape)}")
    total = wide(x) + wide(skip)
    return total if bias is None else total + wide(bias)


def _shape(v: np.ndarray | None) -> tuple[int, ...] | None:
    return None if v is None else v.shape


def _skip_layer_norm(x, skip, gamma, beta=None, bias=None, *, epsilon=_EPSILON):
    vectors = (("gamma", gamma.shape), ("beta", _shape(beta)), ("bias", _shape(bias)))
    _check_vectors(ShapeError, x.shape, vectors)
    total = _residual(x, skip, bias)
    y, mean, inverse = layer_norm(total, wide(gamma), None if beta is None else wide(beta), -1, epsilon)
    return y.astype(x.dtype), mean.astype(np.float32), inverse.astype(np.float32), total.astype(x.dtype)


def _skip_rms_norm(x, skip, gamma, bias=None, *, epsilon=_EPSILON):
    _check_vectors(ShapeError, x.shape, (("gamma", gamma.shape), ("bias", _shape(bias))))
    total = _residual(x, skip, bias)
    y, inverse = rms_norm(total, wide(gamma), -1, epsilon)
    inverse = inverse.astype(np.float32)
    return y.astype(x.dtype), np.zeros_like(inverse), inverse, total.astype(x.dtype)


def _infer_skip(*names: str):
    """Type rule; `names` are those of the inputs from the third on."""

    def infer(call: Call) -> list[TensorType]:
        x, skip = call.tensor(0), call.shape(1)
        if x.shape is None:
            unknown = TensorType("float32")
            return [x, unknown, unknown, x]
        vectors = [(name, call.shape(i) if call.has(i) else None) for i, name in enumerate(names, 2)]
        _check_vectors(call.fail, x.shape, vectors)
        if skip is not None and len(skip) > len(x.shape):
            raise call.fail(f"skip of shape {list(skip)} does not fit the input's {list(x.shape)}")
        statistics = TensorType("float32", (*x.shape[:-1], 1))
        return [x, statistics, statistics, x]

    return infer


register(
    Op(
        "SkipLayerNormalization",
        since=1,
        domain=DOMAIN,
        infer=_infer_skip("gamma", "beta", "bias"),
        reference=_skip_layer_norm,
        lower=lower_skip_layer_norm,
    )
)
register(
    Op(
        "SkipSimplifiedLayerNormalization",
        since=1,
        domain=DOMAIN,
        infer=_infer_skip("gamma", "bias"),
        reference=_skip_rms_norm,
        lower=lower_skip_rms_norm,
    )
)


# --- EmbedLayerNormalization ---


def _look_up(table: np.ndarray, ids: np.ndarray, name: str) -> np.ndarray:
    """Rows of an embedding table in float32; InputError for an id outside it."""
    if table.ndim != 2:
        raise ShapeError(f"{name} has rank {table.ndim}; a table (entries, hidden) is needed")
    if ids.size and (ids.min() < 0 or ids.max() >= table.shape[0]):
        raise InputError(f"ids run from {ids.min()} to {ids.max()}; {name} has entries [0, {table.shape[0]})")
    return wide(table[ids])


def _embed_layer_norm(
    input_ids, segment_ids=None, word=None, position=None, segment=None, gamma=None, beta=None, mask=None,
    position_ids=None, *, epsilon=_EPSILON, mask_index_type=None,
):  # fmt: skip
    if word is None or position is None or gamma is None or beta is None:
        raise InputError("word_embedding, position_embedding, gamma and beta must be given")
    if input_ids.ndim != 2:
        raise ShapeError(f"input_ids has shape {list(input_ids.shape)}; (batch, sequence) is needed")
    batch, length = input_ids.shape
    for name, ids in (("segment_ids", segment_ids), ("mask", mask)):
        if ids is not None and ids.shape != input_ids.shape:
            raise ShapeError(f"{name} has shape {list(ids.shape)} and input_ids {list(input_ids.shape)}")
    places = np.arange(length)[None] if position_ids is None else position_ids
    if places.shape not in ((1, length), (batch, length)):
        raise ShapeError(f"position_ids has shape {list(places.shape)}; {[batch, length]} is needed")
    total = _look_up(word, input_ids, "word_embedding") + _look_up(position, places, "position_embedding")
    if segment_ids is not None and segment is not None:
        total = total + _look_up(segment, segment_ids, "segment_embedding")
    y, _, _ = layer_norm(total, wide(gamma), wide(beta), -1, epsilon)
    valid = np.zeros(batch, np.int32) if mask is None else (mask == 1).sum(axis=1).astype(np.int32)
    return y.astype(word.dtype), valid, total.astype(word.dtype)


def _infer_embed(call: Call) -> list[TensorType]:
    ids, table, dtype = call.shape(0), call.shape(2), call.dtype(2)
    if ids is not None and len(ids) != 2:
        raise call.fail(f"input_ids has rank {len(ids)}; (batch, sequence) is needed")
    if table is not None and len(table) != 2:
        raise call.fail(f"word_embedding has rank {len(table)}; (entries, hidden) is needed")
    batch, length = ids if ids is not None else (None, None)
    shape = (batch, length, None if table is None else table[1])
    _check_vectors(call.fail, shape, (("gamma", call.shape(5)), ("beta", call.shape(6))))
    return [TensorType(dtype, shape), TensorType("int32", (batch,)), TensorType(dtype, shape)]


register(
    Op(
        "EmbedLayerNormalization",
        since=1,
        domain=DOMAIN,
        infer=_infer_embed,
        reference=_embed_layer_norm,
        lower=lower_embed_layer_norm,
    )
)
