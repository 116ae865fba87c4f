"""Reading relocatable object files: ELF64 in full, and the undefined symbols of a wasm object.

Sources: System V ABI (gABI) chapters 4 and 5; WebAssembly tool-conventions, Linking.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from minifer.errors import KernelError

SHT_PROGBITS, SHT_SYMTAB, SHT_RELA, SHT_NOBITS = 1, 2, 4, 8
SHF_WRITE, SHF_ALLOC = 1, 2
EM_X86_64, EM_AARCH64 = 62, 183


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
            raise KernelError("not a little-endian ELF64 object")
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


def undefined_symbols(data: bytes) -> set[str]:
    """The names an object file (ELF64 or wasm) expects from elsewhere."""
    if data[:4] == b"\0asm":
        return _wasm_undefined(data)
    return {s.name for s in ElfObject(data).symbols if s.name and s.section == 0}


#: what every wasm linker provides
_WASM_PROVIDED = {"__linear_memory", "__stack_pointer", "__indirect_function_table"}


class _Reader:
    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def name(self) -> str:
        size = self.unsigned()
        self.at += size
        return self.data[self.at - size : self.at].decode()


def _wasm_undefined(data: bytes) -> set[str]:
    """The imports of a wasm object, each by its field name, but for what linkers provide."""
    reader = _Reader(data, 8)
    while reader.at < len(data):
        section, size = reader.byte(), reader.unsigned()
        if section == 2:
            return {n for n in (_wasm_import(reader) for _ in range(reader.unsigned())) if n not in _WASM_PROVIDED}
        reader.at += size
    return set()


def _wasm_import(reader: _Reader) -> str:
    reader.name()
    field, kind = reader.name(), reader.byte()
    if kind == 0:  # function: type index
        reader.unsigned()
    elif kind == 3:  # global: type, mutability
        reader.at += 2
    else:  # table (element type, limits), memory (limits)
        reader.at += 1 if kind == 1 else 0
        has_maximum = reader.unsigned() & 1
        reader.unsigned()
        if has_maximum:
            reader.unsigned()
    return field
