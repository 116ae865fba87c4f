"""If, Loop and Scan as steps of a compiled model.

In a plan such a node is a Python step. Here its graphs become parts of their own, and the step a Branch or a Repeat
between memory of the part around it. What needs memory says so before that part's arena is placed (`scratch`), and
becomes steps when all addresses are known (`steps`). The meaning is that of minifer.ops.control and minifer.ops.scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from minifer.embed.places import Places, Source
from minifer.embed.steps import Branch, Copy, Inside, Link, Part, Place, Repeat, Step
from minifer.errors import MiniferError
from minifer.ir import Graph, Node, TensorType, Type, type_of_value
from minifer.passes.types import infer_graph, infer_types
from minifer.plan.plan import ARENA, Buffer, PythonStep, Slot, itemsize, tensor

#: makes the part of a graph from the types of what it reads, and from values known before the run; None where the
#: graph holds something that cannot be compiled, which is noted then
PartOf = Callable[[Graph, Mapping[str, Type], Mapping[str, Any]], "Part | None"]


class Unfit(Exception):
    """Why a node cannot be compiled."""


class Control(Protocol):
    """A control-flow node on its way into steps."""

    @property
    def scratch(self) -> list[Buffer]:
        """Memory in the arena for as long as the node runs."""

    def steps(self, places: Places) -> list[Step]:
        """The steps of the node, when every buffer has its place."""


@dataclass(frozen=True)
class Strip:
    """A tensor in a source: `first` bytes in, and `stride` bytes further on in every turn."""

    source: Source
    first: int = 0
    stride: int = 0


@dataclass(frozen=True)
class Carried:
    """A value that goes from turn to turn: what it is at first, where it lies, and where a turn puts the next one."""

    initial: Source
    now: Slot
    new: Slot


@dataclass
class Frame:
    """What a node gives its graphs to work with: memory, what they read, and where their results go."""

    inputs: dict[str, Strip]
    scratch: list[Buffer] = field(default_factory=list)

    def slot(self, kind: TensorType) -> Slot:
        """Memory for a tensor."""
        buffer = Buffer("arena", kind_bytes(kind))
        self.scratch.append(buffer)
        return Slot(buffer, kind.dtype, kind.dims)

    def inside(self, part: Part, memory: Slot, outputs: Sequence[Strip], places: Places) -> Inside:
        """A part with its bases: the workspace, the weights, inputs and outputs."""
        links = [Link(ARENA, places.of(memory)), Link(part.weights, (places.base, 0))]
        pairs = [(base, self.inputs[name]) for name, base in part.inputs.items()]
        pairs += [(base, strip) for (base, _), strip in zip(part.outputs, outputs)]
        for base, strip in pairs:
            start, offset = places.of(strip.source)
            links.append(Link(base, (start, offset + strip.first), strip.stride))
        return Inside(part, tuple(links))


def kind_bytes(kind: TensorType) -> int:
    """Bytes of a tensor in memory."""
    return math.prod(kind.dims) * itemsize(kind.dtype)


def control_of(step: PythonStep, part_of: PartOf) -> Control | None:
    """The control flow of a step; None where one of its graphs cannot be compiled.

    Raises Unfit where the step itself cannot be.
    """
    node = step.node
    if node.domain or node.op not in ("If", "Loop", "Scan") or (node.op == "Scan" and node.version < 9):
        raise Unfit(step.why)
    for name, buffer in zip(step.outputs, step.buffers):
        if name and buffer is None:
            raise Unfit(f"the result '{name}' is no tensor of numbers")
    for name, source in step.captured:
        if not isinstance(source, Slot):
            raise Unfit(f"its graphs read '{name}', which is no tensor of numbers")
    return {"If": _choice, "Loop": _loop, "Scan": _scan}[node.op](step, part_of)


# ---------------------------------------------------------------- If


@dataclass
class Choice:
    """An If: two parts in the same memory, which write the same results."""

    condition: Source
    branches: tuple[Part, Part]
    frame: Frame
    memory: Slot
    results: list[Strip]

    @property
    def scratch(self) -> list[Buffer]:
        """Memory for one branch, and for results that nobody reads."""
        return self.frame.scratch

    def steps(self, places: Places) -> list[Step]:
        """One Branch."""
        then, otherwise = (self.frame.inside(part, self.memory, self.results, places) for part in self.branches)
        return [Branch(places.of(self.condition), then, otherwise)]


def _choice(step: PythonStep, part_of: PartOf) -> Choice | None:
    graphs = step.node.attrs["then_branch"], step.node.attrs["else_branch"]
    then, otherwise = (part_of(graph, _captured_types(step), step.known) for graph in graphs)
    if then is None or otherwise is None:
        return None
    condition = _single(step, 0)
    assert condition is not None
    frame = Frame(_captured(step))
    results = []
    for k, ((_, kind), (_, other)) in enumerate(zip(then.outputs, otherwise.outputs)):
        result = _result(step, k) or frame.slot(kind if kind_bytes(kind) > kind_bytes(other) else other)
        if result.buffer not in frame.scratch:  # somebody reads it
            _check_same(graphs[0].outputs[k], kind, tensor(result))
            _check_same(graphs[1].outputs[k], other, tensor(result))
        results.append(Strip(result))
    memory = frame.slot(TensorType("uint8", (max(then.memory, otherwise.memory),)))
    return Choice(condition, (then, otherwise), frame, memory, results)


# ---------------------------------------------------------------- Loop and Scan


@dataclass
class Turns:
    """A Loop or a Scan. Without a body it never runs, and gives the initial values."""

    frame: Frame
    carried: list[Carried]
    body: Part | None = None
    memory: Slot | None = None
    results: list[Strip] = field(default_factory=list)  # of the body, in its order
    trips: Source | None = None
    condition: Source | None = None  # before the first turn
    running: Slot | None = None  # the condition after each
    turn: Slot | None = None

    @property
    def scratch(self) -> list[Buffer]:
        """Memory for the body, what it carries, and what counts the turns."""
        return self.frame.scratch

    def steps(self, places: Places) -> list[Step]:
        """Copies of the initial values, then a Repeat."""
        steps: list[Step] = [_copied(c.now, c.initial, places) for c in self.carried]
        if self.body is None:
            return steps
        if self.running is not None:
            condition = np.array(True) if self.condition is None else self.condition
            steps.append(_copied(self.running, condition, places))
        assert self.memory is not None
        body = self.frame.inside(self.body, self.memory, self.results, places)
        after = tuple(_copied(c.now, c.new, places) for c in self.carried)
        steps.append(Repeat(body, self._trips(places), _place(self.running, places), _place(self.turn, places), after))
        return steps

    def _trips(self, places: Places) -> int | Place | None:
        return _number(self.trips) if isinstance(self.trips, np.ndarray) else _place(self.trips, places)


def _loop(step: PythonStep, part_of: PartOf) -> Turns | None:
    body = step.node.attrs["body"]
    trips, condition = _single(step, 0), _single(step, 1)
    initial = [_given(step, i) for i in range(2, len(step.node.inputs))]
    frame = Frame(_captured(step))
    carried = [_carry(step, k, source, frame) for k, source in enumerate(initial)]
    if any(isinstance(s, np.ndarray) and _number(s) <= 0 for s in (trips, condition)):
        return Turns(frame, carried)
    turn, running = (frame.slot(_scalar(body, i, dtype)) for i, dtype in ((0, "int64"), (1, "bool")))
    for name, slot in zip(body.inputs, [turn, None, *(c.now for c in carried)]):
        if slot is not None:
            frame.inputs[name] = Strip(slot)
    # the body is entered with a true condition only
    known = {**step.known, body.inputs[1]: np.ones(running.shape, np.bool_)}
    part = part_of(body, _types(frame), known)
    if part is None:
        return None
    kinds = [kind for _, kind in part.outputs]
    if kinds[0].dtype != "bool" or kind_bytes(kinds[0]) != 1:
        raise Unfit(f"the condition '{body.outputs[0]}' that the body returns is {kinds[0]}, no single bool")
    results = [Strip(running), *_new_values(carried, body.outputs[1:], kinds[1:])]
    count = len(results)
    for k, (name, kind) in enumerate(zip(body.outputs[count:], kinds[count:]), len(carried)):
        length = _number(trips) if isinstance(trips, np.ndarray) else None
        results.append(_gathered(step, k, name, kind, length, frame))
    memory = frame.slot(TensorType("uint8", (part.memory,)))
    return Turns(frame, carried, part, memory, results, trips, condition, running, turn)


def _scan(step: PythonStep, part_of: PartOf) -> Turns | None:
    node = step.node
    body, sources = node.attrs["body"], [_given(step, i) for i in range(len(node.inputs))]
    count = len(sources) - node.attrs["num_scan_inputs"]
    for name in ("scan_input_axes", "scan_output_axes"):
        if any(node.attrs.get(name, ())):
            raise Unfit(f"{name} other than 0 cannot be compiled: transpose before and after")
    frame = Frame(_captured(step))
    carried = [_carry(step, k, source, frame) for k, source in enumerate(sources[:count])]
    scanned = [_kind(source).dims for source in sources[count:]]
    if len({dims[0] for dims in scanned}) > 1:
        raise Unfit(f"the scan inputs have lengths {', '.join(str(dims[0]) for dims in scanned)}")
    length = scanned[0][0]
    if length == 0:
        return Turns(frame, carried)
    types: dict[str, Type] = {}
    frame.inputs.update({name: Strip(c.now) for name, c in zip(body.inputs, carried)})
    backward = node.attrs.get("scan_input_directions") or [0] * len(scanned)
    for name, source, flag in zip(body.inputs[count:], sources[count:], backward):
        element = TensorType(_kind(source).dtype, _kind(source).dims[1:])
        types[name] = element
        frame.inputs[name] = _strip(source, kind_bytes(element), length, flag)
    part = part_of(body, {**_types(frame), **types}, step.known)
    if part is None:
        return None
    kinds = [kind for _, kind in part.outputs]
    results = _new_values(carried, body.outputs, kinds)
    backward = node.attrs.get("scan_output_directions") or [0] * len(kinds[count:])
    for k, name in enumerate(body.outputs[count:], count):
        results.append(_gathered(step, k, name, kinds[k], length, frame, backward[k - count]))
    memory = frame.slot(TensorType("uint8", (part.memory,)))
    return Turns(frame, carried, part, memory, results, np.array(length, np.int64))


def _carry(step: PythonStep, k: int, initial: Source, frame: Frame) -> Carried:
    """Carried value `k`: it lies where the node's result is wanted."""
    kind = _kind(initial)
    now = _result(step, k) or frame.slot(kind)
    _check_same(step.node.outputs[k] if k < len(step.node.outputs) else "", kind, tensor(now))
    return Carried(initial, now, frame.slot(kind))


def _new_values(carried: Sequence[Carried], names: Sequence[str], kinds: Sequence[TensorType]) -> list[Strip]:
    """Where a turn puts the carried values, which must keep their types."""
    for c, name, kind in zip(carried, names, kinds):
        _check_same(name, kind, tensor(c.new))
    return [Strip(c.new) for c in carried]


def _gathered(
    step: PythonStep, k: int, name: str, kind: TensorType, length: int | None, frame: Frame, backward: int = 0
) -> Strip:
    """Where scan output `name` of a turn goes: its row of result `k`, or nowhere in particular."""
    whole = _result(step, k)
    if whole is None:
        return Strip(frame.slot(kind))
    if length is None:
        raise Unfit(f"the length of '{name}' is the number of turns, which only the run knows")
    _check_same(name, TensorType(kind.dtype, (length, *kind.dims)), tensor(whole))
    return _strip(whole, kind_bytes(kind), length, backward)


def _strip(source: Source, nbytes: int, length: int, backward: int) -> Strip:
    """The rows of a tensor, one a turn, from the first on or from the last."""
    return Strip(source, nbytes * (length - 1), -nbytes) if backward else Strip(source, 0, nbytes)


# ---------------------------------------------------------------- what a step reads and writes


def _captured(step: PythonStep) -> dict[str, Strip]:
    return {name: Strip(source) for name, source in step.captured if isinstance(source, Slot)}


def _captured_types(step: PythonStep) -> dict[str, Type]:
    return _types(Frame(_captured(step)))


def _types(frame: Frame) -> dict[str, Type]:
    return {name: _kind(strip.source) for name, strip in frame.inputs.items()}


def _given(step: PythonStep, i: int) -> Source:
    """Input `i`, which must be there."""
    source = _source(step, i)
    if source is None:
        raise Unfit(f"input {i} is missing")
    return source


def _source(step: PythonStep, i: int) -> Source | None:
    """Input `i`: memory, a constant, or None where it is left out."""
    given = step.inputs[i] if i < len(step.inputs) else None
    if given is None or isinstance(given, Slot):
        return given
    value = step.known.get(given)
    if not isinstance(value, np.ndarray | np.generic) or value.dtype == object:
        raise Unfit(f"'{given}' is no tensor of numbers")
    return np.asarray(value)


def _single(step: PythonStep, i: int) -> Source | None:
    """Input `i`, which has one element."""
    source = _source(step, i)
    if source is not None and source.size != 1:
        raise Unfit(f"input {i} must have one element, and has shape {list(source.shape)}")
    return source


def _result(step: PythonStep, k: int) -> Slot | None:
    """Where result `k` goes; None where nobody wants it."""
    buffer, kind = (step.buffers[k], step.types[k]) if k < len(step.buffers) else (None, None)
    return Slot(buffer, kind.dtype, kind.dims) if buffer is not None and isinstance(kind, TensorType) else None


def _kind(source: Source) -> TensorType:
    kind = type_of_value(source) if isinstance(source, np.ndarray) else tensor(source)
    assert isinstance(kind, TensorType)
    return kind


def _scalar(body: Graph, i: int, dtype: str) -> TensorType:
    """The type of a Loop body's iteration number or condition: a scalar, or of shape [1] where so declared."""
    declared = body.types.get(body.inputs[i])
    return TensorType(dtype, (1,) if isinstance(declared, TensorType) and declared.rank == 1 else ())


def _number(value: np.ndarray) -> int:
    return int(value.reshape(-1)[0])


def _check_same(name: str, found: TensorType, wanted: TensorType) -> None:
    if found != wanted:
        raise Unfit(f"'{name}' is {found} where {wanted} is needed")


def _place(slot: Slot | None, places: Places) -> Place | None:
    return None if slot is None else places.of(slot)


def _copied(target: Slot, source: Source, places: Places) -> Copy:
    return Copy(places.of(target), places.of(source), target.nbytes)


# ---------------------------------------------------------------- why not

OPEN = "the shape of its result depends on the values of the inputs"


def why_open(node: Node, types: Mapping[str, Type], known: Mapping[str, Any]) -> str:
    """Why only the run tells the shapes of a node's results."""
    try:
        if node.op == "If" and not node.domain and node.inputs[0] not in known:
            return _why_if(node, types, known)
        if node.op == "Loop" and not node.domain:
            return _why_loop(node, types, known)
    except MiniferError as error:
        return str(error)
    return OPEN


def _why_if(node: Node, types: Mapping[str, Type], known: Mapping[str, Any]) -> str:
    graphs = node.attrs["then_branch"], node.attrs["else_branch"]
    first, second = (_told(graph, types, known) for graph in graphs)
    if first != second:
        return f"one branch {first}, the other {second}, and which of them runs depends on the values of the inputs"
    return OPEN + "".join(_culprit(graph, types, known) for graph in graphs)


def _told(graph: Graph, types: Mapping[str, Type], known: Mapping[str, Any]) -> str:
    try:
        return f"gives {', '.join(map(str, infer_graph(graph, [], types, known, {})))}"
    except MiniferError as error:
        return f"does not fit these shapes ({error})"


def _why_loop(node: Node, types: Mapping[str, Type], known: Mapping[str, Any]) -> str:
    body, initial = node.attrs["body"], [types.get(n) for n in node.inputs[2:]]
    inputs = [_scalar(body, 0, "int64"), _scalar(body, 1, "bool"), *initial]
    results = infer_graph(body, inputs, types, known, {})[1:]
    inner = {**types, **{n: kind for n, kind in zip(body.inputs, inputs) if kind is not None}}
    for name, before, after in zip(body.outputs[1:], initial, results):
        if before != after:
            why = f"'{name}' is {before} before the first turn and {after} after it, and must keep one shape"
            return why + _culprit(body, inner, known)
    if all(isinstance(kind, TensorType) and kind.concrete for kind in results):
        return "the length of its results is the number of turns, which depends on the values of the inputs"
    return OPEN + _culprit(body, inner, known)


def _culprit(graph: Graph, types: Mapping[str, Type], known: Mapping[str, Any]) -> str:
    """The first node of a graph whose result has an open shape, as the end of a sentence; empty if there is none."""
    found, _ = infer_types(graph, types, known)
    for node in graph.nodes:
        for kind in map(found.get, filter(None, node.outputs)):
            if not (isinstance(kind, TensorType) and kind.concrete):
                return f" (in the graph '{graph.name}', {node.label} gives {kind})"
    return ""
