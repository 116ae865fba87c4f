"""Weights that lie in files beside the model (TensorProto.external_data), confined to the model's own folder.

A model is not trusted: it may name no absolute path, no `..`, and no link that leads out of the folder, and what
it names must be a regular file. Each file is mapped into memory once; tensors are views of it.
Source: the comments on external_data in onnx.proto.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from minifer.errors import ModelError

MAX_MAPS = 100  # mapped files each hold a descriptor; further ones are read instead


def map_file(path: str | os.PathLike[str], read: bool = False) -> memoryview:
    """The bytes of a file without reading them: they are paged in when they are used. ModelError where it cannot be.

    A pipe is read to its end, as is a file where `read` is set.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                return memoryview(file.read())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"'{path}' is not a file")
            if read or status.st_size == 0:
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ModelError(f"there is no file '{path}'") from None
    except (OSError, ValueError) as error:  # a ValueError: a zero byte in the path
        raise ModelError(f"the file {os.fspath(path)!r} cannot be read: {error}") from error


class ExternalFiles:
    """The files that the tensors of one model may refer to. `path` is where the model came from, None for memory."""

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self._maps: dict[str, memoryview] = {}
        self._folder: Path | None = None
        if path is not None:
            self._folder = Path(path).absolute().parent
            # A model that is reached through a link (a download cache of hashed files) may have its weights on
            # either side of it.
            self._roots = {Path(os.path.realpath(self._folder)), Path(os.path.realpath(path)).parent}

    def paths(self) -> list[str]:
        """The files that were read."""
        return [str(self._resolve(location, "the model")) for location in self._maps]

    def read(self, entries: Mapping[str, str], size: int, who: str) -> memoryview:
        """The `size` bytes that `external_data` entries (location, offset, length) point at."""
        location = entries.get("location", "")
        offset = _integer(entries.get("offset", "0"), "offset", who)
        length = _integer(entries.get("length", str(size)), "length", who)
        if length != size:
            raise ModelError(f"{who}: its external data has {length} bytes, and its shape and type need {size}")
        data = self._map(location, who)
        if offset + size > len(data):
            raise ModelError(
                f"{who}: bytes {offset} to {offset + size} of '{location}' are needed, and the file has {len(data)}; "
                "it is truncated, or belongs to another model"
            )
        return data[offset : offset + size]

    def _map(self, location: str, who: str) -> memoryview:
        if location not in self._maps:
            self._maps[location] = map_file(self._resolve(location, who), read=len(self._maps) >= MAX_MAPS)
        return self._maps[location]

    def _resolve(self, location: str, who: str) -> Path:
        if self._folder is None:
            raise ModelError(
                f"{who}: its data lies in the file '{location}', and a model from memory has no folder; "
                "load the model by its path"
            )
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        bad = not location or "\0" in location or posix.is_absolute() or windows.drive or windows.root
        if bad or ".." in posix.parts or ".." in windows.parts:
            raise ModelError(f"{who}: external data {location!r} is not a path inside the model's folder")
        path = Path(os.path.realpath(self._folder / location))
        if not any(root in path.parents for root in self._roots):
            raise ModelError(f"{who}: external data '{location}' is a link that leads out of the model's folder")
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{who}: its data should lie in '{location}' beside the model, which cannot be read: {error}"
            ) from error
        if not regular:
            raise ModelError(f"{who}: external data '{location}' is not a regular file")
        return path


def _integer(text: str, key: str, who: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{who}: external data has the {key} {text!r}, which is no size in bytes")
    return int(text)
