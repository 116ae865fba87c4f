"""From ir.Model to a file: what was read is written, and read again it is the same."""

import os
import stat

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from minifer import dtypes
from minifer.errors import ModelError, UnsupportedError
from minifer.ir import (
    Graph,
    MapType,
    Model,
    Node,
    OptionalType,
    SequenceType,
    SparseTensor,
    SparseTensorType,
    TensorType,
)
from minifer.onnx_io import read_model, save_model, write, write_model

F32 = TensorType("float32", ("N", 3))


def same(a, b):
    """Equal values of attributes, constants, graphs, models."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, Graph):
        assert (a.inputs, a.outputs, a.name or "graph") == (b.inputs, b.outputs, b.name or "graph")
        same(dict(a.consts), dict(b.consts))
        assert dict(a.types) == dict(b.types)
        same(a.nodes, b.nodes)
    elif isinstance(a, Node):
        parts = ("op", "inputs", "outputs", "name", "domain", "version")
        assert [getattr(a, p) for p in parts] == [getattr(b, p) for p in parts]
        same(dict(a.attrs), dict(b.attrs))
    elif isinstance(a, SparseTensor):
        same((a.values, a.indices, a.shape), (b.values, b.indices, b.shape))
    elif isinstance(a, Model):
        parts = ("producer", "producer_version", "domain", "model_version", "doc", "metadata", "opsets")
        assert [getattr(a, p) for p in parts] == [getattr(b, p) for p in parts]
        same(a.graph, b.graph)
    else:
        assert a == b


def model(graph, opsets=None, **fields):
    return Model(graph, {"": 18} if opsets is None else opsets, 10, **fields)


def relu(**changes):
    graph = Graph(("x",), ("y",), (Node("Relu", ("x",), ("y",), version=18),), types={"x": F32, "y": F32}, name="g")
    return graph.with_(**changes)


def again(made):
    data = write_model(made)
    onnx.load_from_string(data)
    return read_model(data)


# ---- round trips

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
finite = st.floats(width=32, allow_nan=False)
int64 = st.integers(-(2**63), 2**63 - 1)
dims = st.one_of(st.integers(0, 9), names, st.none())
shapes = st.one_of(st.none(), st.lists(dims, max_size=3).map(tuple))
elements = st.sampled_from(sorted(dtypes.TYPES))
tensor_types = st.builds(TensorType, elements, shapes)
types = st.recursive(
    st.one_of(tensor_types, st.builds(SparseTensorType, elements, shapes)),
    lambda inner: st.one_of(
        st.builds(SequenceType, inner),
        st.builds(OptionalType, inner),
        st.builds(MapType, st.sampled_from(["int64", "string"]), inner),
    ),
    max_leaves=3,
)


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(elements)
    count = int(np.prod(shape))
    if dtype == "string":
        out = np.empty(count, object)
        out[:] = draw(st.lists(names, min_size=count, max_size=count))
        return out.reshape(shape)
    kind = dtypes.to_numpy(dtype)
    raw = np.frombuffer(draw(st.binary(min_size=count * kind.itemsize, max_size=count * kind.itemsize)), np.uint8)
    bits = 1 if dtype == "bool" else min(dtypes.bits(dtype), 8)
    return (raw & (2**bits - 1)).astype(np.uint8).view(kind).reshape(shape)


@st.composite
def sparse_tensors(draw):
    indices = draw(st.lists(st.integers(0, 11), unique=True).map(sorted))
    where = np.array(indices, np.int64)
    if draw(st.booleans()):
        where = np.stack(np.unravel_index(where, (3, 4)), axis=1).astype(np.int64)
    return SparseTensor(np.arange(len(indices), dtype=np.float32), where, (3, 4))


def attributes(graphs):
    one = [finite, int64, names, arrays(), sparse_tensors(), types, graphs, st.just(b"\xff\x00")]
    many = [st.lists(kind, min_size=1, max_size=3).map(tuple) for kind in one]
    return st.dictionaries(names, st.one_of(*one, *many, st.just(())), max_size=3)


@st.composite
def graphs(draw, versions, depth=0):
    inner = graphs(versions, depth + 1) if depth < 2 else st.nothing()
    prefix = f"{draw(names)}|{depth}|"  # so that no name shadows an outer one
    inputs = [f"{prefix}i{i}" for i in range(draw(st.integers(0, 2)))]
    consts = {f"{prefix}c{i}": draw(arrays()) for i in range(draw(st.integers(0 if depth else 1, 2)))}
    defaults = {name: draw(arrays()) for name in inputs if draw(st.booleans())}
    known, nodes = [*inputs, *consts], []
    for i in range(draw(st.integers(0, 3))):
        reads = draw(st.lists(st.sampled_from([*known, ""]), max_size=3))
        outputs = tuple(f"{prefix}v{i}.{j}" for j in range(draw(st.integers(1, 2))))
        domain = draw(st.sampled_from(["", "ai.onnx.ml", "other"]))
        version = draw(versions)
        name = draw(st.one_of(st.just(""), names))
        attrs = draw(attributes(inner))
        nodes.append(Node(draw(names), tuple(reads), outputs, attrs, name, domain, version))
        known += outputs
    outputs = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))) if known else ()
    declared = [*inputs, *outputs, *(name for node in nodes for name in node.outputs)]
    hints = {name: draw(types) for name in declared if draw(st.booleans())}
    return Graph(tuple(inputs), outputs, tuple(nodes), {**consts, **defaults}, hints, draw(names))


@settings(max_examples=50, deadline=None)
@given(graphs(st.just(18)), st.dictionaries(names, names, max_size=2), names)
def test_round_trip(graph, metadata, text):
    made = Model(graph, {"": 18, "ai.onnx.ml": 18, "other": 18}, 10, text, text, text, 3, text, metadata)
    same(again(made), made)


@settings(max_examples=50, deadline=None)
@given(graphs(st.integers(17, 19)))
def test_round_trip_of_mixed_versions(graph):
    made = Model(graph, {"": 18, "ai.onnx.ml": 18, "other": 18}, 10)
    first = again(made)
    assert first.opsets == made.opsets
    assert (first.graph.inputs, first.graph.outputs, first.graph.types) == (graph.inputs, graph.outputs, graph.types)
    same_nodes(first.graph, graph)


def same_nodes(a, b):
    """Equal graphs, but names inside what became a function may be others."""
    same(tuple(a.consts.values()), tuple(b.consts.values()))
    assert len(a.nodes) == len(b.nodes)
    for x, y in zip(a.nodes, b.nodes):
        assert (x.op, x.name, x.domain, x.version) == (y.op, y.name, y.domain, y.version)
        assert [bool(n) for n in x.inputs] == [bool(n) for n in y.inputs]
        assert list(x.attrs) == list(y.attrs)
        for key in x.attrs:
            values = [v if isinstance(v, tuple) else (v,) for v in (x.attrs[key], y.attrs[key])]
            for p, q in zip(*values, strict=True):
                (same_nodes if isinstance(q, Graph) else same)(p, q)


@pytest.mark.parametrize("version", [18, 0])
def test_all_is_kept(version):
    node = Node("Relu", ("x",), ("y",), version=version)
    fields = dict(producer="p", producer_version="1", domain="d", model_version=4, doc="text", metadata={"k": "v"})
    same(again(model(relu(nodes=(node,)), **fields)), model(relu(), **fields))


def test_nothing_to_say():
    got = onnx.load_from_string(write_model(Model(relu(types={}, name=""), {})))
    assert got.ir_version == 4
    assert [(o.domain, o.version) for o in got.opset_import] == [("", 18)]
    assert not got.HasField("producer_name")


def test_weights_are_views_until_they_are_joined():
    weights = np.arange(1024, dtype=np.float32)
    parts, _ = write.encode(write._Writer(model(relu(consts={"w": weights}))).model())
    assert any(isinstance(p, memoryview) and np.shares_memory(np.frombuffer(p, np.uint8), weights) for p in parts)


def test_the_checker_is_content():
    graph = Graph(
        ("x",),
        ("y",),
        (
            Node("Constant", (), ("c",), {"value": np.ones((3,), np.float32)}, "n1", "", 18),
            Node("Add", ("x", "c"), ("s",), {}, "n2", "", 18),
            Node("Gemm", ("s", "w"), ("y",), {"transB": 1, "alpha": 0.5}, "n3", "", 18),
        ),
        {"w": np.eye(3, dtype=np.float32)},
        {"x": F32, "y": F32, "s": F32},
        "g",
    )
    proto = onnx.load_from_string(write_model(model(graph)))
    onnx.checker.check_model(proto, full_check=True)


# ---- nodes of other versions


def run(data, **feeds):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_a_node_of_another_version_becomes_a_function():
    old = Node("Softmax", ("x",), ("y",), {"axis": 1}, "n", "", 11)
    got = again(model(relu(nodes=(old,))))
    same(got.graph.nodes, (old,))
    assert got.opsets == {"": 18}
    assert len(onnx.load_from_string(write_model(got)).functions) == 1


def test_functions_of_other_versions_run_elsewhere():
    old = Node("Neg", ("x",), ("t",), {}, "n", "", 13)
    new = Node("Relu", ("t",), ("y",), {}, "m", "", 18)
    (y,) = run(write_model(model(relu(nodes=(old, new)))), x=np.array([[-1, 0, 2]], np.float32))
    assert y.tolist() == [[1, 0, 0]]


def test_subgraphs_of_a_node_of_another_version():
    """Captured names become inputs of the function, and nodes inside may have yet another version."""
    inner = Graph((), ("b",), (Node("Add", ("x", "w"), ("t",), version=7), Node("Neg", ("t",), ("b",), version=13)))
    cast = Node("Cast", ("x",), ("c",), {"to": 9}, version=18)
    branch = Node("If", ("c",), ("y",), {"then_branch": inner, "else_branch": inner}, version=13)
    before = model(relu(nodes=(cast, branch), consts={"w": np.ones(3, np.float32)}))
    got = again(before)
    same_nodes(got.graph, before.graph)
    made = got.graph.nodes[1]
    assert (made.op, made.version, made.inputs, made.outputs) == ("If", 13, ("c",), ("y",))
    for sub in made.subgraphs:
        assert [n.version for n in sub.nodes] == [7, 13]
        assert sub.captured() == ("x", "w")


def test_outputs_left_out_in_a_function():
    old = Node("Dropout", ("x", "", ""), ("", "y"), {}, "", "", 12)
    got = again(model(relu(nodes=(old,)))).graph.nodes[0]
    assert (got.inputs, len(got.outputs), got.outputs[1]) == (("x", "", ""), 2, "y")


# ---- what cannot be written


@pytest.mark.parametrize(
    ("graph", "error"),
    [
        (relu(consts={"s": [np.zeros(1)]}), "constant 's' is a list"),
        (relu(nodes=(Node("Op", ("x",), ("y",), {"a": {}}, version=18),)), "'a' of Op-18 'y' is no value"),
        (relu(nodes=(Node("Op", ("x",), ("y",), {"a": (1, "b")}, version=18),)), "'a' of Op-18 'y' is no value"),
        (relu(nodes=(Node("Op", ("x",), ("y",), {"a": 2**63}, version=18),)), "64 bits"),
        (relu(nodes=(Node("Op", ("x",), ("y",), {"a": None}, version=18),)), "no value"),
    ],
)
def test_refused(graph, error):
    with pytest.raises(UnsupportedError, match=error):
        write_model(model(graph))


def test_names_that_are_no_text():
    with pytest.raises(ModelError, match="UTF-8"):
        write_model(model(relu(nodes=(Node("Op", ("x",), ("y",), name="\ud800", version=18),))))


def test_numbers_of_python_and_numpy():
    attrs = {"a": True, "b": np.int32(3), "c": np.float64(1e300), "d": (1, 2.5), "e": np.bool_(True), "f": [1, 2]}
    got = again(model(relu(nodes=(Node("Op", ("x",), ("y",), attrs, version=18),)))).graph.nodes[0].attrs
    assert got == {"a": 1, "b": 3, "c": float("inf"), "d": (1.0, 2.5), "e": 1, "f": (1, 2)}


# ---- files


def weighty():
    rng = np.random.default_rng(0)
    consts = {"w": rng.random((64, 64), np.float32), "v": rng.random((3000,), np.float32), "s": np.ones(3, np.float32)}
    return model(relu(consts={**consts, "t": np.array(["a" * 9999], object)}))


@pytest.mark.parametrize("external", [None, False, True])
def test_save(tmp_path, external):
    path = tmp_path / "m.onnx"
    made = weighty()
    save_model(made, path, external_data=external)
    same(read_model(path), made)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"][: 2 if external else 1]
    theirs = onnx.load(path)
    onnx.checker.check_model(str(path))
    for tensor in theirs.graph.initializer:
        same(onnx.numpy_helper.to_array(tensor), made.graph.consts[tensor.name])
    if external:
        assert path.stat().st_size < 12_000  # strings stay
        places = [
            {e.key: e.value for e in t.external_data}
            for t in onnx.load(path, load_external_data=False).graph.initializer
        ]
        assert [int(p["offset"]) % 4096 for p in places if p] == [0, 0]
    save_model(read_model(path), path, external_data=external)  # over the file that the weights are views of
    same(read_model(path), made)
    save_model(read_model(path), path)
    same(read_model(path), made)
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_large_models_need_external_data(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "MAX_BYTES", 20_000)
    path = tmp_path / "m.onnx"
    with pytest.raises(UnsupportedError, match="use save_model"):
        write_model(weighty())
    with pytest.raises(UnsupportedError, match="allow external_data"):
        save_model(weighty(), path, external_data=False)
    assert os.listdir(tmp_path) == []
    save_model(weighty(), path)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    same(read_model(path), weighty())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    save_model(model(relu()), path)
    old = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ModelError, match=r"m\.onnx.*disk full"):
        save_model(weighty(), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m.onnx"]
    with pytest.raises(ModelError, match="cannot be written"):
        save_model(weighty(), tmp_path / "absent" / "m.onnx")


def test_a_model_that_onnx_made():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    proto = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]), ir_version=9, producer_name="p"
    )
    assert str(onnx.load_from_string(write_model(read_model(proto)))) == str(proto)
