"""MINIFER_DEBUG=2: every run tells on standard error how long each of its steps took.

Steps run one call at a time, as when they are profiled; the plain run is quicker. See runtime/profile.py.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from typing import Any

from minifer.runtime.execute import Clock, Executor
from minifer.runtime.profile import Recorder, empty_call, gather_facts, steps_of
from minifer.runtime.profile_report import Profile


class WatchedExecutor(Executor):
    """An executor that prints the times of its steps after each run."""

    def run(self, feeds: Mapping[str, Any], clock: Clock | None = None) -> list[Any]:
        settings = self.settings
        if settings.on_step is not None:  # somebody measures already
            return super().run(feeds, clock)
        settings.on_step = recorder = Recorder()
        recorder.begin_run()
        start = time.perf_counter()
        try:
            results = super().run(feeds, clock)
        finally:
            settings.on_step = None
        print(self._times(recorder, (time.perf_counter() - start) * 1e3), file=sys.stderr)
        return results

    def _times(self, recorder: Recorder, run_ms: float) -> str:
        facts, threads = gather_facts(self), self.settings.threads
        costs = {small: _cost(threads, small) for _, small in facts.values() if small is not None}
        steps = steps_of(recorder, facts, costs)
        profile = Profile(threads, 1, run_ms, run_ms, run_ms, max(costs.values(), default=0.0) * 1e6, tuple(steps))
        rate = f", {profile.flops / 1e6:.4g} MFLOP at {profile.flops / profile.steps_ms / 1e6:.1f} GFLOP/s" if (
            profile.flops and profile.steps_ms
        ) else ""  # fmt: skip
        lines = profile.lines(order="run")
        lines.append(
            f"run of '{self.graph.name}' on {threads} thread{'s' if threads > 1 else ''}: {len(steps)} steps in "
            f"{profile.steps_ms:.4f} ms{rate}; with planning, and a call for each step, {run_ms:.4f} ms"
        )
        return "\n".join(lines)


@functools.cache
def _cost(threads: int, small: bool) -> float:
    return empty_call(threads, small)
