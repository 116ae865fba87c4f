"""Winograd convolution: its matrices, its error, and what the lowering chooses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from minifer.kernels import winograd
from minifer.kernels.target import TARGETS
from minifer.ops import lower_conv, lower_matmul
from minifer.ops.lower_conv import conv_cost, winograd_size
from minifer.session import Session
from tests.kernels.models import check_native, model, node, steps

RNG = np.random.default_rng(11)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def conv_model(x, w, **attrs):
    return model([node("Conv", ["x", "w"], ["y"], **attrs)], {"x": x}, {"w": w}, ["y"])


LINES = {
    (2, 1): (winograd.input_line_2, winograd.output_line_2),
    (4, 1): (winograd.input_line_4, winograd.output_line_4),
    (2, 2): (winograd.input_line_2_stride_2, winograd.output_line_2_stride_2),
    (4, 2): (winograd.input_line_4_stride_2, winograd.output_line_4_stride_2),
}


@pytest.mark.parametrize("size, stride", winograd.KERNELS)
def test_the_matrices_filter_exactly(size, stride):
    """A^T [(G w) * (B^T d)] is the sum of w over d in one dimension, for every pair of unit vectors."""
    side = winograd.side_of(size, stride)
    b, a = (winograd.matrix_of(line, side) for line in LINES[size, stride])
    product = np.einsum("yp,pw,pd->ywd", a, winograd.G[size, stride], b)
    wanted = [[[float(d == stride * y + w) for d in range(side)] for w in range(3)] for y in range(size)]
    assert np.abs(product - wanted).max() < 1e-12


SHAPES = [
    # batch, channels, filters, height, width, pads, size of the tiles
    (1, 16, 8, 30, 30, (1, 1, 1, 1), 4),
    (2, 33, 21, 19, 30, (0, 2, 1, 0), 4),
    (1, 130, 130, 7, 7, (1, 1, 1, 1), 2),
    (3, 96, 24, 25, 7, (2, 0, 0, 1), 4),
    (1, 256, 90, 13, 14, (1, 1, 1, 1), 4),
]


@pytest.fixture
def choose(monkeypatch):
    """A function that makes the lowering take tiles of one size, whatever this machine would gain by them."""
    return lambda size: monkeypatch.setattr("minifer.ops.lower_conv.winograd_size", lambda *arguments: size)


@pytest.fixture
def shared(monkeypatch):
    """Threads share transformed tiles, however many there are."""
    monkeypatch.setattr("minifer.ops.lower_conv.OWN_TILES", 1 << 30)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("batch, channels, filters, height, width, pads, size", SHAPES)
def test_shapes(batch, channels, filters, height, width, pads, size, choose):
    choose(size)
    x, w = draw(batch, channels, height, width), draw(filters, channels, 3, 3)
    kernels = check_native(conv_model(x, w, pads=list(pads)), {"x": x}, 2e-5)
    assert f"winograd_{size}_tiles" in {k.kernel.name for k in kernels}


STRIDED = [
    # batch, channels, filters, height, width, pads, size of the tiles
    (1, 128, 128, 55, 56, (1, 1, 1, 1), 4),
    (2, 130, 100, 40, 31, (0, 1, 2, 0), 4),
    (1, 256, 250, 28, 27, (1, 1, 1, 1), 2),
]


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("batch, channels, filters, height, width, pads, size", STRIDED)
def test_stride_2(batch, channels, filters, height, width, pads, size, choose):
    choose(size)
    x, w = draw(batch, channels, height, width), draw(filters, channels, 3, 3)
    kernels = check_native(conv_model(x, w, pads=list(pads), strides=[2, 2]), {"x": x}, 2e-5)
    assert f"winograd_{size}_stride_2_tiles" in {k.kernel.name for k in kernels}


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_a_large_image_is_transformed_piece_by_piece(strides, choose, monkeypatch):
    """One kernel does it all, with the same results as the two that share the transformed tiles."""
    x, w = draw(1, 64, 60, 56), draw(64, 64, 3, 3)
    made = conv_model(x, w, pads=[1, 1, 1, 1], strides=list(strides))
    choose(4)
    two = Session(made, threads=1).run({"x": x})["y"]
    monkeypatch.setattr("minifer.ops.lower_conv.SHARED_TILES", 0)
    kernels = check_native(made, {"x": x}, 2e-5)
    assert [k.kernel for k in kernels if "winograd" in k.kernel.name] == [winograd.KERNELS[4, strides[0]].whole]
    assert Session(made, threads=1).run({"x": x})["y"].tobytes() == two.tobytes()


def test_threads_with_tiles_enough_transform_their_own(choose):
    choose(4)
    x, w = draw(1, 64, 28, 28), draw(64, 64, 3, 3)  # 49 tiles
    made, used = conv_model(x, w, pads=[1, 1, 1, 1]), []
    for threads in (2, 3):
        session = Session(made, threads=threads)
        session.run({"x": x})
        used.append({k.kernel for k in steps(session)[0]} & {*winograd.KERNELS[4, 1]})
    assert used == [{winograd.KERNELS[4, 1].whole}, {*winograd.KERNELS[4, 1][1:]}]


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("op, attrs", [("Relu", {}), ("Sigmoid", {}), ("HardSwish", {}), ("Elu", {"alpha": 0.7})])
def test_the_epilogue(op, attrs, choose):
    choose(4)
    inputs, shift = {"x": draw(1, 20, 29, 31)}, draw(1, 20, 1, 1)
    consts = {"w": draw(20, 20, 3, 3) / 13, "b": draw(20), "shift": shift}
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Add", ["c", "shift"], ["s"]),
        node("Add", ["x", "s"], ["r"]),
        node(op, ["r"], ["y"], **attrs),
    ]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert {k.node.op for k in kernels} == {"Conv"} and "winograd_4_products" in {k.kernel.name for k in kernels}


@pytest.mark.parametrize("filters, height, width", [(80, 28, 28), (80, 14, 14), (500, 14, 14)])
def test_threads_do_not_change_a_bit(filters, height, width):
    x, w = draw(1, 64, height, width), draw(filters, 64, 3, 3)
    made = conv_model(x, w, pads=[1, 1, 1, 1])
    results = [Session(made, threads=n).run({"x": x})["y"].tobytes() for n in (1, 2, 4)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("size, stride, bound", [(2, 1, 1e-6), (4, 1, 2e-6), (2, 2, 1e-6), (4, 2, 1e-6)])
def test_error(size, stride, bound, choose):
    """rms of the error against rms of the results, 64 channels: about that of a plain float32 sum."""
    choose(size)
    x, w = draw(1, 64, 21, 21), draw(16, 64, 3, 3)
    got = Session(conv_model(x, w, strides=[stride] * 2), threads=1).run({"x": x})["y"].astype(np.float64)
    taps = [(i, j, x[:, :, i : i + 19 : stride, j : j + 19 : stride]) for i in range(3) for j in range(3)]
    want = sum(np.einsum("fc,nchw->nfhw", w[:, :, i, j].astype("d"), pixels) for i, j, pixels in taps)
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) < bound


#: machines, and what the rule chooses for each: channels, filters, size of the result, stride -> size of the tiles
MACHINES = ("x86-64-v3", "x86-64-v4", "x86-64-amx")
DIFFERENT = {
    (8, 64, 56, 1): (4, 0, 0),
    (128, 32, 14, 1): (4, 2, 2),
    (256, 256, 14, 1): (4, 2, 2),
    (512, 512, 7, 1): (2, 2, 0),
    (128, 128, 28, 2): (4, 2, 0),
    (128, 128, 56, 2): (4, 4, 0),
    (256, 256, 14, 2): (2, 0, 0),
}


@pytest.fixture(params=MACHINES)
def machine(request, monkeypatch):
    """The lowering reckons for this target, wherever it runs."""
    target = TARGETS[request.param]
    lanes = SimpleNamespace(lanes=target.vector // 4)
    for name, value in {"host": lambda: target, "NR": target.nr, "SHORT": target.short, "f32": lanes}.items():
        monkeypatch.setattr(lower_conv, name, value)
    monkeypatch.setattr(lower_matmul, "host", lambda: target)
    monkeypatch.setattr(lower_matmul, "NR", target.nr)
    return target.name


def test_the_rule(machine):
    """Large maps take large tiles; where weights outweigh the pixels, small ones; few channels, none."""
    assert winograd_size(1, 64, 64, (56, 56)) == 4
    assert winograd_size(1, 512, 512, (28, 28)) == 4
    assert winograd_size(1, 3, 64, (224, 224)) == winograd_size(1, 64, 3, (224, 224)) == 0
    assert winograd_size(1, 512, 512, (2, 2)) == 0
    assert winograd_size(1, 512, 512, (7, 7), 2) == winograd_size(1, 32, 32, (14, 14), 2) == 0
    for (channels, filters, side, stride), sizes in DIFFERENT.items():
        assert winograd_size(1, channels, filters, (side, side), stride) == sizes[MACHINES.index(machine)]


@pytest.mark.usefixtures("machine")
def test_the_cost_counts_work():
    small, large = (conv_cost(1, 64, 64, (s, s), 4) for s in (28, 56))
    assert 3 < large / small < 5
    assert conv_cost(8, 64, 64, (28, 28), 0) == pytest.approx(8 * conv_cost(1, 64, 64, (28, 28), 0), rel=0.1)


def test_other_convolutions_are_left_alone():
    x = draw(1, 32, 30, 30)
    cases = [({"strides": [2, 1]}, 32), ({"strides": [3, 3]}, 32), ({"dilations": [2, 2]}, 32), ({"group": 2}, 16)]
    for attrs, channels in cases:
        kernels = check_native(conv_model(x, draw(32, channels, 3, 3), **attrs), {"x": x})
        assert not any("winograd" in k.kernel.name for k in kernels)
