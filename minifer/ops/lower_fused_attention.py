"""minifer::Attention as one kernel call: heads are found by strides on either axis."""

from __future__ import annotations

from typing import Any

from minifer.ops.lower_attention import (
    Heads,
    Rules,
    attend,
    broadcast_strides,
    fixed_spans,
    floats_only,
    side_by_side,
    stacked,
)
from minifer.ops.registry import Declined


def lower_fused_attention(low: Any) -> Declined | None:
    """float32 attention whose batches and heads do not broadcast, but for keys shared by all heads."""
    declined = floats_only(low, (0, 1, 2, 3))
    if declined is not None:
        return declined
    batches, (q, k, v) = zip(*(_heads(low, i, name) for i, name in enumerate("qkv")))
    if len(set(batches)) > 1 or k.count != v.count or k.count not in (1, q.count):
        return Declined("batches or heads that broadcast")
    batch = batches[0]
    rules = Rules(low.attr("scale", 1.0))
    if low.attr("causal", 0):
        rules.right = 0
    if low.has(3):
        strides = broadcast_strides(low.shape(3), (batch, q.count, q.rows, k.rows))
        if strides is None:
            return Declined(f"no attention kernel for a bias of shape {list(low.shape(3))}")
        rules.bias = (low.input(3), (0, *strides))  # type: ignore[assignment]
    rules.hidden_zero = bool(low.attr("hidden_zero", 0))
    make = side_by_side if low.attr("y_heads", 1) == 2 else stacked
    spans = fixed_spans(low, batch, k.rows, low.attr("position", 0))
    attend(low, batch, q, k, v, make(low.output(0), q.count, q.rows, v.size), spans, rules)
    return None


def _heads(low: Any, i: int, name: str) -> tuple[int, Heads]:
    """The batches of an input, and its heads; a tensor of lower rank has batches or heads of 1."""
    shape = low.shape(i)
    shape = (1,) * (4 - len(shape)) + shape
    if low.attr(f"{name}_heads", 1) == 2:
        return shape[0], side_by_side(low.input(i), shape[2], shape[1], shape[3])
    return shape[0], stacked(low.input(i), *shape[1:])
