"""Attention and rotary embedding through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(7)
MICROSOFT = "com.microsoft"


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def check(op, inputs, outputs, version=25, domain="", tolerance=1e-5, consts=(), native=True, **attrs):
    """One node; inputs are (name, value or None), those named in `consts` are known while planning."""
    given = {name: value for name, value in inputs.items() if value is not None}
    made = node(op, [n if n in given else "" for n in inputs], outputs, version, domain, **attrs)
    known = {n: given.pop(n) for n in consts}
    return check_native(model([made], given, known, [o for o in outputs if o]), given, tolerance, native)


# ---------------------------------------------------------------- ai.onnx


@pytest.mark.parametrize("queries, keys", [(1, 1), (1, 130), (3, 7), (5, 9), (48, 48), (50, 101), (97, 300)])
@pytest.mark.parametrize("flat", [True, False])
def test_attention(queries, keys, flat):
    batch, heads, groups, size, width = 2, 6, 2, 9, 12
    shapes = ((heads, queries, size), (groups, keys, size), (groups, keys, width))
    if flat:
        q, k, v = (draw(batch, rows, count * columns) for count, rows, columns in shapes)
        attrs = {"q_num_heads": heads, "kv_num_heads": groups}
    else:
        q, k, v = (draw(batch, *shape) for shape in shapes)
        attrs = {}
    check("Attention", {"q": q, "k": k, "v": v}, ["y"], **attrs)


MASKS = [
    ((11, 29), "f"), ((1, 29), "f"), ((11, 1), "f"), ((3, 1, 29), "f"), ((2, 3, 11, 29), "f"), ((2, 1, 1, 29), "f"),
    ((11, 29), "?"), ((2, 1, 1, 29), "?"), ((2, 3, 11, 20), "f"), ((11, 20), "?"),
]  # fmt: skip


@pytest.mark.parametrize("shape, kind", MASKS)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("queries", [11, 1])
def test_masks(shape, kind, constant, queries):
    shape = tuple(queries if n == 11 else n for n in shape)
    mask = RNG.random(shape) < 0.7 if kind == "?" else np.where(RNG.random(shape) < 0.8, draw(*shape), -np.inf)
    mask = mask.astype(kind)
    if mask.ndim == 4 and queries > 4:
        mask[0, 0, 0] = 0 if kind == "?" else -np.inf  # a query that sees nothing
    inputs = {"q": draw(2, 3, queries, 8), "k": draw(2, 3, 29, 8), "v": draw(2, 3, 29, 5), "mask": mask}
    check("Attention", inputs, ["y"], consts=["mask"] if constant else [], softcap=1.5, scale=0.7)


@pytest.mark.parametrize("queries", [1, 3, 60])
@pytest.mark.parametrize("attrs", [
    {"is_causal": 1}, {"left_window_size": 5}, {"left_window_size": 20, "right_window_size": 3},
    {"is_causal": 1, "left_window_size": 0},
])  # fmt: skip
@pytest.mark.parametrize("past", [0, 9])
def test_causal_and_windows(queries, attrs, past):
    inputs = {"q": draw(2, 4, queries, 16), "k": draw(2, 2, 60, 16), "v": draw(2, 2, 60, 16), "mask": None}
    if past:
        inputs |= {"past_key": draw(2, 2, past, 16), "past_value": draw(2, 2, past, 16)}
    check("Attention", inputs, ["y", "key", "value"], **attrs)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("causal", [0, 1])
def test_lengths_that_only_the_run_knows(flat, causal):
    shapes = [(3, 4, 20, 8), (3, 2, 33, 8), (3, 2, 33, 8)]
    q, k, v = (draw(n, rows, h * e) if flat else draw(n, h, rows, e) for n, h, rows, e in shapes)
    inputs = {"q": q, "k": k, "v": v, "mask": None, "pk": None, "pv": None, "lengths": np.array([33, 20, 1])}
    attrs = {"q_num_heads": 4, "kv_num_heads": 2} if flat else {}
    check("Attention", inputs, ["y", "", ""] if not flat else ["y", "k2", "v2"], is_causal=causal, **attrs)


def test_scores_are_given_by_the_reference():
    inputs = {"q": draw(1, 2, 4, 8), "k": draw(1, 2, 6, 8), "v": draw(1, 2, 6, 8)}
    check("Attention", inputs, ["y", "", "", "scores"], native=False)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("size, rotated", [(16, 0), (20, 6), (34, 34)])
@pytest.mark.parametrize("flat", [True, False])
def test_rotary(interleaved, size, rotated, flat):
    x = draw(2, 7, 3 * size) if flat else draw(2, 3, 7, size)
    half = (rotated or size) // 2
    attrs = {"interleaved": interleaved, "rotary_embedding_dim": rotated, "num_heads": 3 if flat else 0}
    places = RNG.integers(0, 11, (2, 7))
    check("RotaryEmbedding", {"x": x, "cos": draw(11, half), "sin": draw(11, half), "at": places}, ["y"], **attrs)
    check("RotaryEmbedding", {"x": x, "cos": draw(2, 7, half), "sin": draw(2, 7, half)}, ["y"], **attrs)


# ---------------------------------------------------------------- com.microsoft


def microsoft(op, inputs, outputs, **attrs):
    return check(op, inputs, outputs, version=1, domain=MICROSOFT, **attrs)


def int_mask(batch, length, total, form):
    """A key mask in one of the forms that the operators take."""
    if form == "lengths":
        return RNG.integers(1, total + 1, batch).astype("i4")
    if form == "ranges":
        return np.concatenate([np.full(batch, total - 1), np.arange(batch)]).astype("i4")
    if form == "offsets":
        return np.concatenate([RNG.integers(1, total, batch), np.zeros(2 * batch + 2)]).astype("i4")
    shape = {"keys": (batch, total), "pairs": (batch, length, total), "square": (batch, 1, total + 3, total + 3)}[form]
    return (RNG.random(shape) < 0.7).astype("i4")


@pytest.mark.parametrize("form", [None, "lengths", "ranges", "offsets", "keys", "pairs"])
@pytest.mark.parametrize("past", [0, 6])
@pytest.mark.parametrize("queries", [1, 21])
def test_multi_head_attention(form, past, queries):
    batch, heads, keys = 2, 3, queries if past else 34
    total = past + keys
    inputs = {
        "q": draw(batch, queries, heads * 8), "k": draw(batch, keys, heads * 8), "v": draw(batch, keys, heads * 10),
        "bias": draw(heads * 26), "mask": None if form is None else int_mask(batch, queries, total, form),
        "attention_bias": draw(1, heads, queries, total),
        "past_key": draw(batch, heads, past, 8) if past else None,
        "past_value": draw(batch, heads, past, 10) if past else None,
    }  # fmt: skip
    outputs = ["y", "present_key", "present_value"] if past else ["y"]
    microsoft("MultiHeadAttention", inputs, outputs, num_heads=heads, unidirectional=int(past > 0))


@pytest.mark.parametrize("form", ["all", "keys", "split"])
def test_multi_head_attention_of_packed_tensors(form):
    batch, heads, length = 2, 3, 19
    packed = {
        "all": {"q": draw(batch, length, heads, 3, 8)},
        "keys": {"q": draw(batch, length, heads * 8), "k": draw(batch, 25, heads, 2, 8)},
        "split": {"q": draw(batch, length, heads * 8), "k": draw(batch, heads, 25, 8), "v": draw(batch, heads, 25, 8)},
    }[form]
    inputs = {"q": None, "k": None, "v": None, **packed}
    microsoft("MultiHeadAttention", inputs, ["y"], num_heads=heads)
    microsoft("MultiHeadAttention", {**inputs, "bias": draw(heads * 24)}, ["y", "k2", "v2"], num_heads=heads)


@pytest.mark.parametrize("form", [None, "lengths", "keys", "pairs", "square"])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("constant", [True, False])
def test_microsoft_attention(form, past, constant):
    batch, heads, length, hidden, size = 2, 2, 14, 24, 8
    total = past + length
    inputs = {
        "x": draw(batch, length, hidden), "w": draw(hidden, 3 * heads * size), "b": draw(3 * heads * size),
        "mask": None if form is None else int_mask(batch, length, total, form),
        "past": draw(2, batch, heads, past, size) if past else None, "bias": draw(batch, 1, length, total),
    }  # fmt: skip
    consts = ["w", "b"] if constant else []
    outputs = ["y", "present"] if past or constant else ["y"]
    microsoft("Attention", inputs, outputs, consts=consts, num_heads=heads, unidirectional=int(past > 0))


def test_microsoft_attention_with_values_of_another_width():
    inputs = {"x": draw(2, 60, 20), "w": draw(20, 16 + 16 + 24)}
    microsoft("Attention", inputs, ["y"], consts=["w"], num_heads=2, qkv_hidden_sizes=(16, 16, 24))


DECODES = [(1, 40, (30, 7)), (6, 40, (30, 6)), (50, 0, (50, 44)), (3, 9, (12, 2))]


@pytest.mark.parametrize("length, past, lengths", DECODES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("attrs", [
    {}, {"do_rotary": 1}, {"do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 4, "softcap": 3.0},
    {"smooth_softmax": 1, "causal": 0},
])  # fmt: skip
def test_group_query_attention(length, past, lengths, packed, attrs):
    batch, heads, groups, size = 2, 4, 2, 16
    limit = max(lengths)
    parts = [draw(batch, length, n * size) for n in (heads, groups, groups)]
    q, k, v = (np.concatenate(parts, axis=2), None, None) if packed else parts
    inputs = {
        "q": q, "k": k, "v": v, "past_key": draw(batch, groups, past, size) if past else None,
        "past_value": draw(batch, groups, past, size) if past else None,
        "seqlens": np.array(lengths, "i4") - 1, "total": np.array(limit, "i4"),
        "cos": draw(64, size // 2), "sin": draw(64, size // 2),
    }  # fmt: skip
    outputs = ["y", "present_key", "present_value"]
    common = {"consts": ["total"], "num_heads": heads, "kv_num_heads": groups}
    microsoft("GroupQueryAttention", inputs, outputs, **common, **attrs)


def test_group_query_attention_with_bias_sink_and_positions():
    batch, heads, groups, size, length, total = 2, 4, 1, 8, 5, 12
    inputs = {
        "q": draw(batch, length, heads * size), "k": draw(batch, length, groups * size),
        "v": draw(batch, length, groups * size), "past_key": draw(batch, groups, total, size),
        "past_value": draw(batch, groups, total, size), "seqlens": np.array([11, 6], "i4"),
        "total": np.array([total], "i4"), "cos": draw(20, size // 2), "sin": draw(20, size // 2),
        "positions": RNG.integers(0, 20, (batch, length)), "bias": draw(1, heads, length, total), "sink": draw(heads),
    }  # fmt: skip
    attrs = {"num_heads": heads, "kv_num_heads": groups, "do_rotary": 1}
    microsoft("GroupQueryAttention", inputs, ["y", "k2", "v2"], consts=["total"], **attrs)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_microsoft_rotary(flat, first):
    x = draw(2, 7, 3 * 18) if flat else draw(2, 3, 7, 18)
    places = np.array([4]) if first else RNG.integers(0, 11, (2, 7))
    inputs = {"x": x, "at": places, "cos": draw(11, 9), "sin": draw(11, 9)}
    microsoft("RotaryEmbedding", inputs, ["y"], interleaved=int(first))
