"""Elementwise operators through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from minifer import dtypes
from minifer.errors import InputError
from minifer.session import Session
from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(11)
HALVES = ("float16", "bfloat16")


def draw(shape, dtype="float32", low=-3.0, high=3.0):
    x = RNG.uniform(low, high, shape)
    if dtype in dtypes.INTEGERS:
        x = np.rint(x * 4 if not dtype.startswith("u") else np.abs(x) * 4)
    return x.astype(dtypes.to_numpy(dtype))


def run(op, inputs, consts=(), tolerance=1e-6, version=21, **attrs):
    """One node on these inputs, some of them constants, natively and by reference."""
    names = {f"x{i}": v for i, v in enumerate(inputs)}
    fixed = {n: v for i, (n, v) in enumerate(names.items()) if i in consts}
    fed = {n: v for n, v in names.items() if n not in fixed}
    made = model([node(op, list(names), ["y"], version, **attrs)], fed, fixed, ["y"])
    return check_native(made, fed, tolerance)


def tolerance_of(dtype):
    return {"float16": 2e-3, "bfloat16": 1.6e-2}.get(dtype, 1e-6)


UNARY = [
    ("Abs", {}), ("Neg", {}), ("Sign", {}), ("Sqrt", {}), ("Exp", {}), ("Log", {}), ("Floor", {}), ("Ceil", {}),
    ("Round", {}), ("Reciprocal", {}), ("Erf", {}), ("Sin", {}), ("Cos", {}), ("Tan", {}), ("Asin", {}), ("Acos", {}),
    ("Atan", {}), ("Sinh", {}), ("Cosh", {}), ("Asinh", {}), ("Acosh", {}), ("Atanh", {}), ("Tanh", {}),
    ("Sigmoid", {}), ("Relu", {}), ("Softplus", {}), ("Softsign", {}), ("HardSwish", {}), ("Mish", {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("LeakyRelu", {"alpha": 0.3}), ("Elu", {"alpha": 0.7}),
    ("Celu", {"alpha": 1.3}), ("Selu", {}), ("Selu", {"alpha": 1.2, "gamma": 0.9}), ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}), ("ThresholdedRelu", {"alpha": 0.5}), ("Shrink", {"lambd": 1.0, "bias": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize("op, attrs", UNARY)
@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_functions_of_one_number(op, attrs, dtype):
    low, high = {"Log": (0.01, 9), "Sqrt": (0, 9), "Acosh": (1, 9)}.get(op, (-0.99, 0.99) if "A" in op[0] else (-3, 3))
    run(op, [draw((3, 5, 7), dtype, low, high)], tolerance=tolerance_of(dtype), **attrs)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float64"])
def test_simple_functions_of_other_types(dtype):
    x = draw((4, 9), dtype)
    run("Abs", [x])
    run("Sign", [x])
    run("Relu", [x])
    run("Clip", [x, np.array(1, x.dtype), np.array(5, x.dtype)], consts=(1, 2))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (5000,), (3, 4097)])
def test_sizes(shape):
    run("Sigmoid", [draw(shape)])
    run("Add", [draw(shape), draw(shape)])


SHAPES = [
    ((3, 5), (3, 5)), ((3, 5), (5,)), ((3, 5), (3, 1)), ((3, 5), ()), ((1, 5), (3, 1)), ((2, 3, 4, 5), (3, 1, 5)),
    ((2, 3, 4, 5), (2, 1, 4, 1)), ((2, 1, 4, 1), (3, 1, 5)), ((1,), (1,)), ((2, 9000), (9000,)), ((9, 1), (1, 5000)),
    ((2, 1, 2, 1, 2, 1, 2, 1, 2), (1, 2, 1, 2, 1, 2, 1, 2, 1)),
]  # fmt: skip


@pytest.mark.parametrize("a, b", SHAPES)
def test_broadcasting(a, b):
    native = len(a) < 9
    names = {"a": draw(a), "b": draw(b, low=0.5)}
    for left, right in (("a", "b"), ("b", "a")):
        made = model([node("Sub", [left, right], ["y"])], names, {}, ["y"])
        check_native(made, names, 1e-6, native)


ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min")
COMPARISONS = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")


@pytest.mark.parametrize("dtype", [*HALVES, "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
@pytest.mark.parametrize("op", [*ARITHMETIC, *COMPARISONS])
def test_types(op, dtype):
    b = draw((3, 1, 9), dtype)
    b[b == 0] = 3
    run(op, [draw((3, 4, 1), dtype), b], tolerance=tolerance_of(dtype))


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64", "int8"])
@pytest.mark.parametrize("fmod", [0, 1])
def test_remainders(dtype, fmod):
    a, b = draw((4, 9), dtype), draw((9,), dtype)
    b[b == 0] = 2
    run("Mod", [a, b], version=28 if dtype == "float32" else 21, fmod=fmod)


def test_the_smallest_integer_divided_by_minus_one():
    for dtype in (np.int32, np.int64):
        least = np.full(5, np.iinfo(dtype).min, dtype)
        run("Div", [least, np.full(5, -1, dtype)])
        run("Mod", [least, np.full(5, -1, dtype)])


def test_division_by_zero_is_refused():
    fed = {"a": np.ones((2, 3), np.int64), "b": np.array([1, 0, 1])}
    made = model([node("Div", ["a", "b"], ["y"])], fed, {}, ["y"])
    for threads in (1, 2):
        with pytest.raises(InputError, match=r"Div_y.*division by zero"):
            Session(made, threads=threads).run(fed)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -0.5, -1.0, 1.7, -2.0])
@pytest.mark.parametrize("known", [False, True])
def test_powers(exponent, known):
    run("Pow", [draw((3, 9), low=0.1), np.float32(exponent)], consts=(1,) if known else ())
    run("Pow", [draw((3, 9)), draw((9,))])


def test_clip_with_bounds_of_the_run():
    run("Clip", [draw((3, 9)), np.float32(-1), np.float32(0.5)])
    run("Clip", [draw((3, 9), "int64"), np.int64(-2)])
    run("Clip", [draw((3, 9), "float16"), np.float16(-1), np.float16(0.5)], consts=(1, 2))


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_inputs(op, count):
    shapes = [(3, 1), (4,), (2, 3, 4), (1,)]
    run(op, [draw(s) for s in shapes[:count]])
    run(op, [draw((1, 5), "float16") for _ in range(count)], tolerance=2e-3)


@pytest.mark.parametrize("op", ["And", "Or", "Xor", "Equal"])
def test_truth(op):
    run(op, [RNG.integers(0, 2, (3, 4, 9)) > 0, RNG.integers(0, 2, (4, 1)) > 0])
    run("Not", [RNG.integers(0, 2, (3, 40)) > 0])


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint64"])
def test_bits(dtype):
    a, b = draw((5, 9), dtype), draw((9,), dtype)
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        run(op, [a, b])
    run("BitwiseNot", [a])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nan_and_infinity(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0, 1] * 5, dtypes.to_numpy(dtype))
    run("IsNaN", [x])
    run("IsInf", [x])
    run("IsInf", [x], detect_positive=0)
    run("IsInf", [x], detect_negative=0)
    run("Relu", [x])
    run("Max", [x, x[::-1].copy()])


def test_slopes():
    run("PRelu", [draw((2, 5, 3, 4)), draw((5, 1, 1))], consts=(1,))
    run("PRelu", [draw((2, 5)), draw((5,), low=0.0)])


@pytest.mark.parametrize("attrs, b", [({}, (2, 3, 4)), ({"broadcast": 1}, (4,)), ({"broadcast": 1, "axis": 1}, (3,)),
                                      ({"broadcast": 1, "axis": 0}, (2, 3)), ({"broadcast": 1}, (1,))])  # fmt: skip
def test_broadcasting_of_the_first_opsets(attrs, b):
    for op in ("Add", "Greater"):
        run(op, [draw((2, 3, 4)), draw(b)], version=6, **attrs)


CAST_TYPES = ["float32", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool", *HALVES]


@pytest.mark.parametrize("source", CAST_TYPES)
@pytest.mark.parametrize("target", CAST_TYPES)
def test_casts(source, target):
    if source == "bool":
        x = RNG.integers(0, 2, 77) > 0
    elif source in dtypes.INTEGERS:
        info = np.iinfo(source)
        x = RNG.integers(info.min, info.max, 77).astype(source)
        x[::3] = RNG.integers(0, 3, 26)
    else:
        x = np.concatenate(
            [RNG.standard_normal(72) * 2.0 ** RNG.integers(-9, 40, 72), [np.nan, np.inf, -np.inf, 0, -0.0]]
        )
        with np.errstate(all="ignore"):
            x = x.astype(dtypes.to_numpy(source))
    fed = {"x": x.reshape(7, 11)}
    made = model([node("Cast", ["x"], ["y"], 21, to=dtypes.code_of_name(target))], fed, {}, ["y"])
    check_native(made, fed, 0.0, native=False)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Sum", "Mean"])
@pytest.mark.parametrize("after", ["Relu", "Clip"])
def test_bounds_after_arithmetic_cost_nothing(op, after):
    fed = {"a": draw((3, 40)), "b": draw((40,), low=0.5)}
    bounds = {"low": np.float32(-0.5), "high": np.float32(0.75)}
    nodes = [node(op, ["a", "b"], ["s"]), node(after, ["s", *(bounds if after == "Clip" else {})], ["y"])]
    kernels = check_native(model(nodes, fed, bounds, ["y"]), fed, 1e-6)
    assert after not in [k.node.op for k in kernels]
    check_native(model(nodes, fed, bounds, ["y", "s"]), fed, 1e-6)


# ---------------------------------------------------------------- layouts


def transpositions(kernels):
    return sum(k.kernel.name.startswith("transpose") for k in kernels)


@pytest.mark.parametrize("other", [(2, 5, 4, 6), (5, 1, 1), (1, 5, 1, 1), (2, 5, 1, 1), (), (1, 1, 1, 1), (6,), (4, 1)])
@pytest.mark.parametrize("known", [False, True])
def test_channels_last_data_stays_so(other, known):
    """Between two poolings, which work channels-last, nothing is turned round."""
    fed = {"x": draw((2, 5, 4, 6))}
    consts = {"b": draw(other)} if known else {}
    if not known:
        fed["b"] = draw(other)
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1]),
        node("Add", ["p", "b"], ["s"]),
        node("Tanh", ["s"], ["t"]),
        node("Mul", ["t", "p"], ["m"]),
        node("MaxPool", ["m"], ["y"], kernel_shape=[1, 1]),
    ]
    kernels = check_native(model(nodes, fed, consts, ["y"]), fed)
    whole = other == (2, 5, 4, 6) and not known
    assert transpositions(kernels) == 2 + whole


def test_operands_of_fewer_axes_that_do_not_fit_channels_last():
    """(5, 4, 6) runs along the channels of (2, 5, 4, 6): the sum is taken in the plain layout."""
    fed = {"x": draw((2, 5, 4, 6)), "b": draw((5, 4, 6))}
    nodes = [node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1]), node("Add", ["p", "b"], ["y"])]
    check_native(model(nodes, fed, {}, ["y"]), fed)
