"""LSTM, GRU and RNN through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(3)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def draw(*shape):
    return (RNG.standard_normal(shape) * 0.6).astype(np.float32)


def build(op, steps, batch, inputs, hidden, direction, *, biased, states, lengths=None, **attrs):
    d, g = (2 if direction == "bidirectional" else 1), GATES[op]
    feeds = {"x": draw(steps, batch, inputs)}
    consts = {"w": draw(d, g * hidden, inputs), "r": draw(d, g * hidden, hidden)}
    names = ["x", "w", "r", "b" if biased else "", "l" if lengths is not None else ""]
    if biased:
        consts["b"] = draw(d, 2 * g * hidden)
    if lengths is not None:
        consts["l"] = np.array(lengths, np.int32)
    if states:
        feeds["h"] = draw(d, batch, hidden)
        names.append("h")
        if op == "LSTM":
            feeds["c"] = draw(d, batch, hidden)
            names.append("c")
    outputs = ["y", "y_h", *(["y_c"] if op == "LSTM" else [])]
    made = node(op, names, outputs, 14, hidden_size=hidden, direction=direction, **attrs)
    return model([made], feeds, consts, outputs), feeds


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("biased, states, lengths", [(True, True, None), (False, False, [3, 0, 5, 1, 5, 2, 4])])
def test_layer(op, direction, biased, states, lengths):
    made, feeds = build(op, 5, 7, 11, 19, direction, biased=biased, states=states, lengths=lengths)
    check_native(made, feeds)


@pytest.mark.parametrize("first", [0, 1])
def test_gru_reset_before_and_after_the_product(first):
    made, feeds = build("GRU", 4, 3, 6, 33, "forward", biased=True, states=True, linear_before_reset=first)
    check_native(made, feeds)


def test_rnn_with_relu():
    made, feeds = build("RNN", 4, 3, 6, 9, "forward", biased=True, states=True, activations=("Relu",))
    check_native(made, feeds)


def test_lstm_with_peepholes():
    feeds = {"x": draw(6, 2, 5)}
    consts = {"w": draw(1, 40, 5), "r": draw(1, 40, 10), "b": draw(1, 80), "p": draw(1, 30)}
    made = node("LSTM", ["x", "w", "r", "b", "", "", "", "p"], ["y", "", "c"], 14, hidden_size=10)
    check_native(model([made], feeds, consts, ["y", "c"]), feeds)


def test_other_activations_run_by_reference():
    attrs = {"activations": ("HardSigmoid", "Tanh", "Tanh")}
    made, feeds = build("LSTM", 3, 2, 4, 5, "forward", biased=True, states=True, **attrs)
    assert not check_native(made, feeds, native=False)
