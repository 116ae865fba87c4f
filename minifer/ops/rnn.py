"""Recurrent layers: RNN, LSTM and GRU.

One driver walks the time steps of one direction; a layer brings only its step, a function of the gate inputs
x W^T + b and of the states. The products with the inputs of all steps are one matrix product before the walk.
Shapes (layout 0): x (T, N, I), w (D, G*H, I), r (D, G*H, H), b (D, 2*G*H), states (D, N, H), y (T, D, N, H), where D
is 1 or 2 directions and G the number of gates. Layout 1 puts N first in x, y and the states.
Past its end a sequence (sequence_lens) gives zeros, and its states stay. 16-bit floats are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.activation import sigmoid, softplus
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import Fail
from minifer.ops.window import wide

lower_gru, lower_lstm, lower_rnn = deferred("lower_recurrent", "lower_gru", "lower_lstm", "lower_rnn")

_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
Activation = Callable[[np.ndarray], np.ndarray]
Step = Callable[[np.ndarray, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]


# --- activations ---


#: lower-case name -> (function of x, alpha, beta; default alpha; default beta). None: takes no such value
_FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], float | None, float | None]] = {
    "relu": (lambda x, a, b: np.maximum(x, 0), None, None),
    "tanh": (lambda x, a, b: np.tanh(x), None, None),
    "sigmoid": (lambda x, a, b: sigmoid(x), None, None),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)), None, None),
    "softplus": (lambda x, a, b: softplus(x), None, None),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: np.where(x >= 0, x, a * x), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: np.where(x >= a, x, 0), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)), 1.0, None),
}


def parse_activations(names, alphas, betas, default: Sequence[str], directions: int) -> list[list[Activation]]:
    """The functions of each direction. Alphas and betas go, in order, to the functions that take one."""
    names = list(names) if names else list(default) * directions
    if len(names) != len(default) * directions:
        raise InputError(f"activations lists {len(names)} functions; {len(default) * directions} are needed")
    alpha, beta = iter(alphas or ()), iter(betas or ())
    out: list[Activation] = []
    for name in names:
        if name.lower() not in _FUNCTIONS:
            raise InputError(f"activation '{name}' is unknown; one of {', '.join(_FUNCTIONS)} is needed")
        function, a, b = _FUNCTIONS[name.lower()]
        a = None if a is None else next(alpha, a)
        b = None if b is None else next(beta, b)
        out.append(lambda x, f=function, a=a, b=b: f(x, a, b))  # type: ignore[misc]
    return [out[d * len(default) : (d + 1) * len(default)] for d in range(directions)]


def _clipper(clip: float | None) -> Activation:
    """What bounds the inputs of the activations."""
    if not clip:
        return lambda x: x
    if clip < 0:
        raise InputError(f"clip {clip} is negative")
    return lambda x: np.clip(x, -clip, clip)


# --- shapes ---


def direction_count(fail: Fail, direction: str, layout: int) -> int:
    if direction not in _DIRECTIONS:
        raise fail(f"direction '{direction}' is not one of {', '.join(_DIRECTIONS)}")
    if layout not in (0, 1):
        raise fail(f"layout {layout} is not 0 or 1")
    return _DIRECTIONS[direction]


def _need(fail: Fail, name: str, shape: Sequence[Dim] | None, want: Sequence[Dim]) -> None:
    """Raise unless `shape` may be `want`; None stands for an omitted or unknown one."""
    if shape is None:
        return
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(shape, want))
    if len(shape) != len(want) or clash:
        raise fail(f"{name} has shape {list(shape)}; {['?' if d is None else d for d in want]} is needed")


def _times(factor: int, size: Dim) -> Dim:
    return factor * size if isinstance(size, int) else None


def check_shapes(fail: Fail, shapes: dict, gates: int, directions: int, hidden_size, layout: int):
    """(T, N, H) of a recurrent layer; raises where the shapes (None: omitted or unknown) contradict each other."""
    x, r = shapes["X"], shapes["R"]
    for name in ("X", "W", "R"):
        if shapes[name] is not None and len(shapes[name]) != 3:
            raise fail(f"{name} has rank {len(shapes[name])}; 3 is needed")
    hidden = hidden_size or (None if r is None else r[2])
    time, batch, width = (None, None, None) if x is None else (x[1], x[0], x[2]) if layout else x
    _need(fail, "W", shapes["W"], (directions, _times(gates, hidden), width))
    _need(fail, "R", r, (directions, _times(gates, hidden), hidden))
    _need(fail, "B", shapes.get("B"), (directions, _times(2 * gates, hidden)))
    _need(fail, "sequence_lens", shapes.get("sequence_lens"), (batch,))
    for name in ("initial_h", "initial_c"):
        state = (batch, directions, hidden) if layout else (directions, batch, hidden)
        _need(fail, name, shapes.get(name), state)
    _need(fail, "P", shapes.get("P"), (directions, _times(3, hidden)))
    return time, batch, hidden


_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def _infer(gates: int, states: int):
    """Type rule of a layer with `gates` gates that returns y and `states` last states."""

    def infer(call: Call) -> list[TensorType]:
        layout = call.attr("layout", 0)
        directions = direction_count(call.fail, call.attr("direction", "forward"), layout)
        shapes = {name: call.shape(i) if call.has(i) else None for i, name in enumerate(_INPUTS)}
        time, batch, hidden = check_shapes(call.fail, shapes, gates, directions, call.attr("hidden_size"), layout)
        state = (batch, directions, hidden) if layout else (directions, batch, hidden)
        y = (batch, time, directions, hidden) if layout else (time, directions, batch, hidden)
        return [TensorType(call.dtype(0), y)] + [TensorType(call.dtype(0), state)] * states

    return infer


# --- the walk over time ---


def _lengths(lens: np.ndarray | None, time: int, batch: int) -> np.ndarray | None:
    """Sequence lengths as int64, or None where all are full."""
    if lens is None:
        return None
    lens = lens.astype(np.int64)
    if lens.size and (lens.min() < 0 or lens.max() > time):
        raise InputError(f"sequence_lens runs from {lens.min()} to {lens.max()}; lengths must lie in [0, {time}]")
    return lens


def _backwards(x: np.ndarray, lens: np.ndarray | None) -> np.ndarray:
    """Each sequence of x (T, N, ...) reversed within its length; its own inverse."""
    if lens is None:
        return x[::-1]
    step = np.arange(x.shape[0])[:, None]
    order = np.where(step < lens, lens - 1 - step, step)
    return np.take_along_axis(x, order[:, :, None], axis=0)


def walk(inputs: np.ndarray, states: tuple[np.ndarray, ...], step: Step, lens: np.ndarray | None, reverse: bool):
    """y (T, N, H) and the last states of one direction; inputs (T, N, G*H) are the gates' share of x and bias."""
    if reverse:
        inputs = _backwards(inputs, lens)
    y = np.zeros((inputs.shape[0], *states[0].shape), inputs.dtype)
    for t in range(inputs.shape[0]):
        new = step(inputs[t], states)
        if lens is None:
            y[t], states = new[0], new
        else:
            alive = (t < lens)[:, None]
            y[t] = np.where(alive, new[0], 0)
            states = tuple(np.where(alive, a, b) for a, b in zip(new, states))
    return (_backwards(y, lens) if reverse else y), states


def layer(
    x, w, r, b, lens, initial, gates: int, make_step, *, direction, hidden_size, layout, p=None, prepare=None
):  # fmt: skip
    """Run all directions. `make_step(d, r_d, recurrence bias)` gives the step of direction d; the input bias is added
    before, the recurrence bias is the step's business. `prepare` changes the inputs before the product with w.
    Returns y and each last state, in the dtype of x."""
    directions = direction_count(ShapeError, direction, layout)
    shapes = {"X": x.shape, "W": w.shape, "R": r.shape}
    rest = dict(B=b, sequence_lens=lens, initial_h=initial[0], initial_c=initial[-1], P=p)
    shapes.update((name, None if v is None else v.shape) for name, v in rest.items())
    time, batch, hidden = check_shapes(ShapeError, shapes, gates, directions, hidden_size, layout)
    data = wide(x.swapaxes(0, 1) if layout else x)
    data = prepare(data) if prepare else data
    lens = _lengths(lens, time, batch)
    bias = np.zeros((directions, 2 * gates * hidden), data.dtype) if b is None else wide(b)
    starts = [
        np.zeros((directions, batch, hidden), data.dtype) if s is None else wide(s.swapaxes(0, 1) if layout else s)
        for s in initial
    ]
    ys, lasts = [], []
    for d in range(directions):
        inputs = data @ wide(w[d]).T + bias[d, : gates * hidden]
        step = make_step(d, wide(r[d]), bias[d, gates * hidden :])
        reverse = direction == "reverse" or d == 1
        y, last = walk(inputs, tuple(s[d] for s in starts), step, lens, reverse)
        ys.append(y)
        lasts.append(last)
    y = np.stack(ys, axis=2 if layout else 1)  # (T, N, D, H) or (T, D, N, H)
    if layout:
        y = y.swapaxes(0, 1)
    final = [np.stack([last[i] for last in lasts], axis=1 if layout else 0) for i in range(len(initial))]
    return tuple(np.ascontiguousarray(v).astype(x.dtype, copy=False) for v in (y, *final))


# --- the three layers ---


def _rnn(
    x, w, r, b=None, sequence_lens=None, initial_h=None, *, activation_alpha=None, activation_beta=None,
    activations=None, clip=None, direction="forward", hidden_size=None, layout=0,
):  # fmt: skip
    functions = parse_activations(
        activations, activation_alpha, activation_beta, ("Tanh",), direction_count(ShapeError, direction, layout)
    )
    bound = _clipper(clip)

    def make_step(d, r_d, bias):
        (f,) = functions[d]
        return lambda gate, states: (f(bound(gate + states[0] @ r_d.T + bias)),)

    options = dict(direction=direction, hidden_size=hidden_size, layout=layout)
    return layer(x, w, r, b, sequence_lens, (initial_h,), 1, make_step, **options)


def _gru(
    x, w, r, b=None, sequence_lens=None, initial_h=None, *, activation_alpha=None, activation_beta=None,
    activations=None, clip=None, direction="forward", hidden_size=None, layout=0, linear_before_reset=0,
):  # fmt: skip
    functions = parse_activations(
        activations, activation_alpha, activation_beta, ("Sigmoid", "Tanh"),
        direction_count(ShapeError, direction, layout),
    )  # fmt: skip
    bound = _clipper(clip)

    def make_step(d, r_d, bias):
        f, g = functions[d]
        hidden = r_d.shape[1]

        def step(gate, states):
            (h,) = states
            gates = bound(gate[:, : 2 * hidden] + h @ r_d[: 2 * hidden].T + bias[: 2 * hidden])
            update, reset = f(gates[:, :hidden]), f(gates[:, hidden:])
            if linear_before_reset:
                inner = reset * (h @ r_d[2 * hidden :].T + bias[2 * hidden :])
            else:
                inner = (reset * h) @ r_d[2 * hidden :].T + bias[2 * hidden :]
            candidate = g(bound(gate[:, 2 * hidden :] + inner))
            return ((1 - update) * candidate + update * h,)

        return step

    options = dict(direction=direction, hidden_size=hidden_size, layout=layout)
    return layer(x, w, r, b, sequence_lens, (initial_h,), 3, make_step, **options)


def _lstm(
    x, w, r, b=None, sequence_lens=None, initial_h=None, initial_c=None, p=None, *, activation_alpha=None,
    activation_beta=None, activations=None, clip=None, direction="forward", hidden_size=None, input_forget=0, layout=0,
):  # fmt: skip
    """LSTM; gates in the order input, output, forget, cell. `p` (D, 3*H) are the peepholes of the first three."""
    functions = (activations, activation_alpha, activation_beta)
    options = dict(clip=clip, direction=direction, hidden_size=hidden_size, input_forget=input_forget, layout=layout)
    return run_lstm(x, w, r, b, sequence_lens, initial_h, initial_c, p, functions, **options)


def run_lstm(
    x, w, r, b, sequence_lens, initial_h, initial_c, p, functions, *, clip, direction, hidden_size, input_forget,
    layout=0, prepare=lambda v: v,
):  # fmt: skip
    """`functions` are the attributes (activations, activation_alpha, activation_beta); `prepare` changes x and h
    before they meet their weights."""
    names, alphas, betas = functions
    directions = direction_count(ShapeError, direction, layout)
    parsed = parse_activations(names, alphas, betas, ("Sigmoid", "Tanh", "Tanh"), directions)
    bound = _clipper(clip)

    def make_step(d, r_d, bias):
        f, g, h_of = parsed[d]
        look_i, look_o, look_f = (0, 0, 0) if p is None else np.split(wide(p[d]), 3)

        def step(gate, states):
            h, c = states
            i, o, forget, cell = np.split(gate + prepare(h) @ r_d.T + bias, 4, axis=1)
            i = f(bound(i + look_i * c))
            forget = 1 - i if input_forget else f(bound(forget + look_f * c))
            c = forget * c + i * g(bound(cell))
            o = f(bound(o + look_o * c))
            return o * h_of(c), c  # clip bounds what enters the gates, not the cell

        return step

    options = dict(direction=direction, hidden_size=hidden_size, layout=layout, p=p, prepare=prepare)
    return layer(x, w, r, b, sequence_lens, (initial_h, initial_c), 4, make_step, **options)


_OLD = ("output_sequence",)  # version 1: whether y is wanted; the output list says so too
for _name, _gates, _states, _reference, _lower in (
    ("RNN", 1, 1, _rnn, lower_rnn),
    ("GRU", 3, 1, _gru, lower_gru),
    ("LSTM", 4, 2, _lstm, lower_lstm),
):
    register(Op(_name, since=1, infer=_infer(_gates, _states), reference=_reference, lower=_lower, ignore=_OLD))
    register(Op(_name, since=7, infer=_infer(_gates, _states), reference=_reference, lower=_lower))
