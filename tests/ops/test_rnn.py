"""Recurrent layers against plain loops over time, batch and gates, old versions, and bad input."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.errors import InputError, MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.7)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def loop_rnn(x, w, r, b, h, c):
    return np.tanh(w @ x + r @ h + b[: len(h)] + b[len(h) :]), c


def loop_gru(x, w, r, b, h, c):
    n = len(h)
    wz, wr, wh, rz, rr, rh = *np.split(w, 3), *np.split(r, 3)
    bz, br, bh, cz, cr, ch = np.split(b, 6)
    z, gate = logistic(wz @ x + rz @ h + bz + cz), logistic(wr @ x + rr @ h + br + cr)
    assert len(z) == n
    return (1 - z) * np.tanh(wh @ x + rh @ (gate * h) + bh + ch) + z * h, c


def loop_lstm(x, w, r, b, h, c):
    i, o, f, g = np.split(w @ x + r @ h + b[: 4 * len(h)] + b[4 * len(h) :], 4)
    c = logistic(f) * c + logistic(i) * np.tanh(g)
    return logistic(o) * np.tanh(c), c


def loop(step, x, w, r, b, h, c, lengths, directions):
    """y (T, D, N, H), last h and c, one sequence and one step at a time."""
    y = np.zeros((x.shape[0], len(directions), x.shape[1], r.shape[2]))
    h, c = h.copy(), c.copy()
    for d, backwards in enumerate(directions):
        for n, length in enumerate(lengths):
            for t in reversed(range(length)) if backwards else range(length):
                h[d, n], c[d, n] = step(x[t, n], w[d], r[d], b[d], h[d, n], c[d, n])
                y[t, d, n] = h[d, n]
    return y, h, c


LAYERS = [("RNN", 1, loop_rnn), ("GRU", 3, loop_gru), ("LSTM", 4, loop_lstm)]


@pytest.mark.parametrize(("name", "gates", "step"), LAYERS)
@pytest.mark.parametrize("version", [1, 7, 14, 22])
@pytest.mark.parametrize(("direction", "ways"), [("forward", [0]), ("reverse", [1]), ("bidirectional", [0, 1])])
def test_layers_equal_the_loop(name, gates, step, version, direction, ways):
    if name == "GRU" and version == 1:
        version = 3
    time, batch, width, hidden, d = 4, 3, 2, 3, len(ways)
    x, w, r = (
        random(time, batch, width),
        random(d, gates * hidden, width, seed=1),
        random(d, gates * hidden, hidden, seed=2),
    )
    b, h, c = random(d, 2 * gates * hidden, seed=3), random(d, batch, hidden, seed=4), random(d, batch, hidden, seed=5)
    lengths = np.array([4, 2, 0], np.int32)
    want = loop(step, x, w, r, b, h, c, lengths, ways)
    states = [h, c] if name == "LSTM" else [h]
    count = 1 + len(states)
    attrs = dict(direction=direction, hidden_size=hidden)
    if version < 7:
        attrs["output_sequence"] = 1
    out = run_op(name, version, x, w, r, b, lengths, *states, outputs=count, **attrs)
    for got, expected in zip(out, want):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    types = infer_value(name, version, x, w, r, b, lengths, *states, outputs=count, **attrs)
    assert types == [TensorType("float32", v.shape) for v in out]
    if version >= 14:
        turned = [v.swapaxes(0, 1) for v in (x, *states)]
        again = run_op(name, version, turned[0], w, r, b, lengths, *turned[1:], outputs=count, layout=1, **attrs)
        np.testing.assert_array_equal(again[0], out[0].transpose(2, 0, 1, 3))
        np.testing.assert_array_equal(again[1], out[1].swapaxes(0, 1))
        types = infer_value(name, version, turned[0], w, r, b, lengths, *turned[1:], outputs=count, layout=1, **attrs)
        assert types == [TensorType("float32", v.shape) for v in again]


def test_all_optional_inputs_may_be_left_out():
    for name, gates, step in LAYERS:
        x, w, r = random(2, 1, 2), random(1, gates * 3, 2, seed=1), random(1, gates * 3, 3, seed=2)
        zero = np.zeros((1, 1, 3))
        want = loop(step, x, w, r, np.zeros((1, 2 * gates * 3)), zero, zero, [2], [0])
        np.testing.assert_allclose(run_op(name, 14, x, w, r)[0], want[0], rtol=1e-4, atol=1e-5)


def test_gru_with_the_linear_part_before_the_reset():
    x, w, r, b = random(1, 1, 2), random(1, 6, 2, seed=1), random(1, 6, 2, seed=2), random(1, 12, seed=3)
    h = random(1, 1, 2, seed=4)
    (wz, wr, wh), (rz, rr, rh) = np.split(w[0], 3), np.split(r[0], 3)
    bz, br, bh, cz, cr, ch = np.split(b[0], 6)
    xt, ht = x[0, 0], h[0, 0]
    z, gate = logistic(wz @ xt + rz @ ht + bz + cz), logistic(wr @ xt + rr @ ht + br + cr)
    want = (1 - z) * np.tanh(wh @ xt + gate * (rh @ ht + ch) + bh) + z * ht
    out = run_op("GRU", 7, x, w, r, b, None, h, linear_before_reset=1, outputs=2)
    np.testing.assert_allclose(out[1][0, 0], want, rtol=1e-5)


def test_lstm_peepholes_clip_and_coupled_gates():
    x, w, r = random(1, 1, 2), random(1, 8, 2, seed=1), random(1, 8, 2, seed=2)
    h, c, p = random(1, 1, 2, seed=3), random(1, 1, 2, seed=4), random(1, 6, seed=5)
    i, o, f, g = np.split(w[0] @ x[0, 0] + r[0] @ h[0, 0], 4)
    pi, po, pf = np.split(p[0], 3)
    c0 = c[0, 0]
    new = logistic(f + pf * c0) * c0 + logistic(i + pi * c0) * np.tanh(g)
    out = run_op("LSTM", 14, x, w, r, None, None, h, c, p, outputs=3)
    np.testing.assert_allclose(out[2][0, 0], new, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out[1][0, 0], logistic(o + po * new) * np.tanh(new), rtol=1e-4, atol=1e-6)
    i, o, g = (np.clip(v, -0.2, 0.2) for v in (i, o, g))
    new = (1 - logistic(i)) * c0 + logistic(i) * np.tanh(g)
    out = run_op("LSTM", 14, x, w, r, None, None, h, c, outputs=3, clip=0.2, input_forget=1)
    np.testing.assert_allclose(out[2][0, 0], new, rtol=1e-4, atol=1e-6)


def test_activations_take_their_alphas_and_betas_in_order():
    x, w, r = np.array([[[2.0]]], np.float32), np.ones((2, 1, 1), np.float32), np.zeros((2, 1, 1), np.float32)
    attrs = dict(direction="bidirectional", activation_alpha=(0.5, 3.0), activation_beta=(0.25,))
    (y,) = run_op("RNN", 14, x, w, r, activations=("Affine", "ThresholdedRelu"), **attrs)[:1]
    np.testing.assert_allclose(y.reshape(-1), [1.25, 0])
    attrs = dict(direction="bidirectional", activation_alpha=(0.5,))
    (y,) = run_op("RNN", 14, -x, w, r, activations=("Softsign", "leakyrelu"), **attrs)[:1]
    np.testing.assert_allclose(y.reshape(-1), [-2 / 3, -1])


def test_half_precision_states_stay_half():
    out = run_op(
        "GRU", 22, *(v.astype(np.float16) for v in (random(2, 1, 2), random(1, 9, 2), random(1, 9, 3))), outputs=2
    )
    assert [v.dtype for v in out] == [np.float16, np.float16]


def test_layers_of_no_steps_or_no_sequences():
    w, r = random(1, 4, 2), random(1, 4, 1)
    h = random(1, 2, 1, seed=1)
    y, last, _ = run_op("LSTM", 14, random(0, 2, 2), w, r, None, None, h, outputs=3)
    assert y.shape == (0, 1, 2, 1)
    np.testing.assert_array_equal(last, h)
    assert run_op("LSTM", 14, random(3, 0, 2), w, r, outputs=3)[0].shape == (3, 1, 0, 1)


def test_type_rule_keeps_symbols():
    x, w, r = TensorType("float32", ("T", "N", 2)), TensorType("float32", (1, 12, 2)), TensorType("float32", (1, 12, 3))
    state = TensorType("float32", (1, "N", 3))
    assert infer_op("LSTM", 14, x, w, r, outputs=3) == [TensorType("float32", ("T", 1, "N", 3)), state, state]


@pytest.mark.parametrize(
    ("shapes", "attrs", "says"),
    [
        ([(2, 1, 3), (1, 12, 2), (1, 12, 3)], {}, "W has shape"),
        ([(2, 1, 2), (1, 12, 2), (1, 8, 3)], {}, "R has shape"),
        ([(2, 1, 2), (1, 12, 2), (1, 12, 3), (1, 12)], {}, "B has shape"),
        ([(2, 1, 2), (1, 12, 2), (1, 12, 3), None, None, (1, 2, 3)], {}, "initial_h has shape"),
        ([(2, 2), (1, 12, 2), (1, 12, 3)], {}, "X has rank 2"),
        ([(2, 1, 2), (1, 12, 2), (1, 12, 3)], {"direction": "bidirectional"}, "W has shape"),
        ([(2, 1, 2), (1, 12, 2), (1, 12, 3)], {"direction": "back"}, "direction 'back'"),
        ([(2, 1, 2), (1, 12, 2), (1, 12, 3)], {"layout": 2}, "layout 2"),
        ([(2, 1, 2), (1, 12, 2), (1, 12, 3)], {"hidden_size": 4}, "W has shape"),
    ],
)
def test_layers_refuse_what_does_not_fit(shapes, attrs, says):
    arrays = [None if s is None else np.ones(s, np.float32) for s in shapes]
    for run in (run_op, infer_value):
        with pytest.raises(ShapeError, match=says):
            run("LSTM", 14, *arrays, **attrs)


def test_layers_refuse_bad_lengths_and_activations():
    x, w, r = random(2, 1, 2), random(1, 3, 2), random(1, 3, 3)
    for bad in (-1, 3):
        with pytest.raises(InputError, match="sequence_lens runs"):
            run_op("RNN", 14, x, w, r, None, np.array([bad], np.int32))
    with pytest.raises(InputError, match="activation 'Cubic'"):
        run_op("RNN", 14, x, w, r, activations=("Cubic",))
    with pytest.raises(InputError, match="activations lists 2"):
        run_op("RNN", 14, x, w, r, activations=("Tanh", "Tanh"))
    with pytest.raises(MiniferError, match="clip"):
        run_op("RNN", 14, x, w, r, clip=-1.0)
