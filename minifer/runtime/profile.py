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
from dataclasses import dataclass
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError
from minifer.ir import Node, TensorType, Type, type_of_value
from minifer.ops.registry import CHANNELS_LAST
from minifer.plan.cost import node_flops, weights_input
from minifer.plan.plan import KernelStep, Slot, Step, itemsize
from minifer.runtime.execute import Executor, Stage
from minifer.runtime.profile_report import Profile, StepProfile
from minifer.runtime.records import Table

EMPTY_CALLS = 200

_one_at_a_time = threading.Lock()


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
        costs = {small: empty_call(settings.threads, small) for small in kinds}
    return Profile(
        settings.threads, runs, min(ordinary) * 1e3, statistics.median(ordinary) * 1e3,
        statistics.median(profiled) * 1e3, max(costs.values(), default=0.0) * 1e6,
        tuple(steps_of(recorder, facts, costs)),
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


def empty_call(threads: int, small: bool) -> float:
    """Seconds that a native call without any kernel takes, timed as a step is."""
    table, bases = Table((), np.zeros((0, 4), np.int64), np.zeros(0, np.int64), small), np.zeros(2, np.int64)
    best = float("inf")
    for _ in range(EMPTY_CALLS):
        start = time.perf_counter()
        table.run(bases, threads)
        best = min(best, time.perf_counter() - start)
    return best


# ---- the report ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Row:
    """A step with what was measured, in seconds, and what is known of it."""

    step: Step
    types: Mapping[str, Type]
    calls: float  # in one run
    least: float
    median: float
    reads: list[Type]
    constants: list[Type]
    writes: list[Type]

    @property
    def planned_node(self) -> tuple[int, int]:
        """The node in its plan: the same node may be planned for several shapes."""
        return id(self.step.node), id(self.types)

    @property
    def weight(self) -> tuple[int, int]:
        """Tells the step that multiplies from others of its node (padding, say): most constants, then most bytes."""
        return sum(map(_nbytes, self.constants)), sum(map(_nbytes, (*self.reads, *self.writes)))

    @property
    def nbytes(self) -> int:
        """Bytes that one call reads and writes."""
        return sum(self.weight)


def steps_of(recorder: Recorder, facts: Facts, costs: Mapping[bool, float]) -> list[StepProfile]:
    """What was recorded, step by step. `costs`: seconds of an empty call, to be taken off, by whether it is kept on
    one thread."""
    return _steps(_rows(recorder, facts, costs))


def _rows(recorder: Recorder, facts: Facts, costs: Mapping[bool, float]) -> list[Row]:
    rows = []
    for record in recorder.records.values():
        types, small = facts.get(id(record.step), ({}, None))
        cost = costs[small] if small is not None else 0.0
        missing = [0] * (recorder.runs - len(record.calls))
        calls = [*record.calls, *missing]
        times = [max(s - cost * n, 0.0) for s, n in zip([*record.seconds, *missing], calls)]
        measured = statistics.fmean(calls), min(times), statistics.median(times)
        rows.append(Row(record.step, types, *measured, *_tensors(record.step, types)))
    return rows


def _steps(rows: Sequence[Row]) -> list[StepProfile]:
    total = sum(row.median for row in rows)
    seconds: dict[tuple[int, int], float] = {}  # of all steps of a node
    bearers: dict[tuple[int, int], Row] = {}  # the step that has the node's arithmetic
    for row in rows:
        key = row.planned_node
        seconds[key] = seconds.get(key, 0.0) + row.median
        if key not in bearers or row.weight > bearers[key].weight:
            bearers[key] = row
    out = []
    for i, row in enumerate(rows):
        node, key = row.step.node, row.planned_node
        nodes = (node, *row.step.joined) if isinstance(row.step, KernelStep) else (node,)
        flops = round(sum(node_flops(n, row.types) for n in nodes) * row.calls) if bearers[key] is row else 0
        results = {row.types.get(name) for name in nodes[-1].outputs}  # what else is written is scratch
        out.append(
            StepProfile(
                index=i,
                node=" + ".join(n.name or next(filter(None, n.outputs), "") for n in nodes),
                op=f"{node.domain + '::' if node.domain else ''}{node.op}-{node.version}",
                kernel=row.step.kernel.name if isinstance(row.step, KernelStep) else "python",
                inputs=tuple(map(str, row.reads)),
                weights=_weights(node, row.types, row.reads) if flops else "",
                outputs=tuple(str(kind) for kind in row.writes if kind in results) or tuple(map(str, row.writes)),
                calls=row.calls,
                min_ms=row.least * 1e3,
                median_ms=row.median * 1e3,
                share=row.median / total if total else 0.0,
                flops=flops,
                gflops_per_second=_rate(flops, seconds[key]),
                bytes=round(row.nbytes * row.calls),
                gbytes_per_second=_rate(row.nbytes * row.calls, row.median),
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
