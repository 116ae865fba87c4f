"""From a graph to the part of a compiled model that computes it: planned, with its control flow made steps, and all
memory placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minifer.embed.control import Control, Unfit, control_of, why_open
from minifer.embed.places import Places, Source, Weights
from minifer.embed.steps import CallStep, Copy, Part, Step
from minifer.errors import MiniferError, UnsupportedError
from minifer.ir import Graph, Node, TensorType, Type, type_of_value
from minifer.plan import arena
from minifer.plan.lower import Planner
from minifer.plan.plan import Buffer, KernelStep, Plan, PythonStep, Slot, lifetimes, tensor
from minifer.runtime.execute import Executor
from minifer.runtime.records import words_of
from minifer.runtime.settings import Settings


@dataclass
class Problems:
    """What cannot be compiled: the names of nodes, by operator and reason."""

    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, node: Node, why: str) -> None:
        """Note a node."""
        op = f"{node.domain}::{node.op}" if node.domain else node.op
        self.found.setdefault((op, why), []).append(node.name or next(filter(None, node.outputs), "?"))

    @property
    def count(self) -> int:
        """How many nodes were noted."""
        return sum(map(len, self.found.values()))

    def error(self) -> UnsupportedError:
        """The error that lists all."""
        lines = [f"  {op} x{len(names)} (first: {names[0]}): {why}" for (op, why), names in self.found.items()]
        return UnsupportedError(
            "a compiled model has fixed shapes and consists of kernels. These operators cannot be compiled:\n"
            + "\n".join(lines)
            + "\nWhere the value of an input decides, fix it (--set name=value); else cut the model before them."
        )


@dataclass
class Builder:
    """Makes parts of graphs. All share the weights."""

    weights: Weights = field(default_factory=Weights)
    problems: Problems = field(default_factory=Problems)

    def part(self, graph: Graph, types: Mapping[str, Type], known: Mapping[str, Any] | None = None) -> Part | None:
        """The part of a graph that reads tensors of these types, planned for one thread. `known`: values of outer
        names. None where something cannot be compiled: the problems then tell what."""
        executor = Executor(graph, Settings(threads=1, native=True), known)
        known_types = {n: type_of_value(v) for n, v in executor.known.items()}
        planner = Planner(executor.scope, 0, {**known_types, **types}, executor.known)
        plan, _ = planner.plan()
        before = self.problems.count
        controls = self._controls(plan)
        if plan.dynamic:  # what comes after this node is not planned
            node = plan.steps[-1].node
            self.problems.add(node, why_open(node, planner.types, planner.known))
        if self.problems.count > before:
            return None
        return _assembled(graph, plan, types, {**executor.known, **plan.known}, self.weights, controls)

    def _controls(self, plan: Plan) -> dict[int, Control]:
        """The control flow in a plan, by step. What has no kernel either is a problem."""
        found: dict[int, Control] = {}
        for i, step in enumerate(plan.steps[:-1] if plan.dynamic else plan.steps):
            if isinstance(step, PythonStep):
                try:
                    control = control_of(step, lambda *what, node=step.node: self._inner(node, *what))
                except Unfit as problem:
                    self.problems.add(step.node, str(problem))
                else:
                    if control is not None:
                        found[i] = control
        return found

    def _inner(self, node: Node, graph: Graph, types: Mapping[str, Type], known: Mapping[str, Any]) -> Part | None:
        """The part of a node's graph, which need not fit what it reads: it may never be meant to run."""
        try:
            return self.part(graph, types, known)
        except MiniferError as error:
            self.problems.add(node, f"its graph '{graph.name}' does not fit: {error}")
            return None


# ---------------------------------------------------------------- from plans to parts


def _assembled(
    graph: Graph,
    plan: Plan,
    types: Mapping[str, Type],
    known: Mapping[str, Any],
    weights: Weights,
    controls: Mapping[int, Control],
) -> Part:
    direct = _written_directly(graph, plan)
    for buffer in _results(plan):
        if buffer not in direct:
            buffer.kind = "arena"
    memory = _place(plan, controls)
    places = Places(weights, plan.bases)
    steps: list[Step] = []
    for i, step in enumerate(plan.steps):
        if isinstance(step, KernelStep):
            steps.append(CallStep(step.kernel, tuple(words_of(step, places.of))))
        else:
            steps += controls[i].steps(places)
    part = Part(dict(plan.inputs), (), places.base, places.base + 1, memory, steps)
    _add_outputs(part, [_origin(n, plan, types, known, part) for n in graph.outputs], direct, places)
    return part


def _results(plan: Plan) -> list[Buffer]:
    """What control flow makes: the planner gives each a base of its own."""
    return [buffer for step in plan.python_steps() for buffer in step.buffers if buffer is not None]


def _written_directly(graph: Graph, plan: Plan) -> set[Buffer]:
    """The buffers that are an output of the graph from their first byte to the last."""
    results, fresh = set(_results(plan)), {base for base, _, _ in plan.fresh}
    made = dict(plan.outputs)
    whole = [made[n].buffer for n in graph.outputs if n in made and _is_whole(made[n])]
    direct = {b for b in whole if b in results or (b.kind == "array" and b.base in fresh)}
    assert fresh <= {b.base for b in direct}, "a plan allocates an array that is no output"
    return direct


def _is_whole(slot: Slot) -> bool:
    return slot.offset == 0 and slot.nbytes == slot.buffer.nbytes


def _place(plan: Plan, controls: Mapping[int, Control]) -> int:
    """Place the arena anew with what control flow needs in it; returns its size."""
    spans = lifetimes(plan.steps, ())
    for i, control in controls.items():
        step = plan.steps[i]
        assert isinstance(step, PythonStep)
        spans.update((buffer, [i, i]) for buffer in control.scratch)
        for buffer in step.buffers:
            if buffer is not None and buffer.kind == "arena":
                spans.setdefault(buffer, [i, i])[0] = i
    for _, slot in plan.outputs:
        if slot.buffer in spans:
            spans[slot.buffer][1] = len(plan.steps)
    offsets, size = arena.place([(first, last, buffer.nbytes) for buffer, (first, last) in spans.items()])
    for buffer, offset in zip(spans, offsets):
        buffer.offset = offset
    return size


def _origin(name: str, plan: Plan, types: Mapping[str, Type], known: Mapping[str, Any], part: Part) -> Source:
    """Where an output of the graph comes from: memory, a constant, or an input that is handed through."""
    made = dict(plan.outputs)
    if name in made:
        return made[name]
    if name in known:
        value = known[name]
        if not isinstance(value, np.ndarray | np.generic) or value.dtype == object:
            raise UnsupportedError(f"output {name!r} is no tensor of numbers: it cannot be compiled")
        return np.asarray(value)
    kind = types[name]
    assert isinstance(kind, TensorType)
    if name not in part.inputs:
        part.inputs[name] = _new_base(part)
    buffer = Buffer("array", 0, base=part.inputs[name])
    return Slot(buffer, kind.dtype, kind.dims)


def _add_outputs(part: Part, origins: Sequence[Source], direct: set[Buffer], places: Places) -> None:
    """Give every output a base: that of the buffer that is all of it, or a new one and a copy at the end."""
    outputs: dict[int, TensorType] = {}
    for origin in origins:
        if isinstance(origin, Slot):
            kind, nbytes = tensor(origin), origin.nbytes
            if origin.buffer in direct and _is_whole(origin) and origin.buffer.base not in outputs:
                outputs[origin.buffer.base] = kind
                continue
        else:
            of_value = type_of_value(origin)
            assert isinstance(of_value, TensorType)
            kind, nbytes = of_value, origin.nbytes
        base = _new_base(part)
        outputs[base] = kind
        part.steps.append(Copy((base, 0), places.of(origin), nbytes))
    assert outputs.keys() >= {b.base for b in direct}, "a buffer that is to be an output is none"
    part.outputs = tuple(outputs.items())


def _new_base(part: Part) -> int:
    part.bases += 1
    return part.bases - 1
