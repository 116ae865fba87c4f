"""Attention as kernel calls: one kernel over blocks of keys, whatever form heads, masks and caches come in.

Heads are found by strides, so a tensor with its heads side by side needs no transposition, and the joint product of
com.microsoft's Attention is used as it lies. Masks become a float32 bias that broadcasts by strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.kernels import attention, attention_decode, attention_mask, rotary
from minifer.kernels.attention import FAR
from minifer.ops.registry import Declined
from minifer.record import Record

#: queries per head up to which each is taken for itself
FEW_QUERIES = 4
FLOAT32 = 1  # its code in ONNX


class Heads(Record):
    """A tensor of heads (batch, count, rows, size) in a slot: `where` = start and strides of batch, head and row."""

    slot: Any
    count: int
    rows: int
    size: int
    where: tuple[int, int, int, int]


def stacked(slot: Any, count: int, rows: int, size: int) -> Heads:
    """Heads one after another: (batch, count, rows, size)."""
    return Heads(slot, count, rows, size, (0, count * rows * size, rows * size, size))


def side_by_side(slot: Any, count: int, rows: int, size: int, start: int = 0, columns: int | None = None) -> Heads:
    """Heads side by side: (batch, rows, columns), of which they take count * size columns from `start`."""
    columns = count * size if columns is None else columns
    return Heads(slot, count, rows, size, (start, rows * columns, size, columns))


def heads_of(low: Any, i: int, count: int) -> Heads:
    """Input `i` as heads: of rank 4, or of rank 3 with `count` heads side by side."""
    shape = low.shape(i)
    if len(shape) == 4:
        return stacked(low.input(i), *shape[1:])
    return side_by_side(low.input(i), count, shape[1], shape[2] // count)


def heads_out(low: Any, count: int, rows: int, size: int) -> Heads:
    """Output 0 as heads: of rank 4, or side by side."""
    make = stacked if len(low.out_shape(0)) == 4 else side_by_side
    return make(low.output(0), count, rows, size)


#: something to add to the scores: a float32 slot, and start and strides of batch, head, query and key
Bias = tuple[Any, tuple[int, int, int, int, int]]


class Rules(Record, frozen=False):
    """What else attention is told."""

    scale: float
    softcap: float = 0.0
    left: int = FAR
    right: int = FAR
    bias: Bias | None = None
    extra: Bias | None = None
    sink: Any = None
    hidden_zero: bool = True  # a query that sees no key gives 0, else NaN


def attend(low: Any, batch: int, q: Heads, k: Heads, v: Heads, y: Heads, spans: Any, rules: Rules) -> None:
    """Call the kernel that suits the number of queries. `spans`: see kernels/attention.py."""
    g = attention.geometry(
        batch, q.count, k.count, q.rows, k.rows, q.size, v.size, q=q.where, k=k.where, v=v.where, y=y.where,
        bias=rules.bias and rules.bias[1], extra=rules.extra and rules.extra[1], sink=rules.sink is not None,
        left=rules.left, right=rules.right, hidden_zero=rules.hidden_zero,
    )  # fmt: skip
    few = q.rows <= FEW_QUERIES
    if few:
        floats = attention_decode.scratch_floats(q.count // k.count * q.rows, v.size)
    else:
        floats = attention.scratch_floats(q.size, v.size)
    low.call(
        attention_decode.attention_decode if few else attention.attention, q.slot, k.slot, v.slot, y.slot,
        rules.bias and rules.bias[0], rules.extra and rules.extra[0], spans, rules.sink,
        low.scratch(4 * floats * low.threads, "float32"), low.const(g), rules.scale, rules.softcap,
    )  # fmt: skip


def fixed_spans(low: Any, batch: int, keys: int, position: int) -> Any:
    """Spans that are the same for all entries and known while planning."""
    return low.const(np.tile(np.array([[keys, position]], np.int64), (batch, 1)))


def counted_spans(low: Any, i: int, batch: int, *, more: int, queries: int, limit: int, floor: int) -> Any:
    """Spans from the counts in input `i` (int32 or int64); see kernels/attention_mask.py."""
    spans = low.scratch(16 * batch, "int64")
    index_bytes = 8 if low.dtype(i) == "int64" else 4
    low.call(attention_mask.spans_of, low.input(i), spans, batch, index_bytes, more, queries, limit, floor)
    return spans


def broadcast_strides(shape: Sequence[int], scores: Sequence[int]) -> tuple[int, ...] | None:
    """Strides along the axes of the scores of a dense tensor that broadcasts to them; None where it does not."""
    if len(shape) > 4 or any(a not in (1, b) for a, b in zip(reversed(shape), reversed(scores))):
        return None
    full = (1,) * (4 - len(shape)) + tuple(shape)
    strides = [math.prod(full[axis + 1 :]) if full[axis] > 1 else 0 for axis in range(4)]
    return tuple(strides)


def flags_as_bias(low: Any, i: int, fill: float) -> Any:
    """The mask in input `i` (bool or int32) as a bias: 0 where it is above 0, else `fill`."""
    value = low.value(i)
    if value is not None:
        return low.pack(i, ("mask bias", fill), lambda m: np.where(m > 0, 0, fill).astype(np.float32))
    x = low.input(i)
    made = low.scratch(4 * x.size, "float32")
    low.call(attention_mask.flag_bias["u8" if x.dtype == "bool" else "i32"], x, made, x.size, fill)
    return made


def with_past(low: Any, batch: int, past: Any, past_rows: int, new: Heads, out: Any, room: int, spans: Any) -> Heads:
    """Keys or values with the past before them, in `out` (batch, heads, room, size)."""
    where = low.const(np.array(new.where, np.int64))
    held = past if past_rows else None
    low.call(rotary.extend_cache, held, new.slot, out, spans, where, batch, new.count, past_rows, room, new.size)
    return stacked(out, new.count, room, new.size)


def continued(low: Any, batch: int, past: int, new: Heads, output: int) -> Heads:
    """Keys or values behind those of input `past` (where given), also as output `output` (where wanted)."""
    past_rows = low.shape(past)[2] if low.has(past) else 0
    wanted = low.wants(output)
    if not past_rows and not wanted:
        return new
    rows = past_rows + new.rows
    if (
        not past_rows
        and new.where == stacked(None, new.count, new.rows, new.size).where
        and new.slot.size == (batch * new.count * rows * new.size)
    ):
        low.alias(new.slot, output)
        return new
    out = low.output(output) if wanted else low.scratch(4 * batch * new.count * rows * new.size, "float32")
    held = low.input(past) if past_rows else None
    return with_past(low, batch, held, past_rows, new, out, rows, fixed_spans(low, batch, rows, past_rows))


def floats_only(low: Any, inputs: Sequence[int]) -> Declined | None:
    """Declined unless the inputs are float32, or left out."""
    for i in inputs:
        if low.has(i) and low.dtype(i) != "float32":
            return Declined(f"no attention kernel for {low.dtype(i)}")
    return None


# ---------------------------------------------------------------- ai.onnx


def lower_attention(low: Any) -> Declined | None:
    """float32 Attention whose scores are not asked for."""
    declined = floats_only(low, (0, 1, 2, 4, 5))
    if declined is not None:
        return declined
    if low.wants(3):
        return Declined("no attention kernel writes the scores out")
    if low.attr("softmax_precision", FLOAT32) not in (None, FLOAT32):
        return Declined("no attention kernel with another precision for the softmax")
    if low.has(4) != low.has(5):
        return Declined("past_key and past_value must be given together")
    q, k = heads_of(low, 0, low.attr("q_num_heads", 0)), heads_of(low, 1, low.attr("kv_num_heads", 0))
    v = heads_of(low, 2, low.attr("kv_num_heads", 0))
    batch, past_rows = low.shape(0)[0], low.shape(4)[2] if low.has(4) else 0
    keys = past_rows + k.rows
    rules = Rules(low.attr("scale") or 1 / math.sqrt(q.size), low.attr("softcap", 0.0) or 0.0)
    if low.attr("left_window_size", -1) >= 0:
        rules.left = low.attr("left_window_size")
    if low.attr("right_window_size", -1) >= 0:
        rules.right = low.attr("right_window_size")
    if low.attr("is_causal", 0):
        rules.right = min(rules.right, 0)
    seen = keys
    if low.has(3):
        mask = low.shape(3)
        seen = min(keys, mask[-1]) if mask and mask[-1] != 1 else keys
        strides = broadcast_strides(mask, (batch, q.count, q.rows, seen))
        if strides is None or low.dtype(3) not in ("float32", "bool"):
            return Declined(f"no attention kernel for a mask of {low.dtype(3)}{list(mask)}")
        made = flags_as_bias(low, 3, -math.inf) if low.dtype(3) == "bool" else low.input(3)
        rules.bias = (made, (0, *strides))  # type: ignore[assignment]
    if low.has(6):
        if low.shape(6) != (batch,):
            return Declined(f"nonpad_kv_seqlen has shape {list(low.shape(6))}; [{batch}] is needed")
        queries, floor = (FAR, past_rows) if low.has(4) else (q.rows, -FAR)
        spans = counted_spans(low, 6, batch, more=0, queries=queries, limit=keys, floor=floor)
    else:
        spans = fixed_spans(low, batch, keys, past_rows)
    k, v = continued(low, batch, 4, k, 1), continued(low, batch, 5, v, 2)
    k = Heads(k.slot, k.count, seen, k.size, k.where)
    attend(low, batch, q, k, v, heads_out(low, q.count, q.rows, v.size), spans, rules)
    return None


# ---------------------------------------------------------------- rotation


def rotate(low: Any, batch: int, x: Heads, y: Heads, caches: tuple[int, int], places: Any, at: Any, **how: Any) -> None:
    """y = x rotated by the angles in the inputs `caches`. `at`: see kernels/rotary.py; how: interleaved, clamped."""
    cos = low.input(caches[0])
    limit, half = math.prod(low.shape(caches[0])[:-1]), low.shape(caches[0])[-1]
    t = rotary.table(
        batch, x.count, x.rows, x.size, half, how.get("interleaved", 0), limit, x.where, y.where, at,
        how.get("clamped", False),
    )  # fmt: skip
    low.call(rotary.rotary, x.slot, y.slot, cos, low.input(caches[1]), places, low.const(t))


def lower_rotary(low: Any) -> Declined | None:
    """float32 RotaryEmbedding."""
    declined = floats_only(low, (0, 1, 2))
    if declined is not None:
        return declined
    x = heads_of(low, 0, low.attr("num_heads", 0))
    batch, rotated = low.shape(0)[0], low.attr("rotary_embedding_dim", 0) or x.size
    cache = low.shape(1)
    wanted = (rotated // 2,) if low.has(3) else (batch, x.rows, rotated // 2)
    rank = 2 if low.has(3) else 3
    if rotated % 2 or rotated > x.size or low.shape(2) != cache or len(cache) != rank:
        return Declined("the caches do not fit the head")
    if cache[-len(wanted) :] != wanted or (low.has(3) and low.shape(3) != (batch, x.rows)):
        return Declined("the caches do not fit the head or the positions")
    places, at = (low.input(3), (x.rows, 1, 0)) if low.has(3) else (None, None)
    y = Heads(low.output(0), x.count, x.rows, x.size, x.where)
    rotate(low, batch, x, y, (1, 2), places, at, interleaved=low.attr("interleaved", 0))
    return None
