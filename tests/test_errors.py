"""Each error class provoked, and what its message says."""

from __future__ import annotations

import os
import re
import struct

import numpy as np
import onnx
import pytest

import minifer
from minifer.errors import InputError, KernelError, LimitError, MiniferError, ModelError, ShapeError, UnsupportedError
from minifer.ops import registry
from tests.building import EXECUTORS, file, floats, graph, ints, node

BIG = 2**40


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


def run(data, feeds, executor, **options):
    return minifer.load(data, executor=executor, **options).run(feeds)


def relu() -> bytes:
    return file([node("Relu", "x", "y")], {"x": "float32[n,3]"}, "y")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "empty"), (b"<html></html>", "web page"), (b"PK\x03\x04" + bytes(60), "zip"), (b"{}", "JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"), (bytes(100), "not an ONNX file"),
        (b"\x08", "not an ONNX file"), (b"\xff" * 50, "not an ONNX file"), (b"\x08\x0a", "no graph"),
    ],
)  # fmt: skip
def test_what_is_no_model(data, says):
    with pytest.raises(ModelError, match=says):
        minifer.load(data)


def test_every_truncation_of_a_file():
    data = relu()
    for size in range(len(data)):
        with pytest.raises((ModelError, UnsupportedError)):
            minifer.load(data[:size])


def test_wrong_wire_types():
    for number, wire, body in (
        (7, 0, b"\x01"),
        (1, 2, b"\x01a"),
        (7, 5, bytes(4)),
        (8, 1, bytes(8)),
        (7, 3, b""),
        (7, 6, b""),
    ):
        with pytest.raises(ModelError, match="not an ONNX file"):
            minifer.load(b"\x08\x0a" + bytes([number << 3 | wire]) + body)


def test_there_is_no_such_file(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path, "a\0b"):
        with pytest.raises(ModelError):
            minifer.load(path)
    with pytest.raises(ModelError, match="not int"):
        minifer.load(3)


def proto(nodes, inputs=("x",), outputs=("y",), weights=()):
    values = [onnx.helper.make_tensor_value_info(n, 1, [3]) for n in (*inputs, *outputs)]
    made = onnx.helper.make_graph(nodes, "g", values[: len(inputs)], values[len(inputs) :], list(weights))
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def make(*args, **kwargs):
    return onnx.helper.make_node(*args, **kwargs)


def weight(name, *dims):
    return onnx.helper.make_tensor(name, 1, dims or [3], np.ones(dims or 3).ravel())


@pytest.mark.parametrize(
    "model, says",
    [
        (proto([make("Add", ["x", "b"], ["a"]), make("Relu", ["a"], ["b"]), make("Neg", ["b"], ["y"])]), "cycle: .*Add-21"),
        (proto([make("Add", ["x", "y"], ["y"])]), "cycle"),
        (proto([make("Add", ["x", "w"], ["y"])]), "Add 'y' reads 'w', which no input, constant or node defines"),
        (proto([make("Relu", ["x"], ["z"])]), "'y'"),
        (proto([make("Relu", ["x"], ["y"]), make("Neg", ["x"], ["y"])]), "'y'"),
        (proto([make("Relu", ["x"], ["x"]), make("Neg", ["x"], ["y"])]), "'x'"),
        (proto([make("Relu", ["x"], ["y"])], outputs=()), "no outputs"),
        (proto([make("Relu", ["x"], ["y"])], outputs=("y", "y")), "two outputs of one name"),
        (proto([make("Relu", ["x"], ["y"])], outputs=("y", "")), "output without a name"),
        (proto([make("Relu", ["x"], ["y"])], inputs=("x", "x")), "'x'"),
        (proto([make("Relu", ["x"], ["y"])], inputs=("x", "")), "name"),
        (proto([make("Add", ["x", "w"], ["y"])], weights=[weight("w"), weight("w")]), "'w' is there twice"),
        (proto([make("Relu", ["x"], ["y"])], weights=[weight("")]), "no name"),
        (proto([make("", ["x"], ["y"])]), "no operator"),
        (proto([make("Relu", ["x"], ["y"], domain="com.acme")]), "opset_import"),
        (proto([make("Relu", ["x", "x"], ["y"])]), "Relu-21 'y' has 2 inputs"),
        (proto([make("Relu", [], ["y"])]), "Relu-21 'y' has 0 inputs"),
        (proto([make("Relu", [""], ["y"])]), "leaves out input 0"),
        (proto([make("Relu", ["x"], ["y"]), make("Relu", ["x"], [])]), "no output"),
        (proto([make("Relu", ["x"], ["y"], colour=3)]), "does not know: colour"),
        (proto([make("Cast", ["x"], ["y"])]), "lacks the attribute to"),
        (proto([make("Concat", ["x"], ["y"], axis="first")]), None),
        (proto([make("Elu", ["x"], ["y"], alpha="big")]), "str as attribute alpha"),
        (proto([make("If", ["x"], ["y"], then_branch=1, else_branch=2)]), "Graph is needed"),
    ],
)  # fmt: skip
def test_broken_graphs(model, says, executor):
    with pytest.raises(ModelError if says else MiniferError, match=says):
        run(model.SerializeToString(), {"x": np.ones(3, np.float32)}, executor)


def test_a_weight_that_is_too_short():
    model = proto([make("Add", ["x", "w"], ["y"])], weights=[weight("w")])
    model.graph.initializer[0].raw_data = struct.pack("<2f", 1, 2)
    del model.graph.initializer[0].float_data[:]
    with pytest.raises(ModelError, match="'w' needs 12 bytes"):
        minifer.load(model)
    model.graph.initializer[0].dims[:] = [2**62, 2**62]
    with pytest.raises(ModelError, match="'w'"):
        minifer.load(model)
    model.graph.initializer[0].dims[:] = [-1]
    with pytest.raises(ModelError, match="negative"):
        minifer.load(model)
    model.graph.initializer[0].data_type = 99
    with pytest.raises(UnsupportedError, match="99"):
        minifer.load(model)


# ---------------------------------------------------------------- external data


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    (inside / "good.bin").write_bytes(floats(2, 3).tobytes())
    (inside / "short.bin").write_bytes(bytes(3))
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inside / "up").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize(
    "location, says",
    [
        ("good.bin", ""), ("../secret.bin", "inside the model's folder"), ("/etc/hostname", "inside the model's folder"),
        ("sub/../../secret.bin", "inside the model's folder"), ("link.bin", "leads out"), ("up/secret.bin", "leads out"),
        ("none.bin", "cannot be read"), ("short.bin", "truncated"), ("pipe", "regular file"), ("", "inside"),
        (".", "leads out"), ("C:\\x", "inside"), ("\\\\host\\x", "inside"), ("a\0b", "inside"),
    ],
)  # fmt: skip
def test_external_data_stays_in_the_folder(folder, location, says):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[2, 3], data_location=1)
    tensor.external_data.add(key="location", value=location)
    model = proto([make("Add", ["x", "w"], ["y"])], weights=[tensor])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    if not says:
        got = minifer.load(path).run({"x": np.zeros((2, 3), np.float32)})["y"]
        np.testing.assert_array_equal(got, floats(2, 3))
        return
    with pytest.raises(ModelError, match=f"'w'.*{says}"):
        minifer.load(path)
    with pytest.raises(ModelError, match="no folder"):
        minifer.load(path.read_bytes())


# ---------------------------------------------------------------- operators


def test_all_unsupported_operators_at_once():
    body = graph([node("Inner", "x", "t", "com.acme", 3)], {}, "t")
    nodes = [
        node("Conv9", "x", "a"), node("Conv9", "a", "b"), node("Fuse", "b", "c", "com.acme", 3), node("Relu", "c", "d"),
        node("If", "cond", "y", then_branch=body, else_branch=body), node("Sum", "y d", "z"),
    ]  # fmt: skip
    data = file(nodes, {"x": "float32[n]", "cond": "bool[]"}, "z", opsets={"": 21, "com.acme": 3})
    with pytest.raises(UnsupportedError) as caught:
        minifer.load(data)
    lines = str(caught.value).splitlines()
    assert "  Conv9 (opset 21): 2 nodes, first 'conv9_a'" in lines
    assert "  com.acme::Fuse (opset 3): 1 node, first 'fuse_c'" in lines
    assert "  com.acme::Inner (opset 3): 2 nodes, first 'inner_t'" in lines
    assert len(lines) == 5 and "minifer.register" in lines[-1]


def test_an_operator_newer_than_the_opset():
    with pytest.raises(UnsupportedError, match=re.escape("Gelu (opset 19): 1 node")):
        minifer.load(file([node("Gelu", "x", "y", version=19)], {"x": "float32[n]"}, "y", opsets={"": 19}))


def test_shapes_that_do_not_fit(executor):
    cases = [
        (node("MatMul", "x w", "y"), r"MatMul-21 'matmul_y'\(float32\[2, 3\], float32\[2, 3\]\)"),
        (node("Add", "x v", "y"), r"Add-21 'add_y'\(float32\[2, 3\], float32\[4\]\).*do not broadcast"),
        (node("Softmax", "x", "y", axis=5), "axis 5 is outside"), (node("Transpose", "x", "y", perm=(0, 0)), "Transpose-21"),
        (node("Concat", "x v", "y", axis=0), "Concat-21"), (node("Conv", "x w", "y"), "Conv-21"),
        (node("Reshape", "x s", "y"), "do not fit"), (node("Gelu", "x", "y", approximate="sort of"), "approximate"),
        (node("MaxPool", "x", "y", kernel_shape=(2, 2)), "rank"), (node("Einsum", "x w", "y", equation="ij,jk"), "Einsum"),
    ]  # fmt: skip
    for made, says in cases:
        consts = {"w": floats(2, 3), "v": floats(4), "s": ints(4, 5)}
        with pytest.raises((ShapeError, InputError), match=says):
            run(file([made], {"x": "float32[n,m]"}, "y", consts), {"x": floats(2, 3)}, executor)


# ---------------------------------------------------------------- inputs


class Odd:
    """No array, and it says so."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("there is nothing in me")


@pytest.mark.parametrize(
    "feeds, says",
    [
        ({}, "missing input x. The model takes x: float32.n, 3."), ({"x": None}, "is None, expected float32"),
        ({"X": 1}, "missing input x; unknown input X"), (None, "not NoneType"), ([floats(1, 3)], "not list"),
        ({"x": [[1, 2, 3], [4]]}, "cannot be made an array"), ({"x": Odd()}, "there is nothing in me"),
        ({"x": np.array([[object()] * 3])}, "Python objects .object."), ({"x": [[None] * 3]}, "Python objects .NoneType."),
        ({"x": np.ones((2, 3))}, "dtype float64, the model expects float32.*astype"),
        ({"x": np.ones((2, 3), ">f8")}, "dtype float64"), ({"x": "text"}, "dtype string"),
        ({"x": np.ones((2, 3), complex)}, "complex128"), ({"x": np.array([["2020"] * 3], "M8[D]")}, "no ONNX element type"),
        ({"x": floats(3)}, r"shape \[3\], the model expects float32\[n, 3\]"), ({"x": floats(2, 4)}, r"shape \[2, 4\]"),
        ({"x": floats(1, 2, 3)}, r"shape \[1, 2, 3\]"), ({"x": np.float32(1)}, r"shape \[\]"),
        ({1: 2, "x": floats(2, 3)}, "unknown input 1"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(feeds, says, executor):
    session = minifer.load(relu(), executor=executor)
    with pytest.raises(InputError, match=says):
        session.run(feeds)
    x = floats(2, 3)
    np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))  # the session is unharmed


def test_inputs_that_are_no_tensors(executor):
    data = file([node("SequenceLength", "s", "n")], {"s": "seq float32"}, "n")
    session = minifer.load(data, executor=executor)
    assert session.run({"s": [floats(2), floats(3)]})["n"] == 2
    for bad, says in (
        (floats(2), "pass a list"),
        ([floats(2), None], r"s\[1\].*None"),
        ([np.ones(2)], r"s\[0\].*float64"),
    ):
        with pytest.raises(InputError, match=says):
            session.run({"s": bad})
    strings = minifer.load(file([node("StringNormalizer", "s", "t")], {"s": "string[n]"}, "t"), executor=executor)
    assert strings.run({"s": ["a", b"b"]})["t"].tolist() == ["a", "b"]
    with pytest.raises(InputError, match="must hold strings, found int"):
        strings.run({"s": np.array([1, 2])})


def test_calls_and_names_of_outputs(executor):
    session = minifer.load(relu(), executor=executor)
    x = floats(2, 3)
    with pytest.raises(InputError, match="2 inputs were given"):
        session(x, x)
    with pytest.raises(InputError, match="by position and by name"):
        session(x, x=x)
    with pytest.raises(InputError, match="no output 'q'; it has y"):
        session.run({"x": x}, ["q"])
    with pytest.raises(InputError, match=r"pass \['y'\]"):
        session.run({"x": x}, "y")


@pytest.mark.parametrize(
    "options, says",
    [
        ({"executor": "gpu"}, "'gpu'"), ({"threads": 0}, "threads"), ({"threads": "2"}, "threads"),
        ({"limits": {"max_byte": 1}}, "max_bytes, max_seconds"), ({"limits": {"max_bytes": -1}}, "max_bytes"),
        ({"limits": {"max_seconds": "1"}}, "max_seconds"), ({"limits": 3}, "max_bytes, max_seconds"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(options, says):
    with pytest.raises(InputError, match=says):
        minifer.load(relu(), **options)


# ---------------------------------------------------------------- values in the data

X = np.arange(6, dtype=np.float32).reshape(2, 3)
BAD_VALUES = {
    "Gather": (dict(x=X, i=ints(0, 5)), {}),
    "GatherElements": (dict(x=X, i=ints(0, -9, 0).reshape(1, 3)), {}),
    "GatherND": (dict(x=X, i=ints(0, 2**62).reshape(1, 2)), {}),
    "ScatterND": (dict(x=X, i=ints(-3).reshape(1, 1), u=X[:1]), {}),
    "ScatterElements": (dict(x=X, i=ints(-(2**63)).reshape(1, 1), u=X[:1, :1]), {}),
    "TopK": (dict(x=X, k=ints(9)), {}),
    "Compress": (dict(x=X, c=np.ones(9, bool)), {"axis": 0}),
    "ReverseSequence": (dict(x=X, l=ints(1, 2, 9)), {}),
    "OneHot": (dict(i=ints(1), d=np.array(-1), v=X[0, :2]), {}),
    "CumSum": (dict(x=X, a=np.array(7)), {}),
    "Div": (dict(a=ints(1, 2), b=ints(1, 0)), {}),
    "Mod": (dict(a=ints(1, 2), b=ints(1, 0)), {}),
    "Range": (dict(a=np.float32(0), b=np.float32(np.nan), c=np.float32(1)), {}),
    "Tile": (dict(x=X, r=ints(-1, 1)), {}),
    "Expand": (dict(x=X, s=ints(3, 5)), {}),
    "Reshape": (dict(x=X, s=ints(-2, 3)), {}),
    "Slice": (dict(x=X, a=ints(0), b=ints(1), c=ints(0), d=ints(0)), {}),
    "Split": (dict(x=X, s=ints(1, 9)), {}),
    "Pad": (dict(x=X, p=ints(-9, 0, 0, 0)), {}),
    "MaxUnpool": (dict(x=floats(1, 1, 1, 1), i=ints(99).reshape(1, 1, 1, 1)), {"kernel_shape": (2, 2)}),
    "Unsqueeze": (dict(x=X, a=ints(8)), {}),
    "HannWindow": (dict(n=np.array(-4)), {}),
    "EyeLike": (dict(x=floats(1, 2, 3)), {}),
    "Trilu": (dict(x=X, k=ints(1, 2)), {}),
}


@pytest.mark.parametrize("op", BAD_VALUES)
def test_values_out_of_range_name_the_node(op, executor):
    feeds, attrs = BAD_VALUES[op]
    types = {n: f"{v.dtype}" for n, v in feeds.items()}
    data = file([node(op, " ".join(feeds), "y" if op != "Split" else "y z", **attrs)], types, "y")
    session = minifer.load(data, executor=executor)
    for _ in range(2):
        with pytest.raises((InputError, ShapeError)) as caught:
            session.run(feeds)
        first = str(next(iter(feeds.values())).dtype)
        assert str(caught.value).startswith(f"{op}-21 '{op.lower()}_y'({first}["), caught.value


def test_not_a_number_is_data_like_any_other(executor):
    nodes = [node("TopK", "x k", "v i"), node("ArgMax", "x", "a", axis=1), node("Cast", "x", "c", to=6),
             node("OneHot", "x d s", "o")]  # fmt: skip
    consts = {"k": ints(2), "d": np.array(3), "s": np.array([0, 1], np.float32)}
    x = np.array([[np.nan, 1, -np.inf], [np.inf, 1e30, 2]], np.float32)
    got = run(file(nodes, {"x": "float32[n,m]"}, "v i a c o", consts), {"x": x}, executor)
    assert got["i"].tolist() == [[0, 1], [0, 1]] and got["a"].tolist() == [[0], [0]]
    assert got["o"].shape == (2, 3, 3) and got["o"][0, 1].tolist() == [0, 1, 0] and got["c"].shape == (2, 3)


# ---------------------------------------------------------------- limits


def test_limits_of_memory(executor):
    data = file([node("Relu", "x", "a"), node("Exp", "a", "y")], {"x": "float32[n]"}, "y")
    x = floats(10000)
    with pytest.raises(LimitError, match=r"needs [\d,]+ bytes and max_bytes is 1,000: raise it"):
        run(data, {"x": x}, executor, limits={"max_bytes": 1000})
    session = minifer.load(data, executor=executor, limits={"max_bytes": 200_000})
    assert session.run({"x": x})["y"].shape == x.shape
    with pytest.raises(LimitError):
        session.run({"x": floats(100_000)})
    assert session.run({"x": x[:10]})["y"].shape == (10,)


HUGE = {
    "ConstantOfShape": (dict(s=ints(BIG, BIG)), {}), "Expand": (dict(x=X, s=ints(BIG, 2, 3)), {}),
    "Tile": (dict(x=X, r=ints(BIG, 2)), {}), "Pad": (dict(x=X, p=ints(BIG, 0, 0, 0)), {}),
    "Resize": (dict(x=X, roi=X[:0, 0], f=X[:0, 0], s=ints(BIG, 2**30)), {}),
    "Range": (dict(a=np.array(0), b=np.array(BIG), c=np.array(1)), {}),
    "OneHot": (dict(i=ints(1), d=np.array(BIG), v=X[0, :2]), {}), "CenterCropPad": (dict(x=X, s=ints(BIG, 2)), {}),
    "HannWindow": (dict(n=np.array(BIG)), {}), "RandomUniform": ({}, {"shape": (BIG, 4)}),
    "DFT": (dict(x=floats(1, 4, 1), n=np.array(BIG)), {}), "Col2Im": (dict(x=floats(1, 4, 1), i=ints(BIG, 1), b=ints(1, 1)), {}),
}  # fmt: skip


@pytest.mark.parametrize("op", HUGE)
@pytest.mark.parametrize("constant", [False, True])
def test_huge_results_are_refused_before_they_are_made(op, constant, executor):
    feeds, attrs = HUGE[op]
    fixed = {n: v for n, v in feeds.items() if constant or v.size == 0}
    types = {n: f"{v.dtype}" for n, v in feeds.items() if n not in fixed}
    data = file([node(op, " ".join(feeds), "y", **attrs)], types, "y", fixed)
    with pytest.raises((LimitError, ShapeError), match=f"^{op}-21 '{op.lower()}_y'"):
        run(data, {n: feeds[n] for n in types}, executor)


def test_memory_that_the_machine_cannot_give(executor, monkeypatch):
    """The arena, outputs and what a reference asks for: a MemoryError of NumPy becomes a LimitError."""
    monkeypatch.setattr("minifer.plan.ceiling.machine_bytes", lambda: 1 << 62)
    data = file([node("ConstantOfShape", "s", "a"), node("Neg", "a", "y")], {"s": "int64[n]"}, "y")
    with pytest.raises(LimitError):
        run(data, {"s": ints(2**45)}, executor)

    def reference(x):
        raise MemoryError("none left")

    minifer.register(minifer.Op("Hungry", since=1, domain="test", reference=reference))
    try:
        data = file([node("Hungry", "x", "y", "test", 1)], {"x": "float32[n]"}, "y", opsets={"": 21, "test": 1})
        with pytest.raises(LimitError, match=r"test::Hungry-1 'hungry_y'\(float32\[3\]\) does not fit into memory"):
            run(data, {"x": floats(3)}, executor)
    finally:
        registry._TABLE.pop(("test", "Hungry"))


# ---------------------------------------------------------------- kernels


def test_kernels_that_cannot_be_built(monkeypatch, tmp_path):
    from minifer.codegen import library

    def fail(*args, **kwargs):
        raise KernelError("no compiler here; executor='reference' runs without kernels")

    monkeypatch.setattr(library, "ensure", fail)
    with pytest.raises(KernelError, match="executor='reference'"):
        run(relu(), {"x": floats(2, 3)}, "native")
    assert run(relu(), {"x": floats(2, 3)}, "reference")["y"].shape == (2, 3)


def test_all_classes_share_a_base_and_are_public():
    for name in ("InputError", "KernelError", "LimitError", "ModelError", "ShapeError", "UnsupportedError"):
        assert issubclass(getattr(minifer, name), minifer.MiniferError)
        assert getattr(minifer, name).__doc__
