"""Gelu, Swish and Mish are found however they are written out, and only where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.passes.checking import draw, fused, node

X = {"x": draw(3, 20) * 3}
ROOT, TANH, CUBE = math.sqrt(2), math.sqrt(2 / math.pi), 0.044715


def numbers(**values):
    return {name: np.array(value, np.float32) for name, value in values.items()}


ERF_FORMS = {
    "torch": [("Div", "x root", "a"), ("Erf", "a", "e"), ("Add", "e one", "p"), ("Mul", "x p", "m"),
              ("Mul", "m half", "y")],
    "dynamo": [("Div", "x root", "a"), ("Erf", "a", "e"), ("Add", "e one", "p"), ("Mul", "half p", "h"),
               ("Mul", "x h", "y")],
    "half first": [("Mul", "x inverse", "a"), ("Erf", "a", "e"), ("Add", "one e", "p"), ("Mul", "x half", "h"),
                   ("Mul", "h p", "y")],
    "divided": [("Mul", "inverse x", "a"), ("Erf", "a", "e"), ("Add", "e one", "p"), ("Mul", "p x", "m"),
                ("Div", "m two", "y")],
}  # fmt: skip
TANH_FORMS = {
    "power": [("Pow", "x three", "c"), ("Mul", "c cube", "k"), ("Add", "x k", "s"), ("Mul", "s tanh", "a"),
              ("Tanh", "a", "t"), ("Add", "t one", "p"), ("Mul", "x half", "h"), ("Mul", "h p", "y")],
    "products": [("Mul", "x x", "q"), ("Mul", "q x", "c"), ("Mul", "cube c", "k"), ("Add", "k x", "s"),
                 ("Mul", "tanh s", "a"), ("Tanh", "a", "t"), ("Add", "one t", "p"), ("Mul", "p half", "h"),
                 ("Mul", "h x", "y")],
    "factored": [("Mul", "x x", "q"), ("Mul", "q cube", "k"), ("Add", "k one", "s"), ("Mul", "x tanh", "l"),
                 ("Mul", "l s", "a"), ("Tanh", "a", "t"), ("Add", "t one", "p"), ("Mul", "x p", "m"),
                 ("Mul", "m half", "y")],
}  # fmt: skip
CONSTS = numbers(root=ROOT, inverse=1 / ROOT, one=1, half=0.5, two=2, three=3, cube=CUBE, tanh=TANH)


def build(form):
    return [node(op, inputs.split(), [out]) for op, inputs, out in form]


@pytest.mark.parametrize("form", ERF_FORMS.values(), ids=ERF_FORMS)
def test_gelu_by_the_error_function(form):
    assert fused(build(form), X, CONSTS) == ["Gelu"]


@pytest.mark.parametrize("form", TANH_FORMS.values(), ids=TANH_FORMS)
def test_gelu_by_the_hyperbolic_tangent(form):
    assert fused(build(form), X, CONSTS) == ["Gelu"]


@pytest.mark.parametrize("name, value", [("root", 1.5), ("one", 1.1), ("half", 0.25)])
def test_other_constants_are_no_gelu(name, value):
    consts = {**CONSTS, **numbers(**{name: value})}
    assert "Gelu" not in fused(build(ERF_FORMS["torch"]), X, consts)


def test_another_cube_is_no_gelu():
    assert "Gelu" not in fused(build(TANH_FORMS["power"]), X, {**CONSTS, **numbers(cube=0.0447)})


def test_a_gate_of_something_else_is_no_gelu():
    form = [*ERF_FORMS["torch"][:3], ("Mul", "z p", "m"), ("Mul", "m half", "y")]
    assert "Gelu" not in fused(build(form), {**X, "z": draw(3, 20)}, CONSTS)


@pytest.mark.parametrize("inner", ["e", "p", "m"])
def test_what_is_read_elsewhere_stays(inner):
    assert "Gelu" not in fused(build(ERF_FORMS["torch"]), X, CONSTS, ("y", inner))


def test_float64_is_left_alone():
    consts = {name: value.astype(np.float64) for name, value in CONSTS.items()}
    assert "Gelu" not in fused(build(ERF_FORMS["torch"]), {"x": X["x"].astype(np.float64)}, consts)


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swish(alpha):
    form = [("Mul", "x alpha", "a"), ("Sigmoid", "a", "s"), ("Mul", "s x", "y")]
    assert fused(build(form), X, numbers(alpha=alpha)) == ["Swish"]


def test_plain_swish_and_a_gate_read_twice():
    form = [("Sigmoid", "x", "s"), ("Mul", "x s", "y")]
    assert fused(build(form), X, {}) == ["Swish"]
    assert fused(build(form), X, {}, ("y", "s")) == ["Mul", "Sigmoid"]


def test_mish():
    form = [("Softplus", "x", "s"), ("Tanh", "s", "t"), ("Mul", "x t", "y")]
    assert fused(build(form), X, {}) == ["Mish"]
