"""If, Loop and Scan beyond the official cases: missing inputs, zero iterations, batches, type rules, bad bodies."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.errors import InputError, ModelError, ShapeError
from minifer.ir import Graph, Node, SequenceType, TensorType
from minifer.ops import registry

F32, I64, BOOL = (lambda *d: TensorType("float32", d)), (lambda *d: TensorType("int64", d)), TensorType("bool", ())


def run_graph(graph, inputs, outer=None):
    """The graph by references alone."""
    values = {**(outer or {}), **graph.consts, **dict(zip(graph.inputs, inputs))}
    for node in graph.nodes:
        context = registry.Context(node, lambda sub, args: run_graph(sub, args, values))
        found = registry.select(node).call(context, [values[n] if n else None for n in node.inputs])
        values.update(zip(node.outputs, found))
    return [values[n] for n in graph.outputs]


def node(op, inputs, outputs, version, **attrs):
    return Node(op, tuple(inputs.split()), tuple(outputs.split()), attrs, "node", "", version)


def run(op, version, *inputs, outer=None, outputs=1, **attrs):
    names = tuple("" if v is None else f"x{i}" for i, v in enumerate(inputs))
    call = Node(op, names, tuple(f"y{i}" for i in range(outputs)), attrs, "node", "", version)
    context = registry.Context(call, lambda sub, args: run_graph(sub, args, outer))
    return registry.select(call).call(context, list(inputs))


def infer(op, version, *types, values=None, outputs=1, types_of=None, **attrs):
    """`types_of(body, input types)` stands for the inference of a body; without it the declared types count."""
    names = tuple("" if t is None else f"x{i}" for i, t in enumerate(types))
    call = Node(op, names, tuple(f"y{i}" for i in range(outputs)), attrs, "node", "", version)
    return list(registry.select(call).infer(registry.Call(call, types, values or [None] * len(types), types_of)))


def graph(inputs, outputs, *nodes, consts=None, types=None):
    return Graph(tuple(inputs.split()), tuple(outputs.split()), tuple(nodes), consts or {}, types or {}, "body")


#: v -> v + 1, and v as a scan output; stops after iteration 2
COUNT = graph(
    "i c v",
    "go v2 seen",
    node("Less", "i two", "go", 13),
    node("Add", "v one", "v2", 14),
    node("Identity", "v", "seen", 14),
    consts={"two": np.array(2), "one": np.float32(1).reshape(())},
    types={"i": I64(), "c": BOOL, "v": F32(None), "seen": F32(3, "n")},
)
#: never stops by itself
STEADY = graph("i c v", "c v i", types={"c": BOOL, "i": I64()})


# ------------------------------------------------------------------------------------------------------------ If


def test_if_takes_its_branch_and_sees_outer_names():
    yes, no = graph("", "a"), graph("", "b")
    outer = {"a": np.array([1.0]), "b": np.array([2.0])}
    for flag in (True, False):
        for version in (1, 11, 16, 25):
            (got,) = run("If", version, np.array([flag]), outer=outer, then_branch=yes, else_branch=no)
            assert got[0] == (1 if flag else 2)


def test_if_type_rule_keeps_what_the_branches_share():
    yes, no = graph("", "a", types={"a": F32(2, 3)}), graph("", "b", types={"b": F32(2, 4)})
    branches = dict(then_branch=yes, else_branch=no)
    assert infer("If", 16, BOOL, **branches) == [F32(2, None)]
    assert infer("If", 16, BOOL, values=[np.array(False)], **branches) == [F32(2, 4)]
    with pytest.raises(ShapeError, match="must be bool"):
        infer("If", 16, F32(), **branches)


def test_if_rejects_bad_conditions():
    branches = dict(then_branch=graph("", "a"), else_branch=graph("", "a"))
    with pytest.raises(InputError, match="one element"):
        run("If", 16, np.array([True, False]), outer={"a": 0}, **branches)
    with pytest.raises(InputError, match="must be bool"):
        run("If", 16, np.array(1), outer={"a": 0}, **branches)


# ---------------------------------------------------------------------------------------------------------- Loop


@pytest.mark.parametrize("version", [1, 11, 16, 25])
@pytest.mark.parametrize(
    ("trips", "cond", "count"),
    [
        (5, None, 3),
        (2, None, 2),
        (None, None, 3),
        (None, True, 3),
        (5, True, 3),
        (1, True, 1),
        (5, False, 0),
        (0, None, 0),
    ],
)
def test_loop_ends_by_trip_count_or_condition(version, trips, cond, count):
    start = np.zeros(3, np.float32)
    trips = None if trips is None else np.array([trips])
    final, seen = run("Loop", version, trips, None if cond is None else np.array(cond), start, outputs=2, body=COUNT)
    assert (final == count).all() and final.dtype == np.float32
    assert seen.dtype == np.float32 and seen.shape == ((count, 3) if count else (0, 3, 0))
    assert np.array_equal(seen, np.repeat(np.arange(count), 3).reshape(seen.shape))


def test_loop_carries_sequences_and_optionals():
    body = graph(
        "i c s",
        "c s2",
        node("SequenceInsert", "s i", "s2", 11),
    )
    (got,) = run("Loop", 16, np.array(4), None, [], body=body)
    assert [int(v) for v in got] == [0, 1, 2, 3]
    body = graph("i c o", "c t", node("OptionalHasElement", "o", "t", 18))
    assert run("Loop", 16, np.array(1), None, None, body=body)[0] == np.array(False)


def test_loop_gives_the_iteration_number_as_declared():
    body = graph("i c", "c i", types={"i": I64(1), "c": TensorType("bool", (1,))})
    assert run("Loop", 16, np.array(3), np.array(True), body=body)[0].shape == (3, 1)


def test_loop_shapes_of_carried_values_may_change():
    body = graph("i c v", "c v2", node("Concat", "v v", "v2", 13, axis=0))
    assert run("Loop", 13, np.array(4), None, np.zeros(1), body=body)[0].shape == (16,)
    types = lambda body, given: [BOOL, F32(2 * given[2].shape[0]) if given[2].shape[0] else F32(None)]  # noqa: E731
    assert infer("Loop", 13, I64(), None, F32(1), types_of=types, body=body) == [F32(None)]


def test_loop_type_rule_knows_the_trip_count_of_a_steady_body():
    given = (I64(), None, F32(2))
    assert infer("Loop", 16, *given, values=[np.array(7), None, None], outputs=2, body=STEADY)[1] == I64(7)
    assert infer("Loop", 16, *given, outputs=2, body=STEADY)[1] == I64(None)
    wide = COUNT.with_(types={**COUNT.types, "v2": F32(None)})
    final, seen = infer("Loop", 16, *given, values=[np.array(0), None, None], outputs=2, body=wide)
    assert (final, seen) == (F32(2), F32(0, 3, 0))
    assert infer("Loop", 16, *given, outputs=2, body=wide)[1] == F32(None, 3, None)


def test_a_loop_that_never_runs_finds_undeclared_types_by_a_trial():
    body = graph("i c v", "c v w", node("Concat", "v v", "w", 13, axis=0))
    carried, scan = run("Loop", 16, np.array(0), None, np.ones(2, np.float32), outputs=2, body=body)
    assert carried.tolist() == [1, 1] and scan.shape == (0, 4) and scan.dtype == np.float32
    body = graph("a x", "a x")
    assert run("Scan", 9, np.ones(1), np.ones((2, 0)), num_scan_inputs=1, scan_input_axes=(1,), body=body)[1].shape == (
        0,
        2,
    )


def test_loop_errors():
    start = np.zeros(2, np.float32)
    with pytest.raises(ModelError, match="2 inputs"):
        run("Loop", 16, np.array(1), None, start, body=graph("i c", "c"))
    with pytest.raises(ShapeError, match="carried values"):
        infer("Loop", 16, I64(), None, F32(2), body=graph("i c", "c"))
    with pytest.raises(InputError, match="trip count must be a tensor of one element"):
        run("Loop", 16, np.array([1, 2]), None, start, body=STEADY)
    body = graph("i c v", "c v2", node("Cast", "v", "v2", 13, to=11))
    with pytest.raises(InputError, match="changes its type from float32 to float64"):
        run("Loop", 16, np.array(1), None, start, body=body)
    body = graph("i c v", "c v2 v", node("Concat", "v v", "v2", 13, axis=0), types={"v": F32(None)})
    with pytest.raises(InputError, match=r"scan output 'v' changes from float32\[2\] to float32\[4\]"):
        run("Loop", 16, np.array(2), None, start, outputs=2, body=body)
    body = graph("i c v", "c v g", node("Gather", "v i", "g", 13), types={"v": F32(None)})
    with pytest.raises(ModelError, match="declares no tensor type for the output 'g'"):
        run("Loop", 16, np.array(0), None, start[:0], outputs=2, body=body)


# ---------------------------------------------------------------------------------------------------------- Scan

#: running sum of the elements
SUM = graph("s x", "s2 y", node("Add", "s x", "s2", 14), node("Identity", "s2", "y", 14), types={"y": F32(2)})


def test_scan_axes_and_directions():
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    start = np.zeros((2, 2), np.float32)
    options = dict(num_scan_inputs=1, body=SUM)
    final, sums = run("Scan", 9, start, x, outputs=2, scan_input_axes=(1,), scan_output_axes=(-1,), **options)
    assert np.array_equal(final, x.sum(1)) and np.array_equal(sums, np.cumsum(x, 1).transpose(0, 2, 1))
    backward = dict(scan_input_directions=(1,), scan_output_directions=(1,))
    final, sums = run("Scan", 16, start, x, outputs=2, scan_input_axes=(-2,), **backward, **options)
    assert np.array_equal(sums, np.cumsum(x[:, ::-1], 1)[:, ::-1].transpose(1, 0, 2))
    types = infer("Scan", 9, F32(2), F32(2, 5), outputs=2, scan_input_axes=(1,), scan_output_axes=(1,), **options)
    assert types == [F32(2), F32(2, 5)]


def test_scan_without_steps_uses_declared_types():
    final, sums = run(
        "Scan", 9, np.ones(2, np.float32), np.ones((0, 2), np.float32), outputs=2, num_scan_inputs=1, body=SUM
    )
    assert (final == 1).all() and sums.shape == (0, 2) and sums.dtype == np.float32


def test_scan_8_pads_short_sequences_and_reverses_within_them():
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    start = np.zeros((2, 2), np.float32)
    options = dict(outputs=2, num_scan_inputs=1, body=SUM)
    final, sums = run("Scan", 8, np.array([2, 3]), start, x, directions=(1,), **options)
    assert np.array_equal(final, [x[0, :2].sum(0), x[1].sum(0)])
    assert np.array_equal(sums[0], [x[0, 1], x[0, 1] + x[0, 0], [0, 0]])
    assert np.array_equal(sums[1], np.cumsum(x[1, ::-1], 0))
    final, sums = run("Scan", 8, None, start, x, **options)
    assert np.array_equal(sums, np.cumsum(x, 1))
    assert infer("Scan", 8, None, F32("b", 2), F32(2, 3, 2), **options) == [F32("b", 2), F32(2, 3, 2)]
    assert run("Scan", 8, np.array([0, 0]), start, x, **options)[1].shape == (2, 3, 2)


def test_scan_errors():
    x, start = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
    options = dict(num_scan_inputs=1, body=SUM)
    with pytest.raises(InputError, match="scan axis 2 is outside"):
        run("Scan", 9, start, x, scan_input_axes=(2,), **options)
    with pytest.raises(ShapeError, match="axis 2 is outside"):
        infer("Scan", 9, F32(2), F32(3, 2), scan_input_axes=(2,), **options)
    with pytest.raises(ModelError, match="must hold 0"):
        run("Scan", 9, start, x, scan_input_directions=(2,), **options)
    with pytest.raises(ModelError, match="scan_output_axes has 2 entries"):
        run("Scan", 9, start, x, scan_output_axes=(0, 1), **options)
    with pytest.raises(ModelError, match="num_scan_inputs is 3"):
        run("Scan", 9, start, x, body=SUM, num_scan_inputs=3)
    two = graph("a b", "a")
    with pytest.raises(InputError, match="lengths 3, 2"):
        run("Scan", 9, x, x[:2], body=graph("a b", "a b"), num_scan_inputs=2)
    with pytest.raises(ShapeError, match=r"lengths \[2, 3\]"):
        infer("Scan", 9, F32(3), F32(2), body=graph("a b", "a b"), num_scan_inputs=2)
    with pytest.raises(InputError, match="state 'a2' changes"):
        run("Scan", 9, start, x, body=graph("a b", "a2", node("Concat", "a b", "a2", 13, axis=0)), num_scan_inputs=1)
    with pytest.raises(InputError, match="sequence_lens"):
        run("Scan", 8, np.array([9]), start[None], x[None], **options)
    assert infer("Scan", 9, F32(2), F32(3, 2), body=two, num_scan_inputs=1) == [F32(2)]


def test_sequence_map_runs_the_body_for_each_element():
    body = graph("a b", "c", node("Add", "a b", "c", 14), types={"c": F32(None)})
    sequence = [np.ones(2, np.float32), np.ones(3, np.float32)]
    (got,) = run("SequenceMap", 17, sequence, np.array([10], np.float32), body=body)
    assert [v.tolist() for v in got] == [[11, 11], [11, 11, 11]]
    assert run("SequenceMap", 17, [], np.float32(1).reshape(()), body=body) == [[]]
    with pytest.raises(InputError, match="sequence 1 has 1 elements"):
        run("SequenceMap", 17, sequence, sequence[:1], body=body)
    with pytest.raises(InputError, match="a sequence is needed"):
        run("SequenceMap", 17, sequence[0], sequence, body=body)
    assert infer("SequenceMap", 17, SequenceType(F32(2)), F32(1), body=body) == [SequenceType(F32(None))]
