"""Where the bytes of a model come from, and what a file seems to be that is none."""

from __future__ import annotations

import os
from typing import Any

from minifer.errors import ModelError
from minifer.onnx_io.external import map_file

_KNOWN_FORMATS = (
    (b"<", "it looks like a web page or XML, perhaps the page about the model instead of the file"),
    (b"version https://git-lfs", "it is a Git LFS pointer; fetch the real file with `git lfs pull`"),
    (b"PK\x03\x04", "it is a zip archive (a PyTorch or NumPy file?)"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"\x80\x02", "it is a Python pickle (an old PyTorch file?)"),
    (b"\x89HDF", "it is an HDF5 file (Keras?)"),
    (b"{", "it looks like JSON"),
    (b"\x93NUMPY", "it is a NumPy array"),
    (b"GGUF", "it is a GGUF file"),
)


def open_source(source: Any) -> tuple[memoryview, str | None]:
    """The bytes of a source (see `read_model`), and the path that external data is relative to."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _fixed(source), None
    if isinstance(source, str | os.PathLike):
        return map_file(source), os.fsdecode(source)
    if hasattr(source, "SerializeToString"):
        try:
            return memoryview(source.SerializeToString()), None
        except Exception as error:  # the protobuf package has its own classes, which we do not import
            raise ModelError(f"the ModelProto cannot be serialised ({error}); save it and pass the path") from error
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ModelError("the file object gives text; open the model in binary mode ('rb')")
        name = getattr(source, "name", None)
        return _fixed(data), name if isinstance(name, str) and os.path.isfile(name) else None
    raise ModelError(
        f"a model is given as a path, bytes, a binary file object or an onnx.ModelProto, not {type(source).__name__}"
    )


def _fixed(data: bytes | bytearray | memoryview) -> memoryview:
    """A view of bytes that nobody changes: what could be changed is copied."""
    view = memoryview(data)
    return view.cast("B") if view.readonly and view.c_contiguous else memoryview(view.tobytes())


def guess_format(data: memoryview) -> str:
    """What a file that is no model seems to be, or ""."""
    head = bytes(data[:64]).removeprefix(b"\xef\xbb\xbf").lstrip()
    if bytes(data[4:8]) == b"ORTM":
        return "it is in ONNX Runtime's own .ort format; convert the .onnx file it was made from instead"
    if bytes(data[4:8]) == b"TFL3":
        return "it is a TensorFlow Lite file"
    for magic, what in _KNOWN_FORMATS:
        if head.startswith(magic):
            return what
    if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"it begins with the text {head[:24].decode('ascii')!r}"
    return ""
