"""Fused products, convolutions and embeddings of com.microsoft through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(5)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def check(op, inputs, outputs, consts=(), native=True, tolerance=1e-5, **attrs):
    """One node; inputs are (name, value or None), those named in `consts` are known while planning."""
    given = {name: value for name, value in inputs.items() if value is not None}
    made = node(op, [n if n in given else "" for n in inputs], outputs, 1, "com.microsoft", **attrs)
    known = {n: given.pop(n) for n in consts if n in given}
    return check_native(model([made], given, known, [o for o in outputs if o]), given, tolerance, native)


PRODUCTS = [((13, 21), (21, 17)), ((3, 13, 21), (3, 21, 17)), ((2, 1, 7, 5), (3, 5, 4)), ((2, 5, 9), (9, 3))]


@pytest.mark.parametrize("flip_a, flip_b", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("a, b", PRODUCTS)
@pytest.mark.parametrize("constant", [True, False])
def test_fused_matmul(flip_a, flip_b, a, b, constant):
    a = (*a[:-2], a[-1], a[-2]) if flip_a else a
    b = (*b[:-2], b[-1], b[-2]) if flip_b else b
    consts = ["b"] if constant else []
    attrs = {"transA": flip_a, "transB": flip_b, "alpha": 0.25}
    check("FusedMatMul", {"a": draw(*a), "b": draw(*b)}, ["y"], consts, **attrs)


@pytest.mark.parametrize("turn_a, turn_b", [(0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("flip_b", [0, 1])
def test_fused_matmul_with_the_batch_behind_the_rows(turn_a, turn_b, flip_b):
    b = (9, 5, 3, 8) if turn_b else (5, 3, 9, 8)
    if flip_b:
        b = (8, 5, 3, 9) if turn_b else (5, 3, 8, 9)
    a = (7, 5, 3, 9) if turn_a else (5, 3, 7, 9)
    attrs = {"transBatchA": turn_a, "transBatchB": turn_b, "transB": flip_b}
    check("FusedMatMul", {"a": draw(*a), "b": draw(*b)}, ["y"], **attrs)


@pytest.mark.parametrize("a, b", [((9,), (9, 4)), ((4, 9), (9,)), ((9,), (9,))])
def test_fused_matmul_of_vectors(a, b):
    check("FusedMatMul", {"a": draw(*a), "b": draw(*b)}, ["y"], alpha=2.0)


ACTIVATIONS = [
    (None, {}), ("Relu", {}), ("Tanh", {}), ("LeakyRelu", {}), ("LeakyRelu", {"activation_alpha": 0.3}),
    ("Sigmoid", {}), ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}), ("Elu", {}), ("Softplus", {}),
]  # fmt: skip


@pytest.mark.parametrize("name, parameters", ACTIVATIONS)
@pytest.mark.parametrize("constant", [True, False])
def test_fused_gemm(name, parameters, constant):
    attrs = {} if name is None else {"activation": name, **parameters}
    inputs = {"a": draw(11, 19), "b": draw(23, 19), "c": draw(23)}
    check("FusedGemm", inputs, ["y"], ["b", "c"] if constant else [], transB=1, alpha=0.5, beta=2.0, **attrs)


def test_an_activation_without_a_kernel_runs_by_reference():
    check("FusedGemm", {"a": draw(4, 5), "b": draw(5, 6)}, ["y"], native=False, activation="Selu")


@pytest.mark.parametrize("name, parameters", [
    (None, ()), ("Relu", ()), ("Clip", (-0.5, 0.5)), ("LeakyRelu", (0.2,)), ("HardSigmoid", (0.2, 0.5)), ("Tanh", ()),
])  # fmt: skip
@pytest.mark.parametrize("form", ["dense", "depthwise", "pointwise"])
@pytest.mark.parametrize("residual", [True, False])
def test_fused_conv(name, parameters, form, residual):
    filters, group, kernel = {"dense": (12, 1, 3), "depthwise": (8, 8, 3), "pointwise": (12, 1, 1)}[form]
    attrs = {"kernel_shape": (kernel, kernel), "pads": (kernel // 2,) * 4, "group": group}
    if name is not None:
        attrs |= {"activation": name, **({"activation_params": parameters} if parameters else {})}
    inputs = {
        "x": draw(2, 8, 9, 11), "w": draw(filters, 8 // group, kernel, kernel), "b": draw(filters),
        "z": draw(2, filters, 9, 11) if residual else None,
    }  # fmt: skip
    check("FusedConv", inputs, ["y"], ["w", "b"], **attrs)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("form", ["all", "words", "shared", "each"])
def test_embed_layer_norm(dtype, form):
    batch, length, hidden = 3, 7, 20
    inputs = {
        "ids": RNG.integers(0, 30, (batch, length)).astype(dtype),
        "kinds": RNG.integers(0, 2, (batch, length)).astype(dtype) if form != "words" else None,
        "word": draw(30, hidden), "position": draw(12, hidden), "segment": draw(2, hidden) if form != "words" else None,
        "gamma": draw(hidden), "beta": draw(hidden),
        "mask": RNG.integers(0, 2, (batch, length)).astype("i4") if form != "words" else None,
        "places": {"shared": RNG.integers(0, 12, (1, length)), "each": RNG.integers(0, 12, (batch, length))}.get(form),
    }  # fmt: skip
    if inputs["places"] is not None:
        inputs["places"] = inputs["places"].astype(dtype)
    check("EmbedLayerNormalization", inputs, ["y", "count", "sum"], ["word", "position", "segment"], epsilon=1e-6)


@pytest.mark.parametrize("op", ["Gelu", "FastGelu", "BiasGelu", "QuickGelu"])
@pytest.mark.parametrize("shape", [(3, 7, 33), (41,), (2, 1)])
def test_gelu(op, shape):
    biased = op in ("FastGelu", "BiasGelu")
    if biased:
        check(op, {"x": draw(*shape), "b": draw(shape[-1])}, ["y"], ["b"])
    if op != "BiasGelu":
        check(op, {"x": draw(*shape)}, ["y"])


@pytest.mark.parametrize("skip", [(2, 5, 24), (1, 5, 24), (5, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_skip_layer_norm(skip, bias, op):
    inputs = {"x": draw(2, 5, 24), "skip": draw(*skip), "gamma": draw(24)}
    if op == "SkipLayerNormalization":
        inputs["beta"] = draw(24)
    inputs["bias"] = draw(24) if bias else None
    check(op, inputs, ["y", "", "", "sum"], ["gamma", "beta", "bias"], epsilon=1e-5)
