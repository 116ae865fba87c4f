"""Which plans a session keeps: so many bytes of them, the least recently used go first.

Each executor bounds the number of its own plans. That is not enough where stages follow stages and bodies lie in
bodies, for then plans hang under plans; so all of a session's stages stand in one list as well.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Any

from minifer.locks import Lock

BUDGET = 1 << 27  # bytes
_STAGE, _STEP, _NAME = 6000, 2500, 150  # bytes that a stage, a step and a name take, about


def cost_of(stage: Any) -> int:
    """About how many bytes a stage takes besides the model's constants."""
    from minifer.plan.plan import KernelStep  # there by now; a session that has not run yet needs none

    made = sum(getattr(value, "nbytes", 0) for value in stage.plan.known.values())
    tables = sum(a.nbytes for a in stage.plan.consts if a.nbytes < 1 << 12)  # larger ones are mostly shared constants
    steps = sum(2 if isinstance(step, KernelStep) else 1 for step in stage.plan.steps)
    return _STAGE + _STEP * steps + _NAME * (len(stage.known) + len(stage.types)) + made + tables


class Kept:
    """All stages of a session by age."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, tuple[OrderedDict[Any, Any], Any, Any, int]] = OrderedDict()
        self._lock = Lock()
        self.bytes = 0

    def add(self, table: OrderedDict[Any, Any], key: Any, stage: Any) -> None:
        """Enter a stage that stands in `table` under `key`; drops the oldest beyond the budget."""
        with self._lock:
            cost = cost_of(stage)
            self._entries[id(stage)] = table, key, stage, cost
            self.bytes += cost
            while self.bytes > BUDGET and len(self._entries) > 1:
                old_table, old_key, old, _ = next(iter(self._entries.values()))
                old_table.pop(old_key, None)
                self.drop(old)

    def used(self, stage: Any) -> None:
        """A stage is used now."""
        with contextlib.suppress(KeyError):  # another thread dropped it
            self._entries.move_to_end(id(stage))

    def drop(self, stage: Any) -> None:
        """Strike out a stage that is in its table no more, and what hangs under it."""
        with self._lock:
            pending = [stage]
            while pending:
                stage = pending.pop()
                self.bytes -= self._entries.pop(id(stage), (None, None, None, 0))[3]
                pending += list(stage.following.values())
                for inner in list(stage.inner.values()):
                    pending += list(inner.stages.values())

    def clear(self) -> None:
        """Strike out all."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0
