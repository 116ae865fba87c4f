"""Optimizer steps of ai.onnx.preview.training: Adagrad, Adam and Momentum. (Gradient is a graph rewrite:
minifer.passes.gradient.)

Each takes learning rate R, update count T, then groups of n tensors: all values, all gradients, all states of a kind.
It returns the new values, then the new states in the same order. Computed in float64 and rounded once.
"""

from __future__ import annotations

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType, Type
from minifer.ops.numeric import check_type, equal_shape, narrow, require, scalar_of
from minifer.ops.registry import Call, Op, register

DOMAIN = "ai.onnx.preview.training"
_FLOATS = ("float32", "float64")


def _optimizer(step, states: int):
    """A reference from `step(rate, count, x, gradient, *states, **attributes) -> (x, *states)` in float64."""

    def wrap(rate, count, tensors, attrs):
        require(rate, _FLOATS, "R")
        require(count, ("int64",), "T")
        groups = 2 + states
        if not tensors or len(tensors) % groups:
            raise InputError(f"has {len(tensors)} tensors; they must come in {groups} groups of equal size")
        n = len(tensors) // groups
        results: list[list[np.ndarray]] = [[] for _ in range(1 + states)]
        for i in range(n):
            own = tensors[i::n]
            for x in own:
                require(x, _FLOATS, "an optimized tensor")
                if x.shape != own[0].shape or x.dtype != own[0].dtype:
                    raise ShapeError(f"tensor {i}: value, gradient and states differ in shape or element type")
            wide = [x.astype(np.float64) for x in own]
            new = step(float(scalar_of(rate, "R")), int(scalar_of(count, "T")), *wide, **attrs)
            for result, value in zip(results, new):
                result.append(narrow(value, own[0].dtype))
        return tuple(value for result in results for value in result)

    return wrap


def _adagrad_step(rate, count, x, gradient, h, *, norm_coefficient, decay_factor, epsilon):
    """Duchi, Hazan and Singer, "Adaptive Subgradient Methods", 2011."""
    g = norm_coefficient * x + gradient
    h = h + g * g
    return x - rate / (1 + count * decay_factor) * g / (np.sqrt(h) + epsilon), h


def _adam_step(rate, count, x, gradient, v, h, *, alpha, beta, epsilon, norm_coefficient, norm_coefficient_post):
    """Kingma and Ba, "Adam", 2015; the spec's alpha and beta are the paper's beta1 and beta2."""
    g = norm_coefficient * x + gradient
    v = alpha * v + (1 - alpha) * g
    h = beta * h + (1 - beta) * g * g
    if count > 0:
        rate = rate * np.sqrt(1 - beta**count) / (1 - alpha**count)
    return (1 - norm_coefficient_post) * (x - rate * v / (np.sqrt(h) + epsilon)), v, h


def _momentum_step(rate, count, x, gradient, v, *, alpha, beta, norm_coefficient, nesterov):
    g = norm_coefficient * x + gradient
    v = alpha * v + (beta if count > 0 else 1) * g
    return x - rate * (g + alpha * v if nesterov else v), v


_run_adagrad = _optimizer(_adagrad_step, 1)
_run_adam = _optimizer(_adam_step, 2)
_run_momentum = _optimizer(_momentum_step, 1)


def _adagrad(rate, count, *tensors, norm_coefficient=0.0, decay_factor=0.0, epsilon=9.999999974752427e-07):
    attrs = dict(norm_coefficient=norm_coefficient, decay_factor=decay_factor, epsilon=epsilon)
    return _run_adagrad(rate, count, tensors, attrs)


def _adam(
    rate, count, *tensors, alpha=0.8999999761581421, beta=0.9990000128746033, epsilon=9.999999974752427e-07,
    norm_coefficient=0.0, norm_coefficient_post=0.0,
):  # fmt: skip
    attrs = dict(alpha=alpha, beta=beta, epsilon=epsilon, norm_coefficient=norm_coefficient)
    return _run_adam(rate, count, tensors, attrs | {"norm_coefficient_post": norm_coefficient_post})


def _momentum(rate, count, *tensors, alpha, beta, mode, norm_coefficient):
    if mode not in ("standard", "nesterov"):
        raise InputError(f"mode is {mode!r}; it must be 'standard' or 'nesterov'")
    attrs = dict(alpha=alpha, beta=beta, norm_coefficient=norm_coefficient, nesterov=mode == "nesterov")
    return _run_momentum(rate, count, tensors, attrs)


def _optimizer_types(states: int):
    def infer(call: Call) -> list[Type]:
        check_type(call, 0, _FLOATS)
        check_type(call, 1, ("int64",))
        tensors = len(call.node.inputs) - 2
        n, rest = divmod(tensors, 2 + states)
        if n == 0 or rest:
            raise call.fail(f"has {tensors} tensors; they must come in {2 + states} groups of equal size")
        kinds: list[TensorType] = []
        for i in range(n):
            own = [check_type(call, 2 + i + group * n, _FLOATS) for group in range(2 + states)]
            if len({t.dtype for t in own}) > 1:
                raise call.fail(f"tensor {i}: value, gradient and states differ in element type")
            kinds.append(TensorType(own[0].dtype, equal_shape(call, *(t.shape for t in own))))
        return [*kinds] * (1 + states)

    return infer


def _sum_to(gradient, like):
    """`gradient` summed over the axes along which `like` was broadcast to its shape."""
    ahead = gradient.ndim - like.ndim
    stretched = tuple(
        i for i, d in enumerate(gradient.shape) if i < ahead or (like.shape[i - ahead] == 1 and d != 1)
    )  # fmt: skip
    wide = gradient.astype(np.float64) if gradient.dtype.itemsize < 8 else gradient
    return narrow(wide.sum(axis=stretched), gradient.dtype).reshape(like.shape)


def _sum_to_types(call: Call) -> Type:
    return TensorType(call.dtype(0), call.shape(1))


register(Op("Adagrad", since=1, domain=DOMAIN, infer=_optimizer_types(1), reference=_adagrad))
register(Op("Adam", since=1, domain=DOMAIN, infer=_optimizer_types(2), reference=_adam))
register(Op("Momentum", since=1, domain=DOMAIN, infer=_optimizer_types(1), reference=_momentum))
register(Op("SumTo", since=1, domain="minifer", infer=_sum_to_types, reference=_sum_to))  # for passes.gradient
