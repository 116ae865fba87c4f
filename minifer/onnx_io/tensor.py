"""TensorProto to ndarray and back, for every element type.

Reading copies nothing where the file holds the elements as memory does (raw_data of whole bytes, float_data,
double_data): the array is a read-only view, perhaps not aligned. The element count is checked against the data
before anything is allocated. Source: the comments on TensorProto and SparseTensorProto in onnx.proto.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import ModelError, UnsupportedError
from minifer.ir import SparseTensor
from minifer.onnx_io.external import ExternalFiles
from minifer.onnx_io.schema import MESSAGES
from minifer.onnx_io.wire import count_varints, numbers

TensorProto: Any = MESSAGES["TensorProto"]
SparseTensorProto: Any = MESSAGES["SparseTensorProto"]

EXTERNAL = 1  # TensorProto.DataLocation
MAX_DENSE = 2**26  # bytes that a sparse tensor may take as a dense one however few it stores ...
MAX_GROWTH = 1000  # ... and from there on how many times the bytes that it stores

#: element type -> the field that holds it where raw_data does not, and the type of that field's numbers
_TYPED: dict[str, tuple[str, str]] = {
    "float32": ("float_data", "float32"), "complex64": ("float_data", "float32"),
    "float64": ("double_data", "float64"), "complex128": ("double_data", "float64"),
    "int64": ("int64_data", "int64"), "uint32": ("uint64_data", "uint64"), "uint64": ("uint64_data", "uint64"),
}  # fmt: skip


def read_tensor(proto: Any, files: ExternalFiles | None = None, who: str = "") -> np.ndarray:
    """The array of a TensorProto. `who` names it in messages."""
    who = who or f"tensor '{proto.name}'"
    if proto.data_type == 0:
        raise ModelError(f"{who} has no element type")
    try:
        dtype = dtypes.name_of_code(proto.data_type)
    except UnsupportedError as error:
        raise UnsupportedError(f"{who}: {error}") from None
    shape = _shape(proto.dims, who)
    count = math.prod(shape)
    if proto.has("segment"):
        raise UnsupportedError(f"{who} is stored in segments, which no version of ONNX defines further")
    if dtype == "string":
        array = _strings(proto, count, who)
    elif proto.data_location == EXTERNAL:
        entries = {e.key: e.value for e in proto.external_data}
        array = _from_raw((files or ExternalFiles()).read(entries, _stored_bytes(dtype, count), who), dtype, count, who)
    elif len(proto.raw_data):
        array = _from_raw(proto.raw_data, dtype, count, who)
    else:
        array = _from_typed(proto, dtype, count, who)
    array.flags.writeable = False
    return array.reshape(shape)


def _shape(dims: Any, who: str) -> tuple[int, ...]:
    if dims and min(dims[:32]) < 0:
        raise ModelError(f"{who} has a negative dimension: {list(dims[:32])}")
    if len(dims) > 32:  # what every NumPy can hold
        raise UnsupportedError(f"{who} has {len(dims)} dimensions; 32 are allowed")
    if math.prod(filter(None, dims)) > 2**58:
        raise ModelError(f"{who} has the shape {list(dims)}, larger than any memory")
    return tuple(dims)


def _stored_bytes(dtype: str, count: int) -> int:
    return (count * dtypes.bits(dtype) + 7) // 8


def _short(who: str, dtype: str, count: int, found: int, unit: str) -> ModelError:
    return ModelError(f"{who} needs {count} {unit} for its shape ({dtype}), and {found} are stored")


def _from_raw(raw: Any, dtype: str, count: int, who: str) -> np.ndarray:
    if len(raw) != _stored_bytes(dtype, count):
        raise _short(who, dtype, _stored_bytes(dtype, count), len(raw), "bytes")
    if dtypes.bits(dtype) < 8:
        return _unpack(np.frombuffer(raw, np.uint8), dtypes.bits(dtype), count).view(dtypes.to_numpy(dtype))
    if dtype == "bool":
        return _booleans(np.frombuffer(raw, np.uint8))
    array = np.frombuffer(raw, dtypes.to_numpy(dtype))
    return array.byteswap() if sys.byteorder == "big" else array


def _booleans(stored: np.ndarray) -> np.ndarray:
    # a NumPy bool must be 0 or 1 in memory
    return (stored != 0) if stored.size and stored.max() > 1 else stored.view(np.bool_)


def _unpack(stored: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Elements of 2, 4 or 6 bits, the first in the lowest bits, one a byte."""
    if bits == 6:  # cross bytes: go by single bits
        single = np.unpackbits(stored, bitorder="little")[: count * bits].reshape(count, bits)
        return np.packbits(single, axis=1, bitorder="little").reshape(count)
    each = 8 // bits
    out = np.empty(len(stored) * each, np.uint8)
    for i in range(each):
        out[i::each] = stored >> (bits * i) & ((1 << bits) - 1)
    return out[:count]


def _pack(elements: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `_unpack`."""
    if bits == 6:
        return np.packbits(np.unpackbits(elements[:, None], axis=1, count=6, bitorder="little"), bitorder="little")
    each = 8 // bits
    padded = np.zeros(-(-len(elements) // each) * each, np.uint8)
    padded[: len(elements)] = elements & ((1 << bits) - 1)
    out = np.zeros(len(padded) // each, np.uint8)
    for i in range(each):
        out |= padded[i::each] << (bits * i)
    return out


def _from_typed(proto: Any, dtype: str, count: int, who: str) -> np.ndarray:
    field, stored = _TYPED.get(dtype, ("int32_data", "int32"))
    data = getattr(proto, field)
    raw = data[0] if len(data) == 1 else b"".join(data)
    bits = dtypes.bits(dtype)
    # what is stored: one number an element, two for complex ones; of elements under 8 bits one number a byte
    needed = _stored_bytes(dtype, count) if bits in (2, 4) else count * (2 if dtype.startswith("complex") else 1)
    found = len(raw) // (int(stored[-2:]) // 8) if stored.startswith("float") else count_varints(raw)
    if found != needed:
        raise _short(who, dtype, needed, found, f"numbers in {field}")
    try:
        values = numbers(stored, raw)
    except ModelError as error:
        raise ModelError(f"{who}: {error}") from None
    if dtype in _TYPED:
        target = dtypes.to_numpy(dtype)
        return values.view(target) if target.kind == "c" else values.astype(target, copy=False)
    if bits in (2, 4):
        return _unpack(values.astype(np.uint8), bits, count).view(dtypes.to_numpy(dtype))
    if dtype == "bool":
        return values != 0
    if dtype in dtypes.INTEGERS:
        return values.astype(dtype)
    low = values.astype(np.uint16 if bits == 16 else np.uint8)  # the bit pattern of a small float
    return (low & 0x3F if bits == 6 else low).view(dtypes.to_numpy(dtype))


def _strings(proto: Any, count: int, who: str) -> np.ndarray:
    if proto.data_location == EXTERNAL or len(proto.raw_data):
        raise ModelError(f"{who}: strings must be stored in string_data")
    if len(proto.string_data) != count:
        raise _short(who, "string", count, len(proto.string_data), "strings")
    out = np.empty(count, object)
    out[:] = [item.decode("utf-8", "surrogateescape") for item in proto.string_data]
    return out


def read_sparse(proto: Any, files: ExternalFiles | None = None, who: str = "") -> SparseTensor:
    """The SparseTensor of a SparseTensorProto, its indices checked."""
    if proto.values is None or proto.indices is None:
        raise ModelError(f"{who or 'a sparse tensor'} has no {'values' if proto.values is None else 'indices'}")
    who = who or f"sparse tensor '{proto.values.name}'"
    shape = _shape(proto.dims, who)
    values = read_tensor(proto.values, files, f"values of {who}")
    indices = read_tensor(proto.indices, files, f"indices of {who}")
    fits = indices.shape == values.shape or indices.shape == (*values.shape, len(shape))
    if values.ndim != 1 or not fits or indices.dtype != np.int64:
        raise ModelError(
            f"{who} has {values.dtype} values of shape {list(values.shape)} and {indices.dtype} indices of shape "
            f"{list(indices.shape)}; (n) and int64 of (n) or (n, {len(shape)}) are needed"
        )
    bound = np.array(shape if indices.ndim == 2 else math.prod(shape), np.int64)
    if ((indices < 0) | (indices >= bound)).any():
        raise ModelError(f"{who} has an index outside its shape {list(shape)}")
    return SparseTensor(values, indices, shape)


def read_dense(proto: Any, files: ExternalFiles | None = None, who: str = "") -> np.ndarray:
    """The dense array of a SparseTensorProto; UnsupportedError where a small file asks for a huge one."""
    sparse = read_sparse(proto, files, who)
    size = math.prod(sparse.shape) * sparse.values.dtype.itemsize
    if size > max(MAX_DENSE, MAX_GROWTH * (sparse.values.nbytes + sparse.indices.nbytes)):
        raise UnsupportedError(
            f"{who} stores {len(sparse.values)} values and would take {size:,} bytes as a dense array"
        )
    out = sparse.dense()
    out.flags.writeable = False
    return out


def write_tensor(array: np.ndarray, name: str = "") -> Any:
    """The TensorProto of an array; its raw_data is a view of the array where no conversion is needed."""
    dtype = dtypes.from_numpy(array.dtype)
    proto = TensorProto(dims=list(array.shape), data_type=dtypes.code_of_name(dtype), name=name)
    if dtype == "string":
        proto.string_data = [_encoded(item) for item in array.reshape(-1).tolist()]
    else:
        proto.raw_data = raw_bytes(array)
    return proto


def _encoded(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogateescape")


def raw_bytes(array: np.ndarray) -> memoryview:
    """The elements as raw_data holds them: row by row, little-endian, small ones packed."""
    bits = dtypes.bits(dtypes.from_numpy(array.dtype))
    if array.dtype.byteorder == ">" or (sys.byteorder == "big" and array.dtype.itemsize > 1):
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return (_pack(flat, bits) if bits < 8 else flat).data


def write_sparse(sparse: SparseTensor, name: str = "") -> Any:
    """The SparseTensorProto of a SparseTensor."""
    values, indices = write_tensor(sparse.values, name), write_tensor(sparse.indices.astype(np.int64))
    return SparseTensorProto(values=values, indices=indices, dims=list(sparse.shape))
