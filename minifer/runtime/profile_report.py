"""What a profile tells: the steps with their times, as values, as a table, as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from minifer.errors import InputError

FORMAT = 1  # of the JSON form; grows when a field changes its meaning or goes
UNSTEADY = 1.25  # median by minimum from which times are called unsteady


@dataclass(frozen=True)
class StepProfile:
    """One step. Milliseconds are those of one run (all `calls` of it together), without the cost of an empty call
    and without what the steps of inner graphs (loop bodies, branches) took, which are steps of their own."""

    index: int  # in the order of the first execution
    node: str
    op: str  # operator and opset version
    kernel: str  # or "python": the NumPy reference
    inputs: tuple[str, ...]  # types of the tensors read, those without constants, in ONNX order of dimensions
    weights: str  # type of the constant right side of a convolution or product, or ""
    outputs: tuple[str, ...]
    calls: float  # in one run
    min_ms: float
    median_ms: float
    share: float  # of the sum of all steps' medians, 0 to 1
    flops: int  # in one run; a node of several steps has it at the one that multiplies; 0 where not known
    gflops_per_second: float  # the node's arithmetic by the time of all its steps
    bytes: int  # read and written in one run, each tensor once and whole
    gbytes_per_second: float

    @property
    def shapes(self) -> str:
        """What goes in and what comes out."""
        left = ", ".join(self.inputs) + (f" * {self.weights}" if self.weights else "")
        more = ", ..." if len(self.outputs) > 1 else ""
        return f"{left} -> {self.outputs[0] if self.outputs else '?'}{more}"


@dataclass(frozen=True)
class Profile:
    """What `Session.profile` found. `print` shows the table of the steps, the slowest first."""

    threads: int
    runs: int
    run_min_ms: float  # of the ordinary run, all steps in one call
    run_median_ms: float
    profiled_ms: float  # median of the profiled runs, what profiling costs included
    call_cost_us: float  # of an empty native call: taken off each call of each step
    steps: tuple[StepProfile, ...]  # in the order of execution

    @property
    def steps_ms(self) -> float:
        """The sum of the steps' medians."""
        return sum(step.median_ms for step in self.steps)

    @property
    def flops(self) -> int:
        """All arithmetic that is known, of one run."""
        return sum(step.flops for step in self.steps)

    def slowest(self, count: int | None = None) -> list[StepProfile]:
        """Steps by median time, the slowest first."""
        return sorted(self.steps, key=lambda step: -step.median_ms)[:count]

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values: `format`, the fields of this object, and `steps` as a list of dicts."""
        return {
            "format": FORMAT,
            **asdict(self),
            "steps_ms": self.steps_ms,
            "flops": self.flops,
            "steps": [{**asdict(s), "inputs": list(s.inputs), "outputs": list(s.outputs)} for s in self.steps],
        }

    def table(self, top: int | None = None, order: str = "time") -> str:
        """A text table: the `top` slowest steps (None: all), listed by "time" or in the order of the "run"."""
        return "\n".join(self.lines(top, order) + self._totals())

    def lines(self, top: int | None = None, order: str = "time") -> list[str]:
        """The table without the sums at its end."""
        if order not in ("time", "run"):
            raise InputError(f"order is 'time' or 'run', not {order!r}")
        shown = self.slowest(top)
        if order == "run":
            shown.sort(key=lambda step: step.index)
        ops = max([len(step.op) for step in shown] + [8])
        kernels = max([len(step.kernel) for step in shown] + [6])
        lines = [
            f"{'step':>4} {'ms':>9} {'min':>9} {'share':>6} {'MFLOP':>9} {'GFLOP/s':>8} {'GB/s':>6}  "
            f"{'operator':{ops}}  {'kernel':{kernels}}  node, shapes"
        ]
        for s in shown:
            work = f"{s.flops / 1e6:9.2f} {s.gflops_per_second:8.1f}" if s.flops else f"{'-':>9} {'-':>8}"
            times = f"{s.calls:g} times: " if s.calls != 1 else ""
            lines.append(
                f"{s.index:4} {s.median_ms:9.4f} {s.min_ms:9.4f} {s.share:6.1%} {work} {s.gbytes_per_second:6.1f}  "
                f"{s.op:{ops}}  {s.kernel:{kernels}}  {times}{s.node}: {s.shapes}"
            )
        if len(shown) < len(self.steps):
            rest = self.steps_ms - sum(step.median_ms for step in shown)
            lines.append(f"{'':4} {rest:9.4f}   the other {len(self.steps) - len(shown)} steps")
        return lines

    def _totals(self) -> list[str]:
        rate = ""
        if self.flops and self.run_median_ms:
            rate = f", {self.flops / 1e6:.4g} MFLOP at {self.flops / self.run_median_ms / 1e6:.1f} GFLOP/s"
        calls = sum(step.calls for step in self.steps if step.kernel != "python")
        lines = [
            f"run   {self.run_median_ms:.4f} ms, min {self.run_min_ms:.4f}: an ordinary run, median of {self.runs}, on "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}{rate}",
            f"steps {self.steps_ms:.4f} ms: their sum, {self.call_cost_us:.1f} us for an empty call taken off each of "
            f"{calls:g} native calls (a profiled run takes {self.profiled_ms:.4f} ms)",
        ]
        if self.run_median_ms > UNSTEADY * self.run_min_ms:
            lines.append("note  the times vary much: the machine is busy, and the minima tell more than the medians")
        return lines

    def __str__(self) -> str:
        return self.table()
