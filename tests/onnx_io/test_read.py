"""From a ModelProto to ir.Model: everything in it arrives, and what is wrong is said."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from minifer.errors import MiniferError, ModelError, UnsupportedError
from minifer.ir import Graph, MapType, OptionalType, SequenceType, SparseTensor, SparseTensorType, TensorType
from minifer.onnx_io import read_model

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def value(name, dtype=F32, shape=("N", 3)):
    return helper.make_tensor_value_info(name, dtype, shape)


def const(name, *numbers):
    return numpy_helper.from_array(np.array(numbers, np.float32), name)


def model(nodes, inputs=("x",), outputs=("y",), opset=18, ir_version=10, functions=(), **graph):
    proto = helper.make_graph(nodes, "main", [value(n) for n in inputs], [value(n) for n in outputs], **graph)
    opsets = [helper.make_opsetid(d, v) for d, v in (opset if isinstance(opset, dict) else {"": opset}).items()]
    return helper.make_model(proto, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def read(*args, **kwargs):
    return read_model(model(*args, **kwargs))


def node(op, inputs, outputs, name="", **attrs):
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attrs)


def lines(graph):
    return [str(n) for n in graph.nodes]


RELU = [node("Relu", "x", "y")]


# ---- sources


def test_sources(tmp_path):
    proto = model(RELU)
    data = proto.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with open(path, "rb") as file:
        sources = [str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), file, proto]
        for source in sources:
            assert lines(read_model(source).graph) == ["y = Relu(x)"]
    every_second = memoryview(bytes(byte for pair in zip(data, data) for byte in pair))[::2]
    assert lines(read_model(every_second).graph) == ["y = Relu(x)"]


def test_a_changed_buffer_does_not_change_the_model():
    data = bytearray(model([node("Add", "x w", "y")], initializer=[const("w", 1, 2, 3)]).SerializeToString())
    weights = read_model(data).graph.consts["w"]
    data[:] = bytes(len(data))
    assert weights.tolist() == [1, 2, 3]
    assert not weights.flags.writeable


def test_onnx_is_not_imported(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model(RELU).SerializeToString())
    code = (
        "import sys; from minifer.onnx_io import read_model, write_model; "
        f"write_model(read_model({str(path)!r})); "
        "sys.exit(any(m.split('.')[0] in ('onnx', 'google', 'ml_dtypes', 'numba') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_external_data_beside_the_model(tmp_path):
    proto = model([node("Add", "x w", "y")], initializer=[const("w", *range(3))])
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert read_model(path).graph.consts["w"].tolist() == [0, 1, 2]
    with open(path, "rb") as file:
        assert read_model(file).graph.consts["w"].tolist() == [0, 1, 2]
    with pytest.raises(ModelError, match=r"initializer 'w'.*load the model by its path"):
        read_model(path.read_bytes())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\xef\xbb\xbf\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"PK\x03\x04\x00\x00", "zip"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'{"a": 1}', "JSON"),
        (b"\x80\x02}q", "pickle"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x18\0\0\0ORTM", r"\.ort"),
        (b"Hello, world. This is text.", "text 'Hello, world"),
        (b"\n\n\n", "byte 0"),
        (b"\xff" * 64, "byte 0"),
        (bytes(64), "byte 0"),
        (b"\x08\x0a", "no graph"),
        (model(RELU).SerializeToString()[:-5], "truncated"),
        (onnx.ModelProto(graph=model(RELU).graph).SerializeToString(), "no ir_version"),
        (onnx.ModelProto(ir_version=0, graph=model(RELU).graph).SerializeToString(), "no ir_version"),
        (onnx.ModelProto(ir_version=-1, graph=model(RELU).graph).SerializeToString(), "no ir_version"),
    ],
)
def test_not_a_model(tmp_path, data, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ModelError, match=f"(?s)not an ONNX file.*{message}"):
            read_model(source)


def test_sources_that_are_none(tmp_path):
    for source, message in [
        (tmp_path / "absent.onnx", "there is no file"),
        (tmp_path, r"cannot be read|not a file"),
        ("a\0b", "cannot be read"),
        (12, "not int"),
        (None, "not NoneType"),
        (io.StringIO("x"), "binary"),
        (pathlib.Path(tmp_path / "x" / "y"), "there is no file"),
    ]:
        with pytest.raises(ModelError, match=message):
            read_model(source)


def test_every_truncation_is_said():
    data = model([node("Add", "x w", "y")], initializer=[const("w", 1, 2, 3)]).SerializeToString()
    for size in range(len(data)):
        try:
            read_model(data[:size])
        except MiniferError:
            continue
        assert data[size:].startswith(b"B\x04")  # all but the last field, an import that is not needed


# ---- the plain things


def test_metadata():
    proto = model(RELU, opset={"": 18, "ai.onnx.ml": 3, "com.microsoft": 1})
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "what it is"
    helper.set_model_props(proto, {"a": "1", "character": "ä\nb"})
    got = read_model(proto)
    assert (got.producer, got.producer_version, got.domain, got.model_version) == ("maker", "1.2", "org.example", 7)
    assert (got.doc, got.ir_version) == ("what it is", 10)
    assert got.metadata == {"a": "1", "character": "ä\nb"}
    assert got.opsets == {"": 18, "ai.onnx.ml": 3, "com.microsoft": 1}
    assert got.graph.name == "main"


def test_types():
    kinds = {
        "t": helper.make_tensor_type_proto(F32, ["N", 3, None]),
        "scalar": helper.make_tensor_type_proto(I64, []),
        "rankless": helper.make_tensor_type_proto(F32, None),
        "sparse": helper.make_sparse_tensor_type_proto(F32, [2]),
        "sequence": helper.make_sequence_type_proto(helper.make_tensor_type_proto(F32, ["M"])),
        "optional": helper.make_optional_type_proto(helper.make_tensor_type_proto(F32, [-1])),
        "map": helper.make_map_type_proto(I64, helper.make_tensor_type_proto(F32, None)),
    }
    proto = model([node("Op", " ".join(kinds), "y")], inputs=(), value_info=[value("ghost")])
    proto.graph.input.extend(helper.make_value_info(n, t) for n, t in kinds.items())
    proto.graph.input.append(onnx.ValueInfoProto(name="unknown"))
    types = read_model(proto).graph.types
    assert types == {
        "y": TensorType("float32", ("N", 3)),
        "t": TensorType("float32", ("N", 3, None)),
        "scalar": TensorType("int64", ()),
        "rankless": TensorType("float32", None),
        "sparse": SparseTensorType("float32", (2,)),
        "sequence": SequenceType(TensorType("float32", ("M",))),
        "optional": OptionalType(TensorType("float32", (None,))),
        "map": MapType("int64", TensorType("float32", None)),
    }


def test_types_without_support():
    proto = model(RELU)
    proto.graph.input[0].type.tensor_type.elem_type = 77
    with pytest.raises(UnsupportedError, match=r"'x'.*77"):
        read_model(proto)
    proto.graph.input[0].type.opaque_type.name = "Thing"
    with pytest.raises(UnsupportedError, match="opaque"):
        read_model(proto)


finite = st.floats(width=32, allow_nan=False)
int64 = st.integers(-(2**63), 2**63 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@settings(max_examples=200, deadline=None)
@given(st.one_of(finite, int64, text, *(st.lists(e, min_size=1, max_size=5) for e in (finite, int64, text))))
def test_plain_attributes(given_value):
    attribute = helper.make_attribute("a", given_value)
    op = onnx.NodeProto(op_type="Op", input=["x"], output=["y"], attribute=[attribute])
    got = read([op]).graph.nodes[0].attrs["a"]
    theirs = helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.STRING:
        theirs = theirs.decode()
    elif attribute.type == onnx.AttributeProto.STRINGS:
        theirs = [s.decode() for s in theirs]
    assert got == (tuple(theirs) if isinstance(given_value, list) else theirs)
    assert type(got) is (tuple if isinstance(given_value, list) else type(given_value))
    op.attribute[0].ClearField("type")  # the first files have none
    if attribute.type != onnx.AttributeProto.UNDEFINED:
        assert read([op]).graph.nodes[0].attrs["a"] == got


def test_other_attributes():
    tensor = const("t", 1, 2)
    sparse = helper.make_sparse_tensor(const("v", 5), numpy_helper.from_array(np.array([1]), "i"), [3])
    kind = helper.make_tensor_type_proto(F32, [2])
    graph = helper.make_graph([node("Relu", "x", "inner")], "g", [], [value("inner")])
    attrs = dict(t=tensor, ts=[tensor, tensor], s=sparse, ss=[sparse], k=kind, ks=[kind, kind], g=graph, gs=[graph])
    op = node("Op", "x", "y", raw=b"\xff\xfe", **attrs)
    op.attribute.append(onnx.AttributeProto(name="empty", type=onnx.AttributeProto.INTS))
    op.attribute.append(onnx.AttributeProto(name="zero", type=onnx.AttributeProto.INT))
    got = read([op]).graph.nodes[0].attrs
    assert got["t"].tolist() == [1, 2]
    assert [t.tolist() for t in got["ts"]] == [[1, 2], [1, 2]]
    assert isinstance(got["s"], SparseTensor)
    assert got["ss"][0].dense().tolist() == [0, 5, 0]
    assert got["k"] == TensorType("float32", (2,))
    assert got["ks"] == (TensorType("float32", (2,)),) * 2
    assert lines(got["g"]) == ["inner = Relu(x)"]
    assert isinstance(got["gs"][0], Graph)
    assert (got["raw"], got["empty"], got["zero"]) == (b"\xff\xfe", (), 0)


def attribute_of(**fields):
    return [onnx.NodeProto(op_type="Op", output=["y"], attribute=[onnx.AttributeProto(**fields)])]


@pytest.mark.parametrize(
    ("nodes", "error"),
    [
        (attribute_of(name="a", type=2, f=1.0), "'a' of Op 'y' should hold 'i' and holds 'f'"),
        (attribute_of(name="a"), "no type and 0 values"),
        (attribute_of(name="a", f=1.0, i=2), "no type and 2 values"),
        (attribute_of(name="a", type=4), "'a' of Op 'y' holds no value"),
        (attribute_of(name="a", ref_attr_name="b", type=1), "in no function"),
        (attribute_of(type=2, i=1), "without a name"),
        ([onnx.NodeProto(op_type="Op", attribute=[helper.make_attribute("a", 1)] * 2)], "two attributes 'a'"),
        ([onnx.NodeProto(name="n", output=["y"])], "'n' has no operator"),
        (attribute_of(name="a", type=4, t=const("t", 1)) + [node("Op", "x", "y")], "'y' is defined twice"),
        ([node("Op", "nowhere", "y")], "Op 'y' reads 'nowhere'"),
        ([node("Op", "x", "x")], "'x' is defined twice"),
        ([node("Op", "x", "y"), node("Op", "x", "y y")], "'y' is defined twice"),
        ([node("Op", "x", "z")], "reads 'y'"),
    ],
)
def test_broken_nodes(nodes, error):
    with pytest.raises(ModelError, match=error):
        read(nodes)


def test_unknown_attribute_type():
    op = onnx.NodeProto(op_type="Op", output=["y"], attribute=[onnx.AttributeProto(name="abc", type=1)])
    data = model([op]).SerializeToString()
    assert b"abc\xa0\x01\x01" in data
    with pytest.raises(UnsupportedError, match="'abc' of Op 'y' has the unknown type 99"):
        read_model(data.replace(b"abc\xa0\x01\x01", b"abc\xa0\x01\x63"))


# ---- versions


def test_each_node_has_its_version():
    ops = [node("A", "x", "a"), node("B", "a", "b", domain="ai.onnx"), node("C", "b", "y", domain="other")]
    got = read(ops, opset={"ai.onnx": 25, "other": 3}).graph.nodes
    assert [(n.domain, n.version) for n in got] == [("", 25), ("", 25), ("other", 3)]


def test_a_version_of_the_far_future():
    assert read(RELU, opset=9999, ir_version=99).graph.nodes[0].version == 9999


def test_the_higher_of_two_imports():
    proto = model(RELU, opset=13)
    proto.opset_import.extend([helper.make_opsetid("ai.onnx", 15), helper.make_opsetid("", 14)])
    assert read_model(proto).opsets == {"": 15}


def test_missing_imports():
    with pytest.raises(ModelError, match=r"Relu 'y' is of domain 'ai\.onnx'.*opset_import"):
        read(RELU, opset={})
    with pytest.raises(ModelError, match=r"domain 'com\.acme'"):
        read([node("Relu", "x", "y", domain="com.acme")])
    assert read(RELU, opset={}, ir_version=2).graph.nodes[0].version == 1
    with pytest.raises(ModelError, match="version -1"):
        read(RELU, opset=-1)


# ---- inputs, constants, outputs


def test_defaults_of_inputs():
    nodes = [node("Add", "x w", "y")]
    got = read(nodes, inputs=("x", "w"), initializer=[const("w", 1)]).graph
    assert got.inputs == ("x", "w")
    assert list(got.consts) == ["w"]
    old = read(nodes, inputs=("x", "w"), initializer=[const("w", 1)], ir_version=3).graph
    assert old.inputs == ("x",)
    assert list(old.consts) == ["w"]


def test_outputs_that_no_node_writes():
    got = read([], inputs=("x",), outputs=("x", "w"), initializer=[const("w", 1)]).graph
    assert got.outputs == ("x", "w")
    assert got.nodes == ()
    assert read([], inputs=(), outputs=("w",), initializer=[const("w", 1)], opset={}).graph.outputs == ("w",)


def test_sparse_initializers_become_dense():
    sparse = helper.make_sparse_tensor(const("w", 5), numpy_helper.from_array(np.array([1]), "i"), [3])
    assert read([node("Add", "x w", "y")], sparse_initializer=[sparse]).graph.consts["w"].tolist() == [0, 5, 0]


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        (dict(inputs=("x", "x")), "'x' is defined twice"),
        (dict(outputs=("y", "y")), "two outputs of one name"),
        (dict(outputs=()), "no outputs"),
        (dict(outputs=("",)), "without a name"),
        (dict(inputs=("x", "")), "without a name"),
        (dict(initializer=[const("w", 1), const("w", 2)]), "initializer 'w' is there twice"),
        (dict(initializer=[const("", 1)]), "no name"),
        (dict(initializer=[const("y", 1)]), "'y' is defined twice"),
        (dict(initializer=[TensorProto(name="w", data_type=1, dims=[2], raw_data=b"1")]), "'w' needs 8 bytes"),
        (dict(sparse_initializer=[onnx.SparseTensorProto()]), "sparse initializer"),
    ],
)
def test_broken_graphs(kwargs, error):
    with pytest.raises(ModelError, match=error):
        read(RELU, **kwargs)


# ---- order


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_order_of_nodes(data):
    count = data.draw(st.integers(1, 12))
    nodes = []
    for i in range(count):
        sources = data.draw(st.lists(st.integers(-1, i - 1), min_size=1, max_size=3))
        inputs = " ".join("x" if s < 0 else f"v{s}" for s in sources)
        nodes.append(node("Op", inputs, f"v{i}", name=f"n{i}"))
    shuffled = data.draw(st.permutations(nodes))
    got = read(shuffled, outputs=(f"v{count - 1}",)).graph.nodes  # read_model checks the order itself
    assert sorted(map(str, got)) == sorted(f"{n.output[0]} = Op({', '.join(n.input)})" for n in nodes)
    assert [n.name for n in read(nodes, outputs=("v0",)).graph.nodes] == [n.name for n in nodes]


def test_order_knows_what_subgraphs_read():
    branch = helper.make_graph([node("Neg", "late", "b")], "g", [], [value("b")])
    nodes = [node("If", "c", "y", then_branch=branch, else_branch=branch), node("Relu", "x", "late")]
    got = read(nodes, inputs=("x", "c")).graph
    assert [n.op for n in got.nodes] == ["Relu", "If"]


def test_cycles_are_named():
    nodes = [node("A", "x c", "a", name="first"), node("B", "a", "b"), node("C", "b", "c"), node("D", "c", "y")]
    with pytest.raises(ModelError, match=r"cycle: .*(A-18 'first' -> B-18 'b' -> C-18 'c' -> A-18|B-18 'b' -> C).*"):
        read(nodes)
    branch = helper.make_graph([node("Neg", "y", "b")], "g", [], [value("b")])
    with pytest.raises(ModelError, match="cycle: If-18 'y' -> If-18 'y'"):
        read([node("If", "x", "y", then_branch=branch, else_branch=branch)])
    ring = [node("Op", f"v{i}", f"v{(i + 1) % 1000}") for i in range(1000)] + RELU
    with pytest.raises(ModelError, match="cycle"):
        read(ring)


# ---- subgraphs


def test_subgraphs_see_outer_names():
    adds = [node("Add", "x w", "t"), node("Add", "t k", "r")]
    inner = helper.make_graph(adds, "inner", [], [value("r")], [const("k", 3)])
    choice = [node("If", "c", "i", then_branch=inner, else_branch=inner)]
    outer = helper.make_graph(choice, "outer", [], [value("i")], [const("w", 2)])
    got = read([node("If", "c", "y", then_branch=outer, else_branch=outer)], inputs=("x", "c")).graph
    branch = got.nodes[0].attrs["then_branch"]
    assert branch.captured() == ("c", "x")
    assert list(branch.consts) == ["w"]
    assert lines(branch.nodes[0].attrs["else_branch"]) == ["t = Add(x, w)", "r = Add(t, k)"]


def test_a_branch_may_return_an_outer_value():
    branch = helper.make_graph([], "g", [], [value("x"), value("x")])
    got = read([node("If", "c", "y z", then_branch=branch, else_branch=branch)], inputs=("x", "c")).graph
    assert got.nodes[0].attrs["then_branch"].outputs == ("x", "x")


def test_shadowed_names_are_renamed():
    """A body that defines names which the graph around it has too: as outputs, inputs, constants, before and after."""
    body = helper.make_graph(
        [node("Add", "x w", "later"), node("Relu", "later", "y"), node("Relu", "y", "own")],
        "body",
        [value("x")],
        [value("own"), value("y")],
        [const("w", 9)],
    )
    nodes = [
        node("Add", "x w", "first"),
        node("Op", "first", "y s", body=body),
        node("Op", "s", "later z", body=body),
    ]
    got = read(nodes, outputs=("z", "y"), initializer=[const("w", 1)]).graph
    got.check()
    assert [n.outputs for n in got.nodes] == [("first",), ("y", "s"), ("later", "z")]
    names = set()
    for owner in got.nodes[1:]:
        graph = owner.attrs["body"]
        graph.check()
        assert graph.captured() == ()
        (x,), (w,) = graph.inputs, graph.consts
        (a, b, c) = graph.nodes
        assert a.inputs == (x, w)
        assert b.inputs == a.outputs
        assert graph.outputs == (*c.outputs, *b.outputs)
        assert graph.types[x] == TensorType("float32", ("N", 3))
        new = {x, w, *a.outputs, *b.outputs}
        assert not new & {"x", "w", "later", "y", "first", "s", "z"}
        assert not new & names
        names |= new


def test_a_name_means_the_outer_value_until_it_is_defined():
    """As when the nodes are run one after another; a node that still reads the old value may be in a branch."""
    branch = helper.make_graph([node("Neg", "x", "b")], "branch", [], [value("b")])
    body = helper.make_graph(
        [node("Relu", "x", "a"), node("If", "a", "i", g=branch), node("Neg", "i", "x"), node("Abs", "x", "r")],
        "body",
        [],
        [value("r"), value("x")],
    )
    got = read([node("Op", "x", "y", body=body)]).graph.nodes[0].attrs["body"]
    assert lines(got) == ["a = Relu(x)", "i = If(a) {g=<graph branch>}", "x_1 = Neg(i)", "r = Abs(x_1)"]
    assert got.outputs == ("r", "x_1")
    assert got.captured() == ("x",)


def test_deep_subgraphs():
    def nest(depth):
        graph = helper.make_graph([node("Neg", "x", "r")], "g", [], [value("r")])
        for _ in range(depth):
            branches = {"then_branch": graph} if depth > 6 else {"then_branch": graph, "else_branch": graph}
            graph = helper.make_graph([node("If", "c", "r", **branches)], "g", [], [value("r")])
        return graph

    for depth in (1, 5, 30):
        read_model(helper.make_model(_closed(nest(depth)), opset_imports=[helper.make_opsetid("", 18)]))
    graph = _closed(nest(25)).SerializeToString()
    for _ in range(60):  # deeper than the protobuf package would write
        inner = b"\x0a\x01b" + b"\x32" + _varint(len(graph)) + graph + b"\xa0\x01\x05"
        inner = b"\x0a\x01x\x12\x01r\x22\x02If\x2a" + _varint(len(inner)) + inner
        graph = b"\x0a" + _varint(len(inner)) + inner + b"\x62\x03\x0a\x01r"
    with pytest.raises(ModelError, match="nested more than"):
        read_model(b"\x08\x0a\x3a" + _varint(len(graph)) + graph)


def _closed(graph):
    graph.input.extend([value("x"), value("c")])
    return graph


def _varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + _varint(n >> 7)


def test_many_subgraphs_take_linear_time():
    """Each If must not cost a look at all the other names."""
    branch = helper.make_graph([], "g", [], [value("x")])
    nodes = [node("If", "c", f"v{i}", then_branch=branch, else_branch=branch) for i in range(5_000)]
    assert len(read(nodes, inputs=("x", "c"), outputs=("v7",)).graph.nodes) == 5_000
