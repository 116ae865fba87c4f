"""Attention of com.microsoft: Attention, MultiHeadAttention and RotaryEmbedding (GroupQueryAttention has a file of its
own). Meaning: ContribOperators.md of ONNX Runtime.

Shapes: q (N, H, L, E), k (N, H, S, E), v (N, H, S, F); T = past + S. Scores and softmax are computed in float32.
A masked key gets `mask_filter_value` added to its score (so a row that is masked as a whole still averages), a key
that lies ahead of a unidirectional query gets minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import InputError, ShapeError, UnsupportedError
from minifer.ir import Dim, TensorType
from minifer.ops.attention import add_dims, clash, merge_heads, rotate, rows_of, softmax, split_heads, visible
from minifer.ops.microsoft_dense import DOMAIN
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import same_as
from minifer.ops.window import wide

lower_microsoft_attention, lower_microsoft_rotary, lower_multi_head_attention = deferred(
    "lower_microsoft_attention", "lower_microsoft_attention", "lower_microsoft_rotary",
    "lower_multi_head_attention",
)  # fmt: skip

# --- masks ---


def mask_bias(mask: np.ndarray | None, batch: int, length: int, total: int, fill: float) -> np.ndarray:
    """What a mask adds to scores (N, 1, L, T): 0, or `fill` where it hides a key.

    Accepted: lengths (N,); ends then starts (2*N,); lengths then offsets (3*N + 2,); flags (N, T), (N, L, T) or
    (N, 1, M, M), where values above 0 show a key.
    """
    if mask is None:
        return np.zeros((1, 1, 1, 1), np.float32)
    at = np.arange(total)
    if mask.ndim == 1:
        if mask.shape[0] == 2 * batch:
            show = (at < mask[:batch, None]) & (at >= mask[batch:, None])
        elif mask.shape[0] in (batch, 3 * batch + 2):
            show = at < mask[:batch, None]
        else:
            raise ShapeError(
                f"the mask has {mask.shape[0]} entries; {batch}, {2 * batch} or {3 * batch + 2} are needed"
            )
        show = show[:, None, None]
    elif mask.shape == (batch, total):
        show = (mask > 0)[:, None, None]
    elif mask.shape == (batch, length, total):
        show = (mask > 0)[:, None]
    elif mask.ndim == 4 and mask.shape[:2] == (batch, 1) and min(mask.shape[2:]) >= total:
        show = mask[:, :, total - length : total, :total] > 0
    else:
        shapes = f"[{batch}, {total}] or [{batch}, {length}, {total}]"
        raise ShapeError(f"the mask has shape {list(mask.shape)}; {shapes} is needed")
    return np.where(show, 0, fill).astype(np.float32)


def _attention_bias(bias: np.ndarray | None, scores: tuple[int, ...]) -> np.ndarray | float:
    if bias is None:
        return 0.0
    if bias.ndim != 4 or np.broadcast_shapes(bias.shape, scores) != scores:
        raise ShapeError(f"attention_bias of shape {list(bias.shape)} does not broadcast to the scores' {list(scores)}")
    return wide(bias)


def attend(q, k, v, scale: float | None, bias, *, past: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """softmax(q k^T * scale + bias) v, (N, H, L, F), and the scores before the softmax.

    `past`, where given, makes the attention unidirectional: query i stands at position past + i.
    """
    if q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3] or q.shape[:2] != k.shape[:2]:
        raise ShapeError(f"query {list(q.shape)}, key {list(k.shape)} and value {list(v.shape)} do not fit together")
    factor = np.float32(scale if scale else 1 / math.sqrt(max(1, q.shape[3])))
    score = (q @ k.swapaxes(2, 3)) * factor + bias
    if past is not None:
        score = np.where(visible(q.shape[2], k.shape[2], past, causal=True), score, np.float32(-np.inf))
    return softmax(score) @ v, score


# --- the cache of keys and values ---


def _append(past: np.ndarray | None, new: np.ndarray, filled: int | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(all keys or values so far, what is given back as present).

    Without `filled` the past is concatenated with the new; with it the past is a longer buffer, of which `filled`
    places are taken and the new follow there.
    """
    if past is None:
        return new, new
    if past.ndim != 4 or past.shape[:2] != new.shape[:2] or past.shape[3] != new.shape[3]:
        raise ShapeError(f"{name} has shape {list(past.shape)}, which does not continue {list(new.shape)}")
    if filled is None:
        joined = np.concatenate([past, new.astype(past.dtype)], axis=2)
        return joined, joined
    stop = filled + new.shape[2]
    if filled < 0 or stop > past.shape[2]:
        raise InputError(f"past_sequence_length {filled} and {new.shape[2]} new ones exceed the {past.shape[2]} places")
    buffer = past.copy()
    buffer[:, :, filled:stop] = new
    return buffer[:, :, :stop], buffer


def _one(value: np.ndarray | None, name: str) -> int | None:
    if value is None:
        return None
    if value.size != 1:
        raise ShapeError(f"{name} has shape {list(value.shape)}; a scalar is needed")
    return int(value.reshape(()))


# --- Attention ---


def _hidden_sizes(sizes: Sequence[int] | None, columns: int, heads: int) -> tuple[int, int, int]:
    """Widths of Q, K and V in the merged weights."""
    if heads < 1:
        raise ShapeError(f"num_heads {heads} is below 1")
    if not sizes:
        if columns % 3:
            raise ShapeError(f"the weights have {columns} columns, which do not divide into Q, K and V")
        sizes = (columns // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != columns or sizes[0] != sizes[1] or any(s < 1 or s % heads for s in sizes):
        raise ShapeError(f"qkv_hidden_sizes {list(sizes)} do not fit {columns} columns of weights and {heads} heads")
    return sizes[0], sizes[1], sizes[2]


def _attention(
    x, weights, bias=None, mask_index=None, past=None, attention_bias=None, past_sequence_length=None, *, num_heads,
    do_rotary=0, mask_filter_value=-10000.0, past_present_share_buffer=0, qkv_hidden_sizes=None,
    rotary_embedding_dim=0, scale=None, unidirectional=0,
):  # fmt: skip
    if do_rotary:
        raise UnsupportedError(
            "do_rotary of com.microsoft Attention names no angles; use MultiHeadAttention after RotaryEmbedding"
        )
    if x.ndim != 3 or weights.ndim != 2 or x.shape[2] != weights.shape[0]:
        raise ShapeError(f"the input {list(x.shape)} and the weights {list(weights.shape)} do not fit")
    sizes = _hidden_sizes(qkv_hidden_sizes, weights.shape[1], num_heads)
    joint = wide(x) @ wide(weights)
    if bias is not None:
        if bias.shape != joint.shape[-1:]:
            raise ShapeError(f"the bias has shape {list(bias.shape)}; [{joint.shape[-1]}] is needed")
        joint = joint + wide(bias)
    q, k, v = (split_heads(part, num_heads) for part in np.split(joint, np.cumsum(sizes)[:2], axis=2))
    if past is not None and (past.ndim != 5 or past.shape[0] != 2):
        raise ShapeError(f"past has shape {list(past.shape)}; (2, batch, heads, past length, head size) is needed")
    past_key, past_value = (None, None) if past is None else (wide(past[0]), wide(past[1]))
    filled = None
    if past_present_share_buffer:
        filled = _one(past_sequence_length, "past_sequence_length")
        if filled is None:
            raise InputError("past_present_share_buffer needs the input past_sequence_length")
    k, present_key = _append(past_key, k, filled, "past")
    v, present_value = _append(past_value, v, filled, "past")
    batch, length, total = x.shape[0], x.shape[1], k.shape[2]
    hide = mask_bias(mask_index, batch, length, total, mask_filter_value)
    hide = hide + _attention_bias(attention_bias, (batch, num_heads, length, total))
    y, _ = attend(q, k, v, scale, hide, past=total - length if unidirectional else None)
    present = np.stack([present_key, present_value]) if sizes[0] == sizes[2] else None
    return merge_heads(y).astype(x.dtype), None if present is None else present.astype(x.dtype)


def _infer_attention(call: Call) -> list[TensorType]:
    x, w, dtype = call.shape(0), call.shape(1), call.dtype(0)
    heads, sizes = call.attr("num_heads", 0), call.attr("qkv_hidden_sizes")
    if x is None or w is None:
        return [TensorType(dtype), TensorType(dtype)]
    if len(x) != 3 or len(w) != 2 or clash(x[2], w[0]):
        raise call.fail("(batch, sequence, hidden) and (hidden, columns) are needed")
    if heads < 1:
        raise call.fail(f"num_heads {heads} is missing or below 1")
    if not sizes and isinstance(w[1], int):
        sizes = (w[1] // 3,) * 3
    width, size = (sizes[2], sizes[0] // heads) if sizes else (None, None)
    past = call.shape(4) if call.has(4) else None
    if call.attr("past_present_share_buffer", 0):
        total = None if past is None else past[3]
    elif call.has(4):
        total = None if past is None else add_dims(past[3], x[1])
    else:
        total = x[1]
    return [TensorType(dtype, (x[0], x[1], width)), TensorType(dtype, (2, x[0], heads, total, size))]


register(
    Op(
        "Attention",
        since=1,
        domain=DOMAIN,
        infer=_infer_attention,
        reference=_attention,
        lower=lower_microsoft_attention,
    )
)


# --- MultiHeadAttention ---


def _projections(query, key, value, bias, heads: int):
    """q, k, v as (N, H, L, E) from separate, packed (rank 5) or already split (rank 4) tensors, with the bias added."""
    packed = query if query.ndim == 5 else key if key is not None and key.ndim == 5 else None
    if packed is not None and packed.shape[2:4] != (heads, 3 if packed is query else 2):
        raise ShapeError(f"a packed tensor of shape {list(packed.shape)} does not fit {heads} heads")
    if query.ndim == 5:
        q, k, v = (query[:, :, :, i].swapaxes(1, 2) for i in range(3))
    elif packed is not None:
        q, k, v = split_heads(query, heads, "query"), *(key[:, :, :, i].swapaxes(1, 2) for i in range(2))
    else:
        if key is None or value is None:
            raise InputError("key and value are missing, and query is not packed (rank 5)")
        q, k, v = (split_heads(t, heads, n) for t, n in ((query, "query"), (key, "key"), (value, "value")))
    q, k, v = wide(q), wide(k), wide(v)
    if bias is None:
        return q, k, v
    widths = [heads * t.shape[3] for t in (q, k, v)]
    if bias.shape != (sum(widths),):
        raise ShapeError(f"the bias has shape {list(bias.shape)}; [{sum(widths)}] is needed")
    parts = np.split(wide(bias), np.cumsum(widths)[:2])
    q, k, v = (t + p.reshape(heads, 1, -1) for t, p in zip((q, k, v), parts))
    return q, k, v


def _multi_head_attention(
    query, key=None, value=None, bias=None, key_padding_mask=None, attention_bias=None, past_key=None, past_value=None,
    past_sequence_length=None, cache_indirection=None, *, num_heads, mask_filter_value=-10000.0, scale=None,
    unidirectional=0,
):  # fmt: skip
    if cache_indirection is not None:
        raise UnsupportedError("cache_indirection (beam search inside the operator) is not supported")
    if (past_key is None) != (past_value is None):
        raise InputError("past_key and past_value must be given together")
    if key is not None and key.ndim == 4 and bias is not None:  # keys of a cross attention come projected
        plain = wide(bias).copy()
        plain[query.shape[-1] :] = 0
        bias = plain
    q, k, v = _projections(query, key, value, bias, num_heads)
    filled = _one(past_sequence_length, "past_sequence_length")
    new = k.shape[2]
    k, present_key = _append(None if past_key is None else wide(past_key), k, filled, "past_key")
    v, present_value = _append(None if past_value is None else wide(past_value), v, filled, "past_value")
    batch, heads, length = q.shape[:3]
    total = k.shape[2]
    hide = mask_bias(key_padding_mask, batch, length, total, mask_filter_value)
    hide = hide + _attention_bias(attention_bias, (batch, heads, length, total))
    y, score = attend(q, k, v, scale, hide, past=total - new if unidirectional else None)
    results = (merge_heads(y), present_key, present_value, np.broadcast_to(score, (batch, heads, length, total)))
    return tuple(np.ascontiguousarray(r).astype(query.dtype, copy=False) for r in results)


def _check_heads(call: Call, shapes: Sequence[Any], heads: int, sizes: tuple[Dim, Dim, Dim, Dim]) -> None:
    """Raise where batch, lengths, bias or caches of MultiHeadAttention do not agree with each other."""
    q, k, v = shapes
    _, keys, size, value_size = sizes
    batch = q[0]

    def match(name: str, shape: Sequence[Any] | None, wanted: Sequence[Dim]) -> None:
        if shape is not None and (len(shape) != len(wanted) or any(map(clash, shape, wanted))):
            raise call.fail(f"{name} has shape {list(shape)}; {list(wanted)} is needed")

    for shape, parts in ((q, 3), (k, 2)):
        if shape is not None and len(shape) == 5 and (clash(shape[2], heads) or clash(shape[3], parts)):
            raise call.fail(f"a packed tensor of shape {list(shape)} does not fit {heads} heads of {parts} parts")
    for name, shape in (("key", k), ("value", v)):
        if shape is not None and clash(shape[0], batch):
            raise call.fail(f"query and {name} have batches of {batch} and {shape[0]}")
    rows = None if v is None else v[2] if len(v) == 4 else v[1]
    if v is not None and clash(rows, keys):
        raise call.fail(f"key and value have lengths {keys} and {rows}")
    if len(q) == 3 and isinstance(q[2], int) and (q[2] % heads or clash(q[2] // heads, size)):
        raise call.fail(f"query of shape {list(q)} does not have {heads} heads of size {size}, as the key has")
    if isinstance(size, int) and isinstance(value_size, int):
        match("bias", call.shape(3) if call.has(3) else None, (heads * (2 * size + value_size),))
    if call.has(6) != call.has(7):
        raise call.fail("past_key and past_value must be given together")
    past = call.shape(6) if call.has(6) else None
    match("past_key", past, (batch, heads, None, size))
    match("past_value", call.shape(7) if call.has(7) else None, (batch, heads, past[2] if past else None, value_size))


def _infer_multi_head_attention(call: Call) -> list[TensorType]:
    dtype, heads = call.dtype(0), call.attr("num_heads", 0)
    q, k, v = (call.shape(i) if call.has(i) else None for i in range(3))
    if heads < 1:
        raise call.fail(f"num_heads {heads} is missing or below 1")
    if q is None or (k is None and call.has(1)) or (v is None and call.has(2)):
        return [TensorType(dtype)] * 4

    def split(shape: Sequence[Dim]) -> tuple[Dim, Dim, Dim]:
        """(length, head size, total width) of separate or split heads."""
        if len(shape) == 4:
            return shape[2], shape[3], heads * shape[3] if isinstance(shape[3], int) else None
        if len(shape) != 3 or (isinstance(shape[2], int) and shape[2] % heads):
            raise call.fail(f"a tensor of shape {list(shape)} does not divide into {heads} heads")
        return shape[1], shape[2] // heads if isinstance(shape[2], int) else None, shape[2]

    if len(q) == 5:
        size, keys, length = q[4], q[1], q[1]
        value_size, width = size, heads * size if isinstance(size, int) else None
    elif k is not None and len(k) == 5:
        length, keys, size, value_size = q[1], k[1], k[4], k[4]
        width = heads * value_size if isinstance(value_size, int) else None
    elif k is None or v is None:
        raise call.fail("key and value are missing, and query is not packed (rank 5)")
    else:
        length = split(q)[0]
        keys, size, _ = split(k)
        _, value_size, width = split(v)
    _check_heads(call, (q, k, v), heads, (length, keys, size, value_size))
    past = call.shape(6) if call.has(6) else None
    total = keys
    held = keys
    if call.has(6):
        total = None if past is None or call.has(8) else add_dims(past[2], keys)
        held = None if past is None else past[2] if call.has(8) else total
    return [
        TensorType(dtype, (q[0], length, width)),
        TensorType(dtype, (q[0], heads, held, size)),
        TensorType(dtype, (q[0], heads, held, value_size)),
        TensorType(dtype, (q[0], heads, length, total)),
    ]


register(
    Op(
        "MultiHeadAttention",
        since=1,
        domain=DOMAIN,
        infer=_infer_multi_head_attention,
        reference=_multi_head_attention,
        lower=lower_multi_head_attention,
    )
)


# --- RotaryEmbedding ---


def positions(position_ids: np.ndarray, batch: int, length: int) -> np.ndarray:
    """(N, L) positions from all of them, or from the first alone."""
    if position_ids.size == 1:
        return np.broadcast_to(position_ids.reshape(()) + np.arange(length), (batch, length))
    if position_ids.shape != (batch, length):
        raise ShapeError(f"position_ids has shape {list(position_ids.shape)}; [1] or {[batch, length]} is needed")
    return position_ids


def rotate_heads(x: np.ndarray, places: np.ndarray, cos_cache, sin_cache, interleaved: int) -> np.ndarray:
    """x (N, H, L, E) rotated by the angles of positions (N, L), in float32."""
    cos, sin = rows_of(cos_cache, places, "cos_cache"), rows_of(sin_cache, places, "sin_cache")
    return rotate(wide(x), wide(cos)[:, None], wide(sin)[:, None], interleaved)


def _rotary(
    x, position_ids, cos_cache, sin_cache, *, interleaved=0, is_packed_batching=0, num_heads=0, rotary_embedding_dim=0,
    scale=1.0,
):  # fmt: skip
    if cos_cache.ndim != 2:
        raise ShapeError(f"cos_cache has rank {cos_cache.ndim}; (positions, half the rotated elements) is needed")
    if x.ndim == 3 and not num_heads:
        width = rotary_embedding_dim or 2 * cos_cache.shape[1]
        num_heads = x.shape[2] // max(1, width)
    heads = split_heads(x, num_heads)
    if rotary_embedding_dim and rotary_embedding_dim != 2 * cos_cache.shape[1]:
        raise ShapeError(f"rotary_embedding_dim {rotary_embedding_dim} is not twice cos_cache's {cos_cache.shape[1]}")
    places = positions(position_ids, heads.shape[0], heads.shape[2])
    y = rotate_heads(heads, places, cos_cache, sin_cache, interleaved)
    return (merge_heads(y) if x.ndim == 3 else y).astype(x.dtype, copy=False)


register(
    Op(
        "RotaryEmbedding",
        since=1,
        domain=DOMAIN,
        infer=same_as(0),
        reference=_rotary,
        lower=lower_microsoft_rotary,
    )
)
