"""The protobuf wire format, read and written without the protobuf package.

A message is a run of fields, each a key (field number * 8 + wire type) and a value. The wire type says how
long the value is: a varint (0: seven bits a byte, the lowest first, the top bit set on all bytes but the last),
8 bytes (1), a varint length and that many bytes (2: strings, messages, packed numbers), a group (3 ... 4,
obsolete), or 4 bytes (5). What a number means stands in a table (`schema`). Fields of unknown number are skipped.
Source: protobuf.dev/programming-guides/encoding.

Nothing big is copied: a `view` field is a slice of the buffer that was given. A file is not trusted: sizes are
checked before use, nesting and the number of messages are bounded, and every fault is a ModelError with its offset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from minifer.errors import ModelError

VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32 = range(6)
WIRE_NAMES = ("varint", "64-bit", "length-delimited", "group", "end of group", "32-bit", "undefined", "undefined")

MAX_DEPTH = 100  # messages in messages, as in other protobuf readers
MAX_MESSAGES = 5_000_000  # an empty message takes two bytes in a file but a hundred in memory
MAX_BYTES = 2**31 - 1  # the largest message that protobuf readers accept


class Message:
    """A decoded message. Fields are attributes; one that the file does not hold reads as its default."""

    by_name: ClassVar[dict[str, Field]] = {}
    by_key: ClassVar[dict[int, Way]] = {}
    numbers: ClassVar[dict[int, str]] = {}
    shared: ClassVar[bool] = False  # equal ones may be one object

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def has(self, name: str) -> bool:
        """True where the field was in the file, be it with its default value."""
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"


class Field:
    """One way in which a field can stand in a file. A repeated number has two: alone, or packed with others."""

    __slots__ = ("head", "kind", "message", "name", "number", "read", "repeated", "spread", "wire")

    def __init__(self, number: int, name: str, kind: str, wire: int, repeated: bool, spread: bool = False):
        self.number, self.name, self.kind, self.wire, self.repeated = number, name, kind, wire, repeated
        self.spread = spread  # one occurrence holds many values
        self.message: Any = None  # the class, where the value is a message
        self.read: Callable[..., Any] | None = None
        self.head = b""  # the key, encoded

    def way(self) -> Way:
        """What reading needs of it."""
        return self.name, self.wire, self.read, self.message, self.repeated, self.spread


#: name, wire type, how to read a value, class of a message, repeated, spread: one look-up for each field of a file
Way = tuple[str, int, Callable[..., Any] | None, Any, bool, bool]


def _signed64(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _string(data: memoryview, start: int, stop: int) -> str:
    try:
        return str(data[start:stop], "utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"byte {start}: a name is not valid UTF-8; the file is corrupt") from None


def _text(data: memoryview, start: int, stop: int) -> str:
    return str(data[start:stop], "utf-8", "replace")


def _bytes(data: memoryview, start: int, stop: int) -> bytes:
    return bytes(data[start:stop])


def _view(data: memoryview, start: int, stop: int) -> memoryview:
    return data[start:stop]


def _packed(kind: str) -> Callable[[memoryview, int, int], list]:
    def read(data: memoryview, start: int, stop: int) -> list:
        try:
            return numbers(kind, data[start:stop]).tolist()
        except ModelError as error:
            raise ModelError(f"byte {start}: {error}") from None

    return read


#: type of a scalar field -> (wire type, how to read a value, default)
_SCALARS: dict[str, tuple[int, Callable[..., Any] | None, Any]] = {
    "int64": (VARINT, _signed64, 0),
    "int32": (VARINT, _signed32, 0),
    "float": (FIXED32, struct.Struct("<f").unpack_from, 0.0),
    "string": (LENGTH, _string, ""),
    "text": (LENGTH, _text, ""),
    "bytes": (LENGTH, _bytes, b""),
    "view": (LENGTH, _view, b""),
}
_PACKED_WIRE = {"varint": VARINT, "float": FIXED32, "double": FIXED64}


def message_types(table: str) -> dict[str, type[Message]]:
    """Classes for the messages of a table (its form: see `schema`)."""
    kinds: dict[str, type[Message]] = {}
    for block in table.strip().split("\n\n"):
        name, *flags = block.split("\n")[0].split()
        kinds[name] = type(name, (Message,), {"by_name": {}, "by_key": {}, "numbers": {}, "shared": "shared" in flags})
    for block in table.strip().split("\n\n"):
        head, *lines = block.split("\n")
        for line in lines:
            _add_field(kinds, kinds[head.split()[0]], *line.split())
    return kinds


def _add_field(kinds: dict, owner: type[Message], number: str, name: str, kind: str, element: str = "") -> None:
    repeated = kind.endswith("*") or kind == "packed"
    kind = kind.rstrip("*")
    n = int(number)
    owner.numbers[n] = name
    if kind == "skip":
        return
    if kind == "packed":
        ways = [Field(n, name, kind, LENGTH, True), Field(n, name, kind, _PACKED_WIRE[element], True)]
        ways[0].read, default = _view, ()
    elif kind in kinds:
        ways, default = [Field(n, name, kind, LENGTH, repeated)], None
        ways[0].message = kinds[kind]
    else:
        wire, read, default = _SCALARS[kind]
        ways = [Field(n, name, kind, wire, repeated)]
        ways[0].read = read
        if repeated and wire != LENGTH:  # numbers may come packed
            ways.append(Field(n, name, kind, LENGTH, True, spread=True))
            ways[1].read = _packed({"int64": "int64", "int32": "int32", "float": "float32"}[kind])
    owner.by_name[name] = ways[0]
    for way in ways:
        way.head = encode_varint(n << 3 | way.wire)
        owner.by_key[n << 3 | way.wire] = way.way()
    setattr(owner, name, () if repeated else default)


# ---- reading


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The varint at `at` as an unsigned 64-bit value, and the offset after it."""
    value = shift = 0
    start = at
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise ModelError(f"byte {start}: a number takes more than ten bytes; the file is corrupt")
    raise ModelError(f"byte {start}: the file ends within a number; it is truncated or corrupt")


def decode(kind: type[Message], data: memoryview) -> Any:
    """The message of class `kind` that fills `data` (a memoryview of bytes); ModelError where it does not."""
    message = kind()
    _Decoder(data).message(message, 0, len(data), 0)
    return message


new = object.__new__


class _Decoder:
    def __init__(self, data: memoryview):
        self.data = data
        self.left = MAX_MESSAGES
        self.shared: dict[bytes, Message] = {}  # small messages that come again and again, byte for byte

    def message(self, message: Message, at: int, end: int, depth: int) -> None:
        """Read fields from `at` to `end` into `message`."""
        data, values, known = self.data, message.__dict__, message.by_key
        self.left -= 1
        if depth > MAX_DEPTH:
            raise ModelError(f"byte {at}: messages are nested more than {MAX_DEPTH} deep")
        if self.left < 0:
            raise ModelError(f"byte {at}: the file holds more than {MAX_MESSAGES:,} messages")
        while at < end:
            start = at
            key = data[at]
            at += 1
            if key > 0x7F:
                key, at = varint(data, start, end)
            way = known.get(key)
            if way is None:
                at = self.skip(type(message), key, start, at, end)
                continue
            name, wire, read, kind, repeated, spread = way
            value: Any
            if wire == LENGTH:
                size = data[at] if at < end else 0x80
                if size < 0x80 and at + size < end:  # the usual case, spelled out for speed
                    at += 1
                    stop = at + size
                else:
                    stop, at = self.extent(at, end)
                if read is not None:
                    value = read(data, at, stop)
                elif not repeated and name in values:  # a second part of one message: merge
                    value = values[name]
                    if kind.shared:
                        from copy import deepcopy

                        value = deepcopy(value)
                    self.message(value, at, stop, depth + 1)
                elif kind.shared and size < 0x80:
                    raw = bytes(data[at:stop])
                    value = self.shared.get(raw)
                    if type(value) is not kind:
                        value = self.shared[raw] = new(kind)
                        self.message(value, at, stop, depth + 1)
                else:
                    value = new(kind)
                    self.message(value, at, stop, depth + 1)
                at = stop
            elif wire == VARINT:
                start = at
                value = data[at] if at < end else 0x80
                if value < 0x80:
                    at += 1
                else:
                    value, at = varint(data, at, end)
                value = data[start:at] if read is None else read(value)
            else:
                stop = at + (4 if wire == FIXED32 else 8)
                if stop > end:
                    raise ModelError(f"byte {at}: the file ends within a number; it is truncated or corrupt")
                value = data[at:stop] if read is None else read(data, at)[0]
                at = stop
            if not repeated:
                values[name] = value
            elif name not in values:
                values[name] = value if spread else [value]
            elif spread:
                values[name] += value
            else:
                values[name].append(value)

    def extent(self, at: int, end: int) -> tuple[int, int]:
        """End and start of the bytes whose length stands at `at`."""
        if at < end and self.data[at] < 0x80:
            size = self.data[at]
            start = at + 1
        else:
            size, start = varint(self.data, at, end)
        if start + size > end:
            raise ModelError(
                f"byte {at}: a field of {size} bytes is larger than the {end - start} bytes left; "
                "the file is truncated or corrupt"
            )
        return start + size, start

    def skip(self, kind: type[Message], key: int, start: int, at: int, end: int) -> int:
        """The offset after a field that is not in the table; ModelError where it is there with another wire type."""
        number, wire = key >> 3, key & 7
        if number == 0 or number > 0x1FFFFFFF or wire > FIXED32 or wire == GROUP_END:
            raise ModelError(
                f"byte {start}: field {number} of wire type {WIRE_NAMES[wire]} in {kind.__name__}; the file is corrupt"
            )
        if any(field.number == number for field in kind.by_name.values()):
            raise ModelError(
                f"byte {start}: {kind.__name__}.{kind.numbers[number]} is stored as {WIRE_NAMES[wire]}, "
                "which is no way to store it; the file is corrupt"
            )
        open_groups: list[int] = []
        while True:
            if wire == VARINT:
                _, at = varint(self.data, at, end)
            elif wire == LENGTH:
                at, _ = self.extent(at, end)
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
                if at > end:
                    raise ModelError(f"byte {start}: the file ends within a field; it is truncated or corrupt")
            elif wire == GROUP:
                open_groups.append(number)
                if len(open_groups) > MAX_DEPTH:
                    raise ModelError(f"byte {at}: groups are nested more than {MAX_DEPTH} deep")
            elif wire == GROUP_END and open_groups and open_groups[-1] == number:
                open_groups.pop()
            else:
                raise ModelError(f"byte {start}: a group that does not end well; the file is corrupt")
            if not open_groups:
                return at
            start = at
            key, at = varint(self.data, at, end)
            number, wire = key >> 3, key & 7


_NUMBER_TYPES = {"float32": "<f4", "float64": "<f8"}


def numbers(kind: str, data: Any) -> np.ndarray:
    """Packed numbers (float32, float64, int32, int64 or uint64) as an array; floats are a view of `data`."""
    if kind in _NUMBER_TYPES:
        dtype = np.dtype(_NUMBER_TYPES[kind])
        if len(data) % dtype.itemsize:
            raise ModelError(f"{len(data)} bytes do not hold a whole number of {kind} values; the file is corrupt")
        return np.frombuffer(data, dtype)
    return _varints(np.frombuffer(data, np.uint8)).astype(kind)  # wraps, as the format says


def count_varints(data: Any) -> int:
    """How many varints a packed field holds."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) < 0x80))


def _varints(raw: np.ndarray) -> np.ndarray:
    """All varints of a byte array as uint64, column by column: first all first bytes, then all second bytes ..."""
    last = np.flatnonzero(raw < 0x80)
    if len(raw) and (not len(last) or last[-1] != len(raw) - 1):
        raise ModelError("packed numbers end within a number; the file is truncated or corrupt")
    if len(last) == len(raw):
        return raw.astype(np.uint64)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 9:
        raise ModelError("a packed number takes more than ten bytes; the file is corrupt")
    out = (raw[first] & 0x7F).astype(np.uint64)
    at, rows = first, np.arange(len(first))
    for column in range(1, 10):
        more = at < last[rows]
        rows, at = rows[more], at[more] + 1
        if not len(rows):
            break
        out[rows] |= (raw[at] & 0x7F).astype(np.uint64) << np.uint64(7 * column)
    return out


# ---- writing

_ONE_BYTE = [bytes([value]) for value in range(0x80)]
SMALL = 1024  # bytes up to which a copy is cheaper than a list entry


def encode_varint(value: int) -> bytes:
    """An integer of -2**63 to 2**64-1 as a varint."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(message: Message) -> tuple[list[Any], int]:
    """The message as a list of buffers to be written one after another, and their total size in bytes.

    Views of weights are put in the list as they are, so nothing big is copied here.
    """
    parts: list[Any] = []
    return parts, _encode(message, parts)


def _encode(message: Message, parts: list[Any]) -> int:
    total = 0
    for name, value in message.__dict__.items():
        field = message.by_name[name]
        for item in value if field.repeated else (value,):
            if field.message is not None:
                at = len(parts)
                parts.append(b"")  # the head, known when the size is
                size = _encode(item, parts)
                head = parts[at] = field.head + encode_varint(size)
                total += len(head) + size
                continue
            body: Any = b""
            if field.wire == LENGTH:
                body = _utf8(item) if isinstance(item, str) else item
                head = field.head + encode_varint(len(body))
            else:
                head = field.head + (encode_varint(item) if field.wire == VARINT else struct.pack("<f", item))
            if len(body) > SMALL:
                parts += [head, body]
            else:
                parts.append(head + bytes(body))
            total += len(head) + len(body)
    return total


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ModelError(f"the name {text!r} cannot be written as UTF-8") from None
