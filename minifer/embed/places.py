"""Where things lie in a compiled model: constants in the weights, everything else behind the bases of a part."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from minifer.embed.abi import ALIGNMENT
from minifer.embed.steps import Place
from minifer.plan.plan import ABSOLUTE, Slot

Source = Slot | np.ndarray  # what a step reads: memory of the run, or a constant


@dataclass
class Weights:
    """All constants, each once, at multiples of 64 bytes."""

    parts: list[tuple[int, np.ndarray]] = field(default_factory=list)
    size: int = 0
    _places: dict[bytes, int] = field(default_factory=dict)

    def place(self, array: np.ndarray) -> int:
        """Where the content of an array lies."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = sha256(content.data).digest() + content.size.to_bytes(8, "little")
        if key not in self._places:
            self._places[key] = self.size
            self.parts.append((self.size, content))
            self.size = -(-(self.size + content.size) // ALIGNMENT) * ALIGNMENT
        return self._places[key]

    def content(self) -> np.ndarray:
        """All of it as bytes."""
        whole = np.zeros(self.size, np.uint8)
        for place, part in self.parts:
            whole[place : place + part.size] = part
        return whole


@dataclass(frozen=True)
class Places:
    """The places of one part, whose constants lie behind the base `base`."""

    weights: Weights
    base: int

    def of(self, source: Source | None) -> Place:
        """Where a tensor lies; address zero for one that is not given."""
        if source is None:
            return ABSOLUTE, 0
        if isinstance(source, np.ndarray):
            return self.base, self.weights.place(source)
        if source.buffer.kind == "const":
            assert source.buffer.array is not None
            return self.base, self.weights.place(source.buffer.array) + source.offset
        return source.address()
