"""Compiled models with If, Loop and Scan agree with the engine bit for bit; what of them cannot be compiled."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest

import minifer
from minifer.embed.abi import Status
from minifer.errors import UnsupportedError
from minifer.ir import Graph, SequenceType, TensorType
from tests.embed.native import LEVEL, Library, aligned
from tests.embed.test_compile import HERE, made, normal
from tests.kernels.models import node

FLAG, COUNT = TensorType("bool", ()), TensorType("int64", ())
YES, NO = np.array(True), np.array(False)
GUARD = 64  # bytes behind an output and the workspace


def floats(*shape: int) -> TensorType:
    return TensorType("float32", shape)


def graph(inputs, outputs, *nodes, types=None, **consts) -> Graph:
    """A branch or a body; the names of inputs and outputs as words in a text."""
    return Graph(tuple(inputs.split()), tuple(outputs.split()), nodes, consts, types or {}, "inner")


def guarded(nbytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Aligned memory full of rubbish, and what lies behind it."""
    whole = aligned(nbytes + GUARD)
    return whole[:nbytes], whole[nbytes:]


def run(library: Library, feeds, weights=None) -> tuple[int, dict[str, np.ndarray]]:
    """The status and the outputs. Nothing may write behind an output or the workspace."""
    given = [np.ascontiguousarray(feeds[n], dtype).reshape(shape) for n, dtype, shape, _ in library.inputs]
    (workspace, *outputs), behind = zip(*map(guarded, [library.workspace_bytes, *(t[3] for t in library.outputs)]))
    status = library.status(given, outputs, workspace, weights)
    assert all((guard == 255).all() for guard in behind)
    return status, {n: o.view(d).reshape(s) for o, (n, d, s, _) in zip(outputs, library.outputs)}


def agree(data: bytes, feeds, folder, **options) -> Library:
    """Compile a model; every one of the `feeds` must give what it gives in the engine. Returns the library."""
    minifer.compile(data, "x86_64-linux", folder, name="net", cpu=LEVEL, **options)
    library, session = Library(folder / "libnet.so", "net"), minifer.load(data, threads=1)
    weights = None
    if options.get("weights") == "separate":
        weights = aligned(library.weights_bytes)
        weights[:] = np.fromfile(folder / "net.weights", np.uint8)
    for values in feeds:
        status, got = run(library, values, weights)
        assert status == Status.OK
        for name, want in session.run(values).items():
            assert got[name].tobytes() == want.tobytes(), (name, values, got[name], want)
    return library


# ---------------------------------------------------------------- If


def branches(flag: TensorType = FLAG) -> bytes:
    """Real kernels in both branches; values captured, constant, handed through; one that lives across the If."""
    then = graph(
        "", "a b early const",
        node("Conv", ["early", "w"], ["conv"], pads=[1, 1, 1, 1]), node("Relu", ["conv"], ["a"], 14),
        node("ReduceSum", ["conv"], ["b"], 13, keepdims=0), const=np.array([1, 2], "f"),
    )  # fmt: skip
    other = graph(
        "", "a2 b2 x late",
        node("Tanh", ["early"], ["t"], 13), node("Mul", ["t", "x"], ["a2"], 14),
        node("ReduceMax", ["a2"], ["b2"], 20, keepdims=0), node("Slice", ["k", "zero", "two"], ["late"], 13),
    )  # fmt: skip
    nodes = [
        node("Sigmoid", ["x"], ["early"], 13),
        node("Exp", ["x"], ["across"], 13),
        node("If", ["c"], ["p", "q", "r", "s"], 21, then_branch=then, else_branch=other),
        node("Add", ["p", "across"], ["sum"], 14),
        node("Neg", ["sum"], ["end"], 13),
    ]
    consts = {"w": normal(3, 3, 3, 3), "zero": np.array([0]), "two": np.array([2])}
    inputs = {"x": floats(1, 3, 6, 5), "k": floats(4), "c": flag}
    return made(nodes, inputs, consts, ["end", "q", "r", "s", "p"])


def both_ways() -> list[dict[str, np.ndarray]]:
    return [{"x": normal(1, 3, 6, 5), "k": normal(4), "c": flag} for flag in (YES, NO, YES)]


@HERE
@pytest.mark.parametrize("weights", ["embedded", "separate"])
def test_if_takes_the_branch_that_the_run_chooses(weights, tmp_path):
    agree(branches(), both_ways(), tmp_path, weights=weights)


@HERE
def test_the_condition_may_have_one_dimension_and_any_byte_but_0_is_true(tmp_path):
    data = branches(flag=TensorType("bool", (1,)))
    feeds = [{**f, "c": f["c"].reshape(1)} for f in both_ways()]
    library = agree(data, feeds, tmp_path)
    for byte, like in ((0, 1), (2, 0), (255, 0)):
        given = {**feeds[0], "c": np.array([byte], np.uint8).view(np.bool_)}
        wanted = run(library, {**feeds[0], "c": feeds[like]["c"]})[1]
        assert all(y.tobytes() == wanted[n].tobytes() for n, y in run(library, given)[1].items())


@HERE
def test_if_inside_if(tmp_path):
    def inner(op: str, version: int, tag: str) -> Graph:
        deep = [graph("", f"{tag}{i}", node(o, ["x", "h"], [f"{tag}{i}"], 14)) for i, o in enumerate(("Add", "Mul"))]
        return graph(
            "", f"{tag}out", node(op, ["x"], [f"{tag}v"], version),
            node("If", ["b"], [f"{tag}w"], 21, then_branch=deep[0], else_branch=deep[1]),
            node("Sub", [f"{tag}v", f"{tag}w"], [f"{tag}out"], 14),
        )  # fmt: skip

    nodes = [
        node("Cos", ["x"], ["h"], 7),
        node("If", ["a"], ["y"], 21, then_branch=inner("Exp", 13, "l"), else_branch=inner("Sin", 7, "r")),
        node("Add", ["y", "h"], ["z"], 14),
    ]
    data = made(nodes, {"x": floats(9), "a": FLAG, "b": FLAG}, {}, ["z"])
    agree(data, [{"x": normal(9), "a": a, "b": b} for a in (YES, NO) for b in (YES, NO)], tmp_path)


@HERE
def test_two_branches_share_their_memory(tmp_path):
    def half(tag: str) -> Graph:
        return graph(
            "", f"{tag}y", node("MatMul", ["x", "x"], [f"{tag}1"], 13),
            node("MatMul", [f"{tag}1", "x"], [f"{tag}2"], 13), node("MatMul", [f"{tag}2", f"{tag}1"], [f"{tag}y"], 13),
        )  # fmt: skip

    one = made(half("m").nodes, {"x": floats(96, 96)}, {}, ["my"])
    nodes = [node("If", ["c"], ["y"], 21, then_branch=half("a"), else_branch=half("b"))]
    two = made(nodes, {"x": floats(96, 96), "c": FLAG}, {}, ["y"])
    alone = minifer.compile(one, "x86_64-linux", tmp_path / "one", cpu=LEVEL).interface.workspace_bytes
    library = agree(two, [{"x": normal(96, 96), "c": flag} for flag in (YES, NO)], tmp_path)
    assert alone <= library.workspace_bytes <= alone + 1024


# ---------------------------------------------------------------- Loop


def looping(trips: bool, condition: bool) -> bytes:
    """v = tanh(v @ m) until i reaches `last` (captured), the trip count ends or the condition is false at first."""
    body = graph(
        "i go v", "on w",
        node("MatMul", ["v", "m"], ["p"], 13), node("Tanh", ["p"], ["w"], 13), node("Less", ["i", "last"], ["on"], 13),
    )  # fmt: skip
    given = ["trips" if trips else "", "start" if condition else "", "x"]
    inputs = {"x": floats(3, 8), "last": COUNT}
    inputs.update({"trips": COUNT} if trips else {}, **({"start": FLAG} if condition else {}))
    nodes = [node("Abs", ["x"], ["positive"], 13), node("Loop", given, ["y"], 21, body=body)]
    return made([*nodes, node("Add", ["y", "positive"], ["z"], 14)], inputs, {"m": normal(8, 8)}, ["z", "y"])


@HERE
@pytest.mark.parametrize(("trips", "condition"), [(True, False), (False, True), (True, True), (False, False)])
def test_a_loop_ends_by_its_count_or_its_condition(trips, condition, tmp_path):
    feeds = [
        {"x": normal(3, 8), "last": np.array(last), "trips": np.array(n), "start": start}
        for last in (0, 4)
        for n in (0, 1, 3, 9, -2, -(2**63))
        for start in (YES, NO)
    ]
    given = {"x", "last", *(["trips"] if trips else []), *(["start"] if condition else [])}
    feeds = [{n: v for n, v in f.items() if n in given} for f in feeds]
    agree(looping(trips, condition), feeds, tmp_path)


@HERE
def test_carried_values_change_places_and_need_not_be_wanted(tmp_path):
    body = graph(
        "i go a b kept", "go b a2 kept seen",
        node("Add", ["a", "kept"], ["a2"], 14), node("Neg", ["b"], ["seen"], 13),
        types={"i": TensorType("int64", (1,))},
    )  # fmt: skip
    nodes = [node("Loop", ["n", "", "x", "y", "k"], ["first", "", "third", ""], 21, body=body)]
    data = made(nodes, {"n": COUNT, "x": floats(5), "y": floats(5)}, {"k": normal(5)}, ["first", "third"])
    agree(data, [{"n": np.array(n), "x": normal(5), "y": normal(5)} for n in (0, 1, 2, 5)], tmp_path)


@HERE
@pytest.mark.parametrize(("trips", "start"), [(6, None), (0, None), (-1, None), (6, False), (6, True)])
def test_scan_outputs_have_a_row_for_each_turn(trips, start, tmp_path):
    row = floats(1, 2, 4, 4)
    body = graph(
        "i go v", "on w number conv const w",
        node("Identity", ["go"], ["on"], 21), node("Conv", ["v", "f"], ["conv"], pads=[1, 1, 1, 1]),
        node("Add", ["conv", "x"], ["w"], 14), node("Mul", ["i", "i"], ["number"], 14),
        types={"number": COUNT, "conv": row, "const": floats(3), "w": row}, const=np.array([3, 1, 2], "f"),
    )  # fmt: skip
    consts = {"f": normal(2, 2, 3, 3), "trips": np.array(trips)}
    consts |= {} if start is None else {"start": np.array(start)}
    given = ["trips", "" if start is None else "start", "x"]
    nodes = [node("Loop", given, ["y", "numbers", "convs", "consts", "values"], 21, body=body)]
    outputs = ["values", "consts", "convs", "y", "numbers"]
    if trips > 0 and start is not False:  # an operator on nothing has no kernel
        nodes, outputs = [*nodes, node("Cast", ["numbers"], ["real"], 21, to=1)], [*outputs[:-1], "real"]
    agree(made(nodes, {"x": row}, consts, outputs), [{"x": normal(1, 2, 4, 4)}], tmp_path)


@HERE
def test_loops_and_branches_inside_one_another(tmp_path):
    innermost = graph(
        "k kgo u", "kon u2",
        node("Add", ["u", "shift"], ["s"], 14), node("Mul", ["s", "scale"], ["u2"], 14),
        node("Less", ["k", "i"], ["kon"], 13), scale=np.array(0.5, "f"),
    )  # fmt: skip
    then = graph("", "t", node("Loop", ["many", "", "v"], ["t"], 21, body=innermost), many=np.array(4))
    other = graph("", "e", node("MatMul", ["v", "m"], ["e"], 13))
    body = graph(
        "i igo v", "igo next total",
        node("Mod", ["i", "two"], ["odd"], 13), node("Cast", ["odd"], ["flag"], 21, to=9),
        node("If", ["flag"], ["next"], 21, then_branch=then, else_branch=other),
        node("ReduceSum", ["next"], ["total"], 13, keepdims=0), two=np.array(2),
    )  # fmt: skip
    whole = graph(
        "", "out totals", node("Exp", ["x"], ["shift"], 13),
        node("Loop", ["five", "", "x"], ["out", "totals"], 21, body=body), five=np.array(5),
    )  # fmt: skip
    plain = graph("", "neg five", node("Neg", ["x"], ["neg"], 13), node("Identity", ["fives"], ["five"], 21))
    nodes = [node("If", ["c"], ["y", "z"], 21, then_branch=whole, else_branch=plain)]
    inputs = {"x": floats(4, 4), "c": FLAG, "fives": floats(5)}
    data = made(nodes, inputs, {"m": normal(4, 4)}, ["y", "z"])
    agree(data, [{"x": normal(4, 4), "c": flag, "fives": normal(5)} for flag in (YES, NO)], tmp_path)


@HERE
def test_a_value_that_a_kernel_refuses_ends_the_run_from_any_depth(tmp_path):
    then = graph("", "t", node("Gather", ["table", "v"], ["t"], 13))
    body = graph(
        "i go v", "go w", node("If", ["c"], ["g"], 21, then_branch=then, else_branch=graph("", "v")),
        node("Add", ["g", "one"], ["w"], 14),
    )  # fmt: skip
    nodes = [node("Loop", ["n", "", "x"], ["y"], 21, body=body)]
    consts = {"table": np.arange(10), "one": np.array([1, 1])}
    data = made(nodes, {"x": TensorType("int64", (2,)), "n": COUNT, "c": FLAG}, consts, ["y"])
    feeds = [{"x": np.array([0, 5]), "n": np.array(n), "c": c} for n, c in ((5, YES), (0, YES), (90, NO))]
    library = agree(data, feeds, tmp_path)
    assert run(library, {**feeds[0], "n": np.array(6)})[0] == Status.REFUSED


# ---------------------------------------------------------------- Scan


def scanned() -> bytes:
    """Two states, a forward and a backward input and output, a state nobody wants."""
    body = graph(
        "s n a b", "s2 n2 p s2",
        node("MatMul", ["a", "m"], ["am"], 13), node("Add", ["am", "s"], ["sum"], 14),
        node("Tanh", ["sum"], ["s2"], 13), node("Add", ["n", "b"], ["n2"], 14), node("Mul", ["s2", "b"], ["p"], 14),
    )  # fmt: skip
    nodes = [
        node("Scan", ["s", "zero", "x", "y"], ["end", "", "back", "all"], 21, body=body, num_scan_inputs=2,
             scan_input_directions=(0, 1), scan_output_directions=(1, 0)),
    ]  # fmt: skip
    inputs = {"x": floats(7, 4), "s": floats(4), "y": floats(7)}
    return made(nodes, inputs, {"m": normal(4, 4), "zero": np.array(0, "f")}, ["all", "end", "back"])


@HERE
def test_scan_in_both_directions(tmp_path):
    agree(scanned(), [{"x": normal(7, 4), "s": normal(4), "y": normal(7)} for _ in range(2)], tmp_path)


@HERE
def test_scan_over_nothing_gives_the_states(tmp_path):
    body = graph("s a", "s2", node("Add", ["s", "a"], ["s2"], 14))
    nodes = [
        node("Scan", ["s", "x"], ["end"], 21, body=body, num_scan_inputs=1),
        node("Neg", ["end"], ["y"], 13),
    ]
    data = made(nodes, {"s": floats(4), "x": floats(0, 4)}, {}, ["y"])
    agree(data, [{"s": normal(4), "x": normal(0, 4)}], tmp_path)


# ---------------------------------------------------------------- other targets


def test_the_same_model_gives_the_same_files(tmp_path):
    data = looping(True, True)
    once, again = (minifer.compile(data, "x86_64-linux", tmp_path / f, name="net").files for f in ("a", "b"))
    for first, second in zip(once, again):
        assert first.read_bytes() == second.read_bytes(), first.name


@pytest.mark.parametrize("target", ["aarch64-linux", "riscv64-linux", "x86_64-windows", "aarch64-macos", "thumbv7em"])
def test_objects_for_other_machines_need_nothing_more(target, tmp_path):
    assert minifer.compile(looping(True, True), target, tmp_path, name="net").files


def test_the_module_agrees_with_the_engine_in_node(tmp_path):
    node_path = shutil.which("node")
    if node_path is None:
        pytest.skip("node is not installed")
    branching, loops = branches(), looping(True, True)
    minifer.compile(loops, "wasm32", tmp_path, name="loops")
    minifer.compile(branching, "wasm32", tmp_path, name="ifs", weights="separate")
    feeds, x = both_ways(), normal(3, 8)
    counts = [(0, 1), (3, 1), (9, 1), (-1, 1), (9, 0)]
    values = {
        "ifs": [{n: v.ravel().tolist() for n, v in f.items()} for f in feeds], "x": x.ravel().tolist(), "counts": counts
    }  # fmt: skip
    (tmp_path / "values.json").write_text(json.dumps(values))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(
        """
        import * as ifs from "./ifs.js";
        import * as loops from "./loops.js";
        import fs from "node:fs";
        const given = JSON.parse(fs.readFileSync(new URL("values.json", import.meta.url)));
        const branch = await ifs.load(), loop = await loops.load();
        const big = (n) => BigInt64Array.of(BigInt(n));
        console.log(JSON.stringify({
          ifs: given.ifs.map(({ x, k, c }) => {
            const y = branch.run({ x: Float32Array.from(x), k: Float32Array.from(k), c: Uint8Array.from(c) });
            return Object.fromEntries(Object.entries(y).map(([n, v]) => [n, [...v]]));
          }),
          loops: given.counts.map(([n, start]) => [...loop.run({
            x: Float32Array.from(given.x), last: big(4), trips: big(n), start: Uint8Array.of(start),
          }).y]),
        }));
        """
    )
    said = subprocess.run([node_path, tmp_path / "run.js"], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    got, session = json.loads(said.stdout), minifer.load(branching)
    for values, have in zip(feeds, got["ifs"]):
        for name, want in session.run(values).items():
            np.testing.assert_allclose(have[name], want.ravel(), rtol=1e-5, atol=1e-5)
    session = minifer.load(loops)
    for (n, start), have in zip(counts, got["loops"]):
        given = {"x": x, "last": np.array(4), "trips": np.array(n), "start": np.array(bool(start))}
        np.testing.assert_allclose(have, session.run(given)["y"].ravel(), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- what cannot be compiled


def problems(nodes, inputs, outputs, folder, **consts) -> str:
    """What the error says; nothing may be written."""
    with pytest.raises(UnsupportedError) as caught:
        minifer.compile(made(nodes, inputs, consts, outputs), "x86_64-linux", folder / "out")
    assert not (folder / "out").exists()
    return str(caught.value)


def test_everything_without_a_kernel_is_listed_from_all_depths(tmp_path):
    deep = graph("i go v", "go w", node("Det", ["v"], ["d"], 22), node("Add", ["v", "d"], ["w"], 14))
    then = graph("", "t", node("Loop", ["n", "", "x"], ["t"], 21, body=deep))
    other = graph(
        "", "e2", node("Det", ["x"], ["e"], 22), node("NonZero", ["e"], ["i"], 13),
        node("ReduceSum", ["i"], ["s"], 13, keepdims=0), node("Cast", ["s"], ["f"], 21, to=1),
        node("Add", ["x", "f"], ["e2"], 14),
    )  # fmt: skip
    nodes = [
        node("Hardmax", ["x"], ["h"], 13),
        node("If", ["c"], ["y"], 21, then_branch=then, else_branch=other),
        node("Add", ["y", "h"], ["z"], 14),
    ]
    said = problems(nodes, {"x": floats(3, 3), "c": FLAG, "n": COUNT}, ["z"], tmp_path)
    assert "Det x2 (first: Det_d): no kernel" in said
    assert "NonZero x1 (first: NonZero_i): the shape of its result depends on the values of the inputs" in said
    assert "--set name=value" in said


def test_branches_of_different_shapes(tmp_path):
    short = graph("", "s", node("Slice", ["x", "zero", "two"], ["s"], 13))
    nodes = [node("If", ["c"], ["y"], 21, then_branch=short, else_branch=graph("", "x"))]
    inputs, consts = {"x": floats(4), "c": FLAG}, {"zero": np.array([0]), "two": np.array([2])}
    said = problems(nodes, inputs, ["y"], tmp_path, **consts)
    assert "If x1 (first: If_y): one branch gives float32[2], the other gives float32[4], and which" in said
    wrong = graph("", "w", node("MatMul", ["x", "m"], ["w"], 13))
    nodes = [node("If", ["c"], ["y"], 21, then_branch=wrong, else_branch=graph("", "x"))]
    said = problems(nodes, inputs, ["y"], tmp_path, m=normal(5, 4))
    assert "one branch does not fit these shapes (MatMul" in said and "the other gives float32[4]" in said


def test_loops_whose_shapes_only_the_run_knows(tmp_path):
    grows = graph("i go v", "go w", node("Concat", ["v", "v"], ["w"], 13, axis=0))
    nodes = [node("Loop", ["n", "", "x"], ["y"], 21, body=grows)]
    inputs = {"x": floats(4), "n": COUNT}
    said = problems(nodes, inputs, ["y"], tmp_path)
    assert "'w' is float32[4] before the first turn and float32[8] after it" in said
    part = graph("i go v", "go w", node("Unsqueeze", ["i", "zero"], ["from"], 21),
                 node("Slice", ["v", "from", "four"], ["w"], 13))  # fmt: skip
    nodes = [node("Loop", ["n", "", "x"], ["y"], 21, body=part)]
    said = problems(nodes, inputs, ["y"], tmp_path, zero=np.array([0]), four=np.array([4]))
    assert "Slice-13 'Slice_w' gives float32[?]" in said
    rows = graph("i go v", "go v v")
    nodes = [node("Loop", ["n", "", "x"], ["", "y"], 21, body=rows)]
    assert "the number of turns, which depends on the values of the inputs" in problems(nodes, inputs, ["y"], tmp_path)


def test_what_is_no_tensor_of_numbers(tmp_path):
    def listed(op: str, tag: str) -> Graph:
        return graph("", tag, node(op, ["x"], [f"{tag}v"], 13), node("SequenceConstruct", [f"{tag}v"], [tag], 11),
                     types={tag: SequenceType(floats(4))})  # fmt: skip

    nodes = [
        node("If", ["c"], ["q"], 21, then_branch=listed("Exp", "t"), else_branch=listed("Neg", "e")),
        node("SequenceAt", ["q", "zero"], ["y"], 11),
    ]
    said = problems(nodes, {"x": floats(4), "c": FLAG}, ["y"], tmp_path, zero=np.array(0))
    assert "If x1 (first: If_q)" in said


def test_a_scan_along_another_axis(tmp_path):
    body = graph("s a", "s2", node("Add", ["s", "a"], ["s2"], 14))
    nodes = [node("Scan", ["s", "x"], ["y"], 21, body=body, num_scan_inputs=1, scan_input_axes=(1,))]
    said = problems(nodes, {"s": floats(4), "x": floats(4, 5)}, ["y"], tmp_path)
    assert "scan_input_axes other than 0 cannot be compiled" in said
