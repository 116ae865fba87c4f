"""QuantizeLinear, DequantizeLinear and their like through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(11)
MICROSOFT = "com.microsoft"


def draw(*shape, spread=3.0):
    return (RNG.standard_normal(shape) * spread).astype(np.float32)


def whole(dtype, *shape):
    info = np.iinfo(dtype)
    return RNG.integers(max(info.min, -70000), min(info.max, 70000) + 1, shape).astype(dtype)


def run(nodes, inputs, consts, outputs=("y",), native=True):
    return check_native(model(nodes, inputs, consts, list(outputs)), inputs, native=native)


PARAMETERS = [
    # data, scale, attributes
    ((3, 5, 7), (), {}),
    ((3, 5, 7), (1,), {}),
    ((2, 20000), (), {}),
    ((2, 19, 4, 5), (19,), {"axis": 1}),
    ((2, 19, 4, 5), (5,), {"axis": -1}),
    ((13, 3), (13,), {"axis": 0}),
    ((21,), (21,), {"axis": 1}),
    ((2, 12, 7), (2, 3, 7), {"axis": 1, "block_size": 4}),
    ((5, 32), (5, 2), {"axis": -1, "block_size": 16}),
    ((), (), {}),
]


@pytest.mark.parametrize("shape, scale, attrs", PARAMETERS)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("zeros", [False, True])
def test_quantize_and_back(shape, scale, attrs, dtype, zeros):
    consts = {"s": np.abs(draw(*scale, spread=0.05)) + np.float32(1e-3)}
    if zeros or dtype != "uint8":
        consts["z"] = whole(dtype, *scale)
    inputs = {"x": draw(*shape)}
    names = list(consts)
    run([node("QuantizeLinear", ["x", *names], ["y"], **attrs)], inputs, consts)
    run([node("DequantizeLinear", ["x", *names], ["y"], **attrs)], {"x": whole(dtype, *shape)}, consts)


def test_ties_saturation_and_nan():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300, np.nan, np.inf, -np.inf, 1e30, 127.5, 254.5], np.float32)
    for zero in (np.uint8(0), np.uint8(3), np.int8(-4), np.int16(5), np.uint16(7)):
        run([node("QuantizeLinear", ["x", "s", "z"], ["y"])], {"x": x}, {"s": np.float32(1), "z": np.array(zero)})


def test_parameters_known_at_run_time():
    inputs = {"x": draw(2, 9, 4), "s": np.abs(draw(9)) + np.float32(0.01), "z": whole("int8", 9)}
    run([node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=1)], inputs, {})


def test_int32_of_a_bias():
    consts = {"s": np.abs(draw(6)) + np.float32(0.1)}
    run([node("DequantizeLinear", ["x", "s"], ["y"], axis=0)], {"x": whole("int32", 6, 3)}, consts)


def test_blocks_that_do_not_divide_run_by_reference():
    consts = {"s": np.abs(draw(2, 3)) + np.float32(0.1)}
    run([node("QuantizeLinear", ["x", "s"], ["y"], axis=1, block_size=4)], {"x": draw(2, 10)}, consts, native=False)


def test_channels_last_stays():
    """Between two convolutions no layout is changed, whatever axis the scale runs along."""
    inputs = {"x": draw(1, 3, 9, 9)}
    consts = {
        "w": draw(12, 3, 3, 3),
        "v": draw(5, 12, 1, 1),
        "s": np.abs(draw(12)) + np.float32(0.1),
        "z": whole("int8", 12),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("QuantizeLinear", ["c", "s", "z"], ["q"], axis=1),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=-3), node("Conv", ["d", "v"], ["y"]),
    ]  # fmt: skip
    kernels = run(nodes, inputs, consts)
    between = [k.kernel.name for k in kernels if k.node.op != "Conv"]
    assert between == ["quantize_i8", "dequantize_i8"], between


@pytest.mark.parametrize("x", [draw(3, 7), draw(9000), draw(2, 3, 5) + 9, -abs(draw(20)), np.zeros((4, 5), np.float32)])
def test_dynamic_quantize(x):
    run([node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])], {"x": x}, {}, ("y", "s", "z"))
    run([node("DynamicQuantizeLinear", ["x"], ["", "s"])], {"x": x}, {}, ("s",))


def test_microsoft_forms():
    consts = {"s": np.abs(draw(5)) + np.float32(0.1), "z": whole("uint8", 5), "t": np.float32(0.2)}
    for op, x in (("QuantizeLinear", draw(2, 5, 3)), ("DequantizeLinear", whole("uint8", 2, 5, 3))):
        run([node(op, ["x", "s", "z"], ["y"], 1, MICROSOFT, axis=1)], {"x": x}, consts)
        run([node(op, ["x", "t"], ["y"], 1, MICROSOFT)], {"x": x}, consts)
