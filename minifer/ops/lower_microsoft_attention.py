"""Attention of com.microsoft as kernel calls: Attention, MultiHeadAttention, GroupQueryAttention, RotaryEmbedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minifer.kernels import attention_mask, gemm
from minifer.kernels.activation import CLAMP
from minifer.kernels.binary import BINARY
from minifer.kernels.elementwise import broadcast_table
from minifer.kernels.matmul import matmul
from minifer.kernels.simd import NR
from minifer.ops.lower_attention import (
    Bias,
    Heads,
    Rules,
    attend,
    broadcast_strides,
    continued,
    counted_spans,
    fixed_spans,
    flags_as_bias,
    floats_only,
    heads_of,
    rotate,
    side_by_side,
    with_past,
)
from minifer.ops.lower_elementwise import UNBOUNDED
from minifer.ops.registry import Declined

INFINITY = float("inf")
ODD_MASK = Declined("a mask whose form no attention kernel takes")


def key_mask(low: Any, i: int, batch: int, length: int, total: int, fill: float) -> Bias | Declined | None:
    """The mask in input `i`, in any of the forms of the operators, as a bias of the scores."""
    if not low.has(i):
        return None
    shape = low.shape(i)
    if low.dtype(i) != "int32":
        return Declined(f"no attention kernel for a mask of {low.dtype(i)}")
    if len(shape) == 1:
        if shape[0] not in (batch, 2 * batch, 3 * batch + 2):
            return ODD_MASK
        ends, made = low.input(i), low.scratch(4 * batch * total, "float32")
        both = shape[0] == 2 * batch
        starts = ends.view((batch,), 4 * batch) if both else None
        low.call(attention_mask.range_bias, ends, starts, made, batch, total, int(both), fill)
        return made, (0, total, 0, 0, 1)
    if shape == (batch, total):
        strides = (0, total, 0, 0, 1)
    elif shape == (batch, length, total):
        strides = (0, length * total, 0, total, 1)
    elif len(shape) == 4 and shape[:2] == (batch, 1) and min(shape[2:]) >= total:
        rows, columns = shape[2:]
        strides = ((total - length) * columns, rows * columns, 0, columns, 1)
    else:
        return ODD_MASK
    return flags_as_bias(low, i, fill), strides


def score_bias(low: Any, i: int, scores: tuple[int, ...]) -> Bias | Declined | None:
    """The attention_bias in input `i`."""
    if not low.has(i):
        return None
    strides = broadcast_strides(low.shape(i), scores)
    if len(low.shape(i)) != 4 or strides is None:
        return Declined(f"attention_bias of shape {list(low.shape(i))} does not broadcast to the scores")
    return low.input(i), (0, *strides)  # type: ignore[return-value]


def one_way(rules: Rules, position: int, batch: int, keys: int, low: Any) -> Any:
    """Spans for all keys, each query seeing none ahead of it where the operator is unidirectional."""
    if low.attr("unidirectional", 0):
        rules.right = 0
    return fixed_spans(low, batch, keys, position)


# ---------------------------------------------------------------- MultiHeadAttention


def _packed(low: Any, i: int, part: int) -> Heads:
    """Part `part` of input `i`, which holds several tensors of heads: (batch, rows, heads, parts, size)."""
    _, rows, heads, parts, size = low.shape(i)
    step = heads * parts * size
    return Heads(low.input(i), heads, rows, size, (part * size, rows * step, parts * size, step))


def _projections(low: Any, heads: int) -> tuple[Heads, Heads, Heads] | Declined:
    """Queries, keys and values, without the bias."""
    shapes = [low.shape(i) if low.has(i) else () for i in range(3)]
    ranks = tuple(len(s) for s in shapes)
    if ranks[0] == 5:
        parts = [_packed(low, 0, part) for part in range(3)]
    elif ranks[1] == 5:
        parts = [heads_of(low, 0, heads), _packed(low, 1, 0), _packed(low, 1, 1)]
    elif min(ranks) < 3:
        return Declined("key and value are missing")
    else:
        parts = [heads_of(low, i, heads) for i in range(3)]
    q, k, v = parts
    batches = {s[0] for s in shapes if s}
    if len(batches) > 1 or {q.count, k.count, v.count} != {heads} or q.size != k.size or k.rows != v.rows:
        return Declined("query, key and value do not fit together")
    return q, k, v


def _biased(low: Any, batch: int, x: Heads, bias: Any, start: int) -> Heads:
    """x plus a part of the bias, side by side."""
    made = side_by_side(low.scratch(4 * batch * x.count * x.rows * x.size, "float32"), x.count, x.rows, x.size)
    first, by_batch, by_head, by_row = x.where
    sizes = (batch, x.rows, x.count, x.size)
    table = broadcast_table(sizes, (by_batch, by_row, by_head, 1), (0, 0, x.size, 1))
    source = x.slot.view((x.slot.size - first,), 4 * first)
    addend = bias.view((x.count * x.size,), 4 * start)
    low.call(BINARY["add_f32"], source, addend, made.slot, low.const(table), *UNBOUNDED)
    return made


def lower_multi_head_attention(low: Any) -> Declined | None:
    """float32 MultiHeadAttention whose scores are not asked for."""
    declined = floats_only(low, (0, 1, 2, 3, 5, 6, 7))
    if declined is not None:
        return declined
    if low.wants(3) or low.has(8) or low.has(9) or low.has(6) != low.has(7):
        return Declined("no attention kernel writes scores out, or takes past_sequence_length or cache_indirection")
    heads, batch = low.attr("num_heads"), low.shape(0)[0]
    parts = _projections(low, heads)
    if isinstance(parts, Declined):
        return parts
    q, k, v = parts
    if low.has(3):
        bias, width = low.input(3), heads * q.size
        if low.shape(3) != (2 * width + heads * v.size,):
            return Declined("the bias does not fit query, key and value")
        projected = low.has(1) and len(low.shape(1)) == 4  # keys of a cross attention come with their bias
        q = _biased(low, batch, q, bias, 0)
        if not projected:
            k, v = _biased(low, batch, k, bias, width), _biased(low, batch, v, bias, 2 * width)
    new = k.rows
    k, v = continued(low, batch, 6, k, 1), continued(low, batch, 7, v, 2)
    rules = Rules(low.attr("scale") or 1 / math.sqrt(q.size))
    extra = key_mask(low, 4, batch, q.rows, k.rows, low.attr("mask_filter_value", -10000.0))
    bias = score_bias(low, 5, (batch, heads, q.rows, k.rows))
    if isinstance(extra, Declined):
        return extra
    if isinstance(bias, Declined):
        return bias
    rules.extra, rules.bias = extra, bias
    spans = one_way(rules, k.rows - new, batch, k.rows, low)
    attend(low, batch, q, k, v, side_by_side(low.output(0), heads, q.rows, v.size), spans, rules)
    return None


# ---------------------------------------------------------------- Attention


def _joint(low: Any, rows: int, columns: int, inner: int) -> Any:
    """Queries, keys and values of all heads side by side: the input times the weights, plus the bias."""
    x, made = low.input(0), low.scratch(4 * rows * columns, "float32")
    bias = low.input(2) if low.has(2) else None
    given = int(bias is not None)
    if low.value(1) is not None:
        weight = low.pack(1, ("gemm", int(NR)), lambda w: gemm.pack(np.asarray(w)))
        sizes = (rows, columns, inner, inner, columns, columns)
        low.call(gemm.gemm, x, weight, made, bias, None, *sizes, given, 0, CLAMP, -INFINITY, INFINITY)
    else:
        scratch = low.scratch(4 * low.threads * inner * int(NR), "float32")
        offsets = low.const(np.zeros((1, 2), np.int64))
        numbers = (1, rows, columns, inner, inner, columns, 1)
        low.call(matmul, x, low.input(1), made, bias, offsets, scratch, *numbers, 1.0, float(given), 0, 1)
    return made


def lower_microsoft_attention(low: Any) -> Declined | None:
    """float32 Attention of com.microsoft without rotation or a shared buffer."""
    declined = floats_only(low, (0, 1, 2, 4, 5))
    if declined is not None:
        return declined
    if low.attr("do_rotary", 0) or low.attr("past_present_share_buffer", 0):
        return Declined("no attention kernel with do_rotary or past_present_share_buffer")
    batch, length, inner = low.shape(0)
    columns, heads = low.shape(1)[1], low.attr("num_heads")
    sizes = low.attr("qkv_hidden_sizes") or (columns // 3,) * 3
    fits = len(sizes) == 3 and sum(sizes) == columns and sizes[0] == sizes[1] and not any(s % heads for s in sizes)
    if not fits or min(sizes) < 1 or (low.has(2) and low.shape(2) != (columns,)):
        return Declined("the weights do not fit the heads")
    cached = low.has(4) or low.wants(1)
    if cached and sizes[0] != sizes[2]:
        return Declined("a past for values of another width than the keys")
    past_shape = low.shape(4) if low.has(4) else (2, batch, heads, 0, sizes[0] // heads)
    if len(past_shape) != 5 or (past_shape[:3], past_shape[4]) != ((2, batch, heads), sizes[0] // heads):
        return Declined("the past does not fit the heads")
    total = past_shape[3] + length
    rules = Rules(low.attr("scale") or 1 / math.sqrt(sizes[0] // heads))
    extra = key_mask(low, 3, batch, length, total, low.attr("mask_filter_value", -10000.0))
    bias = score_bias(low, 5, (batch, heads, length, total))
    if isinstance(extra, Declined):
        return extra
    if isinstance(bias, Declined):
        return bias
    rules.extra, rules.bias = extra, bias
    joint = _joint(low, batch * length, columns, inner)
    starts = (0, sizes[0], sizes[0] + sizes[1])
    q, k, v = (side_by_side(joint, heads, length, n // heads, start, columns) for n, start in zip(sizes, starts))
    if cached:
        k, v = _both_pasts(low, batch, k, v, past_shape[3])
    spans = one_way(rules, total - length, batch, total, low)
    attend(low, batch, q, k, v, side_by_side(low.output(0), heads, length, v.size), spans, rules)
    return None


def _both_pasts(low: Any, batch: int, k: Heads, v: Heads, past_rows: int) -> tuple[Heads, Heads]:
    """Keys and values behind the past, which holds both, in the present, which does as well."""
    rows = past_rows + k.rows
    whole, old = batch * k.count * rows * k.size, batch * k.count * past_rows * k.size
    out = low.output(1) if low.wants(1) else low.scratch(8 * whole, "float32")
    past = low.input(4) if past_rows else None
    spans = fixed_spans(low, batch, rows, past_rows)
    made = []
    for part, new in enumerate((k, v)):
        held = past.view((old,), 4 * part * old) if past is not None else None
        target = out.view((whole,), 4 * part * whole)
        made.append(with_past(low, batch, held, past_rows, new, target, rows, spans))
    return made[0], made[1]


# ---------------------------------------------------------------- GroupQueryAttention


def _unusual(low: Any) -> Declined | None:
    """What no kernel does."""
    if any(low.has(i) for i in range(12, 17)) or low.attr("sliding_window_cache", 0) or low.wants(3):
        return Declined("no attention kernel with a quantised or sliding cache, head norms, or scores as output")
    if low.attr("k_quant_type", "NONE") != "NONE" or low.attr("v_quant_type", "NONE") != "NONE":
        return Declined("no attention kernel with a quantised cache")
    if low.value(6) is None:
        return Declined("total_sequence_length is not known while planning")
    if low.has(1) != low.has(2) or low.has(3) != low.has(4) or low.dtype(5) != "int32":
        return Declined("inputs that do not go together")
    return None


def lower_group_query_attention(low: Any) -> Declined | None:
    """float32 GroupQueryAttention with a plain cache."""
    for declined in (floats_only(low, (0, 1, 2, 3, 4, 7, 8, 10, 11)), _unusual(low)):
        if declined is not None:
            return declined
    batch, length, columns = low.shape(0)
    heads, groups = low.attr("num_heads"), low.attr("kv_num_heads")
    if low.has(1):
        q, k, v = heads_of(low, 0, heads), heads_of(low, 1, groups), heads_of(low, 2, groups)
    else:
        size, x = columns // (heads + 2 * groups), low.input(0)
        q = side_by_side(x, heads, length, size, 0, columns)
        k = side_by_side(x, groups, length, size, heads * size, columns)
        v = side_by_side(x, groups, length, size, (heads + groups) * size, columns)
    past_rows = low.shape(3)[2] if low.has(3) else 0
    fits = (k.rows, k.size) == (v.rows, v.size) == (length, q.size) and all(
        low.shape(i)[0] == batch for i in (1, 2) if low.has(i)
    )
    if not fits or any(low.shape(i) != (batch, groups, past_rows, q.size) for i in (3, 4) if low.has(i)):
        return Declined("query, key, value and the past do not fit together")
    room = max(int(np.asarray(low.value(6)).reshape(())), past_rows)
    rules = Rules(low.attr("scale") or 1 / math.sqrt(q.size), low.attr("softcap", 0.0))
    declined = _group_rules(low, rules, batch, heads, length)
    if declined is not None:
        return declined
    if math.prod(low.shape(5)) != batch:
        return Declined("seqlens_k does not have one number per batch entry")
    limit = room if not low.has(10) else min(room, low.shape(10)[3])
    spans = counted_spans(low, 5, batch, more=1, queries=length, limit=limit, floor=0)
    if low.attr("do_rotary", 0):
        turned = _rotated(low, batch, (q, k), spans)
        if isinstance(turned, Declined):
            return turned
        q, k = turned
    sides = []
    for i, new in ((1, k), (2, v)):
        out = low.output(i) if low.wants(i) else low.scratch(4 * batch * groups * room * q.size, "float32")
        past = low.input(i + 2) if low.has(i + 2) else None
        sides.append(with_past(low, batch, past, past_rows, new, out, room, spans))
    attend(low, batch, q, sides[0], sides[1], side_by_side(low.output(0), heads, length, v.size), spans, rules)
    return None


def _group_rules(low: Any, rules: Rules, batch: int, heads: int, length: int) -> Declined | None:
    """Fill in what the attributes and the inputs attention_bias and head_sink say."""
    if low.attr("causal", 1):
        rules.right = 0
    if low.attr("local_window_size", -1) > 0:
        rules.left = low.attr("local_window_size") - 1
    if low.has(10):
        bias = score_bias(low, 10, (batch, heads, length, (low.shape(10) or (0,))[-1]))
        if isinstance(bias, Declined):
            return bias
        rules.bias = bias
    if low.has(11):
        if low.shape(11) != (heads,):
            return Declined(f"head_sink has shape {list(low.shape(11))}; [{heads}] is needed")
        rules.sink = low.input(11)
    elif low.attr("smooth_softmax", -1) > 0:
        rules.sink = low.const(np.zeros(heads, np.float32))
    return None


def _positions(low: Any, i: int, batch: int, length: int) -> tuple[Any, tuple[int, int, int]] | Declined:
    """The positions in input `i`: one for each row, or that of the first."""
    if low.dtype(i) == "int64" and low.shape(i) == (batch, length):
        return low.input(i), (length, 1, 0)
    if low.dtype(i) == "int64" and math.prod(low.shape(i)) == 1:
        return low.input(i), (0, 0, 1)
    return Declined(f"position_ids of shape {list(low.shape(i))}; [1] or {[batch, length]} is needed")


def _rotated(low: Any, batch: int, tensors: tuple[Heads, ...], spans: Any) -> list[Heads] | Declined:
    """The tensors rotated by their positions."""
    size, length = tensors[0].size, tensors[0].rows
    if not low.has(7) or not low.has(8) or low.shape(7) != low.shape(8) or len(low.shape(7)) != 2:
        return Declined("do_rotary needs cos_cache and sin_cache of one shape")
    if 2 * low.shape(7)[1] > size:
        return Declined(f"the caches rotate {2 * low.shape(7)[1]} elements, and a head has {size}")
    if low.has(9):
        found = _positions(low, 9, batch, length)
        if isinstance(found, Declined):
            return found
        places, at = found
    else:  # the position of the first row stands in the span
        places, at = spans.view((2 * batch - 1,), 8), (2, 0, 1)
    made = []
    for x in tensors:
        y = side_by_side(low.scratch(4 * batch * x.count * length * size, "float32"), x.count, length, size)
        interleaved = low.attr("rotary_interleaved", 0)
        rotate(low, batch, x, y, (7, 8), places, at, interleaved=interleaved, clamped=not low.has(9))
        made.append(y)
    return made


# ---------------------------------------------------------------- RotaryEmbedding


def lower_microsoft_rotary(low: Any) -> Declined | None:
    """float32 RotaryEmbedding of com.microsoft."""
    declined = floats_only(low, (0, 2, 3))
    if declined is not None:
        return declined
    shape, cache = low.shape(0), low.shape(2)
    if len(cache) != 2 or low.shape(3) != cache or len(shape) not in (3, 4):
        return Declined("the caches or the input have another rank than usual")
    rotated = low.attr("rotary_embedding_dim", 0)
    heads = low.attr("num_heads", 0)
    if len(shape) == 3:
        heads = heads or shape[2] // max(1, rotated or 2 * cache[1])
        if heads < 1 or shape[2] % heads:
            return Declined(f"{shape[2]} columns do not divide into {heads} heads")
    x, batch = heads_of(low, 0, heads), shape[0]
    found = _positions(low, 1, batch, x.rows)
    if isinstance(found, Declined):
        return found
    if 2 * cache[1] > x.size or rotated not in (0, 2 * cache[1]):
        return Declined("the caches do not fit the head")
    y = Heads(low.output(0), x.count, x.rows, x.size, x.where)
    rotate(low, batch, x, y, (2, 3), *found, interleaved=low.attr("interleaved", 0))
    return None
