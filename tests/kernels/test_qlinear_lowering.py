"""The quantised elementwise operators and pools of com.microsoft: native against reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(21)
MICROSOFT = "com.microsoft"


def whole(dtype, *shape):
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def scale(least=0.02):
    return RNG.uniform(least, 5 * least, ()).astype(np.float32)


def run(nodes, inputs, consts, native=True):
    return check_native(model(nodes, inputs, consts, ["y"]), inputs, native=native)


SHAPES = [
    ((3, 5, 7), (3, 5, 7)), ((3, 5, 7), (7,)), ((2, 6, 4, 5), (6, 1, 1)), ((4, 1, 9), (3, 1)), ((), (9000,)),
    ((1,), (1,)), ((3, 1, 4), (1, 5, 4)),
]  # fmt: skip


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("a, b", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_two_tensors(op, a, b, dtype):
    inputs = {"a": whole(dtype, *a), "b": whole(dtype, *b)}
    consts = {
        "as": scale(),
        "az": whole(dtype),
        "bs": scale(),
        "bz": whole(dtype),
        "ys": scale(0.05),
        "yz": whole(dtype),
    }
    run([node(op, ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"], 1, MICROSOFT)], inputs, consts)
    run([node(op, ["a", "as", "", "b", "bs", "", "ys"], ["y"], 1, MICROSOFT)], inputs | consts, {})


def test_a_residual_stays_channels_last():
    consts = {"s": scale(), "z": whole("uint8"), "w": whole("int8", 16, 16, 1, 1), "wz": np.int8(0), "t": scale(0.1)}
    conv, tail = ["w", "s", "wz", "t", "z"], ["t", "z"]
    nodes = [
        node("QLinearConv", ["x", "s", "z", *conv], ["p"]), node("QLinearConv", ["p", *tail, *conv], ["q"]),
        node("QLinearAdd", ["p", *tail, "q", *tail, *tail], ["r"], 1, MICROSOFT),
        node("QLinearLeakyRelu", ["r", *tail, *tail], ["l"], 1, MICROSOFT, alpha=0.1),
        node("QLinearConcat", [*tail, "l", *tail, "p", "s", "z"], ["c"], 1, MICROSOFT, axis=1),
        node("QLinearGlobalAveragePool", ["c", *tail, *tail], ["y"], 1, MICROSOFT),
    ]  # fmt: skip
    kernels = run(nodes, {"x": whole("uint8", 2, 16, 9, 9)}, consts)
    moves = [k.kernel.name for k in kernels if "transpose" in k.kernel.name]
    assert len(moves) == 1, moves  # of the input


@pytest.mark.parametrize("op, attrs", [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.3})])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_one_tensor(op, attrs, dtype):
    consts = {"s": scale(), "z": whole(dtype), "ys": scale(0.004), "yz": whole(dtype)}
    for shape in ((3, 5, 7), (9000,)):
        inputs = {"x": whole(dtype, *shape)}
        run([node(op, ["x", "s", "z", "ys", "yz"], ["y"], 1, MICROSOFT, **attrs)], inputs, consts)
    run([node(op, ["x", "s", "", "ys"], ["y"], 1, MICROSOFT, **attrs)], inputs, consts)
    run([node(op, ["x", "s", "z", "ys"], ["y"], 1, MICROSOFT, **attrs)], inputs | consts, {}, native=False)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_concat(axis, dtype):
    inputs = {"a": whole(dtype, 3, 4, 5), "b": whole(dtype, 3, 4, 5), "c": whole(dtype, 3, 4, 5)}
    consts = {"s": scale(), "z": whole(dtype), "t": scale(), "u": whole(dtype)}
    names = ["s", "z", "a", "s", "z", "b", "t", "u", "c", "s", "u"]
    run([node("QLinearConcat", names, ["y"], 1, MICROSOFT, axis=axis)], inputs, consts)


POOLS = [
    ((1, 3, 12, 13), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 17, 11, 9), {"kernel_shape": [2, 3], "strides": [2, 1], "ceil_mode": 1}),
    ((1, 8, 20), {"kernel_shape": [4], "strides": [3], "pads": [1, 2], "count_include_pad": 1}),
]


@pytest.mark.parametrize("shape, attrs", POOLS)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("last", [0, 1])
def test_pools(shape, attrs, dtype, last):
    shape = (shape[0], *shape[2:], shape[1]) if last else shape
    inputs = {"x": whole(dtype, *shape)}
    consts = {"s": scale(), "z": whole(dtype), "ys": scale(), "yz": whole(dtype)}
    names = ["x", "s", "z", "ys", "yz"]
    run([node("QLinearAveragePool", names, ["y"], 1, MICROSOFT, channels_last=last, **attrs)], inputs, consts)
    run([node("QLinearGlobalAveragePool", names, ["y"], 1, MICROSOFT, channels_last=last)], inputs, consts)
