"""Tell what is in a model and how minifer runs it.

Inputs, outputs, opsets, metadata, parameters and operators; then, for one set of input shapes, the plan: its memory
and arithmetic, and which operators run as native kernels and which by their NumPy reference, with the reason.

Planning runs nothing of the model. Where shapes depend on data the plan ends there; `--run` runs the model once on
random inputs (see --set) and lists the steps that were executed, also in the branches of If and in loops.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from minifer.ir import Graph, Model, Node, Type
    from minifer.plan.plan import Plan
    from minifer.session import Session, Value

# operator, kernel names or None, reason
Row = tuple[str, str | None, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from minifer.cli._feeds import add_shape_arguments

    parser.add_argument("model", help="an .onnx file")
    add_shape_arguments(parser)
    parser.add_argument("--run", action="store_true", dest="execute", help="run once on random inputs, list the steps")
    parser.add_argument("--metadata", action="store_true", help="print metadata values in full")


def run(arguments: argparse.Namespace) -> int:
    from minifer.cli._feeds import made_feeds, shapes_of
    from minifer.cli._text import table
    from minifer.errors import UnsupportedError
    from minifer.ir import TensorType
    from minifer.onnx_io import read_model
    from minifer.session import Session

    model = read_model(arguments.model)
    print("\n".join(model_lines(model, arguments.metadata)))
    try:
        session = Session(model)
    except UnsupportedError as error:
        print(f"\n{error}")
        return 2
    shapes = shapes_of(session, arguments.shape, arguments.dim)
    print(f"\nafter optimisation: {count_nodes(session.graph)} nodes")
    if not all(isinstance(v.type, TensorType) for v in session.inputs):
        print("not planned: an input is no tensor, so its shape is known only when it comes")
        return 0
    plan = session.plan({v.name: placeholder(v, shapes[v.name]) for v in session.inputs})
    print("\n".join(plan_lines(session, plan, shapes)))
    rows = planned_rows(plan)
    if arguments.execute:
        rows = executed_rows(session, made_feeds(session, arguments, (), seed=0))
    print()
    print("\n".join(table(step_table(rows), right=(0,))))
    return 0


# ---- the model -----------------------------------------------------------------------------------------------------


def graphs_in(graph: Graph) -> Iterable[Graph]:
    """A graph and all those inside it."""
    yield graph
    for node in graph.nodes:
        for inner in node.subgraphs:
            yield from graphs_in(inner)


def count_nodes(graph: Graph) -> int:
    """Nodes of a graph, those of its subgraphs included."""
    return sum(len(g.nodes) for g in graphs_in(graph))


def model_lines(model: Model, full_metadata: bool) -> list[str]:
    """What the file says."""
    from minifer.cli._text import bytes_text, table
    from minifer.ir import SparseTensor

    graph = model.graph
    producer = " ".join(filter(None, (model.producer, model.producer_version))) or "unknown"
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in model.opsets.items())
    constants = [value for g in graphs_in(graph) for value in g.consts.values()]
    constants += [node.attrs.get("value") for g in graphs_in(graph) for node in g.nodes if node.op == "Constant"]
    arrays = [v.values if isinstance(v, SparseTensor) else v for v in constants]
    numbers = sum(a.size for a in arrays if hasattr(a, "size"))
    size = sum(a.nbytes for a in arrays if hasattr(a, "nbytes"))
    lines = [
        f"graph       {graph.name or '(no name)'}",
        f"producer    {producer}; IR version {model.ir_version}; opsets {opsets}",
        *_value_lines("inputs", graph, [n for n in graph.inputs if n not in graph.consts]),
        *_value_lines("defaults", graph, [n for n in graph.inputs if n in graph.consts]),
        *_value_lines("outputs", graph, graph.outputs),
        f"parameters  {numbers:,} numbers in {len(arrays)} constants, {bytes_text(size)}",
    ]
    if model.doc.strip():
        lines.append(f"about       {_short(model.doc, full_metadata)}")
    for i, (key, value) in enumerate(model.metadata.items()):
        lines.append(f"{'metadata' if i == 0 else '':10}  {key}: {_short(value, full_metadata)}")
    counts = Counter((node.domain, node.op, node.version) for g in graphs_in(graph) for node in g.nodes).most_common()
    lines.append(f"operators   {count_nodes(graph)} nodes, {len(counts)} operators")
    rows = [(count, f"{domain + '::' if domain else ''}{op}-{version}") for (domain, op, version), count in counts]
    return lines + ["  " + line for line in table(rows, right=(0,))]


def _value_lines(title: str, graph: Graph, names: Iterable[str]) -> list[str]:
    return [
        f"{title if i == 0 else '':10}  {name}: {graph.types.get(name, 'type not declared')}"
        for i, name in enumerate(names)
    ]


def _short(text: str, full: bool) -> str:
    line = text if full else " ".join(text.split())
    return line if full or len(line) <= 80 else f"{line[:77]}... ({len(text)} characters; --metadata shows them)"


# ---- the plan ------------------------------------------------------------------------------------------------------


def placeholder(value: Value, shape: tuple[int, ...]) -> np.ndarray:
    """An array of an input's type that takes no memory: planning looks at types alone."""
    import numpy as np

    from minifer import dtypes

    return np.broadcast_to(np.zeros((), dtypes.to_numpy(value.dtype)), shape)


def plan_lines(session: Session, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Memory and arithmetic of a plan."""
    from minifer.cli._text import bytes_text, count_text
    from minifer.ir import TensorType, type_of_value
    from minifer.plan.cost import node_flops
    from minifer.plan.plan import KernelStep

    types: dict[str, Type] = {n: type_of_value(v) for n, v in session.graph.consts.items()}
    types.update((v.name, TensorType(v.dtype, shapes[v.name])) for v in session.inputs)
    types.update(plan.types)
    kernels = [step for step in plan.steps if isinstance(step, KernelStep)]
    traffic = sum(slot.nbytes for step in kernels for slot in (*step.reads, *step.writes))
    flops = sum(node_flops(node, types) for node in session.graph.nodes)
    listed = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items())
    end = "; then shapes depend on data, and the plan goes on when they are known (see --run)" if plan.dynamic else ""
    return [
        f"plan for    {listed or 'no inputs'}",
        f"steps       {len(kernels)} native, {len(plan.python_steps())} by reference{end}",
        f"memory      {bytes_text(plan.arena_bytes)} for intermediate values "
        f"(at most {bytes_text(plan.least_arena_bytes())} live at once), "
        f"{bytes_text(sum(array.nbytes for array in plan.consts))} of constants as the kernels read them",
        f"arithmetic  {count_text(flops)}FLOP in convolutions and matrix products; "
        f"native steps read and write {bytes_text(traffic)}",
    ]


def planned_rows(plan: Plan) -> list[Row]:
    """One row a step of a plan."""
    from minifer.plan.plan import KernelStep

    return [
        (_operator(step.node), step.kernel.name, "") if isinstance(step, KernelStep)
        else (_operator(step.node), None, step.why)
        for step in plan.steps
    ]  # fmt: skip


def executed_rows(session: Session, feeds: Mapping[str, Any]) -> list[Row]:
    """One row a step that ran: in all stages, branches and loop bodies."""
    rows: list[Row] = []

    def note(node: Node, kernel: Any, seconds: float, outputs: Any) -> None:
        rows.append((_operator(node), kernel.name if kernel is not None else None, ""))

    session.settings.trace = note
    try:
        session.run(feeds)
    finally:
        session.settings.trace = None
    return rows


def _operator(node: Node) -> str:
    return f"{node.domain + '::' if node.domain else ''}{node.op}-{node.version}"


def step_table(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """Rows counted by operator and kernel: native ones first, the most frequent first."""
    counts = Counter(rows).most_common()
    native = [(str(count), op, kernel) for (op, kernel, _), count in counts if kernel is not None]
    slow = [(str(count), op, ": ".join(filter(None, ("by reference", why)))) for (op, k, why), count in counts if not k]
    return [("steps", "operator", "kernel"), *native, *slow]
