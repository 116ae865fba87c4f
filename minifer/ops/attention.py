"""Attention of ai.onnx: Attention, RotaryEmbedding and LinearAttention.

Shapes: q (N, H, L, E), k (N, G, S, E), v (N, G, S, F), where each of the G key/value heads serves H/G query heads; a
rank-3 tensor holds the heads side by side in its last axis. The intermediate results are rounded to the tensors' type
after each step, as the operator's function body does; products are summed in float32 or wider.
Source: the ONNX specification; Vaswani et al. 2017, Ainslie et al. 2023 (grouped heads), Su et al. 2021 (rotary).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import Fail
from minifer.ops.window import wide

lower_attention, lower_rotary = deferred("lower_attention", "lower_attention", "lower_rotary")

# --- pieces that other attention operators use too ---


def rounder(dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """A function that rounds wide values to what `dtype` can hold, and keeps them wide."""
    if dtype.kind == "f" and dtype.itemsize >= 4:
        return lambda x: x
    return lambda x: wide(x.astype(dtype))


def split_heads(x: np.ndarray, heads: int, name: str = "the input") -> np.ndarray:
    """(N, L, H*E) -> (N, H, L, E); a rank-4 tensor is returned as it is."""
    if x.ndim == 4:
        return x
    if x.ndim != 3:
        raise ShapeError(f"{name} has rank {x.ndim}; 3 or 4 is needed")
    if heads < 1:
        raise ShapeError(f"{name} has rank 3, so the number of heads must be given and be above 0; it is {heads}")
    if x.shape[2] % heads:
        raise ShapeError(f"{name} has {x.shape[2]} columns, which do not divide into {heads} heads")
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(N, H, L, E) -> (N, L, H*E)."""
    n, h, l, e = x.shape
    return x.swapaxes(1, 2).reshape(n, l, h * e)


def group_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (N, H, L, E) @ b (N, G, E, S) -> (N, H, L, S), each head of b serving H/G neighbouring heads of a."""
    n, heads = a.shape[:2]
    groups = b.shape[1]
    if groups == heads:
        return a @ b
    if groups == 0 or heads % groups:
        raise ShapeError(f"{heads} query heads do not divide among {groups} key/value heads")
    out = a.reshape(n, groups, heads // groups, *a.shape[2:]) @ b[:, :, None]
    return out.reshape(n, heads, *out.shape[3:])


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, each step in the type of x; a row of -inf alone gives zeros."""
    if not x.size:
        return x
    zero, one = x.dtype.type(0), x.dtype.type(1)
    top = x.max(axis=-1, keepdims=True)
    e = np.exp(x - np.where(top == -np.inf, zero, top))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, one, total)


def mask_bias(mask: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """What a mask adds to scores of `shape`: 0 or -inf for a boolean one, a float one's own values.

    Masks broadcast; a last axis that is too short is filled up with -inf.
    """
    if mask is None:
        return np.zeros((1,) * len(shape), dtype)
    bias = np.where(mask, 0, -np.inf).astype(dtype) if mask.dtype == bool else wide(mask).astype(dtype)
    short = shape[-1] - (bias.shape[-1] if bias.ndim else 1)
    if bias.ndim and bias.shape[-1] != 1 and short > 0:
        bias = np.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(0, short)], constant_values=-np.inf)
    if bias.ndim > len(shape) or any(a not in (1, b) for a, b in zip(reversed(bias.shape), reversed(shape))):
        raise ShapeError(f"the mask of shape {list(mask.shape)} does not broadcast to the scores' {list(shape)}")
    return bias.reshape((1,) * (len(shape) - bias.ndim) + bias.shape)


def visible(queries: int, keys: int, offset, *, causal=False, left: int = -1, right: int = -1) -> np.ndarray:
    """Boolean (N or 1, 1, L, S): which keys a query may see. Query i stands at position offset + i among the keys.

    `offset` is an integer or one per batch entry. causal bounds the right side at the own position, `left` and
    `right` (where not negative) bound the distance.
    """
    start = np.asarray(offset, np.int64).reshape(-1, 1, 1, 1)
    ahead = np.arange(keys) - (start + np.arange(queries)[:, None])  # how far a key lies ahead of the query
    see = np.ones(ahead.shape, bool)
    if causal:
        see &= ahead <= 0
    if left >= 0:
        see &= ahead >= -left
    if right >= 0:
        see &= ahead <= right
    return see


# --- Attention ---


def _valid_lengths(nonpad: np.ndarray | None, batch: int, keys: int) -> np.ndarray | None:
    if nonpad is None:
        return None
    if nonpad.shape != (batch,):
        raise ShapeError(f"nonpad_kv_seqlen has shape {list(nonpad.shape)}; [{batch}] is needed")
    if nonpad.size and (nonpad.min() < 0 or nonpad.max() > keys):
        raise InputError(f"nonpad_kv_seqlen runs from {nonpad.min()} to {nonpad.max()}; it must lie in [0, {keys}]")
    return nonpad


def _with_past(past: np.ndarray | None, new: np.ndarray, name: str) -> np.ndarray:
    if past is None:
        return new
    if past.ndim != 4 or past.shape[:2] != new.shape[:2] or past.shape[3] != new.shape[3]:
        raise ShapeError(f"{name} has shape {list(past.shape)}, which does not continue {list(new.shape)}")
    return np.concatenate([past, new], axis=2)


def _check_qkv(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ShapeError(f"K {list(k.shape)} and V {list(v.shape)} must agree in batch, heads and length, Q in batch")
    if q.shape[3] != k.shape[3]:
        raise ShapeError(f"Q has head size {q.shape[3]} and K {k.shape[3]}; they must be equal")


_MODES = (0, 1, 2, 3)


def _attention(
    q, k, v, attn_mask=None, past_key=None, past_value=None, nonpad_kv_seqlen=None, *, is_causal=0, kv_num_heads=0,
    left_window_size=-1, q_num_heads=0, qk_matmul_output_mode=0, right_window_size=-1, scale=None, softcap=0.0,
    softmax_precision=None,
):  # fmt: skip
    if (past_key is None) != (past_value is None):
        raise InputError("past_key and past_value must be given together")
    if qk_matmul_output_mode not in _MODES:
        raise InputError(f"qk_matmul_output_mode {qk_matmul_output_mode} is not one of {_MODES}")
    flat, dtype = q.ndim == 3, q.dtype
    to_t = rounder(dtype)
    q = split_heads(q, q_num_heads, "Q")
    key = _with_past(past_key, split_heads(k, kv_num_heads, "K"), "past_key")
    value = _with_past(past_value, split_heads(v, kv_num_heads, "V"), "past_value")
    _check_qkv(q, key, value)
    batch, queries, keys = q.shape[0], q.shape[2], key.shape[2]
    lengths = _valid_lengths(nonpad_kv_seqlen, batch, keys)

    root = math.sqrt(scale if scale else 1 / math.sqrt(max(1, q.shape[3])))
    factor = wide(np.array(root).astype(dtype))
    score = to_t(group_matmul(to_t(wide(q) * factor), to_t(wide(key) * factor).swapaxes(2, 3)))
    stages = [score]
    if softcap:
        cap = wide(np.array(softcap).astype(dtype))
        score = to_t(to_t(np.tanh(to_t(score / cap))) * cap)
    stages.append(score)

    offset = 0 if past_key is None else past_key.shape[2]
    if past_key is None and lengths is not None:
        offset = lengths - queries
    see = visible(queries, keys, offset, causal=is_causal, left=left_window_size, right=right_window_size)
    if lengths is not None:
        see = see & (np.arange(keys) < lengths.reshape(-1, 1, 1, 1))
    bias = to_t(np.where(see, mask_bias(attn_mask, score.shape, score.dtype), -np.inf).astype(score.dtype))
    score = to_t(score + bias)
    stages.append(score)

    narrow = dtype if softmax_precision is None else dtypes.to_numpy(dtypes.name_of_code(softmax_precision))
    weight = to_t(softmax(score.astype(narrow)).astype(score.dtype))
    weight = np.where((bias == -np.inf).all(axis=-1, keepdims=True), 0, weight).astype(score.dtype)
    stages.append(weight)
    y = group_matmul(weight, wide(value))
    y = (merge_heads(y) if flat else y).astype(dtype)
    shown = np.broadcast_to(stages[qk_matmul_output_mode], score.shape).astype(dtype)
    return y, np.ascontiguousarray(key), np.ascontiguousarray(value), shown


def _heads_of(call: Call, i: int, attr: str, name: str) -> tuple[Dim, Dim, Dim, Dim] | None:
    """The (N, H, L, E) of a rank-4 input, or of a rank-3 one split into the heads that an attribute gives."""
    shape = call.shape(i)
    if shape is None:
        return None
    if len(shape) == 4:
        return shape  # type: ignore[return-value]
    if len(shape) != 3:
        raise call.fail(f"{name} has rank {len(shape)}; 3 or 4 is needed")
    heads = call.attr(attr, 0)
    if heads < 1:
        raise call.fail(f"{name} has rank 3, so the attribute {attr} must be given and be above 0")
    if isinstance(shape[2], int) and shape[2] % heads:
        raise call.fail(f"{name} has {shape[2]} columns, which do not divide into {heads} heads")
    return shape[0], heads, shape[1], shape[2] // heads if isinstance(shape[2], int) else None


def add_dims(a: Dim, b: Dim) -> Dim:
    """The sum of two sizes; None where it is unknown."""
    return a + b if isinstance(a, int) and isinstance(b, int) else b if a == 0 else a if b == 0 else None


def clash(a: Dim, b: Dim) -> bool:
    """True where two sizes are certainly different."""
    return isinstance(a, int) and isinstance(b, int) and a != b


def _total(call: Call, i: int, name: str, like: tuple[Dim, Dim, Dim, Dim]) -> Dim:
    """Length of K or V with the past (input i) before it."""
    if not call.has(i):
        return like[2]
    past = call.shape(i)
    if past is None:
        return None
    if len(past) != 4 or clash(past[0], like[0]) or clash(past[1], like[1]) or clash(past[3], like[3]):
        raise call.fail(f"{name} has shape {list(past)}, which does not continue {list(like)}")
    return add_dims(past[2], like[2])


def _infer_attention(call: Call) -> list[TensorType]:
    scale = call.attr("scale")
    if scale is not None and not 0 <= scale < math.inf:
        raise call.fail(f"scale is {scale}; its square root is taken, so it must be a number from 0")
    q = _heads_of(call, 0, "q_num_heads", "Q")
    k = _heads_of(call, 1, "kv_num_heads", "K")
    v = _heads_of(call, 2, "kv_num_heads", "V")
    dtype, value_dtype = call.dtype(0), call.dtype(2)
    if q is None or k is None or v is None:
        return [TensorType(dtype), TensorType(dtype), TensorType(value_dtype), TensorType(dtype)]
    if clash(q[0], k[0]) or clash(k[0], v[0]) or clash(k[1], v[1]) or clash(k[2], v[2]) or clash(q[3], k[3]):
        raise call.fail("Q, K and V do not agree in batch, heads, length or head size")
    if isinstance(q[1], int) and isinstance(k[1], int) and (k[1] == 0 or q[1] % k[1]):
        raise call.fail(f"{q[1]} query heads do not divide among {k[1]} key/value heads")
    total = _total(call, 4, "past_key", k)
    total_value = _total(call, 5, "past_value", v)
    if clash(total, total_value):
        raise call.fail(f"keys and values have lengths {total} and {total_value} with those before them")
    y: tuple[Dim, ...] = (q[0], q[1], q[2], v[3])
    if call.tensor(0).rank == 3:
        y = (q[0], q[2], q[1] * v[3] if isinstance(q[1], int) and isinstance(v[3], int) else None)
    return [
        TensorType(dtype, y),
        TensorType(dtype, (k[0], k[1], total, k[3])),
        TensorType(value_dtype, (v[0], v[1], total_value, v[3])),
        TensorType(dtype, (q[0], q[1], q[2], total)),
    ]


# 24 adds an input and 25 two attributes; a node of an older version cannot carry them
register(Op("Attention", since=23, infer=_infer_attention, reference=_attention, lower=lower_attention))


# --- RotaryEmbedding ---


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: int) -> np.ndarray:
    """Rotate the first 2*cos.shape[-1] elements of the last axis of x (..., E) in pairs; the rest passes through.

    A pair is two neighbours (interleaved) or an element of the first half and one of the second.
    """
    half = cos.shape[-1]
    if 2 * half > x.shape[-1]:
        raise ShapeError(f"the caches rotate {2 * half} elements, and a head has {x.shape[-1]}")
    if cos.shape != sin.shape:
        raise ShapeError(f"cos_cache and sin_cache differ: {list(cos.shape)} and {list(sin.shape)}")
    a, b = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    y = x.copy()
    y[..., a] = x[..., a] * cos - x[..., b] * sin
    y[..., b] = x[..., b] * cos + x[..., a] * sin
    return y


def rows_of(cache: np.ndarray, position_ids: np.ndarray, name: str) -> np.ndarray:
    """cache (P, E) looked up at positions (N, L) -> (N, L, E); InputError for a position outside."""
    if cache.ndim != 2:
        raise ShapeError(f"{name} has rank {cache.ndim}; with position_ids 2 is needed")
    if position_ids.size and (position_ids.min() < 0 or position_ids.max() >= cache.shape[0]):
        low, high = position_ids.min(), position_ids.max()
        raise InputError(f"position_ids run from {low} to {high}; {name} holds positions [0, {cache.shape[0]})")
    return cache[position_ids]


def _rotary(x, cos_cache, sin_cache, position_ids=None, *, interleaved=0, num_heads=0, rotary_embedding_dim=0):
    heads = split_heads(x, num_heads, "X")  # (N, H, L, E)
    batch, _, length, size = heads.shape
    if position_ids is None:
        cos, sin = cos_cache, sin_cache
    else:
        if position_ids.shape != (batch, length):
            raise ShapeError(f"position_ids has shape {list(position_ids.shape)}; {[batch, length]} is needed")
        cos, sin = rows_of(cos_cache, position_ids, "cos_cache"), rows_of(sin_cache, position_ids, "sin_cache")
    rotated = rotary_embedding_dim or size
    if rotated % 2 or rotated > size:
        raise ShapeError(f"{rotated} elements of a head of {size} cannot be rotated in pairs")
    for name, cache in (("cos_cache", cos), ("sin_cache", sin)):
        if cache.shape != (batch, length, rotated // 2):
            want = [batch, length, rotated // 2]
            raise ShapeError(f"{name} has (after the lookup) shape {list(cache.shape)}; {want} is needed")
    y = rotate(wide(heads), wide(cos)[:, None], wide(sin)[:, None], interleaved)
    return (merge_heads(y) if x.ndim == 3 else y).astype(x.dtype, copy=False)


def _infer_rotary(call: Call) -> TensorType:
    _heads_of(call, 0, "num_heads", "X")
    return call.tensor(0)


register(Op("RotaryEmbedding", since=23, infer=_infer_rotary, reference=_rotary, lower=lower_rotary))


# --- LinearAttention ---

_RULES = ("linear", "gated", "delta", "gated_delta")


def _check_linear(fail: Fail, rule: str, q_heads: int, kv_heads: int, decay: bool, beta: bool) -> None:
    if rule not in _RULES:
        raise fail(f"update_rule '{rule}' is not one of {', '.join(_RULES)}")
    if q_heads < 1 or kv_heads < 1 or q_heads % kv_heads:
        raise fail(f"q_num_heads {q_heads} must be a positive multiple of kv_num_heads {kv_heads}")
    if rule.startswith("gated") and not decay:
        raise fail(f"update_rule '{rule}' needs the input decay")
    if rule.endswith("delta") and not beta:
        raise fail(f"update_rule '{rule}' needs the input beta")


def _per_head(x: np.ndarray, heads: int, name: str) -> np.ndarray:
    """(N, T, H*E) -> (T, N, H, E) in a type to compute in."""
    return wide(split_heads(x, heads, name)).transpose(2, 0, 1, 3)


def _linear_attention(
    query, key, value, past_state=None, decay=None, beta=None, *, kv_num_heads, q_num_heads, chunk_size=64, scale=0.0,
    update_rule="gated_delta",
):  # fmt: skip
    _check_linear(ShapeError, update_rule, q_num_heads, kv_num_heads, decay is not None, beta is not None)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 3 or x.shape[:2] != query.shape[:2]:
            raise ShapeError(f"{name} has shape {list(x.shape)}; query, key and value must be (batch, time, columns)")
    q, k, v = (_per_head(x, h, n) for x, h, n in (
        (query, q_num_heads, "query"), (key, kv_num_heads, "key"), (value, kv_num_heads, "value")
    ))  # fmt: skip
    time, batch, _, size = q.shape
    if k.shape[3] != size:
        raise ShapeError(f"query heads have {size} elements and key heads {k.shape[3]}; they must be equal")
    shape = (batch, kv_num_heads, size, v.shape[3])
    if past_state is not None and past_state.shape != shape:
        raise ShapeError(f"past_state has shape {list(past_state.shape)}; {list(shape)} is needed")
    state = np.zeros(shape, q.dtype) if past_state is None else wide(past_state)
    fade = np.exp(_per_head(decay, kv_num_heads, "decay"))[..., None] if update_rule.startswith("gated") else None
    rate = wide(beta).swapaxes(0, 1)[..., None] if update_rule.endswith("delta") else None  # (T, N, H or 1, 1)
    factor = scale or 1 / math.sqrt(max(1, size))
    y = np.zeros((batch, q_num_heads, time, v.shape[3]), q.dtype)
    for t in range(time):
        if fade is not None:
            state = state * fade[t]
        new = v[t]
        if rate is not None:
            new = rate[t] * (new - np.squeeze(k[t][:, :, None] @ state, 2))
        state = state + k[t][..., None] * new[:, :, None]
        y[:, :, t] = np.squeeze(group_matmul(q[t][:, :, None], state), 2) * factor
    present = np.ascontiguousarray(state).astype(query.dtype if past_state is None else past_state.dtype)
    return merge_heads(y).astype(query.dtype), present


def _infer_linear_attention(call: Call) -> list[TensorType]:
    q_heads, kv_heads = call.attr("q_num_heads", 0), call.attr("kv_num_heads", 0)
    _check_linear(call.fail, call.attr("update_rule", "gated_delta"), q_heads, kv_heads, call.has(4), call.has(5))
    dtype, state_dtype = call.dtype(0), call.dtype(3) if call.has(3) else call.dtype(0)
    q = _heads_of(call, 0, "q_num_heads", "query")
    v = _heads_of(call, 2, "kv_num_heads", "value")
    if q is None or v is None:
        return [TensorType(dtype), TensorType(state_dtype)]
    width = q_heads * v[3] if isinstance(v[3], int) else None
    return [TensorType(dtype, (q[0], q[2], width)), TensorType(state_dtype, (q[0], kv_heads, q[3], v[3]))]


register(Op("LinearAttention", since=27, infer=_infer_linear_attention, reference=_linear_attention))
