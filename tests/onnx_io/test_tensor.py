"""TensorProto to ndarray and back: equal to what the onnx package sees, for every element type."""

import math
import os

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from minifer import dtypes
from minifer.errors import ModelError, UnsupportedError
from minifer.onnx_io.external import ExternalFiles
from minifer.onnx_io.schema import MESSAGES
from minifer.onnx_io.tensor import read_dense, read_sparse, read_tensor, write_sparse, write_tensor
from minifer.onnx_io.wire import decode, encode, encode_varint

NUMERIC = [name for name in dtypes.TYPES if name != "string"]
KNOWN_TO_ONNX = [name for name, (code, _) in dtypes.TYPES.items() if code in onnx.TensorProto.DataType.values()]


def ours(proto: onnx.TensorProto, **kwargs) -> np.ndarray:
    return read_tensor(decode(MESSAGES["TensorProto"], memoryview(proto.SerializeToString())), **kwargs)


def same(a: np.ndarray, b: np.ndarray) -> None:
    """Equal to the bit, type and shape included."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


@st.composite
def arrays(draw, dtype):
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    count = math.prod(shape)
    if dtype == "string":
        out = np.empty(count, object)
        letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")  # onnx loses zeros at the end
        out[:] = draw(st.lists(st.text(letters), min_size=count, max_size=count))
        return out.reshape(shape)
    kind = dtypes.to_numpy(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = rng.integers(0, 256, count * kind.itemsize, np.uint8)
    if dtype == "bool":
        raw &= 1
    elif dtypes.bits(dtype) < 8:
        raw &= (1 << dtypes.bits(dtype)) - 1
    out = raw.view(kind)
    if dtype in ("float32", "float64", "complex64", "complex128"):  # Python's floats do not keep every NaN's bits,
        parts = out.view(out.real.dtype)  # nor the onnx package infinite complex numbers
        parts[~np.isfinite(parts) if out.dtype.kind == "c" else np.isnan(parts)] = 1.5
    return out.reshape(shape)


def typed(array: np.ndarray, dtype: str) -> onnx.TensorProto:
    """The array in the *_data field of its type, after the comments in onnx.proto."""
    proto = onnx.TensorProto(data_type=dtypes.code_of_name(dtype), dims=array.shape, name="t")
    flat, bits = array.reshape(-1), dtypes.bits(dtype)
    if dtype == "string":
        proto.string_data.extend(s.encode() for s in flat)
    elif dtype in ("float32", "complex64"):
        proto.float_data.extend(flat.view(np.float32))
    elif dtype in ("float64", "complex128"):
        proto.double_data.extend(flat.view(np.float64))
    elif dtype == "int64":
        proto.int64_data.extend(flat)
    elif dtype in ("uint32", "uint64"):
        proto.uint64_data.extend(flat)
    elif bits in (2, 4):
        each = 8 // bits
        elements = flat.view(np.uint8).tolist()
        for i in range(0, len(elements), each):
            group = [(e & ((1 << bits) - 1)) << (bits * j) for j, e in enumerate(elements[i : i + each])]
            proto.int32_data.append(sum(group))
    elif dtype in dtypes.INTEGERS or dtype == "bool":
        proto.int32_data.extend(flat.astype(np.int32))
    else:
        proto.int32_data.extend(flat.view(np.uint16 if bits == 16 else np.uint8).astype(np.int32))
    return proto


@pytest.mark.parametrize("dtype", KNOWN_TO_ONNX)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equal_to_onnx(dtype, data):
    array = data.draw(arrays(dtype))
    for proto in (typed(array, dtype), numpy_helper.from_array(array, "t")):
        got = ours(proto)
        same(got, array)
        same(got, numpy_helper.to_array(proto).astype(array.dtype))
        assert not got.flags.writeable


@pytest.mark.parametrize("dtype", dtypes.TYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip(dtype, data):
    array = data.draw(arrays(dtype))
    if array.ndim > 1 and data.draw(st.booleans()):
        array = array.T  # not contiguous
    raw = b"".join(encode(write_tensor(array, "name"))[0])
    again = decode(MESSAGES["TensorProto"], memoryview(raw))
    assert again.name == "name"
    same(read_tensor(again), array)
    if dtype in KNOWN_TO_ONNX:
        same(numpy_helper.to_array(onnx.TensorProto.FromString(raw)).astype(array.dtype), array)


def test_big_endian_arrays_are_written_little():
    proto = write_tensor(np.arange(3, dtype=">i4"))
    assert bytes(proto.raw_data) == np.arange(3, dtype="<i4").tobytes()


def test_numpy_strings():
    same(read_tensor(write_tensor(np.array(["a", "bc"]))), np.array(["a", "bc"], object))
    same(read_tensor(write_tensor(np.array(["a\0"], object))), np.array(["a\0"], object))
    same(read_tensor(write_tensor(np.array([b"a", b"\xff"], object))), np.array(["a", "\udcff"], object))


def test_unpacked_fields():
    """Numbers stored one by one instead of packed, as old writers do."""
    data = b"\x08\x03\x10\x01" + b"".join(b"\x25" + np.float32(v).tobytes() for v in (1.5, -2, 3))
    same(read_tensor(decode(MESSAGES["TensorProto"], memoryview(data))), np.array([1.5, -2, 3], np.float32))
    data = b"\x08\x03\x10\x07" + b"".join(b"\x38" + encode_varint(v) for v in (1, -2, 3))
    same(read_tensor(decode(MESSAGES["TensorProto"], memoryview(data))), np.array([1, -2, 3]))


def test_weights_are_not_copied():
    data = numpy_helper.from_array(np.arange(64, dtype=np.float32)).SerializeToString()
    got = read_tensor(decode(MESSAGES["TensorProto"], memoryview(data)))
    assert np.shares_memory(got, np.frombuffer(data, np.uint8))
    array = np.arange(64, dtype=np.float32)
    assert np.shares_memory(np.frombuffer(write_tensor(array).raw_data, np.uint8), array)


def test_booleans_become_zero_or_one():
    proto = onnx.TensorProto(data_type=9, dims=[3], raw_data=b"\x00\x01\x40")
    assert ours(proto).view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dims=[2], data_type=0), "no element type"),
        (dict(dims=[2], data_type=1, raw_data=b"1234567"), "needs 8 bytes.*7 are stored"),
        (dict(dims=[2], data_type=1, float_data=[1]), "needs 2 numbers in float_data.*1 are"),
        (dict(dims=[2], data_type=1, int64_data=[1, 2]), "needs 2 numbers in float_data.*0 are"),
        (dict(dims=[3], data_type=22, int32_data=[1, 2, 3]), "needs 2 numbers in int32_data"),
        (dict(dims=[2], data_type=14, float_data=[1, 2, 3]), "needs 4 numbers"),
        (dict(dims=[2], data_type=8, string_data=[b"a"]), "needs 2 strings"),
        (dict(dims=[1], data_type=8, raw_data=b"a"), "string_data"),
        (dict(dims=[-1], data_type=1), "negative dimension"),
        (dict(dims=[2**62, 2**62], data_type=1), "larger than any memory"),
        (dict(dims=[2**40], data_type=1), "needs 1099511627776 numbers"),
        (dict(dims=[2**40], data_type=8), "needs 1099511627776 strings"),
        (dict(dims=[0, 2**62], data_type=1), "larger than any memory"),
        (dict(dims=[], data_type=7), "needs 1 numbers"),
    ],
)
def test_bad_tensors(fields, message):
    with pytest.raises(ModelError, match=message):
        ours(onnx.TensorProto(name="w", **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dims=[1] * 33, data_type=1, float_data=[1]), "33 dimensions"),
        (dict(dims=[1], data_type=99), "'w'.*99"),
        (dict(dims=[1], data_type=1, float_data=[1], segment=onnx.TensorProto.Segment(begin=0, end=1)), "segments"),
    ],
)
def test_unsupported_tensors(fields, message):
    with pytest.raises(UnsupportedError, match=message):
        ours(onnx.TensorProto(name="w", **fields))


# ---- external data


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    values = np.arange(6, dtype=np.float32)
    (inside / "w.bin").write_bytes(b"junk" + values.tobytes())
    (inside / "sub" / "w.bin").write_bytes(values.tobytes())
    (tmp_path / "secret.bin").write_bytes(values.tobytes())
    return inside


def external(folder, location, dtype=1, dims=(2, 3), **entries):
    proto = onnx.TensorProto(name="w", data_type=dtype, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=str(value))
    return ours(proto, files=ExternalFiles(folder / "model.onnx"))


def test_external_data(folder):
    want = np.arange(6, dtype=np.float32).reshape(2, 3)
    same(external(folder, "w.bin", offset=4, length=24), want)
    same(external(folder, "w.bin", offset=4, checksum="0"), want)
    same(external(folder, "sub/w.bin"), want)
    same(external(folder, "./sub/w.bin"), want)
    same(external(folder, "w.bin", dims=(0,)), np.zeros(0, np.float32))


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("../secret.bin", {}, "not a path inside"),
        ("sub/../../secret.bin", {}, "not a path inside"),
        ("sub\\..\\..\\secret.bin", {}, "not a path inside"),
        ("/etc/passwd", {}, "not a path inside"),
        ("\\secret.bin", {}, "not a path inside"),
        ("C:\\secret.bin", {}, "not a path inside"),
        ("C:secret.bin", {}, "not a path inside"),
        ("", {}, "not a path inside"),
        ("w\0.bin", {}, "not a path inside"),
        ("sub", {}, "not a regular file"),
        (".", {}, "link that leads|not a regular file"),
        ("absent.bin", {}, "beside the model"),
        ("w.bin", {"offset": 8}, "truncated"),
        ("w.bin", {"offset": 2**62}, "truncated"),
        ("w.bin", {"offset": -4}, "offset '-4'"),
        ("w.bin", {"offset": "4x"}, "offset '4x'"),
        ("w.bin", {"offset": "٤"}, "offset"),
        ("w.bin", {"offset": "9" * 5000}, "offset"),
        ("w.bin", {"length": 23}, "has 23 bytes.*need 24"),
        ("w.bin", {"length": ""}, "length ''"),
        ("w" * 5000, {}, "cannot be read|beside"),
    ],
)
def test_bad_external_data(folder, location, entries, message):
    with pytest.raises(ModelError, match=message):
        external(folder, location, **entries)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes")
def test_links_and_pipes(folder):
    (folder / "out.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "up").symlink_to(folder.parent)
    (folder / "in.bin").symlink_to(folder / "sub" / "w.bin")
    (folder / "loop.bin").symlink_to(folder / "loop.bin")
    os.mkfifo(folder / "pipe")
    for location in ("out.bin", "up/secret.bin"):
        with pytest.raises(ModelError, match="leads out"):
            external(folder, location)
    with pytest.raises(ModelError):
        external(folder, "loop.bin")
    with pytest.raises(ModelError, match="not a regular file"):
        external(folder, "pipe")
    assert external(folder, "in.bin").size == 6


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_cache_of_linked_files(tmp_path):
    """Model and weights are links into one folder of hashed files, as download caches keep them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "aa").write_bytes(b"model")
    (blobs / "bb").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    (snapshot / "model.onnx").symlink_to("../blobs/aa")
    (snapshot / "model.onnx_data").symlink_to("../blobs/bb")
    assert external(snapshot, "model.onnx_data").size == 6


def test_external_data_needs_a_path():
    proto = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value="w.bin")
    with pytest.raises(ModelError, match="load the model by its path"):
        ours(proto)


def test_external_strings_are_refused(folder):
    with pytest.raises(ModelError, match="string_data"):
        external(folder, "w.bin", dtype=8)


def test_many_external_files(folder):
    files = ExternalFiles(folder / "model.onnx")
    for i in range(150):  # more than are mapped
        (folder / f"{i}.bin").write_bytes(bytes([i] * 4))
        assert bytes(files.read({"location": f"{i}.bin"}, 4, "w")) == bytes([i] * 4)


# ---- sparse tensors


def sparse(values, indices, dims):
    stored, where = numpy_helper.from_array(np.asarray(values), "s"), numpy_helper.from_array(np.asarray(indices))
    proto = onnx.SparseTensorProto(values=stored, indices=where, dims=dims)
    return decode(MESSAGES["SparseTensorProto"], memoryview(proto.SerializeToString()))


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "string"])
def test_sparse(indices, dtype):
    values = np.array([1, 2]).astype(dtypes.to_numpy(dtype)) if dtype != "string" else np.array(["a", "b"], object)
    want = np.full((2, 3), "", object) if dtype == "string" else np.zeros((2, 3), values.dtype)
    want.reshape(-1)[[1, 5]] = values
    proto = sparse(values, np.array(indices), [2, 3])
    same(read_dense(proto), want)
    tensor = read_sparse(proto)
    again = decode(MESSAGES["SparseTensorProto"], memoryview(b"".join(encode(write_sparse(tensor, "s"))[0])))
    same(read_dense(again), want)
    assert again.values.name == "s"


@pytest.mark.parametrize(
    ("values", "indices", "dims", "error"),
    [
        ([1.0], [6], [2, 3], "outside"),
        ([1.0], [-1], [2, 3], "outside"),
        ([1.0], [[0, 3]], [2, 3], "outside"),
        ([1.0], [0], [0, 3], "outside"),
        ([1.0], [0, 1], [2, 3], r"of \(n\)"),
        ([[1.0]], [[0]], [2, 3], r"of \(n\)"),
        ([1.0], [0.0], [2, 3], "float64 indices"),
        ([1.0], [0], [-2, 3], "negative"),
        ([1.0], [0], [2**40], "would take"),
    ],
)
def test_bad_sparse(values, indices, dims, error):
    with pytest.raises((ModelError, UnsupportedError), match=error):
        read_dense(sparse(values, indices, dims))


def test_sparse_without_parts():
    with pytest.raises(ModelError, match="has no values"):
        read_sparse(MESSAGES["SparseTensorProto"]())
