"""A reader of ELF64 files for tests, apart from the one that minifer links with."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from minifer.codegen.objects import SHF_ALLOC, SHT_RELA, SHT_SYMTAB


@dataclass(frozen=True)
class Section:
    """One section header; `info` is the section that a relocation section belongs to."""

    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


@dataclass(frozen=True)
class Symbol:
    """One symbol: where it is defined (`section` 0: nowhere here) and its value."""

    name: str
    is_global: bool
    section: int
    value: int
    size: int


@dataclass(frozen=True)
class Relocation:
    """A place in section `section` to patch with the address of `symbol` plus `addend`."""

    section: int
    offset: int
    kind: int
    symbol: Symbol
    addend: int


class ElfObject:
    """A relocatable ELF64 file."""

    def __init__(self, data: bytes):
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a little-endian ELF64 object")
        self.data = data
        header = struct.unpack_from("<HHIQQQIHHHHHH", data, 16)
        self.machine, self.flags = header[1], header[6]
        table, count, names = header[5], header[11], header[12]
        raw = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
        name_start = raw[names][4]
        self.sections = [
            Section(self._string(name_start + r[0]), r[1], r[2], r[4], r[5], r[6], r[7], r[8]) for r in raw
        ]
        self.symbols = [s for section in self.sections if section.kind == SHT_SYMTAB for s in self._symbols(section)]

    def _string(self, start: int) -> str:
        return self.data[start : self.data.index(b"\0", start)].decode()

    def _symbols(self, table: Section) -> list[Symbol]:
        strings = self.sections[table.link].offset
        found = []
        for at in range(table.offset, table.offset + table.size, 24):
            name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", self.data, at)
            found.append(Symbol(self._string(strings + name), info >> 4 != 0, section, value, size))
        return found

    def content(self, section: Section) -> bytes:
        return self.data[section.offset : section.offset + section.size]

    def relocations(self) -> list[Relocation]:
        """The relocations of all sections that end up in memory."""
        found = []
        for table in self.sections:
            if table.kind != SHT_RELA or not self.sections[table.info].flags & SHF_ALLOC:
                continue
            for at in range(table.offset, table.offset + table.size, 24):
                offset, info, addend = struct.unpack_from("<QQq", self.data, at)
                found.append(Relocation(table.info, offset, info & 0xFFFFFFFF, self.symbols[info >> 32], addend))
        return found
