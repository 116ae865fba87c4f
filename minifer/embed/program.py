"""From a model with fixed shapes to the calls that a compiled model makes: an ordinary plan, with every address
relative to the weights, the workspace, an input or an output.

The plan is made for the target's register tile, which the process takes from the environment
(minifer.kernels.target.PLAN_FOR): packed weights and block sizes depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.embed.abi import ALIGNMENT, Interface, Tensor, unique_identifiers
from minifer.errors import InputError, ShapeError, UnsupportedError
from minifer.ir import Graph, Model, TensorType, Type
from minifer.plan.plan import ABSOLUTE, ARENA, KernelStep, Plan, PythonStep, Slot
from minifer.runtime.execute import Executor, Settings
from minifer.runtime.records import words_of


@dataclass(frozen=True)
class CallStep:
    """One kernel call: its kernel and its argument record, whose pointers are (base, offset) pairs."""

    kernel: Any  # KernelSpec
    words: tuple[int, ...]


@dataclass(frozen=True)
class Copy:
    """An output that no kernel writes in its place: `nbytes` from (base, offset) to the output."""

    output: int
    base: int
    offset: int
    nbytes: int


@dataclass
class Program:
    """A compiled model before it is code. Bases: see `base_of_...`; constants lie in `weights`."""

    interface: Interface
    calls: list[CallStep]
    copies: list[Copy]
    input_bases: tuple[int, ...]  # of each input of the interface; -1: not read
    output_bases: tuple[int, ...]  # of each output; -1: written by a copy
    weights_base: int
    bases: int  # how many there are: absolute zero, the workspace, inputs and outputs, the weights
    weights: Weights


@dataclass
class Weights:
    """All constants, each once, at multiples of 64 bytes."""

    parts: list[tuple[int, np.ndarray]] = field(default_factory=list)
    size: int = 0
    _places: dict[bytes, int] = field(default_factory=dict)

    def place(self, array: np.ndarray) -> int:
        """Where the content of an array lies."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = sha256(content.data).digest() + content.size.to_bytes(8, "little")
        if key not in self._places:
            self._places[key] = self.size
            self.parts.append((self.size, content))
            self.size = -(-(self.size + content.size) // ALIGNMENT) * ALIGNMENT
        return self._places[key]

    def content(self) -> np.ndarray:
        """All of it as bytes."""
        whole = np.zeros(self.size, np.uint8)
        for place, part in self.parts:
            whole[place : place + part.size] = part
        return whole


def make_program(
    model: Model,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, Any],
    *,
    separate: bool = False,
    dims: Mapping[str, int] | None = None,
) -> Program:
    """The program of a model for inputs of these shapes. `values` fixes inputs, which are then no inputs any more;
    `dims` are the sizes of symbolic dimensions.

    Raises InputError for names that the model lacks, ShapeError for an open dimension (with what to give), and
    UnsupportedError that lists everything without a kernel.
    """
    from minifer.passes import optimise
    from minifer.runtime.check import check_supported

    check_supported(model.graph)
    graph = _with_values(model.graph, values)
    types = _input_types(graph, shapes, dims or {})
    graph = optimise(graph)
    plan, known = _plan(graph, types)
    _check_native(graph, plan)
    return _build(graph, plan, known, types, name, separate)


def _with_values(graph: Graph, values: Mapping[str, Any]) -> Graph:
    """The graph with some inputs made constants."""
    consts = dict(graph.consts)
    for name, value in values.items():
        kind = graph.types.get(name)
        if name not in graph.inputs or not isinstance(kind, TensorType):
            raise InputError(f"the model has no tensor input {name!r}: its inputs are {', '.join(graph.inputs)}")
        array = np.asarray(value).astype(dtypes.to_numpy(kind.dtype))
        if kind.shape is not None:
            if array.ndim == 0:
                array = np.full([d if isinstance(d, int) else 1 for d in kind.shape], array)
            fits = array.ndim == len(kind.shape) and all(
                not isinstance(d, int) or d == n for d, n in zip(kind.shape, array.shape)
            )
            if not fits:
                raise ShapeError(f"input {name!r} has shape {kind.shape}, the value given has {array.shape}")
        consts[name] = array
    inputs = tuple(n for n in graph.inputs if n not in values)
    return graph.with_(consts=consts, inputs=inputs)


def _input_types(graph: Graph, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int]) -> dict[str, TensorType]:
    """The type of every input that is no constant, all dimensions known. A first dimension that is open becomes 1."""
    wanted = [n for n in graph.inputs if n not in graph.consts]
    if unknown := [n for n in shapes if n not in wanted]:
        raise InputError(f"the model has no input {', '.join(unknown)}: its inputs are {', '.join(wanted)}")
    types, open_inputs = {}, []
    symbols = {d for n in wanted for d in (getattr(graph.types.get(n), "shape", None) or ()) if isinstance(d, str)}
    if strange := [symbol for symbol in dims if symbol not in symbols]:
        known = ", ".join(sorted(symbols)) or "none"
        raise InputError(f"{', '.join(strange)} is no symbolic dimension of an input; there is {known}")
    dims = {**_implied(graph, wanted, shapes), **dims}
    for name in wanted:
        kind = graph.types.get(name)
        if not isinstance(kind, TensorType) or kind.dtype == "string":
            raise UnsupportedError(f"input {name!r} is no tensor of numbers ({kind}): it cannot be compiled")
        if kind.shape is not None and name not in shapes:
            kind = replace(kind, shape=tuple(dims.get(d, d) if isinstance(d, str) else d for d in kind.shape))
        if name in shapes:
            kind = _shaped(name, kind, tuple(shapes[name]))
        elif kind.shape is not None and kind.shape[:1] == (None,) and all(isinstance(d, int) for d in kind.shape[1:]):
            kind = replace(kind, shape=(1, *kind.shape[1:]))
        elif not kind.concrete:
            open_inputs.append((name, kind))
            continue
        types[name] = kind
    if open_inputs:
        listed = " ".join(f"--shape {name}={_example(kind)}" for name, kind in open_inputs)
        said = ", ".join(f"{name} {kind}" for name, kind in open_inputs)
        raise ShapeError(
            f"a compiled model has fixed shapes, and these inputs leave some open: {said}. "
            f"Give them, for example: {listed} (in Python: shapes={{name: (1, 3, ...)}})"
        )
    return types


def _implied(graph: Graph, wanted: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of symbolic dimensions: as a given shape has them, else 1 for one that is first anywhere, a batch."""
    found: dict[str, int] = {}
    for name in wanted:
        kind = graph.types.get(name)
        if isinstance(kind, TensorType) and kind.shape:
            sizes = shapes.get(name, ())
            pairs = zip(kind.shape, sizes) if sizes else [(kind.shape[0], 1)]
            given = {d: n for d, n in pairs if isinstance(d, str)}
            found = {**found, **given} if sizes else {**given, **found}
    return found


def _shaped(name: str, kind: TensorType, shape: tuple[int, ...]) -> TensorType:
    if any(n < 0 for n in shape):
        raise ShapeError(f"input {name!r}: {shape} has a negative dimension")
    if kind.shape is not None:
        fits = len(kind.shape) == len(shape) and all(
            not isinstance(d, int) or d == n for d, n in zip(kind.shape, shape)
        )
        if not fits:
            raise ShapeError(f"input {name!r} is {kind} in the model: the shape {shape} does not fit")
    return replace(kind, shape=shape)


def _example(kind: TensorType) -> str:
    if kind.shape is None:
        return "1,3,224,224"
    return ",".join(str(d) if isinstance(d, int) else "1" if i == 0 else "128" for i, d in enumerate(kind.shape))


def _plan(graph: Graph, types: Mapping[str, Type]) -> tuple[Plan, dict[str, Any]]:
    """The plan of the whole graph, for one thread, and the values that are known without a run."""
    from minifer.ir import type_of_value
    from minifer.plan.lower import Planner

    executor = Executor(graph, Settings(threads=1, native=True))
    known_types = {n: type_of_value(v) for n, v in executor.known.items()}
    plan, end = Planner(executor.scope, 0, {**known_types, **types}, executor.known).plan()
    if end < len(graph.nodes):
        last = plan.steps[-1] if plan.steps else None
        node = last.node if last is not None else graph.nodes[end - 1]
        raise UnsupportedError(
            f"{node.label}: the shape of its result depends on the values of the inputs, and a compiled model has "
            "fixed shapes. Fix the input that decides it (--set name=value), or cut the model before this node"
        )
    return plan, {**executor.known, **plan.known}


def _check_native(graph: Graph, plan: Plan) -> None:
    """UnsupportedError that lists every node without a kernel."""
    missing: dict[tuple[str, str], list[str]] = {}
    for step in plan.steps:
        if isinstance(step, PythonStep):
            op = f"{step.node.domain}::{step.node.op}" if step.node.domain else step.node.op
            missing.setdefault((op, step.why), []).append(step.node.name or step.node.outputs[0])
    if missing:
        lines = [f"  {op} x{len(names)} (first: {names[0]}): {why}" for (op, why), names in missing.items()]
        raise UnsupportedError("these operators have no kernel and cannot be compiled:\n" + "\n".join(lines))


def _build(
    graph: Graph, plan: Plan, known: Mapping[str, Any], types: Mapping[str, TensorType], name: str, separate: bool
) -> Program:
    weights = Weights()
    weights_base = plan.bases
    written = {base for base, _, _ in plan.fresh}

    def address(slot: Slot | None) -> tuple[int, int]:
        if slot is None:
            return ABSOLUTE, 0
        if slot.buffer.kind == "const":
            assert slot.buffer.array is not None
            return weights_base, weights.place(slot.buffer.array) + slot.offset
        return slot.address()

    calls = [CallStep(s.kernel, tuple(words_of(s, address))) for s in plan.steps if isinstance(s, KernelStep)]
    reads = dict(plan.inputs)
    made = dict(plan.outputs)
    tensors, bases, copies = [], [], []
    for i, output in enumerate(graph.outputs):
        source = made.get(output)
        if isinstance(source, Slot):
            base, offset = address(source)
            dtype, shape, nbytes = source.dtype, source.shape, source.nbytes
        elif output in types:  # an input handed through
            kind = types[output]
            dtype, shape = kind.dtype, kind.dims
            base, offset = reads.setdefault(output, -1), 0
            nbytes = Tensor(output, "", dtype, shape).bytes
            if base < 0:
                base = reads[output] = weights_base + 1 + len([b for b in reads.values() if b > weights_base])
        else:
            value = np.asarray(known[output])
            dtype, shape, nbytes = dtypes.from_numpy(value.dtype), value.shape, value.nbytes
            base, offset = weights_base, weights.place(value)
        tensors.append((output, dtype, tuple(shape)))
        if base in written and offset == 0 and base not in bases:
            bases.append(base)
        else:
            bases.append(-1)
            copies.append(Copy(i, base, offset, nbytes))
    unused = written - set(bases)
    assert not unused, "a plan allocates an array that is no output"
    inputs = [(n, kind.dtype, kind.dims) for n, kind in types.items()]
    interface = Interface(
        name, _tensors(inputs, "input"), _tensors(tensors, "output"), max(plan.arena_bytes, 1), 0, separate
    )
    most = max([weights_base, *reads.values()]) + 1
    input_bases = tuple(reads.get(n, -1) for n, _, _ in inputs)
    return Program(interface, calls, copies, input_bases, tuple(bases), weights_base, most, weights)


def _tensors(found: list[tuple[str, str, tuple[int, ...]]], default: str) -> tuple[Tensor, ...]:
    identifiers = unique_identifiers([n for n, _, _ in found], default)
    return tuple(Tensor(n, i, dtype, shape) for i, (n, dtype, shape) in zip(identifiers, found))


assert ARENA == 1
