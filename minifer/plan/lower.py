"""Lowering: graph nodes become plan steps, with every shape concrete.

The planner walks the nodes of one graph in order. A node whose inputs are all known is computed on the spot
(shape arithmetic costs nothing at run time); one that has a `lower` yields kernel calls; any other becomes a step
that runs its reference. A node whose result types depend on data ends the stage: the next one is planned
when the types are known.

A value may be held in several layouts; `Lowering.input` converts on demand, so layout changes appear only
where an operator that needs one layout reads what another wrote in a different one.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import MiniferError, ShapeError
from minifer.ir import Graph, Node, TensorType, Type, type_of_value
from minifer.lazy import cached_property
from minifer.onnx_io.pages import release
from minifer.ops import registry
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Call, Context, Declined, Op
from minifer.passes.inline import inline_branch
from minifer.plan import arena
from minifer.plan.ceiling import Ceiling
from minifer.plan.layout import convert
from minifer.plan.plan import (
    FIRST_ARRAY,
    Buffer,
    KernelStep,
    Plan,
    PythonStep,
    Slot,
    Step,
    itemsize,
    lifetimes,
)
from minifer.plan.rows import close, gap_of
from minifer.record import Record
from minifer.room import Room

FOLD_LIMIT = 1 << 26  # bytes: a larger result is computed at run time rather than kept in the plan
FOLD_TOTAL = 1 << 28  # bytes of all such results in one stage

RunGraph = Callable[[Graph, Sequence[Any], Mapping[str, Any]], list[Any]]


class Packed:
    """Constants in the form that kernels want them, shared by all plans of a session."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, Any], np.ndarray] = {}
        self.room = Room()


class Scope(Record, frozen=False):
    """What planning a graph needs besides the values alive: set once for a graph."""

    graph: Graph
    nodes: tuple[Node, ...]
    run_graph: RunGraph
    native: bool
    threads: int  # the most that a run will use: sizes scratch that each thread has for itself
    packed: Packed
    ceiling: Ceiling

    def __post_init__(self) -> None:
        self.dynamic: set[int] = set()  # nodes whose types were planned wrongly once: ask the run
        self.uses: dict[str, list[int]] = {}
        self.leaving = frozenset(self.graph.outputs)
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.reads):
                if name:
                    self.uses.setdefault(name, []).append(i)

    @cached_property
    def makers(self) -> dict[str, Node]:
        """The node that computes each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    def last_use(self, name: str) -> int:
        """Index of the last node that reads a name; beyond all nodes for a graph output; -1 if never read."""
        if name in self.leaving:
            return len(self.nodes)
        return self.uses.get(name, [-1])[-1]


class Planner:
    """Plans one stage: the nodes from `start` to the first whose result types only the run tells."""

    def __init__(
        self, scope: Scope, start: int, types: Mapping[str, Type], known: Mapping[str, Any], horizon: int | None = None
    ):
        """`horizon`: nodes from there on are known to belong to a later stage, and none is absorbed."""
        self.scope = scope
        self.start = start
        self.horizon = len(scope.nodes) if horizon is None else horizon
        self._given = types, known
        self.types: dict[str, Type] = dict(types)
        self.known: dict[str, Any] = dict(known)
        self.where: dict[str, dict[str, Slot]] = {}  # name -> layout -> slot
        self.holders: dict[Buffer, list[str]] = {}  # the tensors that lie in a buffer, or in a part of it
        self.writers: dict[str, Node] = {}  # tensor -> the node whose kernels wrote it
        self.steps: list[Step] = []
        self.converted: list[tuple[int, str, dict[str, Slot]]] = []  # (steps after it, name, layouts before) of each
        self.done: set[int] = set()  # nodes absorbed by an earlier one
        self.inputs: dict[str, int] = {}
        self.fresh: list[Buffer] = []
        self.bases = FIRST_ARRAY
        self.consts: list[np.ndarray] = []
        self._const_slots: dict[str, Slot] = {}
        self.local: dict[str, Any] = {}  # what this stage found out, for the next ones
        self.local_types: dict[str, Type] = {}
        self.index = start
        self.inferred: dict[Any, Any] = {}  # types of subgraphs
        self.folded = 0  # bytes of the values found so far
        self.debug = int(os.environ.get("MINIFER_DEBUG") or 0)

    def packed(self, name: str, key: Any, make: Callable[[], np.ndarray]) -> Slot:
        """A constant in a kernel's own form, kept for all plans where it comes from a graph constant."""
        table = self.scope.packed.table
        if name not in self.scope.graph.consts:
            return self.const(make())
        if (name, key) not in table:
            table[name, key] = self.scope.packed.room.contiguous(make())
            release(self.known.get(name))
        return self.const(table[name, key])

    # -- values -------------------------------------------------------------------------------------------

    def set_known(self, name: str, value: Any) -> None:
        """Record a value found while planning."""
        if name:
            self.known[name] = self.local[name] = value
            self.set_type(name, type_of_value(value))

    def set_type(self, name: str, kind: Type) -> None:
        """Record the type of a value of this stage."""
        if name:
            self.types[name] = self.local_types[name] = kind

    def new_array(self, nbytes: int) -> Buffer:
        """A buffer with a base of its own."""
        self.bases += 1
        return Buffer("array", nbytes, base=self.bases - 1)

    def const(self, array: np.ndarray) -> Slot:
        """A constant kept alive by the plan."""
        array = np.asarray(array, order="C")
        if not array.flags.aligned:  # a view into the model's file
            array, view = array.copy(), array
            release(view)
        self.consts.append(array)
        return Slot(Buffer("const", array.nbytes, array), dtypes.from_numpy(array.dtype), array.shape)

    def slots(self, name: str) -> dict[str, Slot]:
        """All layouts in which a tensor lies in memory now."""
        if name not in self.where:
            if name in self.known:
                if name not in self._const_slots:
                    self._const_slots[name] = self.const(np.asarray(self.known[name]))
                return {PLAIN: self._const_slots[name]}
            kind = self.types[name]
            assert isinstance(kind, TensorType)
            size = math.prod(kind.dims) * itemsize(kind.dtype)
            buffer = self.new_array(size)
            self.inputs[name] = buffer.base
            self.where[name] = {PLAIN: Slot(buffer, kind.dtype, kind.dims)}
        return self.where[name]

    def in_memory(self, name: str) -> bool:
        """True where a tensor is there by now: written by a step of this stage, or before it."""
        return name in self.where or (name in self.types and name not in self.local_types)

    def slot(self, name: str, layout: str = PLAIN, gaps: bool = False) -> Slot:
        """A tensor in the layout asked for; a conversion step is added where it is not there yet.

        `gaps`: its rows may lie apart (see Slot.gap).
        """
        held = self.slots(name)
        if layout == CHANNELS_LAST and layout not in held and name in self.known:
            made = self.packed(name, layout, lambda: np.moveaxis(np.asarray(self.known[name]), 1, -1))
            held = self.where[name] = {**held, layout: made.with_(layout=layout)}
        made = held.get(layout) or next(iter(held.values()))
        if made.layout != layout or (made.gap and not gaps):
            writer = self.writers.get(name, self.scope.nodes[self.index])
            if made.gap:
                made = close(self, made, writer)
            if made.layout != layout:
                made = convert(self, made, layout, writer)
            self.where[name] = {**held, layout: made}
            self.holders.setdefault(made.buffer, []).append(name)
            self.converted.append((len(self.steps), name, held))
        return made

    def ends(self, slot: Slot, node: Node, absorbed: set[int]) -> bool:
        """True where a residual of `node` is the last that is read of its memory: the result may lie there.

        `absorbed` are the later nodes that `node` does the work of.
        """
        buffer, scope, now = slot.buffer, self.scope, self.index
        if buffer.kind != "arena" or slot.nbytes != buffer.nbytes or scope.nodes[now] is not node:
            return False  # the caller's or a constant, a part of something larger, within a branch
        names = self.holders.get(buffer, [])
        if not names or any(name in scope.leaving or name in node.reads for name in names):
            return False
        read = absorbed | self.done
        return all(use < now or use in read for name in names for use in scope.uses.get(name, []))

    def temporary(self, nbytes: int) -> Buffer:
        """A buffer in the arena."""
        return Buffer("arena", nbytes)

    def emit(
        self, kernel: Any, arguments: Sequence[Any], node: Node | None = None, joined: Sequence[Node] = ()
    ) -> None:
        """Add a kernel call. Which slots it writes stands in the KernelSpec."""
        taken = kernel.parameters
        if len(taken) != len(arguments):
            raise TypeError(f"{kernel.name} takes {[p.name for p in taken]}, got {len(arguments)} arguments")
        reads: list[Slot] = []
        writes: list[Slot] = []
        for parameter, argument in zip(taken, arguments):
            if isinstance(argument, Slot):
                if not _fits(str(parameter.type.element), argument.dtype):
                    raise TypeError(f"{parameter.name} of {kernel.name} cannot be {argument.dtype}")
                (writes if parameter.name in kernel.outputs else reads).append(argument)
        node = node or self.scope.nodes[self.index]
        self.steps.append(KernelStep(kernel, tuple(arguments), node, tuple(reads), tuple(writes), tuple(joined)))

    def undo(self, mark: int) -> None:
        """Take back the steps from `mark` on, and the layouts that they made."""
        del self.steps[mark:]
        while self.converted and self.converted[-1][0] > mark:
            _, name, held = self.converted.pop()
            self.where[name] = held

    # -- one node -----------------------------------------------------------------------------------------

    def plan(self) -> tuple[Plan, int]:
        """The plan of the stage and the index of the first node after it."""
        end = len(self.scope.nodes)
        dynamic = False
        for i in range(self.start, end):
            self.index = i
            if i in self.done:
                continue
            if self.visit(self.scope.nodes[i], i in self.scope.dynamic):
                end, dynamic = i + 1, True
                break
        if any(i >= end for i in self.done):  # the stage ends before a node that was absorbed: that is a later one's
            return Planner(self.scope, self.start, *self._given, horizon=end).plan()
        return self.finish(end, dynamic), end

    def visit(self, node: Node, ask_the_run: bool = False) -> bool:
        """Plan one node; True where its result types only the run tells."""
        op = registry.select(node)
        assert op is not None, node.label
        captured = tuple(dict.fromkeys(node.captured))
        if node.op == "If" and not node.domain and node.inputs[0] in self.known and not ask_the_run:
            return self._take_branch(node)
        if op.deterministic and self._fold(op, node, captured):
            return False
        call = Call(
            node,
            [self.types.get(n) if n else None for n in node.inputs],
            [self.known.get(n) if n else None for n in node.inputs],
            self._infer_graph,
        )
        if op.known is not None:
            value = op.known(call)
            if value is not None:
                self.set_known(node.outputs[0], value)
                return False
        kinds = self.infer(op, call)
        settled = not ask_the_run and all(
            not n or (k is not None and (not isinstance(k, TensorType) or k.concrete))
            for n, k in zip(node.outputs, kinds)
        )
        if settled:
            for name, kind in zip(node.outputs, kinds):
                if name and kind is not None:
                    self.set_type(name, kind)
        why = "no kernel for this operator"
        if not settled:
            why = "result shape depends on data"
        elif not self.scope.native:
            why = "kernels are not available"
        elif op.lower is not None and self._tensors_only(node):
            declined = self._lower(op, node, call)
            if declined is None:
                return False
            why = declined.why
            if self.debug >= 3:
                print(f"{node.label} has no kernel: {why}", file=sys.stderr)
        self._by_reference(node, captured, kinds if settled else [None] * len(node.outputs), why)
        return not settled

    def _take_branch(self, node: Node) -> bool:
        """Plan the nodes of the branch that a known condition picks; True where they end the stage."""
        condition = np.asarray(self.known[node.inputs[0]])
        if condition.size != 1:
            raise ShapeError(f"{node.label}: the condition must have one element, it has shape {condition.shape}")
        graph = node.attrs["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
        nodes, consts = inline_branch(node, graph)
        mark = len(self.steps)
        for name, value in consts.items():
            self.set_known(name, value)
        for inner in nodes:
            if self.visit(inner):  # a stage cannot end inside a branch: run the If itself by reference
                self.undo(mark)
                for name in node.outputs:
                    self.where.pop(name, None)
                self._by_reference(node, node.captured, [None] * len(node.outputs), "result shape depends on data")
                return True
        return False

    def _fold(self, op: Op, node: Node, captured: Sequence[str]) -> bool:
        if any(n and n not in self.known for n in (*node.inputs, *captured)):
            return False
        values = [self.known[n] if n else None for n in node.inputs]
        bound = {n: self.known[n] for n in captured}
        if op.infer is not None and node.inputs:
            kinds = self.infer(op, Call(node, [type_of_value(v) if v is not None else None for v in values], values,
                                         self._infer_graph))  # fmt: skip
            size = 0
            for kind in kinds:
                if isinstance(kind, TensorType) and kind.concrete:
                    size += math.prod(kind.dims) * itemsize(kind.dtype)
            if size > FOLD_LIMIT or self.folded + size > FOLD_TOTAL:
                return False
            self.folded += size
        results = op.call(Context(node, lambda graph, inputs: self.scope.run_graph(graph, inputs, bound)), values)
        for name, value in zip(node.outputs, results):
            self.set_known(name, value)
        return True

    def infer(self, op: Op, call: Call) -> list[Type | None]:
        """The result types by the operator's rule, one per output; raises if the node does not fit or is too large."""
        count = len(call.node.outputs)
        if op.infer is None:
            return [None] * count
        kinds = op.infer(call)
        listed = list(kinds) if isinstance(kinds, list | tuple) else [kinds]
        self.scope.ceiling.check_types(call, listed)
        return (listed + [None] * count)[:count]  # type: ignore[return-value]

    def _infer_graph(self, graph: Graph, types: Sequence[Type | None]) -> list[Type | None]:
        from minifer.passes.types import infer_graph

        return infer_graph(graph, types, self.types, self.known, self.inferred)

    def _tensors_only(self, node: Node) -> bool:
        kinds = [self.types.get(n) for n in (*node.inputs, *node.outputs) if n]
        return all(isinstance(k, TensorType) and not k.dtype.startswith(("string", "complex")) for k in kinds)

    def _lower(self, op: Op, node: Node, call: Call) -> Declined | None:
        if all(0 in self.types[n].dims for n in node.outputs if n):  # type: ignore[union-attr]
            return Declined("the result is empty")  # nothing to compute, but perhaps an index to check
        given = [k for k, v in zip(call.types, call.values) if v is None and k is not None]
        if any(0 in k.dims for k in given):  # type: ignore[union-attr]
            return Declined("an input is empty")  # where known (an omitted roi), the operator sees to it
        low = Lowering(self, node, call)
        mark = len(self.steps)
        assert op.lower is not None
        try:
            result = op.lower(low)
        except MiniferError as error:  # the reference says it, or does it
            result = Declined(str(error))
        except Exception as error:  # an attribute that no valid model has: what it means is for the reference to say
            result = Declined(f"its lowering failed ({type(error).__name__}: {error})")
        if isinstance(result, Declined):
            self.undo(mark)
            return result
        missing = [n for i, n in enumerate(low.outputs) if n and n not in low.written]
        assert not missing, f"the lowering of {node.label} did not write {missing}"
        self.done |= low.absorbed
        for name, held in low.written.items():
            self.where[name] = held
            self.writers[name] = node
            for slot in held.values():
                self.holders.setdefault(slot.buffer, []).append(name)
        return None

    def _by_reference(self, node: Node, captured: Sequence[str], kinds: Sequence[Type | None], why: str) -> None:
        def source(name: str) -> Slot | str | None:
            kind = self.types.get(name)
            if not name:
                return None
            if name in self.known or not isinstance(kind, TensorType) or kind.dtype == "string":
                return name
            return self.slot(name)

        inputs = tuple(source(n) for n in node.inputs)
        known = {n: self.known[n] for n in (*node.inputs, *captured) if n in self.known}
        bound = tuple((n, source(n)) for n in dict.fromkeys(captured) if n not in self.known)
        buffers: list[Buffer | None] = []
        for name, kind in zip(node.outputs, kinds):
            buffer = None
            if name and isinstance(kind, TensorType) and kind.dtype != "string":
                buffer = self.new_array(math.prod(kind.dims) * itemsize(kind.dtype))
                self.where[name] = {PLAIN: Slot(buffer, kind.dtype, kind.dims)}
            buffers.append(buffer)
        self.steps.append(
            PythonStep(node, inputs, bound, known, node.outputs, tuple(kinds), tuple(buffers), why, self.index)  # type: ignore[arg-type]
        )

    # -- the finished stage -------------------------------------------------------------------------------

    def finish(self, end: int, dynamic: bool) -> Plan:
        """Choose what leaves the stage, place the arena, and freeze."""
        last = self.steps[-1] if dynamic else None
        outputs: list[tuple[str, Any]] = []
        fresh: list[tuple[int, np.dtype, tuple[int, ...]]] = []
        for name in self.local_types:
            if self.scope.last_use(name) < end or name in self.known:
                continue
            kind = self.types[name]
            if not isinstance(kind, TensorType) or kind.dtype == "string":
                outputs.append((name, name))
                continue
            slot = self.slot(name)
            buffer = slot.buffer
            if buffer.kind == "arena" and slot.offset == 0 and slot.nbytes == buffer.nbytes:
                buffer.kind, buffer.base = "array", self.bases
                self.bases += 1
                fresh.append((buffer.base, dtypes.to_numpy(slot.dtype), slot.shape))
            outputs.append((name, slot))
        if isinstance(last, PythonStep):
            outputs += [(n, n) for n in last.outputs if n]
        size = self._place([v for _, v in outputs if isinstance(v, Slot)])
        return Plan(
            tuple(self.steps), tuple(self.inputs.items()), tuple(outputs), tuple(fresh), self.bases, size,
            self.local, self.local_types, self.consts, dynamic,
        )  # fmt: skip

    def _place(self, leaving: Sequence[Slot]) -> int:
        """Give each arena buffer its offset; what leaves the stage from the arena lives to its end."""
        spans = lifetimes(self.steps, leaving)
        intervals = [(first, last, buffer.nbytes) for buffer, (first, last) in spans.items()]
        offsets, size = (arena.place_shared if self.scope.threads > 1 else arena.place)(intervals)
        for buffer, offset in zip(spans, offsets):
            buffer.offset = offset
        return size


@functools.cache
def _fits(element: str, dtype: str) -> bool:
    """Whether a kernel may read or write elements of an ONNX type through a pointer to `element`. One that takes
    unsigned integers moves bytes and takes any type; to read smaller elements as floats would reach behind the end."""
    if element.startswith("f"):
        return dtype == {"f32": "float32", "f64": "float64"}[element]
    return not element.startswith("i") or itemsize(dtype) == int(element[1:]) // 8


class Lowering:
    """What the `lower` of one operator works with: its input slots, new output slots, scratch, and `call`.

    Shapes are concrete. Kernels get slots for pointers and numbers for scalars. A lowering that returns
    Declined leaves no trace. `absorb` lets it take over the node that alone reads its result (an activation, say).
    """

    def __init__(self, planner: Planner, node: Node, call: Call):
        self.planner = planner
        self.node = node
        self.threads = planner.scope.threads
        self._call = call
        self.outputs = list(node.outputs)
        self.written: dict[str, dict[str, Slot]] = {}
        self.absorbed: set[int] = set()
        self.joined: list[Node] = []

    def note(self, why: Callable[[], str]) -> None:
        """Say which kernel was chosen and why: shown by MINIFER_DEBUG=2."""
        if self.planner.debug >= 2:
            print(f"{self.node.label}: {why()}", file=sys.stderr)

    # what the node says
    def has(self, i: int) -> bool:
        """True where input `i` is given."""
        return self._call.has(i)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default`."""
        return self.node.attrs.get(name, default)

    def value(self, i: int) -> Any:
        """The value of input `i` where it is known while planning, else None."""
        return self._call.value(i)

    def shape(self, i: int) -> tuple[int, ...]:
        """ONNX shape of input `i`."""
        return self._call.tensor(i).dims

    def dtype(self, i: int) -> str:
        """Element type of input `i`."""
        return self._call.tensor(i).dtype

    def wants(self, i: int) -> bool:
        """True where output `i` is asked for."""
        return i < len(self.outputs) and bool(self.outputs[i])

    def out_type(self, i: int = 0) -> TensorType:
        """Type of output `i`."""
        kind = self.planner.types[self.outputs[i]]
        assert isinstance(kind, TensorType)
        return kind

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        """ONNX shape of output `i`."""
        return self.out_type(i).dims

    # memory
    def input(self, i: int, layout: str = PLAIN, gaps: bool = False) -> Slot:
        """Input `i` in a layout (converted where it is held in another); `gaps`: its rows may lie apart (Slot.gap)."""
        return self.planner.slot(self.node.inputs[i], layout, gaps)

    def layouts(self, i: int) -> set[str]:
        """The layouts in which input `i` lies in memory already."""
        return set(self.planner.slots(self.node.inputs[i]))

    def output(self, i: int = 0, layout: str = PLAIN, over: Slot | None = None, gaps: bool = False) -> Slot:
        """Memory for output `i`, to be written whole by the kernels called: new, or that of `over`.

        `over` is a residual of the same size, for kernels that read its elements no later than they write theirs. Where
        nothing else will read it, the result takes its place: what is in the first-level cache need not be fetched.
        `gaps`: rows are written apart where that helps those that read them (see plan/rows.py).
        """
        kind = self.out_type(i)
        shape = kind.dims
        if layout == CHANNELS_LAST:
            shape = (shape[0], *shape[2:], shape[1])
        gap = gap_of(self.planner, self.outputs[i], shape[-1]) if gaps else 0
        slot = Slot(self.planner.temporary(0), kind.dtype, shape, 0, layout, gap)
        again = over is not None and (over.nbytes, over.gap) == (slot.nbytes, gap)
        if over is not None and again and self.planner.ends(over, self.node, self.absorbed):
            slot = slot.with_(buffer=over.buffer)
        slot.buffer.nbytes = slot.nbytes
        self.written[self.outputs[i]] = {layout: slot}
        return slot

    def alias(self, slot: Slot, i: int = 0) -> None:
        """Output `i` is this memory under the output's shape: a view, which costs nothing."""
        shape = self.out_shape(i)
        if slot.layout != PLAIN:
            shape = (shape[0], *shape[2:], shape[1])
        view = Slot(slot.buffer, self.out_type(i).dtype, shape, slot.offset, slot.layout)
        self.written[self.outputs[i]] = {slot.layout: view}

    def scratch(self, nbytes: int, dtype: str = "uint8") -> Slot:
        """Memory that lives for the kernels of this node alone; `nbytes` bytes, viewed as `dtype`."""
        return Slot(self.planner.temporary(nbytes), dtype, (nbytes // itemsize(dtype),))

    def const(self, array: np.ndarray) -> Slot:
        """A small constant table made for this call (strides, offsets)."""
        return self.planner.const(np.asarray(array))

    def pack(self, i: int, key: Any, make: Callable[[np.ndarray], np.ndarray]) -> Slot:
        """`make(value of input i)` as a constant; made once per session and `key` for a graph constant."""
        name = self.node.inputs[i]
        return self.planner.packed(name, (key, i), lambda: make(np.asarray(self.planner.known[name])))

    def call(self, kernel: Any, *arguments: Any) -> None:
        """Add a kernel call; arguments in the order of the kernel's parameters, without tid and nthreads."""
        self.planner.emit(kernel, arguments, self.node, self.joined)

    # fusion
    def epilogue(self, channel_axis: int | None = 1, residual: bool = True) -> Any:
        """Absorb a bias, residual and activation that follow output 0; returns a plan.epilogue.Epilogue."""
        from minifer.plan.epilogue import take_epilogue

        return take_epilogue(self, channel_axis, residual)

    def follower(self, i: int = 0) -> tuple[int, Node] | None:
        """The node that alone reads output `i`, where it may be absorbed; else None."""
        scope, name = self.planner.scope, self.outputs[i]
        uses = scope.uses.get(name, [])
        if len(uses) != 1 or name in scope.leaving or name not in self.planner.local_types:
            return None
        index = uses[0]
        node = scope.nodes[index]
        if index >= self.planner.horizon or index in scope.dynamic or node.subgraphs_any:
            return None
        if index in self.planner.done or index in self.absorbed:
            return None
        return (index, node) if node.inputs.count(name) == 1 and len([n for n in node.outputs if n]) == 1 else None

    def absorb(self, index: int, i: int = 0) -> None:
        """Compute node `index` as well: output `i` becomes its first output. It must have the same type."""
        planner, node = self.planner, self.planner.scope.nodes[index]
        op, kind = registry.select(node), planner.types[self.outputs[i]]
        assert op is not None
        planner.infer(op, self.call_of(node))  # raises if it does not fit
        self.absorbed.add(index)
        self.outputs[i] = node.outputs[0]
        self.planner.set_type(node.outputs[0], kind)

    def call_of(self, node: Node) -> Call:
        """A later node as `infer` would see it."""
        types, known = self.planner.types, self.planner.known
        return Call(node, [types.get(n) if n else None for n in node.inputs], [known.get(n) for n in node.inputs])

    def join(self, index: int) -> Lowering:
        """Compute node `index`, which alone reads output 0, as well: what to lower it with, in one with this node.

        Its result, of whatever type, becomes the only output of both.
        """
        planner, node = self.planner, self.planner.scope.nodes[index]
        op, call = registry.select(node), self.call_of(node)
        assert op is not None
        (kind,) = planner.infer(op, call)
        assert kind is not None
        planner.set_type(node.outputs[0], kind)
        joined = Lowering(planner, node, call)
        self.absorbed.add(index)
        self.joined.append(node)
        self.outputs[:] = node.outputs
        joined.outputs, joined.written, joined.absorbed = self.outputs, self.written, self.absorbed
        return joined
