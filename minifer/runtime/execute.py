"""Executing plans: one native call per run of kernel steps, references between them, stages in turn.

An `Executor` runs one graph. It plans the graph for the input types it meets and keeps the plans (bounded, least
recently used first out). Where a stage ends at a value whose type only the run tells, the next stage hangs
under the types that turned up.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.collector import collector_paused
from minifer.errors import InputError, LimitError, MiniferError
from minifer.ir import Graph, Node, SequenceType, SparseTensor, TensorType, Type, type_of_value
from minifer.locks import Lock
from minifer.ops import registry
from minifer.ops.registry import Call, Context
from minifer.plan.ceiling import Ceiling
from minifer.plan.lower import Packed, Planner, Scope
from minifer.plan.plan import ARENA, Plan, PythonStep, Slot
from minifer.record import Record
from minifer.runtime.records import Table, build_tables, ensure_kernels
from minifer.runtime.settings import Settings

PLANS_KEPT = 64  # plans per graph and per stage
VALUES_KEPT = 4  # values of a scalar integer input that get plans of their own

#: what a kernel's status means
STATUS = {
    1: "an index is out of range; check the values of the inputs that hold indices or lengths",
    2: "a size or count in the data is not valid",
    3: "integer division by zero; check the values of the divisor",
}


class Clock:
    """How long a run may still take. The bodies of loops share the clock of the run."""

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self.end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raise LimitError where the time is over."""
        if self.end is not None and time.monotonic() > self.end:
            raise LimitError(f"the run took longer than max_seconds={self.seconds}: raise it, or use smaller inputs")

    def pause(self, seconds: float) -> None:
        """Do not count so many seconds (building kernels, which happens once)."""
        if self.end is not None:
            self.end += seconds


class WrongType(Exception):
    """A step gave another type than was planned: node `index` must be asked at run time."""

    def __init__(self, index: int):
        super().__init__(index)
        self.index = index


class Stage(Record, frozen=False, eq=False):
    """A plan made ready to run, and the stages that follow it by the types of its dynamic results."""

    plan: Plan
    end: int
    parts: list[Table | PythonStep]
    known: Mapping[str, Any]
    types: Mapping[str, Type]
    start: int = 0

    def __post_init__(self) -> None:
        self.following: OrderedDict[Any, Stage] = OrderedDict()
        self.inner: dict[tuple[int, int], Executor] = {}


def key_of(value: Any) -> Any:
    """What a plan depends on: dtype and shape of an array, the loose type of anything else."""
    if isinstance(value, np.ndarray):
        return (value.dtype, value.shape)
    return loose_type(value)


def loose_type(value: Any) -> Type:
    """The type of a value; the elements of a sequence may differ in shape, so their shape is left open."""
    kind = type_of_value(value)
    if isinstance(kind, SequenceType) and isinstance(kind.element, TensorType):
        return SequenceType(TensorType(kind.element.dtype, None))
    return kind


class Executor:
    """Runs one graph. `known` are the values of outer names (for a subgraph) that never change."""

    def __init__(
        self, graph: Graph, settings: Settings, known: Mapping[str, Any] | None = None, specialise: bool = False
    ):
        """`specialise`: plan anew for each value of a scalar integer or boolean input, while there are few. A model
        that branches on such an input (a sampling rate, a mode) then runs as straight-line code."""
        self.graph = graph
        self._values: dict[str, set[Any]] | None = {} if specialise else None
        self.settings = settings
        self.known = {**(known or {}), **graph.consts}
        ceiling = Ceiling(settings.limits.max_bytes)
        self.scope = Scope(graph, graph.nodes, self._run_known, settings.native, settings.threads, Packed(), ceiling)
        self._known_types: dict[str, Type] | None = None
        self._clock = Clock(None)  # of the run that is planning now
        self.stages: OrderedDict[Any, Stage] = OrderedDict()
        self.planning_seconds = 0.0  # so far
        self._lock = Lock()

    # -- planning -----------------------------------------------------------------------------------------

    def stage_for(self, feeds: Mapping[str, Any], clock: Clock | None = None) -> Stage:
        """The first stage for these inputs (and captured values)."""
        fixed = self.fixed_inputs(feeds)
        key = tuple((n, fixed[n].tobytes() if n in fixed else None, key_of(v)) for n, v in feeds.items())
        found = _kept(self.stages, key)
        if found is not None:
            return found
        with self._lock:
            found = self.stages.get(key)  # another thread may have planned it meanwhile
            if found is not None:
                return found
            types = {n: loose_type(v) for n, v in feeds.items()}
            known = {n: v.copy() for n, v in fixed.items()}
            return self._keep(self.stages, key, self._make(0, types, known, clock))

    def fixed_inputs(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs whose values the plan may take for granted: scalars, which choose a mode. A token is no scalar."""
        found: dict[str, np.ndarray] = {}
        if self._values is None:
            return found
        for name, value in feeds.items():
            if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iub":
                seen = self._values.setdefault(name, set())
                if len(seen) <= VALUES_KEPT:
                    seen.add(value.reshape(-1)[0].item())
                    if len(seen) <= VALUES_KEPT:
                        found[name] = value
        return found

    def _next_stage(self, stage: Stage, env: Mapping[str, Any], clock: Clock) -> Stage:
        names = [n for n, s in stage.plan.outputs if s == n]
        key = tuple(key_of(env[n]) for n in names)
        found = _kept(stage.following, key)
        if found is not None:
            return found
        with self._lock:
            found = stage.following.get(key)
            if found is not None:
                return found
            types = {**stage.types, **{n: loose_type(env[n]) for n in names}}
            return self._keep(stage.following, key, self._make(stage.end, types, stage.known, clock))

    def _keep(self, table: OrderedDict[Any, Stage], key: Any, stage: Stage) -> Stage:
        table[key] = stage
        self.settings.plans.add(table, key, stage)
        if len(table) > PLANS_KEPT:
            self.settings.plans.drop(table.popitem(last=False)[1])
        return stage

    def _make(self, start: int, types: Mapping[str, Type], known: Mapping[str, Any], clock: Clock | None) -> Stage:
        self._clock = clock or Clock(self.settings.limits.max_seconds)
        if self._known_types is None:
            self._known_types = {n: type_of_value(v) for n, v in self.known.items()}
        began = time.monotonic()
        with collector_paused():
            plan, end = Planner(self.scope, start, {**self._known_types, **types}, {**self.known, **known}).plan()
        self.planning_seconds += time.monotonic() - began
        if int(os.environ.get("MINIFER_DEBUG") or 0) >= 1:
            steps = f"{plan.native_steps()} kernel steps, {len(plan.python_steps())} by reference"
            arena = f"arena {plan.arena_bytes:,} bytes (at least {plan.least_arena_bytes():,})"
            print(f"plan of '{self.graph.name}' from node {start}: {steps}, {arena}", file=sys.stderr)
        self.scope.ceiling.check(plan.held_bytes(), "the run")
        began = time.monotonic()
        ensure_kernels(plan)
        self._clock.pause(time.monotonic() - began)
        stage_known = {**known, **plan.known}
        last_use = self.scope.last_use
        stage_known = {n: v for n, v in stage_known.items() if last_use(n) >= end}
        stage_types = {n: t for n, t in {**types, **plan.types}.items() if last_use(n) >= end}
        return Stage(plan, end, build_tables(plan), stage_known, stage_types, start=start)

    def _run_known(self, graph: Graph, inputs: Sequence[Any], outer: Mapping[str, Any]) -> list[Any]:
        """Run a subgraph while planning (constant folding), by references alone."""
        settings = Settings(native=False, limits=self.settings.limits)
        return Executor(graph, settings, outer).run(dict(zip(graph.inputs, inputs)), self._clock)

    # -- running ------------------------------------------------------------------------------------------

    def run(self, feeds: Mapping[str, Any], clock: Clock | None = None) -> list[Any]:
        """Values of the graph's outputs. `feeds` holds an entry for every input (and captured value)."""
        clock = clock or Clock(self.settings.limits.max_seconds)
        asked: set[int] = set()
        while True:
            try:
                return self._run(feeds, clock)
            except MemoryError as error:
                raise LimitError(f"the run does not fit into memory ({error}): use smaller inputs") from error
            except WrongType as wrong:  # plan again, with that node asked at run time
                if wrong.index in asked:
                    node = self.scope.nodes[wrong.index]
                    raise MiniferError(f"{node.label} gives another type than was planned, again and again") from None
                asked.add(wrong.index)
                with self._lock:
                    if wrong.index not in self.scope.dynamic:  # else another thread has met it first
                        self.scope.dynamic.add(wrong.index)
                        for stage in list(self.stages.values()):
                            self.settings.plans.drop(stage)
                        self.stages.clear()

    def _run(self, feeds: Mapping[str, Any], clock: Clock) -> list[Any]:
        env = dict(feeds)
        stage = self.stage_for(feeds, clock)
        owned: set[int] = set()  # id of arrays that nobody else holds
        while True:
            self._run_stage(stage, env, owned, clock)
            if stage.end >= len(self.scope.nodes):
                break
            stage = self._next_stage(stage, env, clock)
        results = []
        for name in self.graph.outputs:
            value = env[name] if name in env else stage.known[name] if name in stage.known else self.known[name]
            if id(value) not in owned:
                value = _fresh(value)
            owned.discard(id(value))
            results.append(value)
        return results

    def _run_stage(self, stage: Stage, env: dict[str, Any], owned: set[int], clock: Clock) -> None:
        clock.check()
        self.settings.plans.used(stage)
        plan = stage.plan
        arrays: dict[int, np.ndarray] = {}
        bases = np.zeros(plan.bases, np.int64)
        for name, base in plan.inputs:
            array = _contiguous(env[name])
            arrays[base] = array
            bases[base] = _address(array)
        fresh = set()
        for base, dtype, shape in plan.fresh:
            array = np.empty(shape, dtype)
            arrays[base] = array
            bases[base] = _address(array)
            fresh.add(base)
        arena = self.settings.workspaces.take(plan.arena_bytes)
        bases[ARENA] = _address(arena)
        arrays[ARENA] = arena
        objects: dict[str, Any] = {}
        try:
            for part in stage.parts:
                if isinstance(part, PythonStep):
                    self._python_step(stage, part, env, objects, arrays, bases, clock)
                else:
                    self._native_part(stage, part, env, bases, arrays)
                clock.check()
            for name, source in plan.outputs:
                if isinstance(source, Slot):
                    value = _view(source, arrays)
                    if source.buffer.base in fresh and value is arrays[source.buffer.base]:
                        owned.add(id(value))
                    elif source.buffer.kind == "arena":
                        value = value.copy()
                        owned.add(id(value))
                else:
                    value = objects[source]
                env[name] = value
        finally:
            self.settings.workspaces.give(arena)

    def _native_part(
        self, stage: Stage, table: Table, env: Mapping[str, Any], bases: np.ndarray, arrays: dict[int, np.ndarray]
    ) -> None:
        trace, on_step = self.settings.trace, self.settings.on_step
        if trace is None and on_step is None:
            failed = table.run(bases, self.settings.threads)
            if failed is not None:
                raise self._kernel_error(stage, env, table.steps[failed[0]].node, failed[1])
            return
        for i, step in enumerate(table.steps):
            start = time.perf_counter()
            failed = table.run(bases, self.settings.threads, i)
            end = time.perf_counter()
            if failed is not None:
                raise self._kernel_error(stage, env, step.node, failed[1])
            if on_step is not None:
                on_step(step, start, end)
            if trace is not None:
                trace(step.node, step.kernel, end - start, [_view(s, arrays) for s in step.writes])

    def _python_step(self, stage: Stage, step: PythonStep, env: dict[str, Any], objects: dict[str, Any],
                     arrays: dict[int, np.ndarray], bases: np.ndarray, clock: Clock) -> None:  # fmt: skip
        def value_of(source: Slot | str | None) -> Any:
            if source is None:
                return None
            if isinstance(source, Slot):
                return _view(source, arrays)
            for table in (objects, env, step.known):
                if source in table:
                    return table[source]
            return stage.known[source] if source in stage.known else self.known[source]

        inputs = [value_of(s) for s in step.inputs]

        def run_inner(graph: Graph, values: Sequence[Any]) -> list[Any]:
            key = (id(step), id(graph))
            inner = stage.inner.get(key)
            if inner is None:
                inner = stage.inner[key] = Executor(graph, self.settings, step.known)
            feeds = dict(zip(graph.inputs, values))
            needed = graph.captured()
            feeds.update((n, value_of(s)) for n, s in step.captured if n in needed)
            return inner.run(feeds, clock)

        op = registry.select(step.node)
        assert op is not None
        if None in step.types:
            self._check_result(op, step, inputs)
        start = time.perf_counter()
        results = op.call(Context(step.node, run_inner, self._hold), inputs)
        seconds = time.perf_counter() - start
        arena = arrays[ARENA]
        for name, kind, buffer, value in zip(step.outputs, step.types, step.buffers, results):
            if not name:
                continue
            if buffer is None:
                objects[name] = _safe(value, arena)
                continue
            if not isinstance(value, np.ndarray | np.generic) or type_of_value(value) != kind:
                raise WrongType(step.index)
            array = _safe(_contiguous(np.asarray(value)), arena)
            arrays[buffer.base] = array
            bases[buffer.base] = _address(array)
        if self.settings.on_step is not None:
            self.settings.on_step(step, start, time.perf_counter())
        if self.settings.trace is not None:
            self.settings.trace(step.node, None, seconds, results)

    def _check_result(self, op: registry.Op, step: PythonStep, inputs: Sequence[Any]) -> None:
        """Raise LimitError where what data ask for is too large; only now are they known."""
        if op.infer is None or step.node.subgraphs_any:
            return
        call = Call(step.node, [None if v is None else loose_type(v) for v in inputs], inputs)
        kinds = op.infer(call)
        self.scope.ceiling.check_types(call, kinds if isinstance(kinds, list | tuple) else [kinds])

    def _kernel_error(self, stage: Stage, env: Mapping[str, Any], node: Node, status: int) -> MiniferError:
        """The error for data that a kernel refused."""

        def kind(name: str) -> str:
            if name in stage.plan.types:
                return str(stage.plan.types[name])
            value = next((t[name] for t in (env, stage.known, self.known) if name in t), None)
            return "-" if value is None else str(type_of_value(value))

        kinds = ", ".join(map(kind, node.inputs))
        return InputError(f"{node.label}({kinds}): {STATUS.get(status, f'kernel status {status}')}")

    def _hold(self, nbytes: int) -> None:
        self.scope.ceiling.check(nbytes, "what a loop has gathered")


def _kept(table: OrderedDict[Any, Stage], key: Any) -> Stage | None:
    """A kept stage, marked as used last."""
    found = table.get(key)
    if found is not None:
        with contextlib.suppress(KeyError):  # another thread may have dropped it
            table.move_to_end(key)
    return found


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _contiguous(array: np.ndarray) -> np.ndarray:
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _view(slot: Slot, arrays: Mapping[int, np.ndarray]) -> np.ndarray:
    """The ndarray that lies in a slot; the very array where the slot is all of it."""
    buffer = slot.buffer
    if buffer.kind == "const":
        assert buffer.array is not None
        array, start = buffer.array, slot.offset
    elif buffer.kind == "arena":
        array, start = arrays[ARENA], buffer.offset + slot.offset
    else:
        array, start = arrays[buffer.base], slot.offset
    dtype = dtypes.to_numpy(slot.dtype)
    if array.shape == slot.shape and array.dtype == dtype and start == 0 and buffer.kind != "arena":
        return array
    flat = array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
    return flat[start : start + slot.size * dtype.itemsize].view(dtype).reshape(slot.shape)


def _fresh(value: Any) -> Any:
    """A copy that shares no memory with the value."""
    if isinstance(value, np.ndarray | np.generic):
        return np.array(value)
    if isinstance(value, list):
        return [_fresh(v) for v in value]
    if isinstance(value, dict):
        return {k: _fresh(v) for k, v in value.items()}
    if isinstance(value, SparseTensor):
        return SparseTensor(np.array(value.values), np.array(value.indices), value.shape)
    return value


def _safe(value: Any, arena: np.ndarray) -> Any:
    """A value that does not point into the arena, which the next step may overwrite."""
    if isinstance(value, np.ndarray):
        return value.copy() if value.dtype != object and np.may_share_memory(value, arena) else value
    if isinstance(value, list):
        return [_safe(v, arena) for v in value]
    return value
