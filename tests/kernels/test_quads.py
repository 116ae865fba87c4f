"""Packed quads: every weight is there once, no 16-bit sum can overflow, and the weights choose the kernel."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.kernels import quads
from minifer.kernels.simd import EXACT, NR
from minifer.kernels.target import host
from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(3)


def normal(spread: float, *shape: int) -> np.ndarray:
    return np.clip(np.rint(RNG.standard_normal(shape) * spread), -128, 127).astype(np.int8)


@pytest.mark.parametrize("spread", [8, 25, 45, 300])
@pytest.mark.parametrize("filters, depth, groups", [(5, 3, 1), (40, 1500, 1), (48, 70, 3)])
def test_every_weight_is_packed_once_and_sums_fit(monkeypatch, spread, filters, depth, groups):
    monkeypatch.setattr(quads, "EXACT", 0)
    weight = normal(spread, filters, depth, 1, 1)
    data, table = quads.pack(weight, groups)
    panels, count = groups * -(-filters // groups // int(NR)), -(-depth // 4)
    found = np.zeros((panels, 4 * count, int(NR)), np.int64)
    content = data.reshape(-1, int(NR), 4).astype(np.int64)
    for panel, place, doubles, singles, places in quads._chunks(table, panels, int(quads.chunks_of(4 * count))):
        own = content[place : place + 2 * doubles + singles]
        for at, quad in zip(places, own):
            found[panel, at : at + 4] += quad.T
        pairs = [(np.clip(own, *side)).reshape(-1, int(NR), 2, 2).sum(3) for side in ((0, None), (None, 0))]
        for positive in pairs:
            assert abs(positive).max(initial=0) * 255 < 1 << 15, "a quad may overflow"
            both = positive[0 : 2 * doubles : 2] + positive[1 : 2 * doubles : 2]
            assert abs(both).max(initial=0) * 255 < 1 << 15, "a double may overflow"
    check_panels(found, table, weight, groups)


def check_panels(found: np.ndarray, table: np.ndarray, weight: np.ndarray, groups: int) -> None:
    """Panels (panels, steps, NR) hold the weights and nothing else, and the table begins with their sums."""
    filters, depth = weight.shape[:2]
    by_filter = found.transpose(0, 2, 1).reshape(groups, -1, found.shape[1])[:, : filters // groups]
    assert np.array_equal(by_filter.reshape(filters, -1)[:, :depth], weight.reshape(filters, depth))
    assert not by_filter[..., depth:].any()
    sums = table[: len(found) * int(NR)].reshape(groups, -1)[:, : filters // groups]
    assert np.array_equal(sums.reshape(-1), weight.reshape(filters, -1).sum(1, dtype=np.int32))


@pytest.mark.parametrize("filters, depth, groups", [(5, 3, 1), (40, 1500, 1), (48, 70, 3)])
def test_exact_machines_take_any_weights_in_order(monkeypatch, filters, depth, groups):
    monkeypatch.setattr(quads, "EXACT", 1)
    weight = RNG.integers(-128, 128, (filters, depth, 1, 1)).astype(np.int8)
    assert quads.worth(weight)
    data, table = quads.pack(weight, groups)
    panels = data.reshape(groups * -(-filters // groups // int(NR)), -1, int(NR), 4)
    check_panels(panels.transpose(0, 1, 3, 2).reshape(len(panels), -1, int(NR)), table, weight, groups)


@pytest.mark.skipif(not host().bytes_at_once, reason="this machine does not multiply bytes")
@pytest.mark.parametrize("spread, name", [(20, "quads_u8"), (300, "quads_u8" if EXACT else "product_u8")])
def test_the_weights_choose_the_kernel(spread, name):
    inputs = {"x": RNG.integers(0, 256, (1, 20, 7, 9)).astype(np.uint8)}
    consts = {
        "xs": np.float32(0.02), "xz": np.uint8(7), "w": normal(spread, 24, 20, 3, 3), "ws": np.float32(0.01),
        "wz": np.int8(0), "ys": np.float32(0.5), "yz": np.uint8(130),
    }  # fmt: skip
    nodes = [node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"], pads=[1, 1, 1, 1])]
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    assert name in {k.kernel.name for k in kernels}


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize(
    "channels, filters, side, taps", [(64, 40, 7, 1), (96, 33, 6, 1), (200, 32, 9, 1), (130, 64, 2, 1), (70, 64, 5, 3)]
)
def test_rows_that_are_no_whole_block(channels, filters, side, taps, kind):
    """Long rows, of which the last ones are fewer than are multiplied at once, by all threads; a residual in place."""
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    inputs = {"x": RNG.integers(low, high + 1, (1, channels, side, side)).astype(kind)}
    consts = {
        "xs": np.float32(0.02), "xz": kind(7), "w": normal(60, filters, channels, taps, taps), "ws": np.float32(0.01),
        "wz": np.int8(0), "ys": np.float32(0.3), "yz": kind(100), "v": normal(60, filters, filters, 1, 1),
    }  # fmt: skip
    pads = [taps // 2] * 4
    nodes = [
        node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["a"], pads=pads),
        node("QLinearConv", ["a", "ys", "yz", "v", "ws", "wz", "ys", "yz"], ["b"]),
        node("QLinearAdd", ["a", "ys", "yz", "b", "ys", "yz", "ys", "yz"], ["y"], domain="com.microsoft"),
    ]
    check_native(model(nodes, inputs, consts, ["y"]), inputs)
