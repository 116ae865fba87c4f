"""Conv, ConvTranspose and pools through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.errors import ShapeError
from minifer.session import Session
from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(7)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


CONVS = [
    # x, w, attributes
    ((1, 3, 17, 19), (8, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((2, 16, 9, 11), (24, 16, 1, 1), {}),
    ((1, 16, 9, 11), (5, 16, 3, 5), {"pads": [1, 0, 2, 3], "dilations": [2, 1]}),
    ((1, 12, 8, 8), (18, 4, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    ((1, 40, 10, 13), (40, 1, 3, 3), {"group": 40, "pads": [1, 1, 1, 1]}),
    ((2, 13, 10, 13), (13, 1, 5, 5), {"group": 13, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((1, 6, 7, 7), (12, 1, 3, 3), {"group": 6}),
    ((1, 8, 31), (20, 8, 5), {"pads": [4, 0], "dilations": [2]}),
    ((1, 3, 6, 7, 8), (10, 3, 3, 2, 3), {"pads": [1, 0, 1, 0, 1, 1], "strides": [1, 2, 1]}),
    ((1, 1, 50), (4, 1, 16), {"strides": [8]}),
    ((3, 2, 5, 5), (1, 2, 5, 5), {"pads": [2, 2, 2, 2]}),
]


@pytest.mark.parametrize("x, w, attrs", CONVS)
@pytest.mark.parametrize("biased", [False, True])
def test_conv(x, w, attrs, biased):
    inputs = {"x": draw(*x)}
    consts = {"w": draw(*w), **({"b": draw(w[0])} if biased else {})}
    kernels = check_native(model([node("Conv", ["x", *consts], ["y"], **attrs)], inputs, consts, ["y"]), inputs)
    assert {"conv", "depthwise", "gemm"} & {k.kernel.name for k in kernels}


@pytest.mark.parametrize("x, w, attrs", [*CONVS, ((1, 20, 9, 9), (17, 20, 3, 3), {"pads": [1, 1, 1, 1]})])
@pytest.mark.parametrize("biased", [False, True])
def test_conv_whose_weights_only_the_run_knows(x, w, attrs, biased):
    inputs = {"x": draw(*x), "w": draw(*w), **({"b": draw(w[0])} if biased else {})}
    out = "c" if biased else "y"
    nodes = [node("Conv", [*inputs], [out], **attrs)]
    if biased:
        inputs["r"] = draw(*Session(model(nodes, inputs, {}, ["c"]), executor="reference").run(inputs)["c"].shape)
        nodes += [node("Add", ["c", "r"], ["s"]), node("Relu", ["s"], ["y"])]
    kernels = check_native(model(nodes, inputs, {}, ["y"]), inputs)
    assert "pack_filters" in {k.kernel.name for k in kernels}
    assert {"Add", "Relu"}.isdisjoint(k.node.op for k in kernels)


def test_known_weights_with_a_bias_that_only_the_run_knows():
    inputs, consts = {"x": draw(1, 16, 14, 14), "b": draw(32)}, {"w": draw(32, 16, 3, 3), "e": draw(32, 1, 1)}
    nodes = [node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]), node("Add", ["c", "e"], ["y"])]
    check_native(model(nodes, inputs, consts, ["y"]), inputs)


ACTIVATIONS = [
    ("Relu", {}), ("LeakyRelu", {"alpha": 0.3}), ("Sigmoid", {}), ("Tanh", {}), ("HardSigmoid", {"alpha": 0.3}),
    ("HardSwish", {}), ("Elu", {"alpha": 0.7}),
]  # fmt: skip


@pytest.mark.parametrize("op, attrs", ACTIVATIONS)
@pytest.mark.parametrize("group", [1, 20])
def test_activation_runs_in_the_epilogue(op, attrs, group):
    inputs = {"x": draw(1, 20, 7, 9)}
    consts = {"w": draw(20, 20 // group, 3, 3)}
    nodes = [node("Conv", ["x", "w"], ["c"], group=group), node(op, ["c"], ["y"], **attrs)]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert not any(k.node.op == op for k in kernels)


@pytest.mark.parametrize("group, residual", [(1, False), (20, False), (20, True)])
def test_scale_and_shift_of_hard_swish_run_in_the_epilogue(group, residual):
    inputs = {"x": draw(1, 20, 7, 9)}
    consts = {"w": draw(20, 20 // group, 3, 3), "s": draw(1), "t": draw(1)}
    attrs = {"group": group, "pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w"], ["c"], **attrs), node("Add", ["c", "x"], ["r"]),
        node("HardSwish", ["r" if residual else "c"], ["h"]), node("Mul", ["s", "h"], ["m"]),
        node("Add", ["m", "t"], ["a"]), node("Mul", ["a", "t"], ["y"]),
    ]  # fmt: skip
    del nodes[1 : 1 if residual else 2]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert {k.node.op for k in kernels} == {"Conv"}


def test_a_scale_per_channel_follows_hard_swish():
    inputs, consts = {"x": draw(1, 20, 7, 9)}, {"w": draw(20, 1, 3, 3), "s": draw(20, 1, 1)}
    nodes = [node("Conv", ["x", "w"], ["c"], group=20), node("HardSwish", ["c"], ["h"]), node("Mul", ["h", "s"], ["y"])]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert "Mul" in {k.node.op for k in kernels}


EXPANSIONS = [
    # channels, wide ones, size, taps, strides, dilation
    (5, 40, (14, 13), (3, 3), (1, 1), 1), (16, 96, (9, 30), (3, 3), (2, 2), 1), (3, 23, (6, 150), (5, 3), (1, 2), 2),
    (24, 17, (4, 5), (5, 5), (2, 2), 1), (8, 16, (31,), (7,), (1,), 1), (4, 32, (3, 5, 7), (3, 3, 3), (1, 2, 1), 1),
]  # fmt: skip


def expansion(channels, wide, size, taps, strides, dilation, between):
    """(nodes, inputs, constants) of a 1x1 convolution, an activation, and a depthwise one with what follows."""
    rank = len(size)
    inputs = {"x": draw(2, channels, *size)}
    consts = {"w": draw(wide, channels, *[1] * rank), "b": draw(wide), "v": draw(wide, 1, *taps), "c": draw(wide)}
    attrs = {"group": wide, "pads": [d * dilation // 2 for d in taps] * 2, "strides": list(strides)}
    nodes = [
        node("Conv", ["x", "w", "b"], ["many"]), node(between, ["many"], ["active"]),
        node("Conv", ["active", "v", "c"], ["filtered"], dilations=[dilation] * rank, **attrs),
        node("Relu", ["filtered"], ["y"]),
    ]  # fmt: skip
    return nodes, inputs, consts


@pytest.mark.parametrize("case", EXPANSIONS)
@pytest.mark.parametrize("between", ["Relu", "HardSwish", "Sigmoid"])
def test_an_expansion_and_the_depthwise_convolution_behind_it_are_one_kernel(monkeypatch, case, between):
    monkeypatch.setattr("minifer.ops.lower_conv.WIDE", 0)
    nodes, inputs, consts = expansion(*case, between)
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert "expand_depthwise" in {k.kernel.name for k in kernels}
    assert {k.node.op for k in kernels} == {"Conv"} and not any("gemm" in k.kernel.name for k in kernels)


def test_the_expanded_tensor_takes_no_memory():
    nodes, inputs, consts = expansion(8, 64, (40, 40), (3, 3), (2, 2), 1, "Relu")
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    largest = max(s.nbytes for k in kernels for s in k.writes if k.kernel.name == "expand_depthwise")
    assert largest == 4 * 2 * 64 * 20 * 20


def test_a_residual_follows_the_depthwise_convolution(monkeypatch):
    monkeypatch.setattr("minifer.ops.lower_conv.WIDE", 0)
    nodes, inputs, consts = expansion(8, 40, (9, 9), (3, 3), (1, 1), 1, "Relu")
    nodes[-1:] = [node("Add", ["r", "filtered"], ["sum"]), node("Relu", ["sum"], ["y"])]
    inputs["r"] = draw(2, 40, 9, 9)
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert "expand_depthwise" in {k.kernel.name for k in kernels} and "Add" not in {k.node.op for k in kernels}


def spoil(what, nodes, inputs, consts, monkeypatch):
    """Change an expansion so that the two convolutions stay apart; returns the graph's outputs."""
    if what == "another reader":
        nodes.append(node("Neg", ["active"], ["z"]))
        return ["y", "z"]
    if what == "a graph output":
        return ["y", "active"]
    if what == "a sum between":
        nodes[1] = node("Add", ["many", "r"], ["active"])
        inputs["r"] = draw(2, 40, 9, 9)
    if what == "two filters for each channel":
        consts.update(v=draw(80, 1, 3, 3), c=draw(80))
    if what == "weights of the run":
        inputs["v"] = consts.pop("v")
    if what == "other panels":
        monkeypatch.setattr("minifer.kernels.expand.fits", lambda: False)
    return ["y"]


APART = ["another reader", "a graph output", "a sum between", "two filters for each channel", "weights of the run",
         "other panels"]  # fmt: skip


@pytest.mark.parametrize("what", APART)
def test_an_expansion_that_something_else_needs_is_written(monkeypatch, what):
    monkeypatch.setattr("minifer.ops.lower_conv.WIDE", 0)
    nodes, inputs, consts = expansion(8, 40, (9, 9), (3, 3), (1, 1), 1, "Relu")
    outputs = spoil(what, nodes, inputs, consts, monkeypatch)
    kernels = check_native(model(nodes, inputs, consts, outputs), inputs)
    assert "gemm" in {k.kernel.name for k in kernels}


def test_a_small_expansion_is_written():
    nodes, inputs, consts = expansion(8, 40, (9, 9), (3, 3), (1, 1), 1, "Relu")
    assert {k.kernel.name for k in check_native(model(nodes, inputs, consts, ["y"]), inputs)} >= {"gemm", "depthwise"}


def test_a_depthwise_convolution_that_does_not_fit_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("minifer.ops.lower_conv.WIDE", 0)
    nodes, inputs, consts = expansion(8, 40, (9, 9), (3, 3), (1, 1), 1, "Relu")
    consts["v"] = draw(40, 2, 3, 3)
    with pytest.raises(ShapeError, match="Conv"):
        Session(model(nodes, inputs, consts, ["y"])).run(inputs)


DEPTHWISE = [
    # channels, size, taps, stride: lines in several tiles, several blocks of channels, and fewer than a strip
    (40, (9, 150), (7, 7), (1, 1)), (16, (12, 131), (3, 3), (2, 2)), (130, (5, 4), (5, 5), (2, 2)),
    (8, (11, 30), (3, 3), (2, 1)), (23, (6, 17), (5, 3), (1, 3)), (64, (7, 7), (7, 7), (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("channels, size, taps, strides", DEPTHWISE)
@pytest.mark.parametrize("after", ["Relu", "HardSwish", "Sigmoid"])
def test_depthwise(channels, size, taps, strides, after):
    inputs = {"x": draw(2, channels, *size)}
    consts = {"w": draw(channels, 1, *taps), "b": draw(channels)}
    pads = [t // 2 for t in taps] * 2
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], group=channels, pads=pads, strides=list(strides)),
        node(after, ["c"], ["y"]),
    ]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert "depthwise" in {k.kernel.name for k in kernels}


def test_a_constant_is_laid_out_while_planning():
    inputs, consts = {"x": draw(1, 20, 7, 9)}, {"w": draw(20, 20, 3, 3), "k": draw(1, 20, 7, 9)}
    attrs = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w"], ["c"], **attrs), node("Concat", ["c", "k"], ["j"], axis=1),
        node("GlobalAveragePool", ["j"], ["y"]),
    ]  # fmt: skip
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    moved = [k for k in kernels if k.kernel.name.startswith("transpose")]
    assert not any(slot.buffer.kind == "const" for k in moved for slot in k.reads)


@pytest.mark.parametrize("group", [1, 12])
def test_bias_residual_and_clip_run_in_the_epilogue(group):
    inputs = {"x": draw(2, 12, 9, 9)}
    consts = {
        "w": draw(12, 12 // group, 3, 3), "b": draw(12), "shift": draw(1, 12, 1, 1),
        "lo": np.float32(-0.5), "hi": np.float32(1.5),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], group=group, pads=[1, 1, 1, 1]),
        node("Add", ["c", "shift"], ["s"]),
        node("Add", ["x", "s"], ["r"]),
        node("Clip", ["r", "lo", "hi"], ["y"]),
    ]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert {k.node.op for k in kernels} == {"Conv"}


def test_silu_runs_in_the_epilogue():
    inputs, consts = {"x": draw(1, 5, 6, 6)}, {"w": draw(7, 5, 3, 3)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Sigmoid", ["c"], ["g"]), node("Mul", ["g", "c"], ["y"])]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert {k.node.op for k in kernels} == {"Conv"}


def test_a_result_that_is_read_twice_is_not_absorbed():
    inputs, consts = {"x": draw(1, 5, 6, 6)}, {"w": draw(7, 5, 3, 3)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    check_native(model(nodes, inputs, consts, ["y", "c"]), inputs, native=False)


TRANSPOSED = [
    ((1, 3, 5, 6), (3, 8, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((2, 6, 5, 6), (6, 4, 2, 2), {"strides": [2, 2], "group": 3}),
    ((1, 4, 9), (4, 17, 5), {"strides": [3], "dilations": [2]}),
    ((1, 2, 3, 4, 5), (2, 3, 2, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 1, 2]}),
    ((1, 3, 4, 4), (3, 5, 3, 3), {"output_shape": [9, 10], "strides": [2, 2]}),
]


@pytest.mark.parametrize("x, w, attrs", TRANSPOSED)
def test_conv_transpose(x, w, attrs):
    inputs = {"x": draw(*x)}
    consts = {"w": draw(*w), "b": draw(w[1] * attrs.get("group", 1))}
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["t"], **attrs), node("Relu", ["t"], ["y"])]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert {k.node.op for k in kernels} == {"ConvTranspose"}


SPREAD = [
    # x, w, taps = strides: panels within a line of the result, across lines, and a lone filter
    ((2, 24, 5, 7), (24, 24, 2, 2)), ((1, 24, 3, 20), (24, 1, 2, 2)), ((1, 7, 4, 9), (7, 5, 3, 2)),
    ((2, 6, 13), (6, 9, 4)),
]  # fmt: skip


@pytest.mark.parametrize("x, w", SPREAD)
@pytest.mark.parametrize("after", ["Relu", "Sigmoid"])
def test_conv_transpose_with_taps_apart(x, w, after):
    inputs, consts = {"x": draw(*x)}, {"w": draw(*w), "b": draw(w[1]), "k": draw(1, w[1], *[1] * (len(x) - 2))}
    nodes = [
        node("ConvTranspose", ["x", "w", "b"], ["t"], strides=list(w[2:])), node("Add", ["t", "k"], ["a"]),
        node(after, ["a"], ["y"]),
    ]  # fmt: skip
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert {k.node.op for k in kernels} == {"ConvTranspose"}
    assert "spread" in {k.kernel.name for k in kernels}


POOLS = [
    ((1, 3, 12, 13), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 17, 11, 9), {"kernel_shape": [2, 3], "strides": [2, 1], "ceil_mode": 1}),
    ((1, 8, 20), {"kernel_shape": [4], "strides": [3], "pads": [1, 2]}),
    ((1, 5, 6, 7, 8), {"kernel_shape": [2, 2, 3], "dilations": [1, 2, 1]}),
    ((1, 9, 7, 7), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
]


@pytest.mark.parametrize("x, attrs", POOLS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("include_pad", [0, 1])
def test_pool(x, attrs, op, include_pad):
    inputs = {"x": draw(*x)}
    extra = {"count_include_pad": include_pad} if op == "AveragePool" else {}
    check_native(model([node(op, ["x"], ["y"], **attrs, **extra)], inputs, {}, ["y"]), inputs)


STEMS = [
    # channels, filters, size, taps above one another, strides, pads
    (3, 24, (33, 50), 7, (2, 2), [3, 3, 3, 3]), (1, 8, (20, 41), 5, (1, 2), [0, 2, 1, 0]),
    (4, 33, (9, 128), 1, (3, 2), [0, 3, 0, 3]), (8, 16, (40, 22), 7, (2, 2), [6, 6, 6, 6]),
]  # fmt: skip


@pytest.mark.parametrize("channels, filters, size, taps, strides, pads", STEMS)
@pytest.mark.parametrize("last", [False, True])
def test_lines_of_seven_taps_of_a_few_channels_are_filtered_line_by_line(
    channels, filters, size, taps, strides, pads, last
):
    shape = (2, *size, channels) if last else (2, channels, *size)
    inputs = {"x": draw(*shape)}
    consts = {"w": draw(filters, channels, taps, 7), "b": draw(filters)}
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t" if last else "x", "w", "b"], ["c"], strides=list(strides), pads=pads),
        node("LeakyRelu", ["c"], ["y"], alpha=0.2),
    ]  # fmt: skip
    kernels = check_native(model(nodes if last else nodes[1:], inputs, consts, ["y"]), inputs)
    names = [k.kernel.name for k in kernels]
    assert "stem" in names and "conv" not in names and "halo" not in names


def test_a_stem_adds_a_residual():
    inputs, consts = {"x": draw(1, 3, 30, 30), "r": draw(1, 16, 15, 15)}, {"w": draw(16, 3, 7, 7)}
    nodes = [
        node("Conv", ["x", "w"], ["c"], strides=[2, 2], pads=[3, 3, 3, 3]), node("Add", ["r", "c"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]  # fmt: skip
    assert {k.node.op for k in check_native(model(nodes, inputs, consts, ["y"]), inputs)} == {"Conv"}


@pytest.mark.parametrize("change", [{"dilations": [1, 2]}, {"strides": [2, 1]}, {"group": 3}])
def test_other_lines_of_seven_taps_are_no_stem(change):
    inputs, consts = {"x": draw(1, 3, 40, 40)}, {"w": draw(12, 1 if "group" in change else 3, 7, 7)}
    nodes = [node("Conv", ["x", "w"], ["y"], **{"strides": [2, 2], **change})]
    assert "stem" not in {k.kernel.name for k in check_native(model(nodes, inputs, consts, ["y"]), inputs)}
