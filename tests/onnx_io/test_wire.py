"""The protobuf wire format: what is well formed is read as the protobuf package reads it, the rest is refused."""

import struct

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifer.errors import ModelError
from minifer.onnx_io import wire
from minifer.onnx_io.schema import MESSAGES
from minifer.onnx_io.wire import decode, encode, encode_varint, numbers, varint

Attribute, Node, Model, Tensor = (MESSAGES[f"{n}Proto"] for n in ("Attribute", "Node", "Model", "Tensor"))


def field(number: int, kind: int, body: bytes) -> bytes:
    size = encode_varint(len(body)) if kind == wire.LENGTH else b""
    return encode_varint(number << 3 | kind) + size + body


def read(kind, data: bytes):
    return decode(kind, memoryview(data))


@given(st.integers(-(2**63), 2**64 - 1))
def test_varint_round_trip(value):
    data = memoryview(encode_varint(value))
    assert varint(data, 0, len(data)) == (value % 2**64, len(data))


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_packed_varints(values):
    data = b"".join(map(encode_varint, values))
    assert numbers("int64", data).tolist() == values
    assert wire.count_varints(data) == len(values)
    assert numbers("int32", data).tolist() == [(v + 2**31) % 2**32 - 2**31 for v in values]
    assert numbers("uint64", data).tolist() == [v % 2**64 for v in values]


@given(st.lists(st.floats(width=32)))
def test_packed_floats_are_views(values):
    data = struct.pack(f"<{len(values)}f", *values)
    got = numbers("float32", data)
    assert got.tobytes() == data
    assert not got.flags.owndata


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.floats(width=32, allow_nan=False)), st.booleans())
def test_numbers_packed_or_not(ints, floats, packed):
    if packed:
        data = field(8, wire.LENGTH, b"".join(map(encode_varint, ints)))
        data += field(7, wire.LENGTH, struct.pack(f"<{len(floats)}f", *floats))
    else:
        data = b"".join(field(8, wire.VARINT, encode_varint(i)) for i in ints)
        data += b"".join(field(7, wire.FIXED32, struct.pack("<f", f)) for f in floats)
    theirs, ours = onnx.AttributeProto.FromString(data), read(Attribute, data)
    assert list(ours.ints) == list(theirs.ints) == ints
    assert list(ours.floats) == list(theirs.floats) == floats


def test_mixed_runs_are_joined():
    data = field(1, wire.VARINT, b"\x02") + field(1, wire.LENGTH, b"\x03\x04") + field(1, wire.VARINT, b"\x05")
    assert read(Tensor, data).dims == [2, 3, 4, 5]
    assert list(onnx.TensorProto.FromString(data).dims) == [2, 3, 4, 5]


def test_the_last_scalar_holds_and_messages_merge():
    first = onnx.ModelProto(ir_version=3, graph=onnx.GraphProto(name="a", node=[onnx.NodeProto(op_type="X")]))
    second = onnx.ModelProto(ir_version=7, graph=onnx.GraphProto(name="b", node=[onnx.NodeProto(op_type="Y")]))
    ours = read(Model, first.SerializeToString() + second.SerializeToString())
    assert (ours.ir_version, ours.graph.name, [n.op_type for n in ours.graph.node]) == (7, "b", ["X", "Y"])


def test_merging_leaves_shared_messages_alone():
    kind = onnx.helper.make_tensor_type_proto(1, [2])
    plain = onnx.ValueInfoProto(name="x", type=kind).SerializeToString()
    more = onnx.TypeProto()
    more.tensor_type.shape.dim.add(dim_value=9)
    merged = plain + field(2, wire.LENGTH, more.SerializeToString())
    graph = field(11, wire.LENGTH, plain) + field(11, wire.LENGTH, merged) + field(11, wire.LENGTH, plain)
    ours = read(MESSAGES["GraphProto"], graph)
    assert [len(v.type.tensor_type.shape.dim) for v in ours.input] == [1, 2, 1]


def test_unknown_fields_and_groups_are_skipped():
    inner = field(98, wire.GROUP, field(98, wire.GROUP_END, b""))
    group = field(99, wire.GROUP, field(1, wire.VARINT, b"\x01") + inner)
    unknown = [
        field(100, wire.VARINT, encode_varint(2**63)),
        field(101, wire.FIXED64, b"12345678"),
        field(102, wire.FIXED32, b"1234"),
        field(2**29 - 1, wire.LENGTH, b"hello"),
        group + field(99, wire.GROUP_END, b""),
    ]
    name = field(4, wire.LENGTH, b"Relu")
    for junk in unknown:
        assert read(Node, junk + name + junk).op_type == "Relu"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x22", "byte 1"),  # a length is missing
        (b"\x22\x05Relu", "5 bytes is larger than the 4 bytes left"),
        (b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01Relu", "larger than"),
        (b"\x22\xff", "ends within a number"),
        (b"\xff", "byte 0"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x00\x00", "field 0"),
        (b"\x27", "undefined"),
        (b"\x20\x01", "NodeProto.op_type is stored as varint"),
        (b"\x23\x24", "NodeProto.op_type is stored as group"),
        (b"\x24", "end of group"),
        (b"\x22\x02\xff\xfe", "byte 2.*UTF-8"),
        (field(99, wire.GROUP, b""), "byte"),
        (field(99, wire.GROUP, field(98, wire.GROUP_END, b"")), "group"),
        (field(99, wire.GROUP, b"") * 200, "nested"),
        (field(99, wire.FIXED64, b"123"), "ends within"),
        (field(5, wire.LENGTH, field(2, wire.FIXED32, b"123")), "byte"),
        (field(5, wire.LENGTH, field(8, wire.LENGTH, b"\x80")), "byte 4"),
        (field(5, wire.LENGTH, field(7, wire.LENGTH, b"123")), "byte 4"),
    ],
)
def test_corrupt(data, message):
    with pytest.raises(ModelError, match=message):
        read(Node, data)


def test_nesting_is_bounded():
    data = b""
    for _ in range(1000):  # a sequence of sequences of ...
        data = field(4, wire.LENGTH, field(1, wire.LENGTH, data))
    with pytest.raises(ModelError, match="nested more than 100 deep"):
        read(MESSAGES["TypeProto"], data)
    with pytest.raises(ModelError, match=r"nested|truncated"):
        read(MESSAGES["GraphProto"], b"\x0a\x7f" * 5000)


def test_the_number_of_messages_is_bounded(monkeypatch):
    monkeypatch.setattr(wire, "MAX_MESSAGES", 1000)
    with pytest.raises(ModelError, match="more than 1,000 messages"):
        read(MESSAGES["GraphProto"], b"\x0a\x00" * 1000)


@pytest.mark.parametrize("data", [b"\x80", b"\x01\x80", b"\xff" * 10 + b"\x01", b"\x01" + b"\xff" * 12])
def test_corrupt_packed_numbers(data):
    with pytest.raises(ModelError):
        numbers("int64", data)
    with pytest.raises(ModelError):
        numbers("float32", data[:1])


def test_views_are_not_copied():
    weights = np.arange(1000, dtype=np.float32)
    data = onnx.numpy_helper.from_array(weights, "w").SerializeToString()
    view = read(Tensor, data).raw_data
    assert np.shares_memory(np.frombuffer(view, np.uint8), np.frombuffer(data, np.uint8))


def test_encode_matches_the_protobuf_package():
    message = Node(input=["a", "", "ä"], output=["y"], op_type="Op", attribute=[Attribute(name="i", type=2, i=-1)])
    message.attribute.append(Attribute(name="f", type=6, floats=[1.5, -0.0], ints=[-(2**63), 2**63 - 1], s=b"\xff"))
    parts, size = encode(message)
    data = b"".join(parts)
    assert len(data) == size
    theirs = onnx.NodeProto.FromString(data)
    assert list(theirs.input) == ["a", "", "ä"]
    assert theirs.attribute[0].i == -1
    assert list(theirs.attribute[1].ints) == [-(2**63), 2**63 - 1]
    assert theirs.attribute[1].s == b"\xff"
    assert repr(read(Node, data)) == repr(message)


def test_every_field_of_the_table_is_onnx_protos():
    """Numbers and names equal those of the installed onnx package."""
    for name, kind in MESSAGES.items():
        owner = onnx
        for part in name.split("."):
            owner = getattr(owner, part)
        descriptor = owner.DESCRIPTOR
        theirs = {f.number: f.name for f in descriptor.fields}
        assert {n: theirs.get(n) for n in kind.numbers} == kind.numbers, name
