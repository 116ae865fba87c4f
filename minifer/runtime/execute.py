"""Executing plans: one native call per run of kernel steps, references between them, stages in turn.

An `Executor` runs one graph. It plans the graph for the input types it meets and keeps the plans (bounded, least
recently used first out). Where a stage ends at a value whose type only the run tells, the next stage hangs
under the types that turned up.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, LimitError, MiniferError
from minifer.ir import Graph, SequenceType, TensorType, Type, type_of_value
from minifer.ops import registry
from minifer.ops.registry import Context
from minifer.plan.lower import Packed, Planner, Scope
from minifer.plan.plan import ARENA, KernelStep, Plan, PythonStep, Slot
from minifer.runtime.records import Table, build_tables

PLANS_KEPT = 64  # plans per graph and per stage
VALUES_KEPT = 4  # values of a scalar integer input that get plans of their own
WORKSPACES_KEPT = 4

#: what a kernel's status means
STATUS = {
    1: "an index is out of range", 2: "a size or count in the data is not valid", 3: "integer division by zero",
}  # fmt: skip


@dataclass
class Limits:
    """What a session may use at most; None: no limit."""

    max_bytes: int | None = None  # arena and outputs of one stage
    max_seconds: float | None = None  # of one run; checked between stages and Python steps


@dataclass
class Settings:
    """What all executors of a session share."""

    threads: int = 1
    native: bool = True
    limits: Limits = field(default_factory=Limits)
    workspaces: Workspaces = field(default_factory=lambda: Workspaces())
    trace: Any = None  # called with (node, kernel or None, seconds, outputs) after each step, where set
    on_step: Any = None  # called with (step, start, end) after each step, where set; times of perf_counter


class Workspaces:
    """Arenas, reused between runs. Two runs at once get two."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> np.ndarray:
        """A 64-byte aligned block of at least `nbytes` bytes."""
        with self._lock:
            fitting = [w for w in self._free if w.nbytes >= nbytes]
            if fitting:
                best = min(fitting, key=lambda w: w.nbytes)
                self._free = [w for w in self._free if w is not best]
                return best
        raw = np.empty(nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + nbytes]

    def give(self, block: np.ndarray) -> None:
        """Return a block; the smallest beyond a few are freed."""
        with self._lock:
            self._free.append(block)
            if len(self._free) > WORKSPACES_KEPT:
                self._free = sorted(self._free, key=lambda w: w.nbytes)[-WORKSPACES_KEPT:]

    def clear(self) -> None:
        """Free all."""
        with self._lock:
            self._free.clear()


class WrongType(Exception):
    """A step gave another type than was planned: node `index` must be asked at run time."""

    def __init__(self, index: int):
        super().__init__(index)
        self.index = index


@dataclass(eq=False)
class Stage:
    """A plan made ready to run, and the stages that follow it by the types of its dynamic results."""

    plan: Plan
    end: int
    parts: list[Table | PythonStep]
    known: dict[str, Any]
    types: dict[str, Type]
    following: OrderedDict[Any, Stage] = field(default_factory=OrderedDict)
    inner: dict[tuple[int, int], Executor] = field(default_factory=dict)
    start: int = 0


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
        self.scope = Scope(graph, graph.nodes, self._run_known, settings.native, settings.threads, Packed())
        self.stages: OrderedDict[Any, Stage] = OrderedDict()
        self._lock = threading.RLock()

    # -- planning -----------------------------------------------------------------------------------------

    def stage_for(self, feeds: Mapping[str, Any]) -> Stage:
        """The first stage for these inputs (and captured values)."""
        fixed = self._fixed(feeds) if self._values is not None else {}
        key = tuple((n, fixed[n].tobytes() if n in fixed else None, key_of(v)) for n, v in feeds.items())
        found = self.stages.get(key)
        if found is not None:
            return found
        with self._lock:
            types = {n: loose_type(v) for n, v in feeds.items()}
            for name, value in self.known.items():
                types.setdefault(name, type_of_value(value))
            known = {n: v for n, v in self.known.items() if n not in feeds}
            known.update((n, v.copy()) for n, v in fixed.items())
            return self._keep(self.stages, key, self._make(0, types, known))

    def _fixed(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs whose values the plan may take for granted."""
        assert self._values is not None
        found = {}
        for name, value in feeds.items():
            if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iub":
                seen = self._values.setdefault(name, set())
                if len(seen) <= VALUES_KEPT:
                    seen.add(value.reshape(-1)[0].item())
                    if len(seen) <= VALUES_KEPT:
                        found[name] = value
        return found

    def _next_stage(self, stage: Stage, env: Mapping[str, Any]) -> Stage:
        names = [n for n, s in stage.plan.outputs if s == n]
        key = tuple(key_of(env[n]) for n in names)
        found = stage.following.get(key)
        if found is not None:
            return found
        with self._lock:
            types = {**stage.types, **{n: loose_type(env[n]) for n in names}}
            return self._keep(stage.following, key, self._make(stage.end, types, stage.known))

    def _keep(self, table: OrderedDict[Any, Stage], key: Any, stage: Stage) -> Stage:
        table[key] = stage
        if len(table) > PLANS_KEPT:
            table.popitem(last=False)
        return stage

    def _make(self, start: int, types: Mapping[str, Type], known: Mapping[str, Any]) -> Stage:
        plan, end = Planner(self.scope, start, types, known).plan()
        limit = self.settings.limits.max_bytes
        need = plan.arena_bytes + sum(int(np.prod(s, dtype=np.int64)) * d.itemsize for _, d, s in plan.fresh)
        if limit is not None and need > limit:
            raise LimitError(f"the run needs {need} bytes and max_bytes is {limit}: raise it, or use smaller inputs")
        stage_known = {**known, **plan.known}
        last_use = self.scope.last_use
        stage_known = {n: v for n, v in stage_known.items() if last_use(n) >= end}
        stage_types = {n: t for n, t in {**types, **plan.types}.items() if last_use(n) >= end}
        return Stage(plan, end, build_tables(plan), stage_known, stage_types, start=start)

    def _run_known(self, graph: Graph, inputs: Sequence[Any], outer: Mapping[str, Any]) -> list[Any]:
        """Run a subgraph while planning (constant folding), by references alone."""
        settings = Settings(native=False, limits=self.settings.limits)
        return Executor(graph, settings, outer).run(dict(zip(graph.inputs, inputs)))

    # -- running ------------------------------------------------------------------------------------------

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Values of the graph's outputs. `feeds` holds an entry for every input (and captured value)."""
        while True:
            try:
                return self._run(feeds)
            except WrongType as wrong:  # plan again, with that node asked at run time
                with self._lock:
                    if wrong.index in self.scope.dynamic:
                        raise
                    self.scope.dynamic.add(wrong.index)
                    self.stages.clear()

    def _run(self, feeds: Mapping[str, Any]) -> list[Any]:
        began = time.monotonic()
        env = dict(feeds)
        stage = self.stage_for(feeds)
        owned: set[int] = set()  # id of arrays that nobody else holds
        while True:
            self._run_stage(stage, env, owned, began)
            if stage.end >= len(self.scope.nodes):
                break
            stage = self._next_stage(stage, env)
        results = []
        for name in self.graph.outputs:
            value = env[name] if name in env else stage.known[name] if name in stage.known else self.known[name]
            if isinstance(value, np.ndarray | np.generic):
                if id(value) not in owned:
                    value = np.array(value)
                owned.discard(id(value))
            elif isinstance(value, list):
                value = [np.array(v) if isinstance(v, np.ndarray) else v for v in value]
            results.append(value)
        return results

    def _run_stage(self, stage: Stage, env: dict[str, Any], owned: set[int], began: float) -> None:
        plan = stage.plan
        arrays: dict[int, np.ndarray] = {}
        bases = np.zeros(plan.bases, np.int64)
        for name, base in plan.inputs:
            array = _contiguous(env[name])
            arrays[base] = array
            bases[base] = _address(array)
        for base, dtype, shape in plan.fresh:
            array = np.empty(shape, dtype)
            arrays[base] = array
            bases[base] = _address(array)
        arena = self.settings.workspaces.take(plan.arena_bytes)
        bases[ARENA] = _address(arena)
        arrays[ARENA] = arena
        objects: dict[str, Any] = {}
        try:
            for part in stage.parts:
                if isinstance(part, PythonStep):
                    self._check_time(began)
                    self._python_step(stage, part, env, objects, arrays, bases)
                else:
                    self._native_part(part, bases, arrays)
            for name, source in plan.outputs:
                if isinstance(source, Slot):
                    value = _view(source, arrays)
                    if source.buffer.kind == "array" and value is arrays[source.buffer.base]:
                        if value.flags.owndata and value.flags.writeable and name not in plan.inputs:
                            owned.add(id(value))
                    elif source.buffer.kind == "arena":
                        value = value.copy()
                        owned.add(id(value))
                else:
                    value = objects[source]
                env[name] = value
        finally:
            self.settings.workspaces.give(arena)

    def _check_time(self, began: float) -> None:
        limit = self.settings.limits.max_seconds
        if limit is not None and time.monotonic() - began > limit:
            raise LimitError(f"the run took longer than max_seconds={limit}")

    def _native_part(self, table: Table, bases: np.ndarray, arrays: dict[int, np.ndarray]) -> None:
        trace, on_step = self.settings.trace, self.settings.on_step
        if trace is None and on_step is None:
            failed = table.run(bases, self.settings.threads)
            if failed is not None:
                raise kernel_error(table.steps[failed[0]], failed[1])
            return
        for i, step in enumerate(table.steps):
            start = time.perf_counter()
            failed = table.run(bases, self.settings.threads, i)
            end = time.perf_counter()
            if failed is not None:
                raise kernel_error(step, failed[1])
            if on_step is not None:
                on_step(step, start, end)
            if trace is not None:
                trace(step.node, step.kernel, end - start, [_view(s, arrays) for s in step.writes])

    def _python_step(self, stage: Stage, step: PythonStep, env: dict[str, Any], objects: dict[str, Any],
                     arrays: dict[int, np.ndarray], bases: np.ndarray) -> None:  # fmt: skip
        def value_of(source: Slot | str | None) -> Any:
            if source is None:
                return None
            if isinstance(source, Slot):
                return _view(source, arrays)
            for table in (objects, env, step.known):
                if source in table:
                    return table[source]
            return stage.known[source]

        inputs = [value_of(s) for s in step.inputs]

        def run_inner(graph: Graph, values: Sequence[Any]) -> list[Any]:
            key = (id(step), id(graph))
            inner = stage.inner.get(key)
            if inner is None:
                inner = stage.inner[key] = Executor(graph, self.settings, step.known)
            feeds = dict(zip(graph.inputs, values))
            needed = graph.captured()
            feeds.update((n, value_of(s)) for n, s in step.captured if n in needed)
            return inner.run(feeds)

        op = registry.select(step.node)
        assert op is not None
        start = time.perf_counter()
        results = op.call(Context(step.node, run_inner), inputs)
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


def kernel_error(step: KernelStep, status: int) -> MiniferError:
    """The error for data that a kernel refused."""
    kinds = ", ".join(f"{s.dtype}{list(s.shape)}" for s in step.reads)
    return InputError(f"{step.node.label}({kinds}): {STATUS.get(status, f'kernel status {status}')}")


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


def _safe(value: Any, arena: np.ndarray) -> Any:
    """A value that does not point into the arena, which the next step may overwrite."""
    if isinstance(value, np.ndarray):
        return value.copy() if value.dtype != object and np.may_share_memory(value, arena) else value
    if isinstance(value, list):
        return [_safe(v, arena) for v in value]
    return value
