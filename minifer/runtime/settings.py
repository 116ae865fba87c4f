"""What a session is told: how many threads, which limits. Apart from the executor, which only a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minifer.errors import InputError
from minifer.record import Record
from minifer.runtime.kept import Kept
from minifer.runtime.workspaces import Workspaces


class Limits(Record):
    """What a session may use at most; None: no limit."""

    max_bytes: int | None = None  # what one stage holds: arena, outputs, results of Python steps; None: what there is
    max_seconds: float | None = None  # of one run; checked between native calls and in every turn of a loop

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value >= 0):
                raise InputError(f"the limit {name} must be a number from 0, or None for no limit, not {value!r}")


def limits_of(given: Limits | Mapping[str, Any] | None) -> Limits:
    """Limits from a Limits, a dict of its fields, or None; InputError for anything else."""
    if isinstance(given, Limits):
        return given
    known = set(Limits._fields)
    if not isinstance(given, Mapping | None) or (given and set(given) - known):
        raise InputError(f"limits must be a dict with the keys {', '.join(sorted(known))}, not {given!r}")
    return Limits(**(given or {}))


class Settings:
    """What all executors of a session share."""

    def __init__(self, threads: int = 1, native: bool | None = True, limits: Limits | None = None):
        """`native`: whether kernels run; None: where there are some."""
        self.threads = threads
        self._native = native
        self.limits = limits or Limits()
        self.workspaces = Workspaces()
        self.plans = Kept()
        self.trace: Any = None  # called with (node, kernel or None, seconds, outputs) after each step, where set
        self.on_step: Any = None  # called with (step, start, end) after each step, where set; times of perf_counter

    @property
    def native(self) -> bool:
        """Whether kernels run; looked for when first asked."""
        if self._native is None:
            from minifer.runtime import kernels_available

            self._native = kernels_available()
        return self._native
