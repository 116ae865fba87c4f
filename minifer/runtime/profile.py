"""Profiling: how long each step of a run takes, and how much it computes and moves.

A profiled run makes one native call per step instead of one for all of them. What an empty call costs is measured
and taken off each step's time; ordinary runs alternate with the profiled ones, and their time is given beside the sum
of the steps, so that a reader sees how far the parts explain the whole.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError
from minifer.ir import Node, TensorType, Type, type_of_value
from minifer.ops.registry import CHANNELS_LAST
from minifer.plan.cost import node_flops, weights_input
from minifer.plan.plan import KernelStep, Slot, Step, itemsize
from minifer.runtime.execute import Executor, Stage
from minifer.runtime.records import Table

FORMAT = 1  # of the JSON form; grows when a field changes its meaning or goes
EMPTY_CALLS = 200
UNSTEADY = 1.25  # median by minimum from which times are called unsteady

_one_at_a_time = threading.Lock()


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
    flops: int  # in one run; a node of several steps has it at the slowest of them; 0 where not known
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
        return "\n".join(lines + self._totals())

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


def profile(run: Callable[[], Any], executor: Executor, runs: int = 20, warmup: int = 3) -> Profile:
    """Measure `run`, which runs `executor` once on the same inputs each time.

    After `warmup` ordinary runs (at least one is made, for the plan), `runs` ordinary and profiled ones take turns.
    Runs of the same session in other Python threads are not counted, but they disturb the times.
    """
    if runs < 1 or warmup < 0:
        raise InputError(f"a profile needs at least 1 run and 0 warm-up runs, not {runs} and {warmup}")
    settings = executor.settings
    with _one_at_a_time:
        for _ in range(max(warmup, 1)):
            run()
        recorder, ordinary, profiled = Recorder(), [], []
        for _ in range(runs):
            start = time.perf_counter()
            run()
            ordinary.append(time.perf_counter() - start)
            recorder.begin_run()
            settings.on_step = recorder
            start = time.perf_counter()
            try:
                run()
            finally:
                settings.on_step = None
            profiled.append(time.perf_counter() - start)
        facts = gather_facts(executor)
        kinds = {small for _, small in facts.values() if small is not None}
        costs = {small: _empty_call(settings.threads, small) for small in kinds}
    return Profile(
        settings.threads, runs, min(ordinary) * 1e3, statistics.median(ordinary) * 1e3,
        statistics.median(profiled) * 1e3, max(costs.values(), default=0.0) * 1e6,
        tuple(_steps(recorder, facts, costs)),
    )  # fmt: skip


@dataclass(eq=False)
class Record:
    """What the recorder keeps of a step: calls and own seconds, run by run."""

    step: Step
    calls: list[int]
    seconds: list[float]


class Recorder:
    """Called after each step. Steps of inner graphs come before the step that runs them, and began after it did."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}  # by id(step); the record keeps the step alive
        self.runs = 0
        self._thread = threading.get_ident()
        self._finished: list[tuple[float, float]] = []  # (start, seconds) of steps that may turn out to be inner ones

    def begin_run(self) -> None:
        """What comes now belongs to a new run."""
        self.runs += 1
        self._finished.clear()

    def __call__(self, step: Step, start: float, end: float) -> None:
        if threading.get_ident() != self._thread:
            return
        own = end - start
        while self._finished and self._finished[-1][0] >= start:
            own -= self._finished.pop()[1]
        self._finished.append((start, end - start))
        record = self.records.get(id(step))
        if record is None:
            record = self.records[id(step)] = Record(step, [], [])
        missing = self.runs - len(record.calls)
        record.calls += [0] * missing
        record.seconds += [0.0] * missing
        record.calls[-1] += 1
        record.seconds[-1] += own


# ---- what is known of the steps without running them -----------------------------------------------------------------

#: id(step) -> (types of the values around it, whether its call is kept on one thread: None for a Python step)
Facts = dict[int, tuple[Mapping[str, Type], bool | None]]


def gather_facts(executor: Executor) -> Facts:
    """The steps of all plans of an executor, inner graphs and later stages included."""
    facts: Facts = {}
    _gather(executor, facts)
    return facts


def _gather(executor: Executor, facts: Facts) -> None:
    constants = {name: type_of_value(value) for name, value in executor.known.items()}

    def visit(stage: Stage, before: dict[str, Type]) -> None:
        types = {**before, **stage.plan.types}
        for part in stage.parts:
            for step in part.steps if isinstance(part, Table) else (part,):
                facts[id(step)] = types, part.small if isinstance(part, Table) else None
        names = [name for name, source in stage.plan.outputs if source == name]
        for key, following in list(stage.following.items()):
            visit(following, {**types, **_types_in(zip(names, key))})
        for inner in list(stage.inner.values()):
            _gather(inner, facts)

    for key, stage in list(executor.stages.items()):
        visit(stage, {**constants, **_types_in((name, kind) for name, _, kind in key)})


def _types_in(pairs: Any) -> dict[str, Type]:
    """Types from the keys under which an executor keeps its plans: (dtype, shape) of an array, or a type."""
    return {
        name: TensorType(dtypes.from_numpy(kind[0]), kind[1]) if isinstance(kind, tuple) else kind
        for name, kind in pairs
    }


def _empty_call(threads: int, small: bool) -> float:
    """Seconds that a native call without any kernel takes, timed as a step is."""
    table, bases = Table((), np.zeros((0, 4), np.int64), np.zeros(0, np.int64), small), np.zeros(2, np.int64)
    best = float("inf")
    for _ in range(EMPTY_CALLS):
        start = time.perf_counter()
        table.run(bases, threads)
        best = min(best, time.perf_counter() - start)
    return best


# ---- the report ------------------------------------------------------------------------------------------------------


def _steps(recorder: Recorder, facts: Facts, costs: Mapping[bool, float]) -> list[StepProfile]:
    rows = []
    for record in recorder.records.values():
        types, small = facts.get(id(record.step), ({}, None))
        cost = costs[small] if small is not None else 0.0
        missing = [0] * (recorder.runs - len(record.calls))
        calls = [*record.calls, *missing]
        times = [max(s - cost * n, 0.0) for s, n in zip([*record.seconds, *missing], calls)]
        rows.append((record.step, types, statistics.fmean(calls), min(times), statistics.median(times)))
    total = sum(row[4] for row in rows)
    slowest: dict[tuple[int, int], int] = {}  # node of a plan -> the row that bears its arithmetic
    node_seconds: dict[tuple[int, int], float] = {}
    for i, (step, types, _, _, median) in enumerate(rows):
        key = id(step.node), id(types)
        node_seconds[key] = node_seconds.get(key, 0.0) + median
        if key not in slowest or median > rows[slowest[key]][4]:
            slowest[key] = i
    out = []
    for i, (step, types, calls_a_run, least, median) in enumerate(rows):
        key = id(step.node), id(types)
        flops = round(node_flops(step.node, types) * calls_a_run) if slowest[key] == i else 0
        reads, constants, writes = _tensors(step, types)
        moved = round(sum(map(_nbytes, (*reads, *constants, *writes))) * calls_a_run)
        results = {types.get(name) for name in step.node.outputs}  # what else is written is scratch
        out.append(
            StepProfile(
                index=i,
                node=step.node.name or next(filter(None, step.node.outputs), ""),
                op=f"{step.node.domain + '::' if step.node.domain else ''}{step.node.op}-{step.node.version}",
                kernel=step.kernel.name if isinstance(step, KernelStep) else "python",
                inputs=tuple(map(str, reads)),
                weights=_weights(step.node, types, reads) if flops else "",
                outputs=tuple(str(kind) for kind in writes if kind in results) or tuple(map(str, writes)),
                calls=calls_a_run,
                min_ms=least * 1e3,
                median_ms=median * 1e3,
                share=median / total if total else 0.0,
                flops=flops,
                gflops_per_second=_rate(flops, node_seconds[key]),
                bytes=moved,
                gbytes_per_second=_rate(moved, median),
            )
        )
    return out


def _rate(count: float, seconds: float) -> float:
    return count / seconds / 1e9 if seconds else 0.0


def _tensors(step: Step, types: Mapping[str, Type]) -> tuple[list[Type], list[Type], list[Type]]:
    """Types of what a step reads (values of the run; constants) and writes."""
    if isinstance(step, KernelStep):
        read: list[tuple[Type, bool]] = [(_onnx_type(s), s.buffer.kind == "const") for s in step.reads]
        written: list[Type] = [_onnx_type(s) for s in step.writes]
    else:
        read = [(types[name], name in step.known) for name in step.node.inputs if name in types]
        written = [types[name] for name in step.node.outputs if name in types]
    return [kind for kind, fixed in read if not fixed], [kind for kind, fixed in read if fixed], written


def _onnx_type(slot: Slot) -> TensorType:
    """The type of a slot with its dimensions in the order of ONNX."""
    shape = slot.shape
    return TensorType(slot.dtype, (shape[0], shape[-1], *shape[1:-1]) if slot.layout == CHANNELS_LAST else shape)


def _weights(node: Node, types: Mapping[str, Type], reads: Sequence[Type]) -> str:
    """The type of the constant that a convolution or product multiplies with."""
    place = weights_input(node)
    kind = types.get(node.inputs[place]) if place < len(node.inputs) else None
    return "" if kind is None or kind in reads else str(kind)


def _nbytes(kind: Type) -> int:
    """Bytes of a tensor; 0 where the size is not known, or it is no tensor."""
    if not isinstance(kind, TensorType) or not kind.concrete or kind.dtype == "string":
        return 0
    return math.prod(kind.dims) * itemsize(kind.dtype)
