"""Reading relocatable ELF files, of 32 and of 64 bits, and writing them anew.

Sources: System V ABI (gABI) chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from minifer.errors import KernelError

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 1, 2, 3, 4, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECUTE = 1, 2, 4
EM_X86_64, EM_AARCH64, EM_RISCV = 62, 183, 243
LOCAL, GLOBAL = 0, 1  # binding of a symbol
OBJECT, FUNCTION = 1, 2  # type of a symbol
INTERNAL, HIDDEN = 1, 2  # visibility of a symbol
#: sections from here on are no sections, but marks (absolute, common ...)
RESERVED = 0xFF00
LARGEST_ALIGNMENT = 1 << 16
_RELOCATABLE = 1


@dataclass(frozen=True)
class Layout:
    """The structures of 32-bit or 64-bit ELF: the header behind the 16 bytes of identification, a section header,
    and a symbol with the places of its name, info, other, section, value and size."""

    header: struct.Struct
    section: struct.Struct
    symbol: struct.Struct
    order: tuple[int, ...]
    word: int
    limit: int


LAYOUTS = {
    1: Layout(
        struct.Struct("<HHIIIIIHHHHHH"), struct.Struct("<10I"), struct.Struct("<IIIBBH"), (0, 3, 4, 5, 1, 2), 4, 1 << 32
    ),
    2: Layout(
        struct.Struct("<HHIQQQIHHHHHH"),
        struct.Struct("<IIQQQQIIQQ"),
        struct.Struct("<IBBHQQ"),
        (0, 1, 2, 3, 4, 5),
        8,
        1 << 63,
    ),
}
# places in a header and in a section header
MACHINE, SECTIONS_AT, SECTION_SIZE, SECTION_COUNT, NAMES = 1, 5, 10, 11, 12
NAME, KIND, FLAGS, ADDRESS, OFFSET, SIZE, LINK, INFO, ALIGN, ENTRY = range(10)


@dataclass(frozen=True)
class Symbol:
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
        return self.info >> 4 != LOCAL

    @property
    def is_hidden(self) -> bool:
        return self.other & 3 in (INTERNAL, HIDDEN)


class ElfObject:
    """A relocatable ELF file of either class, with every place in it checked; KernelError for any other file."""

    def __init__(self, data: bytes | memoryview):
        view = memoryview(data)
        layout = LAYOUTS.get(view[4]) if bytes(view[:4]) == b"\x7fELF" and len(view) > 6 else None
        if layout is None or view[5] != 1 or len(view) < 16 + layout.header.size:
            raise KernelError("not a little-endian ELF object")
        self.layout = layout
        self.identification = bytes(view[:16])
        self.header = list(layout.header.unpack_from(view, 16))
        if self.header[0] != _RELOCATABLE:
            raise KernelError(f"an ELF file of type {self.header[0]}, not a relocatable object")
        table, entry, count = (self.header[i] for i in (SECTIONS_AT, SECTION_SIZE, SECTION_COUNT))
        if entry != layout.section.size or not 0 < count < RESERVED or table + entry * count > len(view):
            raise KernelError("the section table of an ELF object is damaged")
        self.sections = [list(layout.section.unpack_from(view, table + entry * i)) for i in range(count)]
        self.contents = [self._content(view, section) for section in self.sections]
        self._strings(self.header[NAMES])

    @staticmethod
    def _content(view: memoryview, section: list[int]) -> memoryview:
        kind, offset, size, align = (section[i] for i in (KIND, OFFSET, SIZE, ALIGN))
        if align > LARGEST_ALIGNMENT or align & (align - 1):
            raise KernelError(f"a section of an ELF object is aligned to {align}: the file is damaged")
        if kind in (0, SHT_NOBITS):
            return view[:0]
        if offset + size > len(view):
            raise KernelError("a section of an ELF object lies outside of the file: it is cut short")
        return view[offset : offset + size]

    def _strings(self, index: int) -> bytes:
        if index >= len(self.sections) or self.sections[index][KIND] != SHT_STRTAB:
            raise KernelError("an ELF object lacks a table of names")
        return bytes(self.contents[index])

    @property
    def symbol_table(self) -> int:
        """The number of the section with the symbols; 0 if there is none."""
        return next((i for i, section in enumerate(self.sections) if section[KIND] == SHT_SYMTAB), 0)

    def symbols(self) -> Iterator[Symbol]:
        table = self.symbol_table
        if not table:
            return
        strings, content, layout = self._strings(self.sections[table][LINK]), self.contents[table], self.layout
        for index in range(len(content) // layout.symbol.size):
            fields = layout.symbol.unpack_from(content, index * layout.symbol.size)
            name, info, other, section, value, size = (fields[i] for i in layout.order)
            end = strings.find(b"\0", name)
            if end < 0:
                raise KernelError("the name of a symbol in an ELF object lies outside of its table")
            yield Symbol(index, strings[name:end], info, other, section, value, size)

    def section_name(self, index: int) -> str:
        return self._strings(self.header[NAMES])[self.sections[index][NAME] :].split(b"\0")[0].decode(errors="replace")

    def write(self) -> bytes:
        """The file anew, section after section and the table of sections last."""
        layout = self.layout
        parts: list[bytes | memoryview] = []
        at = 16 + layout.header.size
        for section, content in zip(self.sections, self.contents):
            parts.append(bytes(-at % max(section[ALIGN], 1)))
            at += len(parts[-1])
            parts.append(content)
            if section[KIND]:
                section[OFFSET] = at
            at += len(content)
        parts.append(bytes(-at % layout.word))
        at += len(parts[-1])
        self.header[SECTIONS_AT], self.header[SECTION_COUNT] = at, len(self.sections)
        if at + layout.section.size * len(self.sections) > layout.limit:
            raise KernelError("a 32-bit object file holds less than 4 GiB")
        head = self.identification + layout.header.pack(*self.header)
        return b"".join([head, *parts, *(layout.section.pack(*section) for section in self.sections)])
