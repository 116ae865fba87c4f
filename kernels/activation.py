"""Activation functions on vectors, by code: what an epilogue applies to a finished result.

Which one runs is a runtime number, because one branch per vector costs nothing beside the exponential that
follows it, and kernels need not be compiled once per activation.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.mathfn import erf, expm1, sigmoid, softplus, tanh
from minifer.kernels.simd import lanes, vfma, vload, vload_part, vmax_quick, vmin_quick, vselect, vstore, vstore_part

CLAMP, LEAKY, SIGMOID, TANH, SILU, HARD_SIGMOID, HARD_SWISH, GELU, GELU_TANH, ELU, SOFTPLUS, MISH = range(12)


def activation_reference(x, code, first, second):
    """The activations that examples draw."""
    return np.clip(x, first, second) if code == CLAMP else np.where(x < 0, x * first, x)


def activate(x, code, first, second):
    """The activation `code` of the vector (or number) x, f32; `first` and `second` are its parameters.

    CLAMP: min(max(x, first), second). LEAKY: x < 0 ? first * x : x. HARD_SIGMOID: clamp(first * x + second, 0, 1).
    HARD_SWISH: x * clamp(x / 6 + 1/2, 0, 1) * first + second, where mobile networks scale and shift what it gives.
    ELU: x < 0 ? first * (exp(x) - 1) : x. The others take none (definitions: the ONNX operators of these names).
    """
    if code == CLAMP:
        return vmin_quick(second, vmax_quick(first, x))
    if code == LEAKY:
        return vselect(x < 0, x * first, x)
    if code == SIGMOID:
        return sigmoid(x)
    if code == TANH:
        return tanh(x)
    if code == SILU:
        return x * sigmoid(x)
    if code == HARD_SIGMOID:
        return vmin_quick(1, vmax_quick(0, x * first + second))
    if code == HARD_SWISH:
        return vfma(x * vmin_quick(1, vmax_quick(0, x * 0.16666667 + 0.5)), first, second)
    if code == GELU:
        return x * 0.5 * (erf(x * 0.70710677) + 1)
    if code == GELU_TANH:
        return x * 0.5 * (tanh((x * x * x * 0.044715 + x) * 0.7978846) + 1)
    if code == ELU:
        return vselect(x < 0, expm1(x) * first, x)
    if code == SOFTPLUS:
        return softplus(x)
    return x * tanh(softplus(x))


def activate_rows(y, stride, m, n, code, first, second):
    """Apply an activation to m rows of n columns in place."""
    w = lanes(y)
    for i in range(m):
        row = y + i * stride
        for j in range(0, n // w * w, w):
            vstore(row, j, activate(vload(row, j), code, first, second))
        j = n // w * w
        if j < n:
            vstore_part(row, j, activate(vload_part(row, j, n - j), code, first, second), n - j)
