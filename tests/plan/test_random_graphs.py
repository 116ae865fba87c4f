"""Random graphs of products, sums and views, natively and by reference.

What is written over what, and with which gaps, hangs on who reads a value later; here that is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.kernels.models import check_native, model, node


class Drawn:
    """A graph that grows node by node; all values have shape (1, channels, size, size)."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        wide = self.rng.random() < 0.3  # rows apart
        self.widths = (1024, 512, 24) if wide else (16, 24, 8)
        self.size = int(self.rng.integers(2, 5) if wide else self.rng.integers(3, 9))
        self.nodes: list = []
        self.consts: dict[str, np.ndarray] = {}
        self.channels = {"x": self.one_of(self.widths)}
        shape = (1, self.channels["x"], self.size, self.size)
        self.inputs = {"x": self.rng.standard_normal(shape).astype(np.float32)}

    def one_of(self, values):
        return values[int(self.rng.integers(len(values)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def const(self, value: np.ndarray) -> str:
        name = f"c{len(self.consts)}"
        self.consts[name] = value
        return name

    def add(self, op: str, inputs: list[str], channels: int, **attrs) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, inputs, [name], **attrs))
        self.channels[name] = channels
        return name

    def conv(self, x: str, filters: int, taps: int = 1, group: int = 1, op: str = "Conv") -> str:
        channels = self.channels[x]
        shape = (filters, channels // group, taps, taps)
        weight = self.rng.standard_normal(shape) / np.sqrt(shape[1] * taps * taps)
        return self.add(op, [x, self.const(weight.astype(np.float32))], filters, pads=[taps // 2] * 4, group=group)

    def sum(self, made: str, other: str) -> str:
        pair = [made, other] if self.chance(0.5) else [other, made]
        total = self.add("Add", pair, self.channels[made])
        if self.chance(0.5):
            total = self.add(self.one_of(("Relu", "Sigmoid", "HardSwish")), [total], self.channels[made])
        return total

    def view(self, x: str) -> None:
        channels = self.channels[x]
        flat = self.add("Reshape", [x, self.const(np.array([1, channels, -1], np.int64))], channels)
        del self.channels[flat]  # its rank is another
        self.add("Reshape", [flat, self.const(np.array([1, channels, self.size, self.size], np.int64))], channels)

    def step(self) -> None:
        recent = list(self.channels)[-4:]
        x = self.one_of(recent)
        channels = self.channels[x]
        alike = [name for name, count in self.channels.items() if count == channels]
        kind = self.one_of(
            ("conv", "conv", "residual", "residual", "residual", "depthwise", "sum", "act", "view", "up")
        )
        if kind == "conv":
            self.conv(x, self.one_of(self.widths), 1 if self.chance(0.7) else 3)
        elif kind == "residual":
            made, other = self.conv(x, channels), self.one_of(alike)
            if self.chance(0.3):
                self.conv(other, channels)  # reads it between the product and the sum
            self.sum(made, other)
        elif kind == "depthwise":
            self.sum(self.conv(x, channels, 3, channels), self.one_of(alike))
        elif kind == "sum":
            self.sum(x, self.one_of(alike))
        elif kind == "act":
            self.add(self.one_of(("Relu", "Tanh")), [x], channels)
        elif kind == "view":
            self.view(x)
        elif channels < 512:
            self.sum(self.conv(x, channels, 3, op="ConvTranspose"), self.one_of(alike))

    def outputs(self) -> Iterator[str]:
        made = [name for name in self.channels if name != "x"]
        yield from (name for name in made[:-1] if self.chance(0.25))
        yield made[-1]


@pytest.mark.parametrize("seed", range(48))
def test_native_agrees_with_the_reference(seed):
    drawn = Drawn(seed)
    for _ in range(int(drawn.rng.integers(6, 16))):
        drawn.step()
    before = drawn.inputs["x"].copy()
    made = model(drawn.nodes, drawn.inputs, drawn.consts, list(drawn.outputs()))
    check_native(made, drawn.inputs, tolerance=2e-4)
    assert np.array_equal(drawn.inputs["x"], before)
