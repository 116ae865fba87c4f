"""How much memory one stage of a run may take: a limit of the caller's, or what the machine has."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

from minifer import dtypes
from minifer.errors import LimitError
from minifer.ir import TensorType
from minifer.ops.registry import Call
from minifer.record import Record

_LARGEST = 1 << 62  # bytes that an array may be said to have at all


@functools.cache
def machine_bytes() -> int:
    """The memory of this machine, or of the control group that the process runs in; what no machine has if unknown."""
    found = [1 << 46]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="utf-8") as file:
                found.append(int(file.read()))
        except (OSError, ValueError):
            continue
    return min(n for n in found if n > 0)


class Ceiling(Record):
    """The most bytes that one stage may hold; None: as many as the machine has."""

    max_bytes: int | None = None

    @property
    def bytes(self) -> int:
        """What one stage may hold."""
        return machine_bytes() if self.max_bytes is None else min(self.max_bytes, machine_bytes())

    def check(self, need: int, who: str) -> None:
        """Raise LimitError where `need` bytes are too many. `who` begins the message."""
        if self.max_bytes is not None and need > self.max_bytes:
            why = f"max_bytes is {self.max_bytes:,}: raise it, or use smaller inputs"
        elif need > machine_bytes():
            why = f"this machine has {machine_bytes():,}: use smaller inputs"
        else:
            return
        raise LimitError(f"{who} needs {need:,} bytes and {why}")

    def check_types(self, call: Call, kinds: Sequence[Any]) -> None:
        """Raise ShapeError for a negative dimension among concrete result types, LimitError for one too large."""
        for kind in kinds:
            if isinstance(kind, TensorType) and kind.concrete and kind.shape:
                dims = kind.dims
                if min(dims) < 0:
                    raise call.fail(f"the result would have the shape {list(kind.dims)}, and a size cannot be negative")
                each = max(1, dtypes.bits(kind.dtype) // 8) if kind.dtype != "string" else 8
                need = math.prod(dims) * each
                if not need and math.prod(filter(None, dims)) * each > _LARGEST:  # NumPy refuses it, empty as it is
                    need = _LARGEST
                if need > self.bytes:  # the text costs more than the check
                    self.check(need, f"{call.fail('')!s}the result {kind}")
