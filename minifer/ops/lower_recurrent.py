"""LSTM, GRU and RNN as kernel calls: one product for the inputs of all steps, then the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.kernels import gemm, recurrent
from minifer.kernels.activation import CLAMP
from minifer.kernels.simd import NR
from minifer.ops.registry import Declined

_DEFAULTS = {1: ("Tanh",), 3: ("Sigmoid", "Tanh"), 4: ("Sigmoid", "Tanh", "Tanh")}
INFINITY = float("inf")


def _declined(low: Any, gates: int, state_inputs: Sequence[int]) -> Declined | None:
    if low.dtype(0) != "float32":
        return Declined(f"no recurrent kernel for {low.dtype(0)}")
    names = tuple(n.lower() for n in low.attr("activations") or ())
    usual = tuple(n.lower() for n in _DEFAULTS[gates]) * low.shape(1)[0]
    if names and names != usual and not (gates == 1 and set(names) == {"relu"}):
        return Declined(f"no recurrent kernel with activations {', '.join(low.attr('activations'))}")
    if low.attr("clip") or low.attr("input_forget", 0) or low.attr("layout", 0):
        return Declined("no recurrent kernel with clip, input_forget or batch-first layout")
    if low.value(4) is not None and not ((low.value(4) >= 0) & (low.value(4) <= low.shape(0)[0])).all():
        return Declined("sequence_lens out of range")
    unknown = [i for i in (1, 2, 3, 4, *state_inputs) if low.has(i) and low.value(i) is None]
    return Declined(f"input {unknown[0]} is not constant") if unknown else None


def _gates_from_x(low: Any, gates: int, bias: np.ndarray) -> Any:
    """The products of x with the input weights, plus bias (directions, gates * hidden): one gemm per direction."""
    steps, batch, inputs = low.shape(0)
    directions, width, _ = low.shape(1)
    x = low.input(0)
    count = steps * batch * width
    out = low.scratch(4 * directions * count, "float32")
    for d in range(directions):
        weight = low.pack(1, ("input", int(NR), d), lambda w, d=d: gemm.pack(np.ascontiguousarray(w[d].T)))
        target = out.view((steps * batch, width), 4 * d * count)
        numbers = (steps * batch, width, inputs, inputs, width, width, 1, 0, CLAMP, -INFINITY, INFINITY)
        low.call(gemm.gemm, x, weight, target, low.const(bias[d]), None, *numbers)
    return out


def _common(low: Any, gates: int) -> dict[str, Any]:
    steps, batch, _ = low.shape(0)
    directions, rows, _ = low.shape(1)
    hidden = rows // gates
    lengths = np.full(batch, steps) if not low.has(4) else np.clip(np.asarray(low.value(4)), 0, steps)

    def state(i: int) -> Any:
        return low.input(i) if low.has(i) else low.const(np.zeros((directions, batch, hidden), np.float32))

    def output(i: int) -> Any:
        return low.output(i) if low.wants(i) else low.scratch(4 * directions * batch * hidden, "float32")

    return {
        "lengths": low.const(lengths.astype(np.int64)),
        "scratch": low.scratch(4 * low.threads * recurrent.scratch_floats(hidden, gates), "float32"),
        "state": state,
        "output": output,
        "y": low.output(0) if low.wants(0) else None,
        "numbers": (steps, batch, hidden, directions, int(low.attr("direction", "forward") == "reverse")),
        "has_y": int(low.wants(0)),
    }


def _biases(low: Any, gates: int) -> tuple[np.ndarray, np.ndarray]:
    """(input biases, recurrent biases), each (directions, gates * hidden)."""
    directions, rows, _ = low.shape(1)
    if not low.has(3):
        zeros = np.zeros((directions, rows), np.float32)
        return zeros, zeros
    both = np.asarray(low.value(3), np.float32)
    return both[:, :rows], both[:, rows:]


def lower_lstm(low: Any) -> Declined | None:
    """float32 LSTM with constant weights and the usual activations."""
    declined = _declined(low, 4, (7,))
    if declined is not None:
        return declined
    own, recurring = _biases(low, 4)
    x = _gates_from_x(low, 4, own + recurring)
    weights = low.pack(2, ("recurrent", int(NR)), recurrent.pack_recurrent)
    p = low.input(7) if low.has(7) else None
    c = _common(low, 4)
    h0, c0 = c["state"](5), c["state"](6)
    y_h, y_c = c["output"](1), c["output"](2)
    flags = (c["has_y"], int(p is not None))
    low.call(recurrent.lstm, x, weights, p, h0, c0, c["y"], y_h, y_c, c["lengths"], c["scratch"], *c["numbers"], *flags)
    return None


def lower_gru(low: Any) -> Declined | None:
    """float32 GRU with constant weights and the usual activations."""
    declined = _declined(low, 3, ())
    if declined is not None:
        return declined
    own, recurring = _biases(low, 3)
    linear_first = int(bool(low.attr("linear_before_reset", 0)))
    hidden = low.shape(1)[1] // 3
    inner = np.ascontiguousarray(recurring[:, 2 * hidden :])
    outside = recurring.copy()
    if linear_first:
        outside[:, 2 * hidden :] = 0
    x = _gates_from_x(low, 3, own + outside)
    weights = low.pack(2, ("gru", int(NR)), recurrent.pack_gru)
    c = _common(low, 3)
    h0, y_h = c["state"](5), c["output"](1)
    flags = (c["has_y"], linear_first)
    low.call(
        recurrent.gru, x, weights, low.const(inner), h0, c["y"], y_h, c["lengths"], c["scratch"], *c["numbers"], *flags
    )
    return None


def lower_rnn(low: Any) -> Declined | None:
    """float32 RNN with constant weights and tanh or relu."""
    declined = _declined(low, 1, ())
    if declined is not None:
        return declined
    names = low.attr("activations") or ("Tanh",)
    own, recurring = _biases(low, 1)
    x = _gates_from_x(low, 1, own + recurring)
    weights = low.pack(2, ("recurrent", int(NR)), recurrent.pack_recurrent)
    c = _common(low, 1)
    h0, y_h = c["state"](5), c["output"](1)
    code = recurrent.RELU if names[0].lower() == "relu" else recurrent.TANH
    low.call(recurrent.rnn, x, weights, h0, c["y"], y_h, c["lengths"], c["scratch"], *c["numbers"], c["has_y"], code)
    return None
