"""A small linker: one relocatable WebAssembly object, as LLVM writes it -> a module that needs nothing from its host.

Kept are the exported functions and what they reach by relocations: other functions, entries of the function table,
data segments, and data that the caller gives for undefined symbols (weights). Code is copied function by function, and
the operands of relocations, which LLVM pads to five bytes, get their shortest form.

Memory, from address 0: the stack, which grows down so that an overflow traps; data, first the object's and then the
caller's; what begins as zeros; and from `__heap_base` on, the host's own. Sources: the core specification of
WebAssembly, chapter 5 (binary format); WebAssembly tool-conventions, Linking.md.
"""

from __future__ import annotations

import operator
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from minifer.errors import KernelError
from minifer.onnx_io.wire import encode_varint

_HEADER = b"\0asm\1\0\0\0"
_PAGE = 1 << 16
_ALIGNMENT = 64  # of the caller's data, the stack's end and the heap, in bytes

_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT = range(8)
_ELEMENT, _CODE, _DATA, _DATA_COUNT = 9, 10, 11, 12
#: the sections that an object may have; elements and the data count are made anew
_KNOWN_SECTIONS = {_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _ELEMENT, _CODE, _DATA, _DATA_COUNT}

#: kinds of relocation
_FUNCTION_LEB, _SLOT_SLEB, _SLOT_I32, _ADDRESS_LEB, _ADDRESS_SLEB, _ADDRESS_I32, _TYPE_LEB, _GLOBAL_LEB = range(8)
_TABLE_LEB = 20
_IN_CODE = {_FUNCTION_LEB, _SLOT_SLEB, _ADDRESS_LEB, _ADDRESS_SLEB, _TYPE_LEB, _GLOBAL_LEB, _TABLE_LEB}
_IN_DATA = {_SLOT_I32, _ADDRESS_I32}
#: those that have an addend, supported or not
_WITH_ADDEND = {_ADDRESS_LEB, _ADDRESS_SLEB, _ADDRESS_I32, 8, 9, 11, 14, 15, 16, 17, 21, 22, 23, 25}

#: kinds of symbol, which for imports are the kinds of what is imported too
_SYMBOL_FUNCTION, _SYMBOL_DATA, _SYMBOL_GLOBAL, _SYMBOL_SECTION, _SYMBOL_TAG, _SYMBOL_TABLE = range(6)
_LOCAL, _UNDEFINED, _EXPLICIT_NAME, _THREAD_LOCAL, _ABSOLUTE = 2, 0x10, 0x40, 0x100, 0x200
#: the kind of symbol that a kind of relocation refers to
_SYMBOL_OF = {
    _FUNCTION_LEB: _SYMBOL_FUNCTION, _SLOT_SLEB: _SYMBOL_FUNCTION, _SLOT_I32: _SYMBOL_FUNCTION,
    _ADDRESS_LEB: _SYMBOL_DATA, _ADDRESS_SLEB: _SYMBOL_DATA, _ADDRESS_I32: _SYMBOL_DATA,
    _GLOBAL_LEB: _SYMBOL_GLOBAL, _TABLE_LEB: _SYMBOL_TABLE,
}  # fmt: skip
#: what the linker itself provides
_PROVIDED = {(_SYMBOL_GLOBAL, "__stack_pointer"), (_SYMBOL_TABLE, "__indirect_function_table")}

Item = TypeVar("Item")


def link_module(
    object_code: bytes,
    exports: Sequence[str],
    data: Mapping[str, bytes | memoryview | np.ndarray | int],
    *,
    stack_bytes: int = 1 << 16,
    names: bool = False,
) -> bytes:
    """The module that exports the named functions, `memory` and the constant `__heap_base`, and imports nothing.

    `data` says what the object's undefined data symbols are: bytes or an array, or that many zero bytes; each begins
    at a multiple of 64. What no export reaches is left out. `names`: with the names of functions, for debuggers.
    KernelError for an object that is malformed, needs what nothing provides, or lacks an export.
    """
    return b"".join(_Linker(_Object(bytes(object_code)), exports, data, stack_bytes).module(names))


# ---------------------------------------------------------------- reading


def undefined_symbols(object_code: bytes) -> set[str]:
    """The names of the functions and data that an object expects from elsewhere; KernelError if it is damaged."""
    wanted = (_SYMBOL_FUNCTION, _SYMBOL_DATA)
    return {s.name for s in _Object(object_code).symbols if s.kind in wanted and s.target is None and s.name}


def _malformed(what: str) -> KernelError:
    return KernelError(f"the WebAssembly object is malformed: {what}")


class Reader:
    """Reads the numbers, names and vectors of a part of a file; KernelError where it would read beyond its end."""

    def __init__(self, data: bytes, at: int = 0, end: int | None = None):
        self.data, self.at, self.end = data, at, len(data) if end is None else end

    def take(self, size: int) -> bytes:
        """The next bytes."""
        return self.data[self.skip(size) : self.at]

    def skip(self, size: int) -> int:
        """Pass over the next bytes; where they begin."""
        if size > self.end - self.at:
            raise _malformed(f"{size} bytes were expected at {self.at}, but {self.end - self.at} are left")
        self.at += size
        return self.at - size

    def byte(self) -> int:
        return self.data[self.skip(1)]

    def unsigned(self) -> int:
        """A number of at most 32 bits."""
        value, _ = self._number()
        if value >> 32:
            raise _malformed(f"the number that ends at {self.at} is too large")
        return value

    def signed(self) -> int:
        """A number of at most 32 bits, with its sign."""
        value, bits = self._number()
        value -= (value >> (bits - 1)) << bits
        if not -(1 << 31) <= value < 1 << 31:
            raise _malformed(f"the number that ends at {self.at} is too large")
        return value

    def _number(self) -> tuple[int, int]:
        """A number and how many bits of it were given."""
        value = 0
        for bits in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << bits
            if byte < 128:
                return value, bits + 7
        raise _malformed(f"the number that ends at {self.at} is too long")

    def name(self) -> str:
        try:
            return self.take(self.unsigned()).decode()
        except UnicodeDecodeError:
            raise _malformed(f"the name that ends at {self.at} is not UTF-8") from None

    def vector(self, item: Callable[[Reader], Item]) -> list[Item]:
        """A count and that many items."""
        return [item(self) for _ in range(self.unsigned())]

    def part(self) -> Reader:
        """The next bytes, their number first, to be read on their own."""
        size = self.unsigned()
        start = self.skip(size)
        return Reader(self.data, start, start + size)

    def finish(self, what: str) -> None:
        """KernelError unless everything was read."""
        if self.at != self.end:
            raise _malformed(f"{self.end - self.at} bytes too many in its {what}")


@dataclass(frozen=True)
class _Relocation:
    """The place at byte `at` of the file is to hold the number of symbol (or type) `index`, plus `addend`."""

    kind: int
    at: int
    index: int
    addend: int

    @property
    def end(self) -> int:
        return self.at + (5 if self.kind in _IN_CODE else 4)


@dataclass(eq=False)
class _Chunk:
    """A function's body or a data segment: bytes `start` to `end` of the file.

    `number`: of the function in the module, or the segment's address.
    """

    start: int
    end: int
    type: int = 0  # of a function
    name: str = ""
    align: int = 1  # of a segment
    relocations: list[_Relocation] = field(default_factory=list)
    number: int = -1

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class _Symbol:
    """A symbol; `target` is the function or segment that it lies in, None if undefined."""

    kind: int
    name: str
    local: bool
    target: _Chunk | None = None
    offset: int = 0  # in the segment


class _Object:
    """What a relocatable object holds."""

    def __init__(self, data: bytes):
        self.data = data
        if data[:8] != _HEADER:
            raise _malformed("it does not begin like a WebAssembly file of version 1")
        self.types: list[bytes] = []
        self.imports: dict[int, list[str]] = {kind: [] for kind in range(6)}  # names, by kind of symbol
        self.functions: list[_Chunk] = []
        self.segments: list[_Chunk] = []
        self.symbols: list[_Symbol] = []
        sections, custom, places = self._sections()
        if "linking" not in custom:
            raise KernelError("the WebAssembly file is no relocatable object: it has no section named linking")
        if _TYPE in sections:
            self.types = self._all(sections[_TYPE], _type, "types")
        if _IMPORT in sections:
            self._all(sections[_IMPORT], self._import, "imports")
        kinds = self._all(sections[_FUNCTION], Reader.unsigned, "functions") if _FUNCTION in sections else []
        if _CODE in sections:
            self.functions = self._all(sections[_CODE], _body, "code")
        if len(kinds) != len(self.functions) or any(kind >= len(self.types) for kind in kinds):
            raise _malformed("its functions and their types do not fit")
        for function, kind in zip(self.functions, kinds):
            function.type = kind
        if _DATA in sections:
            self.segments = self._all(sections[_DATA], _segment, "data")
        self._linking(custom["linking"])
        for name, reader in custom.items():
            if name.startswith("reloc."):
                self._relocations(reader, places)

    def _sections(self) -> tuple[dict[int, Reader], dict[str, Reader], list[tuple[int, int]]]:
        """The sections by their number, the custom ones by name; and of all in turn the number and the place."""
        file = Reader(self.data, len(_HEADER))
        sections: dict[int, Reader] = {}
        custom: dict[str, Reader] = {}
        places = []
        while file.at < file.end:
            number, part = file.byte(), file.part()
            places.append((number, part.at))
            if number not in _KNOWN_SECTIONS:
                raise KernelError(f"a WebAssembly object with a section of kind {number} cannot be linked")
            key = part.name() if number == _CUSTOM else ""
            if key in custom or number in sections:
                raise _malformed(f"it has section {key or number} twice")
            if number == _CUSTOM:
                custom[key] = part
            else:
                sections[number] = part
        return sections, custom, places

    @staticmethod
    def _all(section: Reader, item: Callable[[Reader], Item], what: str) -> list[Item]:
        items = section.vector(item)
        section.finish(what)
        return items

    def _import(self, reader: Reader) -> None:
        reader.name()
        name, kind = reader.name(), reader.byte()
        if kind == 0:  # a function: its type
            reader.unsigned()
            self.imports[_SYMBOL_FUNCTION].append(name)
        elif kind == 1:  # a table: the type of its elements, limits
            reader.byte()
            _limits(reader)
            self.imports[_SYMBOL_TABLE].append(name)
        elif kind == 2:  # a memory
            _limits(reader)
        elif kind == 3:  # a global: its type, whether it is variable
            reader.skip(2)
            self.imports[_SYMBOL_GLOBAL].append(name)
        else:
            raise KernelError(f"the WebAssembly object needs {name}, an import of kind {kind} that nothing provides")

    def _linking(self, reader: Reader) -> None:
        version = reader.unsigned()
        if version != 2:
            raise KernelError(f"WebAssembly objects of linking version {version} are not supported, only of version 2")
        described: list[tuple[str, int]] = []
        while reader.at < reader.end:
            kind, part = reader.byte(), reader.part()
            if kind == 5:
                described = self._all(part, _description, "descriptions of segments")
            elif kind == 6 and part.unsigned():
                raise KernelError("a WebAssembly object with functions to run at the start cannot be linked")
            elif kind == 8:
                self.symbols = self._all(part, self._symbol, "symbols")
        if len(described) != len(self.segments):
            raise _malformed(f"it has {len(self.segments)} data segments but describes {len(described)}")
        for segment, (name, power) in zip(self.segments, described):
            if power > 16:
                raise _malformed(f"{name} is to lie at a multiple of 2**{power} bytes")
            segment.name, segment.align = name, 1 << power

    def _symbol(self, reader: Reader) -> _Symbol:
        kind, flags = reader.byte(), reader.unsigned()
        local, undefined = flags & 3 == _LOCAL, bool(flags & _UNDEFINED)
        if kind == _SYMBOL_DATA:
            name = reader.name()
            if flags & (_THREAD_LOCAL | _ABSOLUTE):
                raise KernelError(f"{name}: thread-local data and absolute addresses are not supported on wasm32")
            if undefined:
                return _Symbol(kind, name, local)
            index, offset, size = reader.unsigned(), reader.unsigned(), reader.unsigned()
            segment = _item(self.segments, index, f"the segment of {name}")
            if offset + size > segment.size:
                raise _malformed(f"{name} lies outside of its data segment")
            return _Symbol(kind, name, local, segment, offset)
        index = reader.unsigned()
        if kind == _SYMBOL_SECTION:
            return _Symbol(kind, "", True)
        if kind not in self.imports:
            raise _malformed(f"a symbol of kind {kind}")
        imports = self.imports[kind]
        name = "" if undefined and not flags & _EXPLICIT_NAME else reader.name()
        if undefined:
            return _Symbol(kind, name or _item(imports, index, "the import of a symbol"), local)
        if kind != _SYMBOL_FUNCTION:
            raise KernelError(f"{name}: globals, tables and tags of an object's own are not supported on wasm32")
        function = _item(self.functions, index - len(imports), f"function {name}")
        function.name = function.name or name
        return _Symbol(kind, name, local, function)

    def _relocations(self, reader: Reader, places: list[tuple[int, int]]) -> None:
        section, start = _item(places, reader.unsigned(), "the section of relocations")
        if section == _CUSTOM:
            return  # for debuggers
        if section not in (_CODE, _DATA):
            raise _malformed(f"it has relocations for section {section}")
        what, allowed = ("code", _IN_CODE) if section == _CODE else ("data", _IN_DATA)
        chunks = self.functions if section == _CODE else self.segments

        def relocation(reader: Reader) -> _Relocation:
            kind, offset, index = reader.byte(), reader.unsigned(), reader.unsigned()
            addend = reader.signed() if kind in _WITH_ADDEND else 0
            symbol = None if kind == _TYPE_LEB else _item(self.symbols, index, "the symbol of a relocation")
            if kind not in allowed:
                raise KernelError(
                    f"cannot link a relocation of kind {kind} in the {what} of a WebAssembly object"
                    + (f", for {symbol.name}" if symbol and symbol.name else "")
                )
            if symbol is None:
                _item(self.types, index, "the type of a relocation")
            elif symbol.kind != _SYMBOL_OF[kind]:
                raise _malformed(f"a relocation of kind {kind} for {symbol.name or 'a section'}")
            return _Relocation(kind, start + offset, index, addend)

        self._assign(self._all(reader, relocation, "relocations"), chunks, what)

    def _assign(self, relocations: list[_Relocation], chunks: list[_Chunk], what: str) -> None:
        """Give the functions or segments the relocations that lie in them, in their order."""
        starts, last = [c.start for c in chunks], 0
        for relocation in sorted(relocations, key=operator.attrgetter("at")):
            at, end = relocation.at, relocation.end
            place = bisect_right(starts, at) - 1
            if at < last or place < 0 or end > chunks[place].end:
                raise _malformed(f"a relocation at {at} lies outside of its {what} or meets another")
            if what == "code" and [b >> 7 for b in self.data[at:end]] != [1, 1, 1, 1, 0]:
                raise _malformed(f"a relocation at {at} is for no number of five bytes")
            chunks[place].relocations.append(relocation)
            last = end


def _item(items: Sequence[Item], index: int, what: str) -> Item:
    if not 0 <= index < len(items):
        raise _malformed(f"{what} does not exist")
    return items[index]


def _type(reader: Reader) -> bytes:
    """The bytes of a function type."""
    start = reader.at
    if reader.byte() != 0x60:
        raise _malformed("it has types of other things than functions")
    for _ in range(2):  # parameters, results
        if not set(reader.take(reader.unsigned())) <= {0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x70, 0x6F}:
            raise _malformed("a type of value is unknown")
    return reader.data[start : reader.at]


def _limits(reader: Reader) -> None:
    flags = reader.byte()
    if flags & ~3:
        raise KernelError("WebAssembly objects with 64-bit addresses cannot be linked, only wasm32")
    for _ in range(1 + (flags & 1)):  # minimum, maximum
        reader.unsigned()


def _body(reader: Reader) -> _Chunk:
    part = reader.part()
    return _Chunk(part.at, part.end)


def _segment(reader: Reader) -> _Chunk:
    if reader.unsigned() != 0 or reader.byte() != 0x41:
        raise KernelError("a WebAssembly object with other than active data segments of memory 0 cannot be linked")
    reader.signed()
    if reader.byte() != 0x0B:
        raise _malformed("the address of a data segment is no constant")
    return _body(reader)


def _description(reader: Reader) -> tuple[str, int]:
    """A data segment's name and the power of two that it is aligned to."""
    name, power, _ = reader.name(), reader.unsigned(), reader.unsigned()
    return name, power


# ---------------------------------------------------------------- writing


def signed(value: int) -> bytes:
    """The shortest signed LEB128 form of a number."""
    form = bytearray()
    while not -64 <= value < 64:
        form.append(value & 127 | 128)
        value >>= 7
    form.append(value & 127)
    return bytes(form)


def _wrapped(value: int) -> int:
    """The 32 bits of a number, with the sign that they have in an i32.const."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def _name(text: str) -> bytes:
    form = text.encode()
    return encode_varint(len(form)) + form


def _vector(items: Sequence[bytes]) -> bytes:
    return encode_varint(len(items)) + b"".join(items)


def _constant(value: int) -> bytes:
    """The expression that gives an i32."""
    return b"\x41" + signed(_wrapped(value)) + b"\x0b"


def _section(number: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    return [bytes([number]) + encode_varint(sum(map(len, parts))), *parts]


def _aligned(value: int, to: int) -> int:
    return -(-value // to) * to


def _content(value: bytes | memoryview | np.ndarray) -> memoryview:
    """The bytes of a caller's data as they lie in memory, little-endian; copied only where they are not yet so."""
    array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else memoryview(value)).reshape(-1)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8).data


class _Linker:
    """What stays of an object, and where it goes."""

    def __init__(
        self,
        linked: _Object,
        exports: Sequence[str],
        data: Mapping[str, bytes | memoryview | np.ndarray | int],
        stack_bytes: int,
    ):
        self.object = linked
        self.exports = self._exported(exports)
        self.functions, self.segments, used = self._reach(data)
        self.types: dict[bytes, int] = {}  # numbers in the module, by content
        self.slots: dict[_Chunk, int] = {}  # of functions in the table
        self.has_table = self.has_stack = False
        self._number()
        self.addresses: dict[str, int] = {}  # of the caller's data
        self.parts: list[tuple[int, bytes | memoryview]] = []  # addresses and bytes of what does not begin as zeros
        self.stack = _aligned(max(stack_bytes, 1), _ALIGNMENT)  # so that nothing has address 0
        self.heap = self._lay_out({name: data[name] for name in data if name in used})

    def _exported(self, names: Sequence[str]) -> dict[str, _Chunk]:
        defined = {s.name: s.target for s in self.object.symbols if s.kind == _SYMBOL_FUNCTION and not s.local}
        found = {}
        for name in names:
            function = defined.get(name)
            if function is None or name in ("memory", "__heap_base"):
                raise KernelError(f"the WebAssembly object has no function {name} to export")
            found[name] = function
        return found

    def _reach(self, data: Mapping[str, object]) -> tuple[list[_Chunk], list[_Chunk], set[str]]:
        """The functions and segments that exports reach, in the object's order, and which of the data they use."""
        pending = list(self.exports.values())
        live, used, missing = set(pending), set(), set()
        while pending:
            for relocation in pending.pop().relocations:
                if relocation.kind == _TYPE_LEB:
                    continue
                symbol = self.object.symbols[relocation.index]
                if symbol.target is not None:
                    if symbol.target not in live:
                        live.add(symbol.target)
                        pending.append(symbol.target)
                elif symbol.kind == _SYMBOL_DATA and symbol.name in data:
                    used.add(symbol.name)
                elif (symbol.kind, symbol.name) not in _PROVIDED:
                    missing.add(symbol.name)
        if missing:
            raise KernelError(f"the WebAssembly object needs {', '.join(sorted(missing))}, which nothing provides")
        both = self.object.functions, self.object.segments
        functions, segments = ([c for c in chunks if c in live] for chunks in both)
        return functions, segments, used

    def _number(self) -> None:
        """Number functions, types and table entries by where they first occur."""
        for number, function in enumerate(self.functions):
            function.number = number
            self._type(function.type)
        for chunk in (*self.functions, *self.segments):
            for relocation in chunk.relocations:
                kind = relocation.kind
                if kind == _TYPE_LEB:
                    self._type(relocation.index)
                    self.has_table = True  # the type may be an indirect call's
                elif kind in (_SLOT_SLEB, _SLOT_I32):
                    target = self.object.symbols[relocation.index].target
                    assert target is not None
                    self.slots.setdefault(target, len(self.slots) + 1)
                elif kind == _GLOBAL_LEB:
                    self.has_stack = True

    def _type(self, index: int) -> int:
        """The number in the module of an object's type."""
        return self.types.setdefault(self.object.types[index], len(self.types))

    def _lay_out(self, data: Mapping[str, bytes | memoryview | np.ndarray | int]) -> int:
        """Give everything its address; where the heap begins."""
        source, end = self.object.data, self.stack

        def place(size: int, align: int) -> int:
            nonlocal end
            start = _aligned(end, align)
            end = start + size
            return start

        given = {n: _content(v) for n, v in data.items() if not isinstance(v, (int, np.integer))}
        full = [s for s in self.segments if s.relocations or source.count(0, s.start, s.end) < s.size]
        for segment in full:
            segment.number = place(segment.size, segment.align)
        for name, content in given.items():
            self.addresses[name] = place(len(content), _ALIGNMENT)
        for segment in self.segments:
            if segment.number < 0:
                segment.number = place(segment.size, segment.align)
        for name, value in data.items():
            if isinstance(value, (int, np.integer)):
                if value < 0:
                    raise KernelError(f"{name}: cannot reserve {value} bytes")
                self.addresses[name] = place(int(value), _ALIGNMENT)
        heap = place(0, _ALIGNMENT)
        if heap >= 1 << 32:
            raise KernelError(f"the module's data ends at byte {heap}, beyond the 4 GiB that wasm32 can address")
        self.parts += [(s.number, self._patched(s)) for s in full]
        self.parts += [(self.addresses[name], content) for name, content in given.items() if len(content)]
        return heap

    def _value(self, relocation: _Relocation) -> int:
        """What the place of a relocation is to hold."""
        kind = relocation.kind
        if kind == _TYPE_LEB:
            return self._type(relocation.index)
        symbol = self.object.symbols[relocation.index]
        if kind in (_GLOBAL_LEB, _TABLE_LEB):
            return 0  # the stack pointer and the table are the first of their kinds
        if symbol.kind == _SYMBOL_DATA:
            start = self.addresses[symbol.name] if symbol.target is None else symbol.target.number + symbol.offset
            address = start + relocation.addend
            if kind == _ADDRESS_LEB and not 0 <= address < 1 << 32:
                raise _malformed(f"an address relative to {symbol.name} lies outside of the memory")
            return address
        assert symbol.target is not None
        return symbol.target.number if kind == _FUNCTION_LEB else self.slots[symbol.target]

    def _patched(self, segment: _Chunk) -> bytes:
        content = bytearray(self.object.data[segment.start : segment.end])
        for relocation in segment.relocations:
            struct.pack_into("<i", content, relocation.at - segment.start, _wrapped(self._value(relocation)))
        return bytes(content)

    def _code(self, function: _Chunk) -> bytes:
        """A function's body, its length first."""
        parts, at = [], function.start
        for relocation in function.relocations:
            value = self._value(relocation)
            if relocation.kind in (_SLOT_SLEB, _ADDRESS_SLEB):
                operand = signed(_wrapped(value))
            elif relocation.kind == _TYPE_LEB:
                operand = signed(value)  # read as unsigned by calls and as signed by blocks: this form fits both
            else:
                operand = encode_varint(value)
            parts += [self.object.data[at : relocation.at], operand]
            at = relocation.end
        body = b"".join([*parts, self.object.data[at : function.end]])
        return encode_varint(len(body)) + body

    def module(self, names: bool) -> list[bytes | memoryview]:
        """The pieces of the module in their order."""
        pieces: list[bytes | memoryview] = [_HEADER]
        if self.functions:
            pieces += _section(_TYPE, _vector(list(self.types)))
            pieces += _section(_FUNCTION, _vector([encode_varint(self._type(f.type)) for f in self.functions]))
        if self.slots or self.has_table:
            size = encode_varint(len(self.slots) + 1)  # entry 0 stays empty: the null pointer
            pieces += _section(_TABLE, b"\1\x70\1" + size + size)
        pieces += _section(_MEMORY, b"\1\0" + encode_varint(-(-self.heap // _PAGE)))
        pieces += _section(_GLOBAL, _vector(self._globals()))
        functions = [_name(n) + b"\0" + encode_varint(f.number) for n, f in self.exports.items()]
        base = _name("__heap_base") + b"\3" + encode_varint(int(self.has_stack))
        pieces += _section(_EXPORT, _vector([*functions, _name("memory") + b"\2\0", base]))
        if self.slots:
            entries = _vector([encode_varint(f.number) for f in self.slots])
            pieces += _section(_ELEMENT, b"\1\0" + _constant(1) + entries)
        if self.functions:
            pieces += _section(_CODE, _vector([self._code(f) for f in self.functions]))
        if self.parts:
            pieces += self._data()
        if names:
            known = [encode_varint(f.number) + _name(f.name) for f in self.functions if f.name]
            listed = _vector(known)
            pieces += _section(_CUSTOM, _name("name") + b"\1" + encode_varint(len(listed)) + listed)
        return pieces

    def _globals(self) -> list[bytes]:
        """The stack pointer if it is used, an i32 that varies; and where the heap begins, one that does not."""
        stack = [b"\x7f\1" + _constant(self.stack)] if self.has_stack else []
        return [*stack, b"\x7f\0" + _constant(self.heap)]

    def _data(self) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = [encode_varint(len(self.parts))]
        for address, content in self.parts:
            parts += [b"\0" + _constant(address) + encode_varint(len(content)), content]
        return _section(_DATA, *parts)
