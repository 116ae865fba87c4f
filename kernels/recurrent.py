"""LSTM, GRU and plain recurrent layers, float32.

The products of the inputs with the weights do not depend on the state: gemm.py computes them for all steps at once
("gates from x"). What is left is one small product per step, state by recurrent weights, and the gate
arithmetic, which runs on vectors along the hidden units. Equations: Hochreiter and Schmidhuber 1997, Cho et al. 2014,
in the order and with the options of the ONNX operators.

A work unit is a direction and a group of MR sequences of the batch: units share nothing, so threads need not meet.
A sequence that is shorter than the longest stops: its state stays, and its further outputs are zero.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.activation import CLAMP
from minifer.kernels.gemm import accumulate, pack, row_product
from minifer.kernels.mathfn import sigmoid, tanh
from minifer.kernels.simd import (
    MR,
    NR,
    lanes,
    rows_strided,
    share,
    tile_store,
    tile_zero,
    vfma,
    vload_part,
    vmax_quick,
    vsplat,
    vstore_part,
)
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64

FORWARD, REVERSE = 0, 1
TANH, RELU = 0, 1
BOUNDLESS = float("inf")


def pack_recurrent(weights: np.ndarray) -> np.ndarray:
    """ONNX recurrent weights (directions, gates * hidden, hidden) packed as B (hidden, gates * hidden) each."""
    return np.stack([pack(np.ascontiguousarray(w.T)) for w in weights])


def scratch_floats(hidden: int, gates: int) -> int:
    """Floats that one thread needs: gates, state, cell and one more state for MR sequences."""
    return int(MR) * hidden * (gates + 3)


def state_product(h, weights, out, m, hidden, width):
    """out (m, width) = h (m, hidden) @ weights, packed."""
    if m == 1:
        lone_product(h, weights, out, hidden, width)
        return
    rows = rows_strided(h, hidden, m)
    for j in range(0, width, NR):
        acc = accumulate(tile_zero(), rows, 0, weights + j * hidden, hidden)
        tile_store(out + j, width, acc, m, min(NR, width - j))


def lone_product(h, weights, out, hidden, width):
    """out (1, width) = h (1, hidden) @ weights, packed."""
    row_product(h, weights, out, out, out, 0, width, width, hidden, 0, 0, CLAMP, f32(-BOUNDLESS), f32(BOUNDLESS))


def step_of(s, length, reverse):
    """The time step that turn s of a sequence handles, or -1 when it has ended."""
    if s >= length:
        return -1
    return length - 1 - s if reverse != 0 else s


def copy_rows(source, target, count):
    """target[:count] = source[:count]."""
    for i in range(count):
        target[i] = source[i]


def clear_rows(target, count):
    """target[:count] = 0."""
    for i in range(count):
        target[i] = f32(0)


# ---------------------------------------------------------------- LSTM


def _draw(rng, size, gates):
    steps, batch, hidden, directions = (int(v) for v in rng.integers(1, (4, 8, 5 * size + 1, 3)))
    shape = (directions, steps, batch, gates * hidden)
    weights = rng.standard_normal((directions, gates * hidden, hidden)).astype("f") * 0.5
    return {
        "x": rng.standard_normal(shape).astype("f"),
        "weights": pack_recurrent(weights),
        "h0": rng.standard_normal((directions, batch, hidden)).astype("f"),
        "y": np.full((steps, directions, batch, hidden), np.nan, "f"),
        "y_h": np.full((directions, batch, hidden), np.nan, "f"),
        "lengths": rng.integers(0, steps + 1, batch),
        "scratch": np.zeros(8 * scratch_floats(hidden, gates), "f"),
        "steps": steps, "batch": batch, "hidden": hidden, "directions": directions,
        "reverse": int(rng.integers(0, 2)) if directions == 1 else 0,
    }  # fmt: skip


def _unpacked(weights, hidden, gates):
    wide = weights.transpose(0, 2, 1, 3).reshape(weights.shape[0], hidden, -1)
    return wide[:, :, : gates * hidden].astype(np.float64)


def _scan(step, x, h0, y, lengths, steps, batch, directions, reverse, state):
    """Run `step(direction, gates from x, states) -> states` over each sequence; the outputs."""
    out, last = np.zeros(y.shape), [np.array(s, np.float64) for s in state]
    for d in range(directions):
        for b in range(batch):
            length = int(lengths[b])
            for s in range(length):
                t = length - 1 - s if (reverse or d == 1) else s
                new = step(d, x[d, t, b].astype(np.float64), [v[d, b] for v in last])
                for v, n in zip(last, new):
                    v[d, b] = n
                out[t, d, b] = last[0][d, b]
    return out, last


def _sigmoid(v):
    return 1 / (1 + np.exp(-v))


def lstm_reference(
    x, weights, peepholes, h0, c0, y, y_h, y_c, lengths, scratch, steps, batch, hidden, directions, reverse, has_y,
    has_p,
):  # fmt: skip
    wide = _unpacked(weights, hidden, 4)
    p = peepholes.astype(np.float64) * has_p

    def step(d, gates, state):
        h, c = state
        i, o, f, g = np.split(gates + h @ wide[d], 4)
        pi, po, pf = np.split(p[d], 3)
        i, f = _sigmoid(i + pi * c), _sigmoid(f + pf * c)
        c = f * c + i * np.tanh(g)
        return _sigmoid(o + po * c) * np.tanh(c), c

    out, (h, c) = _scan(step, x, h0, y, lengths, steps, batch, directions, reverse, (h0, c0))
    return {"y_h": h, "y_c": c, **({"y": out} if has_y else {})}


def lstm_example(rng, size):
    drawn = _draw(rng, size, 4)
    shape = drawn["h0"].shape
    return {
        "x": drawn["x"], "weights": drawn["weights"],
        "peepholes": rng.standard_normal((shape[0], 3 * shape[2])).astype("f"), "h0": drawn["h0"],
        "c0": rng.standard_normal(shape).astype("f"), "y": drawn["y"], "y_h": drawn["y_h"],
        "y_c": np.full(shape, np.nan, "f"), **{k: drawn[k] for k in list(drawn)[5:]},
        "has_y": int(rng.integers(0, 2)), "has_p": int(rng.integers(0, 2)),
    }  # fmt: skip


@kernel(reference=lstm_reference, example=lstm_example, outputs=("y", "y_h", "y_c", "scratch"), tolerance=2e-5)
def lstm(
    x: ptr_f32, weights: ptr_f32, peepholes: ptr_f32, h0: ptr_f32, c0: ptr_f32, y: ptr_f32, y_h: ptr_f32,
    y_c: ptr_f32, lengths: ptr_i64, scratch: ptr_f32, steps: i64, batch: i64, hidden: i64, directions: i64,
    reverse: i64, has_y: i64, has_p: i64, slot: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """i, o, f = sigmoid(...), g = tanh(...);  c = f c + i g;  h = o tanh(c).

    x: (directions, steps, batch, 4 hidden), the gates from x with all biases, in the order i o f g; weights: see
    pack_recurrent; peepholes: (directions, 3 hidden) for i o f, read if has_p; h0, c0: (directions, batch, hidden);
    y: (steps, directions, batch, hidden), written if has_y; y_h, y_c: the last states; lengths: (batch,) in [0, steps].
    8 steps batch hidden^2 FLOPs. Error: some 1e-6 per step.
    """
    groups = (batch + MR - 1) // MR
    width = 4 * hidden
    gates = scratch + slot * (MR * hidden * 7)
    h, c = gates + MR * width, gates + MR * (width + hidden)
    for unit in range(share(directions * groups, tid, nthreads), share(directions * groups, tid + 1, nthreads)):
        d, first = unit // groups, unit % groups * MR
        m = min(MR, batch - first)
        state = (d * batch + first) * hidden
        copy_rows(h0 + state, h, m * hidden)
        copy_rows(c0 + state, c, m * hidden)
        for s in range(steps):
            state_product(h, weights + d * (hidden * ((width + NR - 1) // NR * NR)), gates, m, hidden, width)
            for r in range(m):
                b = first + r
                t = step_of(s, lengths[b], reverse + d)
                if t >= 0:
                    from_x = x + ((d * steps + t) * batch + b) * width
                    lstm_cell(gates + r * width, from_x, peepholes + d * 3 * hidden, h + r * hidden, c + r * hidden,
                              hidden, has_p)  # fmt: skip
                    if has_y != 0:
                        copy_rows(h + r * hidden, y + ((t * directions + d) * batch + b) * hidden, hidden)
                elif has_y != 0:
                    clear_rows(y + ((s * directions + d) * batch + b) * hidden, hidden)
        copy_rows(h, y_h + state, m * hidden)
        copy_rows(c, y_c + state, m * hidden)


def lstm_cell(gates, from_x, p, h, c, hidden, has_p):
    """One step of one sequence: new h and c from the gates (from the state, and from x)."""
    for j in range(0, hidden, lanes(h)):
        n = hidden - j
        i = vload_part(gates, j, n) + vload_part(from_x, j, n)
        o = vload_part(gates, hidden + j, n) + vload_part(from_x, hidden + j, n)
        f = vload_part(gates, 2 * hidden + j, n) + vload_part(from_x, 2 * hidden + j, n)
        g = vload_part(gates, 3 * hidden + j, n) + vload_part(from_x, 3 * hidden + j, n)
        old = vload_part(c, j, n)
        if has_p != 0:
            i = vfma(vload_part(p, j, n), old, i)
            f = vfma(vload_part(p, 2 * hidden + j, n), old, f)
        new = vfma(sigmoid(f), old, sigmoid(i) * tanh(g))
        if has_p != 0:
            o = vfma(vload_part(p, hidden + j, n), new, o)
        vstore_part(c, j, new, n)
        vstore_part(h, j, sigmoid(o) * tanh(new), n)


# ---------------------------------------------------------------- GRU


def gru_reference(
    x, weights, bias, h0, y, y_h, lengths, scratch, steps, batch, hidden, directions, reverse, has_y, linear_first
):
    wide = _unpacked(weights, hidden, 3)

    def step(d, gates, state):
        (h,) = state
        z, r, g = np.split(gates, 3)
        wz, wr, wg = np.split(wide[d], 3, axis=1)
        z, r = _sigmoid(z + h @ wz), _sigmoid(r + h @ wr)
        inner = r * (h @ wg + bias[d].astype(np.float64)) if linear_first else (r * h) @ wg
        return ((1 - z) * np.tanh(g + inner) + z * h,)

    out, (h,) = _scan(step, x, h0, y, lengths, steps, batch, directions, reverse, (h0,))
    return {"y_h": h, **({"y": out} if has_y else {})}


def gru_example(rng, size):
    drawn = _draw(rng, size, 3)
    directions, _, hidden = drawn["h0"].shape
    head = {"x": drawn["x"], "weights": drawn["weights"], "bias": rng.standard_normal((directions, hidden)).astype("f")}
    flags = {"has_y": int(rng.integers(0, 2)), "linear_first": int(rng.integers(0, 2))}
    # the product of the third gate needs weights of its own where it comes after the reset
    weights = rng.standard_normal((directions, 3 * hidden, hidden)).astype("f") * 0.5
    head["weights"] = pack_gru(weights)
    return {**head, **{k: drawn[k] for k in list(drawn)[2:]}, **flags}


def pack_gru(weights: np.ndarray) -> np.ndarray:
    """As pack_recurrent, each gate padded to whole panels, so that the third can be multiplied alone."""
    directions, _, hidden = weights.shape
    padded = -(-hidden // int(NR)) * int(NR)
    gates = np.zeros((directions, 3, padded, hidden), weights.dtype)
    gates[:, :, :hidden] = weights.reshape(directions, 3, hidden, hidden)
    return pack_recurrent(gates.reshape(directions, 3 * padded, hidden))


def _unpacked_gru(weights, hidden):
    wide = weights.transpose(0, 2, 1, 3).reshape(weights.shape[0], hidden, 3, -1)[..., :hidden]
    return wide.reshape(weights.shape[0], hidden, 3 * hidden).astype(np.float64)


def _gru_reference(x, weights, bias, *rest, **named):
    hidden = named.get("hidden")
    flat = _unpacked_gru(weights, hidden)
    packed = np.stack([pack(w) for w in flat])
    return gru_reference(x, packed, bias, *rest, **named)


@kernel(reference=_gru_reference, example=gru_example, outputs=("y", "y_h", "scratch"), tolerance=2e-5)
def gru(
    x: ptr_f32, weights: ptr_f32, bias: ptr_f32, h0: ptr_f32, y: ptr_f32, y_h: ptr_f32, lengths: ptr_i64,
    scratch: ptr_f32, steps: i64, batch: i64, hidden: i64, directions: i64, reverse: i64, has_y: i64,
    linear_first: i64, slot: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """z, r = sigmoid(...);  g = tanh(x + r (h W + bias)), or tanh(x + (r h) W);  h = (1 - z) g + z h.

    x: (directions, steps, batch, 3 hidden), the gates from x in the order z r g with the biases that do not stand
    inside the reset; weights: see pack_gru; bias: (directions, hidden), that of g's state product where linear_first
    (ONNX linear_before_reset). The rest as in lstm. 6 steps batch hidden^2 FLOPs. Error: some 1e-6 per step.
    """
    groups = (batch + MR - 1) // MR
    padded = (hidden + NR - 1) // NR * NR
    gates = scratch + slot * (MR * hidden * 6)
    h, reset = gates + MR * 3 * hidden, gates + MR * 4 * hidden
    for unit in range(share(directions * groups, tid, nthreads), share(directions * groups, tid + 1, nthreads)):
        d, first = unit // groups, unit % groups * MR
        m = min(MR, batch - first)
        state = (d * batch + first) * hidden
        own = weights + d * (3 * padded * hidden)
        copy_rows(h0 + state, h, m * hidden)
        for s in range(steps):
            gate_product(h, own, gates, 0, m, hidden, padded)
            gate_product(h, own, gates, 1, m, hidden, padded)
            for r in range(m):
                t = step_of(s, lengths[first + r], reverse + d)
                if t >= 0:
                    from_x = x + ((d * steps + t) * batch + first + r) * 3 * hidden
                    gru_reset(gates + r * 3 * hidden, from_x, h + r * hidden, reset + r * hidden, hidden, linear_first)
            gate_product(h if linear_first != 0 else reset, own, gates, 2, m, hidden, padded)
            for r in range(m):
                b = first + r
                t = step_of(s, lengths[b], reverse + d)
                if t >= 0:
                    from_x = x + ((d * steps + t) * batch + b) * 3 * hidden
                    gru_state(gates + r * 3 * hidden, from_x, bias + d * hidden, h + r * hidden, hidden, linear_first)
                    if has_y != 0:
                        copy_rows(h + r * hidden, y + ((t * directions + d) * batch + b) * hidden, hidden)
                elif has_y != 0:
                    clear_rows(y + ((s * directions + d) * batch + b) * hidden, hidden)
        copy_rows(h, y_h + state, m * hidden)


def gate_product(h, weights, gates, gate, m, hidden, padded):
    """gates[:, gate] (m, hidden of 3 hidden) = h @ the weights of that gate."""
    if m == 1:
        lone_product(h, weights + gate * padded * hidden, gates + gate * hidden, hidden, hidden)
        return
    rows = rows_strided(h, hidden, m)
    for j in range(0, hidden, NR):
        acc = accumulate(tile_zero(), rows, 0, weights + (gate * padded + j) * hidden, hidden)
        tile_store(gates + (gate * hidden + j), 3 * hidden, acc, m, min(NR, hidden - j))


def gru_reset(gates, from_x, h, reset, hidden, linear_first):
    """z and r in place of their gates; reset = r h where the product comes after the reset."""
    for j in range(0, hidden, lanes(h)):
        n = hidden - j
        z = sigmoid(vload_part(gates, j, n) + vload_part(from_x, j, n))
        r = sigmoid(vload_part(gates, hidden + j, n) + vload_part(from_x, hidden + j, n))
        vstore_part(gates, j, z, n)
        vstore_part(gates, hidden + j, r, n)
        vstore_part(reset, j, r * vload_part(h, j, n), n)


def gru_state(gates, from_x, bias, h, hidden, linear_first):
    """The new h of one sequence."""
    for j in range(0, hidden, lanes(h)):
        n = hidden - j
        inner = vload_part(gates, 2 * hidden + j, n)
        if linear_first != 0:
            inner = vload_part(gates, hidden + j, n) * (inner + vload_part(bias, j, n))
        z = vload_part(gates, j, n)
        g = tanh(vload_part(from_x, 2 * hidden + j, n) + inner)
        vstore_part(h, j, vfma(z, vload_part(h, j, n) - g, g), n)


# ---------------------------------------------------------------- plain


def rnn_reference(x, weights, h0, y, y_h, lengths, scratch, steps, batch, hidden, directions, reverse, has_y, code):
    wide = _unpacked(weights, hidden, 1)

    def step(d, gates, state):
        total = gates + state[0] @ wide[d]
        return (np.tanh(total) if code == TANH else np.maximum(total, 0),)

    out, (h,) = _scan(step, x, h0, y, lengths, steps, batch, directions, reverse, (h0,))
    return {"y_h": h, **({"y": out} if has_y else {})}


def rnn_example(rng, size):
    drawn = _draw(rng, size, 1)
    return {**drawn, "has_y": int(rng.integers(0, 2)), "code": int(rng.integers(0, 2))}


@kernel(reference=rnn_reference, example=rnn_example, outputs=("y", "y_h", "scratch"), tolerance=1e-4)
def rnn(
    x: ptr_f32, weights: ptr_f32, h0: ptr_f32, y: ptr_f32, y_h: ptr_f32, lengths: ptr_i64, scratch: ptr_f32,
    steps: i64, batch: i64, hidden: i64, directions: i64, reverse: i64, has_y: i64, code: i64,
    slot: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """h = tanh(x + h W), or relu. Arguments as in lstm; code is TANH or RELU. 2 steps batch hidden^2 FLOPs."""
    groups = (batch + MR - 1) // MR
    gates = scratch + slot * (MR * hidden * 4)
    h = gates + MR * hidden
    for unit in range(share(directions * groups, tid, nthreads), share(directions * groups, tid + 1, nthreads)):
        d, first = unit // groups, unit % groups * MR
        m = min(MR, batch - first)
        state = (d * batch + first) * hidden
        copy_rows(h0 + state, h, m * hidden)
        for s in range(steps):
            state_product(h, weights + d * (hidden * ((hidden + NR - 1) // NR * NR)), gates, m, hidden, hidden)
            for r in range(m):
                b = first + r
                t = step_of(s, lengths[b], reverse + d)
                if t >= 0:
                    from_x = x + ((d * steps + t) * batch + b) * hidden
                    for j in range(0, hidden, lanes(h)):
                        n = hidden - j
                        total = vload_part(gates, r * hidden + j, n) + vload_part(from_x, j, n)
                        new = tanh(total) if code == TANH else vmax_quick(vsplat(f32, 0), total)
                        vstore_part(h, r * hidden + j, new, n)
                    if has_y != 0:
                        copy_rows(h + r * hidden, y + ((t * directions + d) * batch + b) * hidden, hidden)
                elif has_y != 0:
                    clear_rows(y + ((s * directions + d) * batch + b) * hidden, hidden)
        copy_rows(h, y_h + state, m * hidden)
