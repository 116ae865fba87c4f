"""Attention operators against plain loops over heads and queries, and with bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minifer.errors import InputError, ShapeError
from minifer.ir import Graph, Node, TensorType
from minifer.ops import registry
from tests.ops.helpers import infer_op, infer_value, run_op


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loop_attention(q, k, v, see, scale=None, bias=None, softcap=0.0):
    """q (N, H, L, E), k and v (N, G, S, E); `see(n, i, j)` says whether query i of batch entry n sees key j."""
    y = np.zeros((*q.shape[:3], v.shape[3]))
    share = q.shape[1] // k.shape[1]
    for n, h, i in np.ndindex(*q.shape[:3]):
        score = k[n, h // share] @ q[n, h, i] * (scale or 1 / math.sqrt(q.shape[3]))
        if softcap:
            score = softcap * np.tanh(score / softcap)
        if bias is not None:
            score = score + np.broadcast_to(bias, (*q.shape[:3], k.shape[2]))[n, h, i]
        shown = [j for j in range(k.shape[2]) if see(n, i, j) and np.isfinite(score[j])]
        if shown:
            e = np.exp(score[shown] - score[shown].max())
            y[n, h, i] = e @ v[n, h // share, shown] / e.sum()
    return y


def everything(n, i, j):
    return True


@pytest.mark.parametrize("mask", [None, "float", "bool", "short"])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_grouped_heads_past_and_masks(mask, causal):
    q, k, v = random(2, 4, 3, 5), random(2, 2, 3, 5, seed=1), random(2, 2, 3, 6, seed=2)
    past = random(2, 2, 2, 5, seed=3), random(2, 2, 2, 6, seed=4)
    rng = np.random.default_rng(5)
    masks = {
        "float": random(4, 3, 5, seed=6),
        "bool": rng.random((2, 1, 3, 5)) < 0.6,
        "short": random(3, 4, seed=7),
        None: None,
    }
    given = masks[mask]
    bias = None if given is None else np.where(given, 0, -np.inf) if given.dtype == bool else given
    if mask == "short":
        bias = np.pad(given, [(0, 0), (0, 1)], constant_values=-np.inf)
    attrs = dict(is_causal=causal, scale=0.3, softcap=2.0)
    y, key, value = run_op("Attention", 24, q, k, v, given, *past, outputs=3, **attrs)[:3]
    keys, values = np.concatenate([past[0], k], 2), np.concatenate([past[1], v], 2)
    np.testing.assert_array_equal(key, keys)
    np.testing.assert_array_equal(value, values)
    see = (lambda n, i, j: j <= i + 2) if causal else everything
    np.testing.assert_allclose(y, loop_attention(q, keys, values, see, 0.3, bias, 2.0), rtol=1e-4, atol=1e-5)
    types = infer_value("Attention", 24, q, k, v, given, *past, is_causal=causal, outputs=3)
    assert types[:3] == [TensorType("float32", x.shape) for x in (y, key, value)]


def test_attention_of_rank_three_is_that_of_split_heads():
    q, k, v = random(2, 3, 8), random(2, 5, 4, seed=1), random(2, 5, 6, seed=2)
    (y,) = run_op("Attention", 23, q, k, v, q_num_heads=4, kv_num_heads=2)[:1]
    split = [t.reshape(2, -1, h, t.shape[2] // h).swapaxes(1, 2) for t, h in ((q, 4), (k, 2), (v, 2))]
    want = loop_attention(*split, everything)
    np.testing.assert_allclose(y, want.swapaxes(1, 2).reshape(2, 3, 12), rtol=1e-4, atol=1e-5)


def test_an_outer_cache_counts_from_its_end_and_windows_bound_both_sides():
    q, k, v = random(2, 1, 3, 4), random(2, 1, 6, 4, seed=1), random(2, 1, 6, 4, seed=2)
    lengths = np.array([2, 6])  # the first query of entry 0 stands before every key
    (y,) = run_op("Attention", 24, q, k, v, None, None, None, lengths, is_causal=1)[:1]
    want = loop_attention(q, k, v, lambda n, i, j: j < lengths[n] and j <= i + lengths[n] - 3)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert (y[0, 0, 0] == 0).all()
    (y,) = run_op("Attention", 25, q, k, v, left_window_size=1, right_window_size=2)[:1]
    np.testing.assert_allclose(y, loop_attention(q, k, v, lambda n, i, j: i - 1 <= j <= i + 2), rtol=1e-4, atol=1e-5)


def test_the_four_stages_of_the_scores():
    q, k, v = random(1, 1, 2, 4), random(1, 1, 3, 4, seed=1), random(1, 1, 3, 4, seed=2)
    mask = np.array([[True, False, True], [False, False, False]])
    raw = q[0, 0] @ k[0, 0].T / 2
    capped = 1.5 * np.tanh(raw / 1.5)
    masked = np.where(mask, capped, -np.inf)
    e = np.exp(masked[0] - masked[0].max())
    for mode, want in enumerate((raw, capped, masked, np.stack([e / e.sum(), np.zeros(3)]))):
        out = run_op("Attention", 23, q, k, v, mask, softcap=1.5, qk_matmul_output_mode=mode, outputs=4)
        np.testing.assert_allclose(out[3][0, 0], want, rtol=1e-4, atol=1e-5)


def test_attention_without_keys_gives_zeros():
    (y,) = run_op("Attention", 23, random(1, 2, 3, 4), random(1, 2, 0, 4), random(1, 2, 0, 5))[:1]
    np.testing.assert_array_equal(y, np.zeros((1, 2, 3, 5)))


@pytest.mark.parametrize(
    ("shapes", "attrs", "says"),
    [
        ([(1, 3, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4)], {}, "do not divide"),
        ([(1, 2, 2, 4), (1, 2, 2, 5), (1, 2, 2, 4)], {}, "head size"),
        ([(1, 2, 2, 4), (1, 2, 2, 4), (1, 2, 3, 4)], {}, "agree"),
        ([(1, 2, 8), (1, 2, 8), (1, 2, 8)], {}, "rank 3"),
        ([(1, 2, 8), (1, 2, 8), (1, 2, 8)], {"q_num_heads": 3, "kv_num_heads": 3}, "do not divide"),
        ([(2, 8), (2, 8), (2, 8)], {"q_num_heads": 2, "kv_num_heads": 2}, "rank 2"),
        ([(1, 2, 2, 4)] * 3 + [None, (1, 2, 2, 5), (1, 2, 2, 4)], {}, "past_key has shape"),
    ],
)
def test_attention_refuses_what_does_not_fit(shapes, attrs, says):
    arrays = [None if s is None else np.ones(s, np.float32) for s in shapes]
    for run in (run_op, infer_value):
        with pytest.raises(ShapeError, match=says):
            run("Attention", 24, *arrays, **attrs)


def test_attention_refuses_bad_values():
    q = np.ones((1, 2, 2, 4), np.float32)
    with pytest.raises(ShapeError, match="mask"):
        run_op("Attention", 24, q, q, q, np.ones((3, 3), np.float32))
    with pytest.raises(InputError, match="nonpad_kv_seqlen runs"):
        run_op("Attention", 24, q, q, q, None, None, None, np.array([3]))
    with pytest.raises(InputError, match="together"):
        run_op("Attention", 24, q, q, q, None, q)
    with pytest.raises(InputError, match="qk_matmul_output_mode 4"):
        run_op("Attention", 24, q, q, q, qk_matmul_output_mode=4)


# --- RotaryEmbedding ---


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding_turns_pairs_by_the_angle_of_the_position(interleaved):
    x, places = random(2, 3, 2, 6), np.array([[0, 3], [2, 1]])
    angle = random(4, 2, seed=1)
    (y,) = run_op(
        "RotaryEmbedding", 23, x, np.cos(angle), np.sin(angle), places, interleaved=interleaved, rotary_embedding_dim=4
    )
    for n, h, l in np.ndindex(2, 3, 2):
        pairs = [(0, 1), (2, 3)] if interleaved else [(0, 2), (1, 3)]
        for (i, j), a in zip(pairs, angle[places[n, l]]):
            turned = (x[n, h, l, i] + 1j * x[n, h, l, j]) * np.exp(1j * a)
            np.testing.assert_allclose(y[n, h, l, [i, j]], [turned.real, turned.imag], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])


def test_rotary_embedding_refuses_positions_outside_the_cache():
    x, cache = random(1, 1, 2, 4), random(3, 2)
    for bad in (-1, 3):
        with pytest.raises(InputError, match="position_ids run"):
            run_op("RotaryEmbedding", 23, x, cache, cache, np.array([[0, bad]]))
    with pytest.raises(ShapeError, match="cos_cache has"):
        run_op("RotaryEmbedding", 23, x, cache[:, :1], cache[:, :1], np.array([[0, 1]]))
    with pytest.raises(ShapeError, match="number of heads"):
        run_op("RotaryEmbedding", 23, random(1, 2, 4), cache, cache, np.array([[0, 1]]))


# --- LinearAttention ---


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention_equals_its_recurrence(rule):
    q, k, v = random(2, 3, 4 * 2), random(2, 3, 2 * 2, seed=1), random(2, 3, 2 * 5, seed=2)
    decay = random(2, 3, 2 * 2, seed=3) if "gated" in rule else None
    beta = random(2, 3, 2, seed=4) if "delta" in rule else None
    past = random(2, 2, 2, 5, seed=5)
    y, present = run_op(
        "LinearAttention", 27, q, k, v, past, decay, beta, q_num_heads=4, kv_num_heads=2, update_rule=rule, outputs=2
    )  # fmt: skip
    for n, g in np.ndindex(2, 2):
        state = past[n, g].astype(np.float64)
        for t in range(3):
            key, value = k[n, t, 2 * g : 2 * g + 2], v[n, t, 5 * g : 5 * g + 5]
            if decay is not None:
                state = np.exp(decay[n, t, 2 * g : 2 * g + 2])[:, None] * state
            new = value if beta is None else beta[n, t, g] * (value - state.T @ key)
            state = state + np.outer(key, new)
            for h in (2 * g, 2 * g + 1):
                want = state.T @ q[n, t, 2 * h : 2 * h + 2] / math.sqrt(2)
                np.testing.assert_allclose(y[n, t, 5 * h : 5 * h + 5], want, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(present[n, g], state, rtol=1e-3, atol=1e-5)


def test_linear_attention_names_what_is_missing():
    q = random(1, 2, 4)
    for rule, says in (("gated", "needs the input decay"), ("delta", "needs the input beta"), ("x", "update_rule 'x'")):
        for run in (run_op, infer_value):
            with pytest.raises(ShapeError, match=says):
                run("LinearAttention", 27, q, q, q, q_num_heads=2, kv_num_heads=2, update_rule=rule, outputs=2)
    with pytest.raises(ShapeError, match="multiple of kv_num_heads"):
        run_op("LinearAttention", 27, q, q, q, q_num_heads=2, kv_num_heads=0, update_rule="linear", outputs=2)


# --- FlexAttention ---


def run_flex(q, k, v, run, **attrs):
    node = Node("FlexAttention", ("q", "k", "v"), ("y",), attrs, "flex", "ai.onnx.preview", 1)
    op = registry.select(node)
    return op.call(registry.Context(node, run), [q, k, v])[0]


def test_flex_attention_runs_its_subgraphs_on_scores_and_probabilities():
    score, prob = (Graph((n,), (n,), (), name=n) for n in ("score", "prob"))
    q, k, v = random(1, 4, 2, 3), random(1, 2, 5, 3, seed=1), random(1, 2, 5, 4, seed=2)
    bias = random(1, 4, 2, 5, seed=3)
    y = run_flex(q, k, v, lambda g, x: [x[0] + bias if g is score else x[0] * 2], score_mod=score, prob_mod=prob)
    np.testing.assert_allclose(y, 2 * loop_attention(q, k, v, everything, None, bias), rtol=1e-4, atol=1e-5)
    seen = []
    half = [x.astype(np.float16) for x in (q, k, v)]
    y = run_flex(*half, lambda g, x: seen.append(x[0].dtype) or x, score_mod=score, softmax_precision=11)
    assert y.dtype == np.float16 and seen == [np.float64]


def test_flex_attention_checks_its_subgraphs():
    graph, q = Graph(("x",), ("x",), (), name="x"), random(1, 1, 2, 2)
    with pytest.raises(ShapeError, match="score_mod gave"):
        run_flex(q, q, q, lambda g, x: [x[0][..., :1]], score_mod=graph)
    with pytest.raises(InputError, match="prob_mod gave 2"):
        run_flex(q, q, q, lambda g, x: [x[0], x[0]], prob_mod=graph)
    types = [
        TensorType("float32", (1, 3, 2, 4)),
        TensorType("float32", (1, 2, 2, 4)),
        TensorType("float32", (1, 2, 2, 4)),
    ]
    with pytest.raises(ShapeError, match="do not divide"):
        infer_op("FlexAttention", 1, *types, domain="ai.onnx.preview")
