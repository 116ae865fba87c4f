"""Native files of a compiled model: an object that holds its constants, a static archive, a shared library.

The weights of a model never pass through LLVM, which would take minutes and gigabytes for them: the code refers to
them as an undefined symbol, and they are put into LLVM's object file afterwards. Nothing here needs a linker or `ar`.

Sources: System V ABI (gABI) chapters 4 and 5; the archive format as GNU binutils describes it (`ar`, bfd).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from minifer.codegen import elf, objects
from minifer.errors import KernelError

_RELOCATABLE = 1
_SHT_SYMBOLS, _SHT_STRINGS = objects.SHT_SYMTAB, 3
_LOCAL, _GLOBAL = 0, 1  # binding of a symbol
_OBJECT, _FUNCTION = 1, 2  # type of a symbol
_INTERNAL, _HIDDEN = 1, 2  # visibility of a symbol
#: sections from here on are no sections, but marks (absolute, common ...)
_RESERVED = 0xFF00
_LARGEST_ALIGNMENT = 1 << 16
#: LLVM's usual code model reaches 2 GiB; some of it is left for the code
_REACH = (1 << 31) - (1 << 24)


@dataclass(frozen=True)
class _Layout:
    """The structures of 32-bit or 64-bit ELF: the header behind the 16 bytes of identification, a section header,
    and a symbol with the places of its name, info, other, section, value and size."""

    header: struct.Struct
    section: struct.Struct
    symbol: struct.Struct
    order: tuple[int, ...]
    word: int
    limit: int


_LAYOUTS = {
    1: _Layout(
        struct.Struct("<HHIIIIIHHHHHH"), struct.Struct("<10I"), struct.Struct("<IIIBBH"), (0, 3, 4, 5, 1, 2), 4, 1 << 32
    ),
    2: _Layout(
        struct.Struct("<HHIQQQIHHHHHH"),
        struct.Struct("<IIQQQQIIQQ"),
        struct.Struct("<IBBHQQ"),
        (0, 1, 2, 3, 4, 5),
        8,
        1 << 63,
    ),
}
# places in a header and in a section header
_MACHINE, _SECTIONS_AT, _SECTION_SIZE, _SECTION_COUNT, _NAMES = 1, 5, 10, 11, 12
_NAME, _KIND, _FLAGS, _ADDRESS, _OFFSET, _SIZE, _LINK, _INFO, _ALIGN, _ENTRY = range(10)


@dataclass(frozen=True)
class _Symbol:
    """One entry of the symbol table: its number there and what it says."""

    index: int
    name: bytes
    info: int
    other: int
    section: int
    value: int
    size: int

    @property
    def is_global(self) -> bool:
        return self.info >> 4 != _LOCAL

    @property
    def is_hidden(self) -> bool:
        return self.other & 3 in (_INTERNAL, _HIDDEN)


class _Object:
    """A relocatable ELF file of either class, with every place in it checked; KernelError for any other file."""

    def __init__(self, data: bytes | memoryview):
        view = memoryview(data)
        layout = _LAYOUTS.get(view[4]) if bytes(view[:4]) == b"\x7fELF" and len(view) > 6 else None
        if layout is None or view[5] != 1 or len(view) < 16 + layout.header.size:
            raise KernelError("not a little-endian ELF object")
        self.layout = layout
        self.identification = bytes(view[:16])
        self.header = list(layout.header.unpack_from(view, 16))
        if self.header[0] != _RELOCATABLE:
            raise KernelError(f"an ELF file of type {self.header[0]}, not a relocatable object")
        table, entry, count = (self.header[i] for i in (_SECTIONS_AT, _SECTION_SIZE, _SECTION_COUNT))
        if entry != layout.section.size or not 0 < count < _RESERVED or table + entry * count > len(view):
            raise KernelError("the section table of an ELF object is damaged")
        self.sections = [list(layout.section.unpack_from(view, table + entry * i)) for i in range(count)]
        self.contents = [self._content(view, section) for section in self.sections]
        self._strings(self.header[_NAMES])

    @staticmethod
    def _content(view: memoryview, section: list[int]) -> memoryview:
        kind, offset, size, align = (section[i] for i in (_KIND, _OFFSET, _SIZE, _ALIGN))
        if align > _LARGEST_ALIGNMENT or align & (align - 1):
            raise KernelError(f"a section of an ELF object is aligned to {align}: the file is damaged")
        if kind in (0, objects.SHT_NOBITS):
            return view[:0]
        if offset + size > len(view):
            raise KernelError("a section of an ELF object lies outside of the file: it is cut short")
        return view[offset : offset + size]

    def _strings(self, index: int) -> bytes:
        if index >= len(self.sections) or self.sections[index][_KIND] != _SHT_STRINGS:
            raise KernelError("an ELF object lacks a table of names")
        return bytes(self.contents[index])

    @property
    def symbol_table(self) -> int:
        """The number of the section with the symbols; 0 if there is none."""
        return next((i for i, section in enumerate(self.sections) if section[_KIND] == _SHT_SYMBOLS), 0)

    def symbols(self) -> Iterator[_Symbol]:
        table = self.symbol_table
        if not table:
            return
        strings, content, layout = self._strings(self.sections[table][_LINK]), self.contents[table], self.layout
        for index in range(len(content) // layout.symbol.size):
            fields = layout.symbol.unpack_from(content, index * layout.symbol.size)
            name, info, other, section, value, size = (fields[i] for i in layout.order)
            end = strings.find(b"\0", name)
            if end < 0:
                raise KernelError("the name of a symbol in an ELF object lies outside of its table")
            yield _Symbol(index, strings[name:end], info, other, section, value, size)

    def section_name(self, index: int) -> str:
        return (
            self._strings(self.header[_NAMES])[self.sections[index][_NAME] :].split(b"\0")[0].decode(errors="replace")
        )

    def write(self) -> bytes:
        """The file anew, section after section and the table of sections last."""
        layout = self.layout
        parts: list[bytes | memoryview] = []
        at = 16 + layout.header.size
        for section, content in zip(self.sections, self.contents):
            parts.append(bytes(-at % max(section[_ALIGN], 1)))
            at += len(parts[-1])
            parts.append(content)
            if section[_KIND]:
                section[_OFFSET] = at
            at += len(content)
        parts.append(bytes(-at % layout.word))
        at += len(parts[-1])
        self.header[_SECTIONS_AT], self.header[_SECTION_COUNT] = at, len(self.sections)
        if at + layout.section.size * len(self.sections) > layout.limit:
            raise KernelError("a 32-bit object file holds less than 4 GiB")
        head = self.identification + layout.header.pack(*self.header)
        return b"".join([head, *parts, *(layout.section.pack(*section) for section in self.sections)])


def _bytes_of(data) -> memoryview:
    """Any contiguous buffer as bytes, not copied."""
    try:
        view = memoryview(data)
        return view.cast("B") if view.nbytes else memoryview(b"")
    except TypeError as problem:
        raise KernelError(f"constants must be contiguous bytes: {problem}") from None


def with_data(object_code: bytes, symbol: str, data, align: int = 64) -> bytes:
    """The relocatable object with its undefined `symbol` defined: `data` in a new section `.rodata.<symbol>`.

    `data` is any contiguous buffer; it is copied once, into the result. The symbol becomes global and hidden: visible
    to the objects it is linked with, not outside of their program or library. Works for 64-bit and 32-bit ELF. Where
    there is no data and nothing refers to it, the object is returned as it is.
    KernelError if the object is damaged, does not refer to the symbol or defines it, and for more data than code
    reaches.
    """
    content = _bytes_of(data)
    if align < 1 or align > _LARGEST_ALIGNMENT or align & (align - 1):
        raise KernelError(f"cannot align constants to {align}: give a power of two up to {_LARGEST_ALIGNMENT}")
    if len(content) > _REACH:
        raise KernelError(
            f"{len(content)} bytes of constants do not fit into a native object, whose code reaches {_REACH}: "
            "keep the weights in a file of their own (--weights separate)"
        )
    target, wanted = _Object(object_code), symbol.encode(errors="replace")
    entry = next((s for s in target.symbols() if s.is_global and s.name == wanted), None)
    if symbol and entry is None and not len(content):
        return bytes(object_code)
    if not symbol or entry is None:
        raise KernelError(f"the object does not refer to {symbol!r}")
    if entry.section:
        raise KernelError(f"the object defines {symbol} already")
    size = len(content)
    if not size:  # linkers give an empty section no place
        content = memoryview(b"\0")
    _define(target, entry, size)
    _append(target, f".rodata.{symbol}", content, align)
    return target.write()


def _define(target: _Object, entry: _Symbol, size: int) -> None:
    """The symbol as hidden data at the start of the section that comes next."""
    layout, section = target.layout, len(target.sections)
    table = bytearray(target.contents[target.symbol_table])
    at = entry.index * layout.symbol.size
    fields = list(layout.symbol.unpack_from(table, at))
    new = (fields[layout.order[0]], _GLOBAL << 4 | _OBJECT, entry.other & ~3 | _HIDDEN, section, 0, size)
    for place, value in zip(layout.order, new):
        fields[place] = value
    layout.symbol.pack_into(table, at, *fields)
    target.contents[target.symbol_table] = memoryview(table)


def _append(target: _Object, name: str, content: memoryview, align: int) -> None:
    """A read-only section behind all others, so that these keep their numbers."""
    if len(target.sections) + 1 >= _RESERVED:
        raise KernelError("the object has too many sections")
    names = target.header[_NAMES]
    strings = bytes(target.contents[names])
    if not strings.endswith(b"\0"):
        strings += b"\0"
    longer = strings + name.encode() + b"\0"
    target.contents[names] = memoryview(longer)
    target.sections[names][_SIZE] = len(longer)
    target.sections.append(
        [len(strings), objects.SHT_PROGBITS, objects.SHF_ALLOC, 0, 0, len(content), 0, 0, align, 0],
    )
    target.contents.append(content)


# -------- undefined symbols


def undefined_symbols(object_code: bytes) -> set[str]:
    """The names, as C has them, that an ELF, COFF (x86-64), Mach-O (64-bit) or WebAssembly object expects from
    elsewhere; KernelError if it is damaged."""
    kind = bytes(object_code[:4])
    try:
        if kind == b"\0asm":
            return objects.undefined_symbols(object_code)
        if kind == _MACH_O:
            return set(_mach_o_undefined(object_code))
        if kind[:2] == _COFF_X86_64:
            return set(_coff_undefined(object_code))
    except (struct.error, IndexError, ValueError):
        raise KernelError("the symbols of an object cannot be read: it is damaged") from None
    found = (s.name for s in _Object(object_code).symbols() if s.name and not s.section)
    return {name.decode(errors="replace") for name in found}


_COFF_X86_64 = b"\x64\x86"
_MACH_O = b"\xcf\xfa\xed\xfe"


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _coff_undefined(data: bytes) -> Iterator[str]:
    """Source: Microsoft, PE Format."""
    symbols, count = struct.unpack_from("<II", data, 8)
    strings, index = symbols + 18 * count, 0
    while index < count:
        name, value, section, _, storage, more = struct.unpack_from("<8sIhHBB", data, symbols + 18 * index)
        if storage == 2 and section == 0 and value == 0:  # external; with a value it would be common data
            if name[:4] == bytes(4):  # a long name stands in the table of strings
                yield _string(data, strings + int.from_bytes(name[4:], "little"))
            else:
                yield name.rstrip(b"\0").decode()
        index += 1 + more


def _mach_o_undefined(data: bytes) -> Iterator[str]:
    """Source: Apple, <mach-o/loader.h> and <mach-o/nlist.h>."""
    (commands,) = struct.unpack_from("<I", data, 16)
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if size < 8:
            raise ValueError
        if command == 2:  # the symbol table
            symbols, count, strings = struct.unpack_from("<III", data, at + 8)
            for index in range(count):
                name, kind, _, _, value = struct.unpack_from("<IBBHQ", data, symbols + 16 * index)
                if kind & 0xEF == 1 and value == 0:  # external, in no section, and no note of a debugger
                    yield _string(data, strings + name).removeprefix("_")
        at += size


def check_no_undefined(object_code: bytes, allowed: Collection[str] = ()) -> None:
    """KernelError that names the symbols which the object expects from elsewhere, other than those allowed."""
    missing = sorted(undefined_symbols(object_code) - set(allowed))
    if missing:
        raise KernelError(f"the code needs {', '.join(missing)} from a library; compiled models may need none")


# -------- archives

_MAGIC = b"!<arch>\n"
_MEMBER_HEADER = 60
_LARGEST_MEMBER = 10**10 - 1  # ten decimal digits
_SMALL = 1 << 32  # up to here an index has numbers of 32 bits


def archive(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A static library in GNU's `ar` format, of (file name, content), with an index of the symbols of ELF members.

    Dates, owners and the order are always the same, so equal members give equal archives. Members that are no ELF
    objects are held without symbols. KernelError for a name that cannot be one, a damaged object, or a member of
    10 GB or more.
    """
    contents = [_bytes_of(content) for _, content in members]
    index = [(name, i) for i, content in enumerate(contents) for name in _defined(content)]
    titles, long_names = _titles([name for name, _ in members])
    word = 4
    head, places = _index(index, contents, long_names, word)
    if places and places[-1] >= _SMALL:
        word = 8
        head, places = _index(index, contents, long_names, word)
    parts: list[bytes | memoryview] = [_MAGIC, head]
    if long_names:
        parts += _member(b"//", memoryview(long_names))
    for title, content in zip(titles, contents):
        parts += _member(title, content)
    return b"".join(parts)


def _defined(content: memoryview) -> list[bytes]:
    """Names of the symbols that the linker shall find a member by."""
    if bytes(content[:4]) != b"\x7fELF":
        return []
    return [s.name for s in _Object(content).symbols() if s.name and s.is_global and s.section]


def _titles(names: Sequence[str]) -> tuple[list[bytes], bytes]:
    """(what stands in the headers of the members, the table of the names that are longer than 15 bytes)."""
    titles, table = [], b""
    for name in names:
        if not name or not name.isprintable() or "/" in name:
            raise KernelError(f"{name!r} cannot be the name of a file in an archive")
        encoded = name.encode()
        if len(encoded) <= 15:
            titles.append(encoded + b"/")
        else:
            titles.append(b"/%d" % len(table))
            table += encoded + b"/\n"
    return titles, table


def _member(title: bytes, content: memoryview) -> list[bytes | memoryview]:
    """Header, content and what fills it up to an even length."""
    if len(content) > _LARGEST_MEMBER:
        raise KernelError(f"{len(content)} bytes are too many for a file in an archive")
    header = b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (title, 0, 0, 0, b"644", len(content))
    return [header, content, b"\n"[: len(content) % 2]]


def _index(index: list[tuple[bytes, int]], contents: list[memoryview], long_names: bytes, word: int):
    """(the member with the index, places of all members), with numbers of `word` bytes."""
    names = b"".join(name + b"\0" for name, _ in index)
    size = word * (1 + len(index)) + len(names)
    names += bytes(size % 2)
    at = len(_MAGIC) + _MEMBER_HEADER + size + size % 2
    if long_names:
        at += _MEMBER_HEADER + len(long_names) + len(long_names) % 2
    places = []
    for content in contents:
        places.append(at)
        at += _MEMBER_HEADER + len(content) + len(content) % 2
    numbers = [len(index), *(places[i] for _, i in index)]
    if word == 4:
        numbers = [n & 0xFFFFFFFF for n in numbers]  # those of 32 bits are used only if they fit
    packed = struct.pack(f">{len(numbers)}{'I' if word == 4 else 'Q'}", *numbers)
    return b"".join(_member(b"/" if word == 4 else b"/SYM64/", memoryview(packed + names))), places


# -------- shared libraries

_EM_RISCV = 243
_PAGE = {objects.EM_X86_64: 0x1000, objects.EM_AARCH64: 0x10000, _EM_RISCV: 0x1000}
_SHF_EXECUTE, _SHT_REL = 4, 9
_READ, _READ_WRITE, _READ_EXECUTE = 4, 6, 5  # flags of a segment
_SEGMENTS = 5
_HEADER = 64
#: how far the jumps and addresses of aarch64 reach whose patches drop higher bits
_AARCH64_REACH = {274: 1 << 20, 282: 1 << 27, 283: 1 << 27}
_SECTION_NAMES = (b"", b".dynsym", b".dynstr", b".hash", b".rodata", b".text", b".dynamic", b".shstrtab")
_DYNSYM, _DYNSTR, _HASH, _RODATA, _TEXT, _DYNAMIC, _SHSTRTAB = range(1, 8)


def link_library(files: Sequence[bytes], exports: Sequence[str], name: str) -> bytes:
    """The shared library `name` of relocatable ELF64 objects for x86-64, aarch64 or riscv64; exports only `exports`.

    Unlike `elf.link_shared`, which makes what the engine itself loads, constants are not executable and are copied
    just once, so that they may be large, and there is no memory to write to. KernelError for what it cannot link:
    undefined symbols, writable data, damaged objects.
    """
    return _Library([_Object(file) for file in files], list(exports), name).link()


class _Library:
    """One segment to read (tables, constants), one to execute, and one with the dynamic section, which loaders write
    to. In the file they follow one another; in memory each begins a page further on, so that none shares a page."""

    def __init__(self, files: list[_Object], exports: list[str], name: str):
        self.files, self.exports = files, exports
        if not files or any(f.header[_MACHINE] not in _PAGE or f.layout is not _LAYOUTS[2] for f in files):
            raise KernelError("shared libraries can be linked of ELF objects for x86-64, aarch64 and riscv64")
        self.machine, self.flags = files[0].header[_MACHINE], files[0].header[6]
        if any((f.header[_MACHINE], f.header[6]) != (self.machine, self.flags) for f in files):
            raise KernelError("objects for different machines cannot be linked")
        if any(not text or not text.isprintable() for text in (name, *exports)):
            raise KernelError("a library and what it exports need names")
        self.page = _PAGE[self.machine]
        self.symbols = [list(f.symbols()) for f in files]
        self.strings = b"\0" + b"".join(text.encode() + b"\0" for text in (name, *exports))
        self.places: dict[tuple[int, int], int] = {}  # (file, section) -> address
        self._lay_out()
        self.globals = self._find_globals()

    def _lay_out(self) -> None:
        """Place of everything: (start in the file, end) of every section of the library."""
        count = len(self.exports)
        self.spans = {_DYNSYM: (at := _HEADER + 56 * _SEGMENTS, at + 24 * (count + 1))}
        self.spans[_DYNSTR] = (at := self.spans[_DYNSYM][1], at + len(self.strings))
        self.spans[_HASH] = (at := _aligned(self.spans[_DYNSTR][1], 8), at + 4 * (4 + count))
        self.spans[_RODATA] = self._place(self.spans[_HASH][1], 0, executable=False)
        self.spans[_TEXT] = self._place(self.spans[_RODATA][1], self.page, executable=True)
        self.spans[_DYNAMIC] = (at := _aligned(self.spans[_TEXT][1], 16), at + 16 * 7)
        self.spans[_SHSTRTAB] = (at := self.spans[_DYNAMIC][1], at + len(b"\0".join(_SECTION_NAMES)) + 1)

    def _address(self, section: int) -> int:
        return self.spans[section][0] + self.page * {_TEXT: 1, _DYNAMIC: 2}.get(section, 0)

    def _place(self, position: int, distance: int, executable: bool) -> tuple[int, int]:
        """Addresses, `distance` above the place in the file, of all constants or of all code."""
        start = None
        for i, file in enumerate(self.files):
            for j, section in enumerate(file.sections):
                flags, kind, size = section[_FLAGS], section[_KIND], section[_SIZE]
                if not flags & objects.SHF_ALLOC:
                    continue
                if size and (flags & objects.SHF_WRITE or kind == objects.SHT_NOBITS):
                    raise KernelError(f"cannot link data that is written to (section {file.section_name(j)})")
                if kind != objects.SHT_PROGBITS or bool(flags & _SHF_EXECUTE) != executable:
                    continue
                if section[_ALIGN] > self.page:
                    raise KernelError(f"cannot link a section that is aligned to {section[_ALIGN]}")
                if file.section_name(j) == ".eh_frame":
                    continue
                position = _aligned(position, section[_ALIGN])
                start = position if start is None else start
                self.places[i, j] = position + distance
                position += size
        return position if start is None else start, position

    def _find_globals(self) -> dict[bytes, tuple[int, _Symbol]]:
        """Name -> (address, symbol) of what the files define for one another."""
        found: dict[bytes, tuple[int, _Symbol]] = {}
        for i, symbols in enumerate(self.symbols):
            for symbol in symbols:
                if symbol.is_global and (i, symbol.section) in self.places:
                    if symbol.name in found:
                        raise KernelError(f"{symbol.name.decode(errors='replace')} is defined twice")
                    found[symbol.name] = self.places[i, symbol.section] + symbol.value, symbol
        return found

    def link(self) -> bytes:
        chunks: list[tuple[int, bytes | memoryview]] = [
            (0, self._header()),
            (_HEADER, self._segments()),
            (self.spans[_DYNSYM][0], self._symbol_table()),
            (self.spans[_DYNSTR][0], self.strings),
            (self.spans[_HASH][0], self._hash_table()),
        ]
        for (i, j), place in self.places.items():
            distance = self.page if self.files[i].sections[j][_FLAGS] & _SHF_EXECUTE else 0
            chunks.append((place - distance, self._relocated(i, j)))
        chunks.append((self.spans[_DYNAMIC][0], self._dynamic()))
        chunks.append((self.spans[_SHSTRTAB][0], b"\0".join(_SECTION_NAMES) + b"\0"))
        chunks.append((self._table_at(), self._sections()))
        parts, at = [], 0
        for place, content in chunks:
            parts += [bytes(place - at), content]
            at = place + len(content)
        return b"".join(parts)

    # -------- relocations

    def _relocated(self, i: int, j: int) -> bytes | memoryview:
        """The content of a section with the addresses filled in that it refers to."""
        file, content = self.files[i], self.files[i].contents[j]
        tables = [
            k
            for k, section in enumerate(file.sections)
            if section[_KIND] in (objects.SHT_RELA, _SHT_REL) and section[_INFO] == j
        ]
        if not tables:
            return content
        # patches see the section as part of memory that begins at a small page, which addresses are counted from
        place = self.places[i, j]
        before = place % 0x1000
        image = bytearray(before) + content
        patches = []
        for k in tables:
            table = file.contents[k]
            if file.sections[k][_KIND] == _SHT_REL or len(table) % 24:
                raise KernelError(f"cannot read the relocations in {file.section_name(k)}")
            for offset, info, addend in struct.iter_unpack("<QQq", table):
                if offset >= len(content):
                    raise KernelError(f"a relocation in {file.section_name(k)} lies outside of its section")
                value = self._value(i, info >> 32) + addend - place
                patches.append((before + offset, before + value, info & 0xFFFFFFFF))
        try:
            self._patch(image, patches)
        except struct.error:
            raise KernelError(f"an address in {file.section_name(j)} is too far away for the code to reach") from None
        return memoryview(image)[before:]

    def _value(self, i: int, number: int) -> int:
        """Where the symbol of a relocation lies."""
        if number >= len(self.symbols[i]):
            raise KernelError("a relocation names a symbol that is not in the table")
        symbol = self.symbols[i][number]
        if (i, symbol.section) in self.places:
            return self.places[i, symbol.section] + symbol.value
        if symbol.section or symbol.name not in self.globals:
            name = symbol.name.decode(errors="replace")
            raise KernelError(f"undefined symbol {name}: compiled models may not need a library")
        return self.globals[symbol.name][0]

    def _patch(self, image: bytearray, patches: list[tuple[int, int, int]]) -> None:
        if self.machine == _EM_RISCV:
            _patch_riscv(image, patches)
            return
        for place, value, kind in patches:
            if self.machine == objects.EM_X86_64:
                elf._patch_x86_64(image, place, value, kind)
            else:
                reach = _AARCH64_REACH.get(kind, 1 << 32)
                if not -reach <= value - place < reach:
                    raise struct.error
                elf._patch_aarch64(image, place, value, kind)

    # -------- tables

    def _symbol_table(self) -> bytes:
        table = bytearray(24)
        at = self.strings.index(b"\0", 1) + 1
        for name in self.exports:
            address, symbol = self.globals.get(name.encode(), (0, None))
            if symbol is None or symbol.is_hidden or symbol.info & 15 not in (0, _OBJECT, _FUNCTION):
                raise KernelError(f"no function {name} to export")
            section = _TEXT if address >= self._address(_TEXT) else _RODATA
            table += struct.pack("<IBBHQQ", at, _GLOBAL << 4 | symbol.info & 15, 0, section, address, symbol.size)
            at += len(name.encode()) + 1
        return bytes(table)

    def _hash_table(self) -> bytes:
        """A single bucket: the chain through all symbols, 1 -> 2 -> ... -> 0."""
        count = len(self.exports)
        chain = [0, *range(2, count + 1), 0][: count + 1]
        return struct.pack(f"<{4 + count}I", 1, count + 1, min(count, 1), *chain)

    def _dynamic(self) -> bytes:
        # soname, hash table, strings, symbols, size of the strings, size of a symbol, end
        entries = (
            (14, 1),
            (4, self._address(_HASH)),
            (5, self._address(_DYNSTR)),
            (6, self._address(_DYNSYM)),
            (10, len(self.strings)),
            (11, 24),
            (0, 0),
        )
        return b"".join(struct.pack("<QQ", *entry) for entry in entries)

    def _segments(self) -> bytes:
        def segment(kind: int, flags: int, start: int, end: int, address: int, align: int) -> bytes:
            size = end - start
            return struct.pack("<IIQQQQQQ", kind, flags, start, address, address, size, size, align)

        load, dynamic, stack = 1, 2, 0x6474E551
        text, last = (*self.spans[_TEXT], self._address(_TEXT)), (*self.spans[_DYNAMIC], self._address(_DYNAMIC))
        return b"".join(
            (
                segment(load, _READ, 0, self.spans[_RODATA][1], 0, self.page),
                segment(load, _READ_EXECUTE, *text, self.page),
                segment(load, _READ_WRITE, *last, self.page),
                segment(dynamic, _READ_WRITE, *last, 8),
                segment(stack, _READ_WRITE, 0, 0, 0, 16),
            )
        )

    def _table_at(self) -> int:
        return _aligned(self.spans[_SHSTRTAB][1], 8)

    def _header(self) -> bytes:
        shared, version = 3, 1
        count = len(_SECTION_NAMES)
        return b"\x7fELF\2\1\1" + bytes(9) + struct.pack(
            "<HHIQQQIHHHHHH", shared, self.machine, version, 0, _HEADER, self._table_at(), self.flags,
            _HEADER, 56, _SEGMENTS, 64, count, _SHSTRTAB,
        )  # fmt: skip

    def _sections(self) -> bytes:
        """Section headers, which static linkers and debuggers look at: kind, flags, link, info, align, entry size."""
        alloc, write, execute = objects.SHF_ALLOC, objects.SHF_WRITE, _SHF_EXECUTE
        facts = {
            _DYNSYM: (11, alloc, _DYNSTR, 1, 8, 24),
            _DYNSTR: (3, alloc, 0, 0, 1, 0),
            _HASH: (5, alloc, _DYNSYM, 0, 8, 4),
            _RODATA: (1, alloc, 0, 0, 1, 0),
            _TEXT: (1, alloc | execute, 0, 0, 1, 0),
            _DYNAMIC: (6, alloc | write, _DYNSTR, 0, 8, 16),
            _SHSTRTAB: (3, 0, 0, 0, 1, 0),
        }
        table, name = bytearray(64), 1
        for section, (kind, flags, link, info, align, entry) in facts.items():
            start, end = self.spans[section]
            address = self._address(section) if flags else 0
            table += struct.pack(
                "<IIQQQQIIQQ", name, kind, flags, address, start, end - start, link, info, align, entry
            )
            name += len(_SECTION_NAMES[section]) + 1
        return bytes(table)


def _aligned(value: int, to: int) -> int:
    return -(-value // max(to, 1)) * max(to, 1)


def _patch_riscv(image: bytearray, patches: list[tuple[int, int, int]]) -> None:
    """All relocations of a section. The lower halves of addresses name the instruction with the upper half."""
    upper: dict[int, int] = {}
    for place, value, kind in patches:
        if kind in (19, 23):  # R_RISCV_CALL_PLT, R_RISCV_PCREL_HI20
            distance = upper[place] = value - place
            high = struct.pack("<i", (distance + 0x800 >> 12 << 12))
            _merge(image, place, int.from_bytes(high, "little"), 0xFFFFF000)
            if kind == 19:
                _merge(image, place + 4, (distance & 0xFFF) << 20, 0xFFF00000)
    for place, value, kind in patches:
        if kind == 24:  # PCREL_LO12_I
            if value not in upper:
                raise KernelError("half of an address in RISC-V code lacks its other half")
            _merge(image, place, (upper[value] & 0xFFF) << 20, 0xFFF00000)
        elif kind in (35, 39):  # ADD32, SUB32
            (word,) = struct.unpack_from("<I", image, place)
            struct.pack_into("<I", image, place, word + (value if kind == 35 else -value) & 0xFFFFFFFF)
        elif kind not in (19, 23, 51):  # 51: RELAX, a permission to shorten
            raise KernelError(f"cannot link RISC-V relocation {kind}")


def _merge(image: bytearray, place: int, bits: int, mask: int) -> None:
    (word,) = struct.unpack_from("<I", image, place)
    struct.pack_into("<I", image, place, word & ~mask & 0xFFFFFFFF | bits & mask)
