"""GroupQueryAttention of com.microsoft: attention with a key/value cache, as decoder models are exported with.

Meaning: ContribOperators.md of ONNX Runtime. Shapes: query (N, L, H*E), key and value (N, L, G*E), cache (N, G, C, E).
For batch entry b the cache holds T = seqlens_k[b] + 1 tokens after the step, Q = min(L, T) of them new (query_seqlens
says otherwise), P = T - Q from before. Query row s stands at position P + s and sees the keys up to its own position.
Cache rows from T on, and output rows from Q on, have no meaning. Computed in float32.
"""

from __future__ import annotations

import math

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.attention import group_matmul, merge_heads, split_heads
from minifer.ops.microsoft_attention import positions, rotate_heads
from minifer.ops.microsoft_dense import DOMAIN
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.window import wide
from minifer.record import Record

lower_group_query_attention = deferred("lower_microsoft_attention", "lower_group_query_attention")

_QUANTISED = ("PER_TENSOR", "PER_CHANNEL")


# --- the cache's number format ---


class _Format(Record):
    """How a cache stores numbers: as they are, or divided by `scale` in 8 or 4 bits."""

    dtype: np.dtype
    kind: str = "NONE"
    bits: int = 8
    scale: np.ndarray | None = None

    @property
    def packed(self) -> bool:
        """Two elements a byte."""
        return self.kind != "NONE" and self.bits == 4

    def width(self, size: int) -> int:
        """Stored elements per head of `size` elements."""
        return -(-size // 2) if self.packed else size

    def store(self, x: np.ndarray) -> np.ndarray:
        """(G, S, E) floats in the cache's format."""
        if self.kind == "NONE":
            return x.astype(self.dtype)
        y = x / self._scale(x.shape)
        if self.dtype.kind not in "iu":
            return y.astype(self.dtype)
        if not self.packed:
            return np.clip(np.rint(y), -128, 127).astype(self.dtype)
        q = (np.clip(np.rint(y), -8, 7) + 8).astype(np.uint8)
        if q.shape[-1] % 2:
            q = np.concatenate([q, np.full((*q.shape[:-1], 1), 8, np.uint8)], axis=-1)
        return q[..., 0::2] | (q[..., 1::2] << 4)

    def load(self, q: np.ndarray, size: int) -> np.ndarray:
        """The inverse, in float32."""
        if self.kind == "NONE":
            return wide(q)
        if self.packed:
            q = np.stack([q & 15, q >> 4], axis=-1).reshape(*q.shape[:-1], -1)[..., :size].astype(np.float32) - 8
        return wide(q) * self._scale(q.shape)

    def _scale(self, shape: tuple[int, ...]) -> np.ndarray:
        assert self.scale is not None
        scale = wide(self.scale)
        if scale.size == 1:
            return scale.reshape(())
        if scale.size != shape[0] * shape[2]:
            raise ShapeError(f"a cache scale has shape {list(scale.shape)}; one number, or one per head and channel")
        return scale.reshape(shape[0], 1, shape[2])


def _format(past: np.ndarray | None, dtype: np.dtype, kind: str, bits: int, scale: np.ndarray | None) -> _Format:
    if kind == "NONE":
        return _Format(dtype if past is None else past.dtype)
    if kind not in _QUANTISED:
        raise InputError(f"cache quantisation '{kind}' is not one of NONE, {', '.join(_QUANTISED)}")
    if past is None or scale is None:
        raise InputError(f"a cache quantised {kind} needs past_key, past_value, k_scale and v_scale")
    if bits not in (4, 8):
        raise InputError(f"kv_cache_bit_width {bits} is not 4 or 8")
    return _Format(past.dtype, kind, bits, scale)


# --- one batch entry ---


class _Rules(Record):
    """What all batch entries share."""

    scale: float
    softcap: float
    causal: int
    window: int
    sink: np.ndarray | None  # (H,) a further logit per head, which takes its share and gives nothing


def _softmax(score: np.ndarray, sink: np.ndarray | None) -> np.ndarray:
    """Softmax over the last axis of (1, H, L, T); a row without a key gives zeros."""
    top = score.max(axis=-1, keepdims=True, initial=-np.inf)
    if sink is not None:
        top = np.maximum(top, sink.reshape(1, -1, 1, 1))
    top = np.where(np.isneginf(top), 0, top)
    e = np.exp(score - top)
    total = e.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink.reshape(1, -1, 1, 1) - top)
    return e / np.where(total == 0, 1, total)


def _attend(q, k, v, first: int, before: int, bias, rules: _Rules):
    """One entry: q (H, L, E) at positions from `before` on, k and v (G, T', E) at positions from `first` on.

    Returns y (H, L, E), the scores (0 for unseen keys) and the weights (H, L, T')."""
    score = group_matmul(q[None], k[None].swapaxes(2, 3)) * np.float32(rules.scale)
    if rules.softcap:
        score = np.tanh(score / np.float32(rules.softcap)) * np.float32(rules.softcap)
    if bias is not None:
        score = score + bias
    behind = (before + np.arange(q.shape[1]))[:, None] - (first + np.arange(k.shape[1]))  # distance back to the key
    see = np.ones(behind.shape, bool)
    if rules.causal:
        see &= behind >= 0
    if rules.window > 0:
        see &= behind < rules.window
    weight = _softmax(np.where(see, score, np.float32(-np.inf)), rules.sink)
    return group_matmul(weight, v[None])[0], np.where(see, score, 0)[0], weight[0]


# --- the operator ---


def _resident(tokens: int, capacity: int, window: int) -> int:
    """How many of the latest tokens a window-sized cache keeps after `tokens`."""
    if tokens <= capacity:
        return tokens
    step = capacity - window + 1
    return tokens - step * -(-(tokens - capacity) // step)


def _split(query, key, value, heads: int, groups: int):
    """q (N, H, L, E), k and v (N, G, L, E) from separate tensors or one that holds all three."""
    if query.ndim != 3:
        raise ShapeError(f"query has rank {query.ndim}; (batch, sequence, hidden) is needed")
    if heads < 1 or groups < 1 or heads % groups:
        raise ShapeError(f"num_heads {heads} must be a positive multiple of kv_num_heads {groups}")
    if (key is None) != (value is None):
        raise InputError("key and value must be given together")
    if key is None:
        every = split_heads(query, heads + 2 * groups, "query")
        q, k, v = np.split(every, [heads, heads + groups], axis=1)
    else:
        q, k, v = (
            split_heads(t, n, w)
            for t, n, w in ((query, heads, "query"), (key, groups, "key"), (value, groups, "value"))
        )
    if k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[2:] != q.shape[2:]:
        raise ShapeError(f"query {list(q.shape)}, key {list(k.shape)} and value {list(v.shape)} (split) do not fit")
    return wide(q), wide(k), wide(v)


def _lengths(seqlens_k, query_seqlens, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """T and Q of each batch entry."""
    total = seqlens_k.reshape(-1).astype(np.int64) + 1
    if total.shape != (batch,) or (total < 1).any():
        raise InputError(f"seqlens_k must hold {batch} numbers from 0 on; it holds {(total - 1).tolist()}")
    if query_seqlens is None:
        return total, np.minimum(length, total)
    fresh = query_seqlens.reshape(-1).astype(np.int64)
    if fresh.shape != (batch,) or (fresh < 0).any() or (fresh > np.minimum(length, total)).any():
        raise InputError(f"query_seqlens must hold {batch} numbers up to {length}; it holds {fresh.tolist()}")
    return total, fresh


def _normalised(x: np.ndarray, weight: np.ndarray | None, epsilon: float) -> np.ndarray:
    """Each head divided by its root mean square, times `weight` (E,)."""
    if weight is None:
        return x
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(epsilon)) * wide(weight)


def _update(cache, kept: int, new, room: int, fmt: _Format, size: int, before: int, window: int):
    """One entry's cache after a step: (cache (G, C, E'), all keys in float32, position of the first of them).

    `kept` rows of `cache` are old tokens, `new` (G, Q, E) follow. A window-sized cache (window > 0) drops what
    `_resident` says; else the cache has `room` rows.
    """
    fresh = fmt.store(new)
    old = cache[:, :kept] if cache is not None else fresh[:, :0]
    every = np.concatenate([old, fresh], axis=1)
    out = np.zeros((new.shape[0], room, fresh.shape[2]), fresh.dtype)
    if cache is not None:
        out[:, : cache.shape[1]] = cache[:, :room]
    keep = _resident(before + new.shape[1], room, window) if window > 0 else every.shape[1]
    if keep > room:
        raise InputError(f"{keep} tokens do not fit the {room} places of the cache")
    out[:, :keep] = every[:, every.shape[1] - keep :]
    return out, fmt.load(every, size), before - kept


def _group_query_attention(
    query, key=None, value=None, past_key=None, past_value=None, seqlens_k=None, total_sequence_length=None,
    cos_cache=None, sin_cache=None, position_ids=None, attention_bias=None, head_sink=None, k_scale=None, v_scale=None,
    q_norm_weight=None, k_norm_weight=None, query_seqlens=None, *, num_heads, kv_num_heads, causal=1, do_rotary=0,
    k_norm_epsilon=None, k_quant_type="NONE", kv_cache_bit_width=8, local_window_size=-1, q_norm_epsilon=None,
    qk_norm_epsilon=1e-6, qk_output=0, rotary_interleaved=0, scale=None, sliding_window_cache=0,
    smooth_softmax=-1, softcap=0.0,
    v_quant_type="NONE",
):  # fmt: skip
    if seqlens_k is None or total_sequence_length is None:
        raise InputError("seqlens_k and total_sequence_length must be given")
    q, k, v = _split(query, key, value, num_heads, kv_num_heads)
    batch, heads, length, size = q.shape
    total, fresh = _lengths(seqlens_k, query_seqlens, batch, length)
    before = total - fresh
    q = _normalised(q, q_norm_weight, q_norm_epsilon or qk_norm_epsilon)
    k = _normalised(k, k_norm_weight, k_norm_epsilon or qk_norm_epsilon)
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise InputError("do_rotary needs cos_cache and sin_cache")
        places = np.minimum(before[:, None] + np.arange(length), cos_cache.shape[0] - 1)  # padding rows may lie beyond
        if position_ids is not None:
            places = positions(position_ids, batch, length)
        q, k = (rotate_heads(x, places, cos_cache, sin_cache, rotary_interleaved) for x in (q, k))
    key_format = _format(past_key, query.dtype, k_quant_type, kv_cache_bit_width, k_scale)
    value_format = _format(past_value, query.dtype, v_quant_type, kv_cache_bit_width, v_scale)
    room = _room(past_key, past_value, total_sequence_length, sliding_window_cache, local_window_size, size, key_format)
    sink = wide(head_sink) if head_sink is not None else np.zeros(heads, np.float32) if smooth_softmax > 0 else None
    rules = _Rules(scale or 1 / math.sqrt(max(1, size)), softcap, causal, local_window_size, sink)
    window = local_window_size if sliding_window_cache else 0
    limit = int(total_sequence_length.reshape(()))
    y = np.zeros((batch, heads, length, size), np.float32)
    shown = np.zeros((batch, heads, length, max(limit, int(total.max(initial=0)))), np.float32)
    presents: list[list[np.ndarray]] = [[], []]
    for b in range(batch):
        held = int(before[b])
        kept = _resident(held, room, window) if window else held
        sides: list[np.ndarray] = []
        for present, past, x, fmt in zip(presents, (past_key, past_value), (k, v), (key_format, value_format)):
            cache = None if past is None else past[b]
            if kept and (cache is None or kept > cache.shape[1]):
                raise InputError(f"entry {b} has {held} tokens in the past, and past_key holds fewer")
            out, every, first = _update(cache, kept, x[b, :, : fresh[b]], room, fmt, size, held, window)
            present.append(out)
            sides.append(every)
        bias = _bias(attention_bias, b, first, sides[0].shape[1])
        y[b], score, weight = _attend(q[b], sides[0], sides[1], first, held, bias, rules)
        if qk_output:
            shown[b, :, :, first : first + score.shape[2]] = score if qk_output == 1 else weight
    cached = [np.stack(p) if p else np.zeros((0, kv_num_heads, room, size), query.dtype) for p in presents]
    return merge_heads(y).astype(query.dtype), *cached, shown.astype(query.dtype)


def _bias(bias: np.ndarray | None, b: int, first: int, keys: int) -> np.ndarray | None:
    """The entry's share of attention_bias, at the columns of its keys."""
    if bias is None:
        return None
    if bias.ndim != 4 or bias.shape[3] < first + keys:
        raise ShapeError(f"attention_bias has shape {list(bias.shape)}; (batch, heads, sequence, total) is needed")
    return wide(bias)[b % bias.shape[0]][None, ..., first : first + keys]


def _room(past_key, past_value, total_sequence_length, sliding: int, window: int, size: int, fmt: _Format) -> int:
    """Rows of the present cache."""
    if total_sequence_length.size != 1:
        raise ShapeError("total_sequence_length must be a scalar")
    limit = int(total_sequence_length.reshape(()))
    if (past_key is None) != (past_value is None):
        raise InputError("past_key and past_value must be given together")
    if past_key is not None:
        if past_key.ndim != 4 or past_key.shape != past_value.shape or past_key.shape[3] != fmt.width(size):
            raise ShapeError(f"past_key has shape {list(past_key.shape)}; its last axis must be {fmt.width(size)}")
    if not sliding:
        return limit if past_key is None else max(limit, past_key.shape[2])
    if past_key is None or window < 1 or past_key.shape[2] < window:
        raise InputError("sliding_window_cache needs a past of at least local_window_size rows")
    return past_key.shape[2]


def _infer(call: Call) -> list[TensorType]:
    query, dtype = call.shape(0), call.dtype(0)
    heads, groups = call.attr("num_heads", 0), call.attr("kv_num_heads", 0)
    if heads < 1 or groups < 1 or heads % groups:
        raise call.fail(f"num_heads {heads} must be a positive multiple of kv_num_heads {groups}")
    cache_dtype = call.dtype(3) if call.has(3) else dtype
    if query is None:
        return [TensorType(dtype), TensorType(cache_dtype), TensorType(cache_dtype), TensorType(dtype)]
    if len(query) != 3:
        raise call.fail(f"query has rank {len(query)}; (batch, sequence, hidden) is needed")
    share = heads if call.has(1) else heads + 2 * groups
    size: Dim = None
    if isinstance(query[2], int):
        if query[2] % share:
            raise call.fail(f"query has {query[2]} columns, which do not divide into {share} heads")
        size = query[2] // share
    limit = call.value(6)
    limit = None if limit is None else int(np.asarray(limit).reshape(-1)[0])
    past = call.shape(3) if call.has(3) else None
    stored: Dim = size
    room: Dim = limit
    if call.has(3):
        stored = None if past is None else past[3]
        rows = None if past is None else past[2]
        if call.attr("sliding_window_cache", 0):
            room = rows
        else:
            room = max(limit, rows) if isinstance(limit, int) and isinstance(rows, int) else None
    seqlens = call.value(5)
    shown = None if limit is None or seqlens is None else max(limit, int(np.max(seqlens, initial=-1)) + 1)
    cache = TensorType(cache_dtype, (query[0], groups, room, stored))
    width = heads * size if isinstance(size, int) else None
    return [
        TensorType(dtype, (query[0], query[1], width)),
        cache,
        cache,
        TensorType(dtype, (query[0], heads, query[1], shown)),
    ]


register(
    Op(
        "GroupQueryAttention",
        since=1,
        domain=DOMAIN,
        infer=_infer,
        reference=_group_query_attention,
        lower=lower_group_query_attention,
    )
)
