"""A 1x1 convolution over resized maps is done before they are resized, where that is less work and the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.checking import draw, fused, node


def ints(*values):
    return np.array(values, np.int64)


class Head:
    """Two maps of 6 channels, one of them resized from half its size, joined and multiplied by a 1x1 convolution."""

    def __init__(self, mode="linear", channels=6, **conv):
        self.inputs = {"a": draw(1, 6, 4, 5), "b": draw(1, channels, 8, 10)}
        self.consts = {
            "sizes": ints(1, 6, 8, 10), "w": draw(6, 6 + channels, 1, 1), "bias": draw(6),
            "scales": np.array([1, 1, 2, 2], np.float32),
        }  # fmt: skip
        self.nodes = [
            node("Resize", ["a", "", "", "sizes"], ["large"], mode=mode),
            node("Concat", ["large", "b"], ["all"], axis=1),
            node("Conv", ["all", "w", "bias"], ["y"], **conv),
        ]  # fmt: skip

    def ops(self, outputs=("y",)):
        return fused(self.nodes, self.inputs, self.consts, outputs)


APART = ["Add", "Conv", "Conv", "Resize"]


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_maps_are_multiplied_before_they_are_resized(mode, monkeypatch):
    monkeypatch.setattr("minifer.passes.pointwise.GAIN", 0.7)
    assert Head(mode).ops() == APART


def test_scales_in_place_of_sizes(monkeypatch):
    monkeypatch.setattr("minifer.passes.pointwise.GAIN", 0.7)
    head = Head()
    head.nodes[0] = node("Resize", ["a", "", "scales"], ["large"], mode="linear")
    assert head.ops() == APART


def test_too_little_gain_changes_nothing():
    assert Head().ops() == ["Concat", "Conv", "Resize"]


@pytest.mark.parametrize("change", ["stride", "pads", "all", "large", "group"])
def test_what_is_something_else_stays(change, monkeypatch):
    monkeypatch.setattr("minifer.passes.pointwise.GAIN", 0.7)
    conv = {"stride": {"strides": (2, 2)}, "pads": {"pads": (1, 1, 1, 1)}, "group": {"group": 2}}.get(change, {})
    head = Head(**conv)
    if change == "group":
        head.consts["w"] = draw(6, 6, 1, 1)
    outputs = ("y", change) if change in ("all", "large") else ("y",)
    assert head.ops(outputs) == ["Concat", "Conv", "Resize"]


def test_products_before_become_one_with_the_convolution():
    sizes = {"a": (4, 5), "b": (8, 10), "c": (2, 3)}
    inputs = {n: draw(1, h * w, 7) for n, (h, w) in sizes.items()}
    consts = {"w": draw(6, 18, 1, 1), "bias": draw(6), "sizes": ints(1, 6, 8, 10)}
    nodes, large = [], []
    for n, (h, w) in sizes.items():
        consts |= {f"{n}.w": draw(7, 6), f"{n}.b": draw(6), f"{n}.s": ints(1, -1, h, w)}
        nodes += [
            node("MatMul", [n, f"{n}.w"], [f"{n}.p"]), node("Add", [f"{n}.p", f"{n}.b"], [f"{n}.q"]),
            node("Transpose", [f"{n}.q"], [f"{n}.t"], perm=(0, 2, 1)),
            node("Reshape", [f"{n}.t", f"{n}.s"], [f"{n}.m"]),
            node("Resize", [f"{n}.m", "", "", "sizes"], [f"{n}.l"], mode="linear"),
        ]  # fmt: skip
        large.append(f"{n}.l")
    nodes += [node("Concat", large, ["all"], axis=1), node("Conv", ["all", "w", "bias"], ["y"])]
    found = fused(nodes, inputs, consts)
    assert found.count("MatMul") == 3 and found.count("Resize") == 2 and "Conv" not in found


def test_a_resize_to_the_same_size_goes():
    consts = {"same": ints(1, 6, 4, 5), "scales": np.array([1, 1, 1.1, 1.1], np.float32)}
    nodes = [
        node("Resize", ["a", "", "", "same"], ["r"], mode="linear"), node("Neg", ["r"], ["n"]),
        node("Resize", ["n", "", "scales"], ["m"], mode="linear"), node("Neg", ["m"], ["y"]),
    ]  # fmt: skip
    assert fused(nodes, {"a": draw(1, 6, 4, 5)}, consts) == ["Neg", "Neg", "Resize"]
