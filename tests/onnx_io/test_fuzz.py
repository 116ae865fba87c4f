"""Damaged files: a model or an error of ours, never another exception, a hang, or memory without bound."""

import contextlib
import random
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from minifer.errors import MiniferError, ModelError, UnsupportedError
from minifer.ir import Model
from minifer.onnx_io import read_model, write_model
from minifer.onnx_io.wire import encode_varint


def value(name, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, ["N", 3])


def rich_model() -> bytes:
    """A small model with something of every kind in it."""

    def node(op, inputs, outputs, **attrs):
        return helper.make_node(op, inputs.split(), outputs.split(), name=op.lower(), **attrs)

    branch = helper.make_graph(
        [node("Add", "s w", "x2")], "branch", [], [value("x2")], [numpy_helper.from_array(np.ones(3, np.float32), "w2")]
    )
    inner = helper.make_function("f", "Inner", ["a"], ["b"], [node("Neg", "a", "b")], [helper.make_opsetid("", 18)])
    scaled = node("LeakyRelu", "t", "b")
    scaled.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="k", type=1))
    body = [node("Inner", "a", "t", domain="f"), scaled]
    outer = helper.make_function(
        "f", "Outer", ["a", "o"], ["b"], body, [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    )
    outer.attribute_proto.append(helper.make_attribute("k", 0.5))
    typed = [helper.make_tensor(f"k{code}", code, [3], [1, 2, 1]) for code in (1, 6, 7, 9, 10, 11, 13, 16, 17, 21, 22)]
    nodes = [
        node("Outer", "x", "s", domain="f", k=0.25),
        node("Constant", "", "flag", value=numpy_helper.from_array(np.array(True), "v")),
        node("If", "flag", "i", then_branch=branch, else_branch=branch),
        node("Conv", "i w", "c", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[1, 2], group=1),
        node("Op", "c names sp", "y", domain="com.acme", floats=[1.5, 2.0], strings=["a", "b"]),
    ]
    weights = [
        numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w"),
        numpy_helper.from_array(np.array(["one", "two"], object), "names"),
        *typed,
    ]
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(2, np.float32), "sp"),
        numpy_helper.from_array(np.array([[0, 1], [2, 2]])),
        [3, 3],
    )
    graph = helper.make_graph(
        nodes, "g", [value("x")], [value("y")], weights, value_info=[value("s")], sparse_initializer=[sparse]
    )
    graph.input.append(helper.make_tensor_sequence_value_info("seq", TensorProto.INT64, None))
    opsets = [helper.make_opsetid(*o) for o in (("", 18), ("f", 1), ("com.acme", 1))]
    model = helper.make_model(graph, opset_imports=opsets, functions=[inner, outer])
    helper.set_model_props(model, {"key": "value"})
    return model.SerializeToString()


INTERESTING = [
    b"",
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff" * 9 + b"\x01",
    b"\xff\xff\xff\xff\x07",
    b"\x80\x80\x80\x80\x10",
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif what == 2:
            out[at : at + rng.choice([0, 1, 2, 5])] = rng.choice(INTERESTING)
        elif what == 3:
            del out[at : at + rng.randrange(20)]
        elif what == 4:
            other = rng.randrange(len(out) + 1)
            out[at:at] = out[other : other + rng.randrange(40)]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def attempt(data: bytes) -> Model | None:
    try:
        return read_model(data)
    except (ModelError, UnsupportedError) as error:
        assert str(error)
        return None


def test_the_model_itself_is_right():
    onnx.load_from_string(rich_model())
    assert len(read_model(rich_model()).graph.nodes) == 6


@pytest.mark.parametrize("seed", range(8))
def test_mutations(seed):
    rng = random.Random(seed)
    data = rich_model()
    good = 0
    for _ in range(500):
        model = attempt(mutate(rng, data))
        if model is not None:
            good += 1
            model.graph.check()
            str(model.graph)
            with contextlib.suppress(MiniferError):
                write_model(model)
    assert 20 < good < 480


def test_every_bit():
    """Each bit of the head and each byte elsewhere flipped once."""
    data = rich_model()
    for at in range(len(data)):
        for bit in range(8) if at < 64 else (at % 8,):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            attempt(bytes(changed))


def test_every_truncation():
    data = rich_model()
    for size in range(0, len(data), 3):
        attempt(data[:size])


def test_noise():
    rng = random.Random(1)
    for _ in range(500):
        attempt(b"\x08\x0a" + rng.randbytes(rng.randrange(200)))


def test_memory_is_bounded():
    """What a damaged file of 3 KB makes us hold stays far below what its numbers may say."""
    rng = random.Random(99)
    data = rich_model()
    tracemalloc.start()
    try:
        for _ in range(300):
            attempt(mutate(rng, data))
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


def field(number: int, body: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(body)) + body


@pytest.mark.parametrize(
    "graph",
    [
        b"\x0a\x00" * 100_000,  # nodes without operator
        field(11, b"\x0a\x01x") * 20_000,  # inputs of one name
        field(5, b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x10\x01\x42\x01w"),  # a tensor of 2**63-1 elements
        field(5, b"\x08\x01" * 50_000 + b"\x10\x01\x42\x01w"),  # of 50,000 dimensions
        field(5, b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f" * 20_000 + b"\x10\x01\x42\x01w"),
        field(1, b"\x0a\x00" * 50_000),  # a node of 50,000 inputs
        field(1, field(5, b"\x40\x01" * 50_000)),  # an attribute of 50,000 numbers
        field(
            15,
            field(1, b"\x08\x01\x10\x01\x22\x04" + b"\x00" * 4)
            + field(2, b"\x08\x01\x10\x07\x3a\x01\x00")
            + b"\x18\xff\xff\xff\xff\x7f",
        ),
        field(11, b"\x0a\x01x" + field(2, field(1, b"\x08\x01" + field(2, field(1, b"\x08\x01") * 50_000)))),
    ],
)
def test_hostile_graphs(graph):
    assert attempt(b"\x08\x0a" + field(7, graph)) is None
