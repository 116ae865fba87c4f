"""A small linker: relocatable ELF64 objects -> one shared object, for x86-64 and aarch64.

The objects must be position independent, have no writable data and no undefined symbol. The file has one segment to
read and execute (headers, symbol table, code, constants) and one to write (the dynamic section, which the loader
fills in, and zero-initialised data). Source: System V ABI (gABI) chapters 4 and 5 and the two processor supplements.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from minifer.codegen.objects import (
    EM_AARCH64,
    EM_X86_64,
    SHF_ALLOC,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_PROGBITS,
    ElfObject,
    Relocation,
)
from minifer.errors import KernelError

_PAGE = {EM_X86_64: 0x1000, EM_AARCH64: 0x10000}
_HEADER, _PROGRAM_HEADERS = 64, 4
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 4, 5, 6, 10, 11, 14


def _aligned(value: int, to: int) -> int:
    return -(-value // max(to, 1)) * max(to, 1)


def link_shared(objects: Sequence[bytes], exports: Sequence[str], name: str) -> bytes:
    """The shared object `name` that exports the given functions; KernelError for what it cannot link."""
    return _Linker([ElfObject(o) for o in objects], exports, name).link()


class _Linker:
    def __init__(self, objects: list[ElfObject], exports: Sequence[str], name: str):
        self.objects, self.exports = objects, list(exports)
        self.machine = objects[0].machine
        if self.machine not in _PAGE:
            raise KernelError(f"cannot link for ELF machine {self.machine}: only x86-64 and aarch64")
        self.strings = bytearray(b"\0")
        self.soname = self._string(name)
        self.export_names = [self._string(e) for e in self.exports]
        self.places: dict[tuple[int, int], int] = {}  # (object, section) -> address
        self._lay_out()
        self.globals = {
            s.name: (self.places[i, s.section] + s.value, s.size)
            for i, o in enumerate(objects)
            for s in o.symbols
            if s.is_global and (i, s.section) in self.places
        }

    def _string(self, text: str) -> int:
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text.encode()) - 1

    def _place(self, position: int, wanted) -> int:
        for i, o in enumerate(self.objects):
            for j, section in enumerate(o.sections):
                if section.flags & SHF_ALLOC and section.size and wanted(section):
                    position = _aligned(position, section.align)
                    self.places[i, j] = position
                    position += section.size
        return position

    def _lay_out(self) -> None:
        """Addresses of everything; in the first segment file offsets, in the second a page above them."""
        count = len(self.exports)
        self.symbols_at = _HEADER + 56 * _PROGRAM_HEADERS
        self.strings_at = self.symbols_at + 24 * (count + 1)
        self.hash_at = _aligned(self.strings_at + len(self.strings), 8)
        self.text_at = self.hash_at + 4 * (4 + count)
        for o in self.objects:
            for section in o.sections:
                if section.flags & SHF_WRITE and section.kind == SHT_PROGBITS and section.size:
                    raise KernelError(f"cannot link writable data (section {section.name})")
        constant = lambda s: s.kind == SHT_PROGBITS and s.name != ".eh_frame"  # noqa: E731
        self.text_end = self._place(self.text_at, constant)
        self.dynamic_offset = _aligned(self.text_end, 16)
        self.page = _PAGE[self.machine]
        self.dynamic_at = self.dynamic_offset + self.page
        self.dynamic_size = 16 * 7
        self.end = self._place(self.dynamic_at + self.dynamic_size, lambda s: s.kind == SHT_NOBITS)

    def link(self) -> bytes:
        image = bytearray(self.dynamic_offset)
        for (i, j), place in self.places.items():
            section = self.objects[i].sections[j]
            if section.kind == SHT_PROGBITS:
                image[place : place + section.size] = self.objects[i].content(section)
        for i, o in enumerate(self.objects):
            for relocation in o.relocations():
                if (i, relocation.section) in self.places:
                    self._relocate(image, i, relocation)
        self._write(image, self.symbols_at, self._symbol_table())
        self._write(image, self.strings_at, bytes(self.strings))
        self._write(image, self.hash_at, self._hash_table())
        image += self._dynamic()
        self._write(image, _HEADER, self._program_headers(len(image)))
        sections = self._section_headers(len(image))
        self._write(image, 0, self._header(len(image) + sections[0], sections[2]))
        return bytes(image) + sections[1]

    @staticmethod
    def _write(image: bytearray, at: int, data: bytes) -> None:
        image[at : at + len(data)] = data

    def _address(self, index: int, relocation: Relocation) -> int:
        symbol = relocation.symbol
        if symbol.section:
            return self.places[index, symbol.section] + symbol.value + relocation.addend
        if symbol.name not in self.globals:
            raise KernelError(f"undefined symbol {symbol.name}: kernels may not need a library")
        return self.globals[symbol.name][0] + relocation.addend

    def _relocate(self, image: bytearray, index: int, relocation: Relocation) -> None:
        place = self.places[index, relocation.section] + relocation.offset
        value = self._address(index, relocation)
        patch = _patch_x86_64 if self.machine == EM_X86_64 else _patch_aarch64
        patch(image, place, value, relocation.kind)

    # -------- tables

    def _symbol_table(self) -> bytes:
        table = bytearray(24)
        for at, name in zip(self.export_names, self.exports):
            if name not in self.globals:
                raise KernelError(f"no function {name} to export")
            address, size = self.globals[name]
            table += struct.pack("<IBBHQQ", at, 0x12, 0, 1, address, size)  # global function
        return bytes(table)

    def _hash_table(self) -> bytes:
        """The gABI hash table with a single bucket: a chain through all symbols."""
        count = len(self.exports)
        chain = [0] + [k + 1 for k in range(1, count)] + [0] * (count > 0)
        return struct.pack(f"<4I{count}I", 1, count + 1, 1 if count else 0, *chain[: count + 1])

    def _dynamic(self) -> bytes:
        entries = [
            (_DT_SONAME, self.soname),
            (_DT_HASH, self.hash_at),
            (_DT_STRTAB, self.strings_at),
            (_DT_SYMTAB, self.symbols_at),
            (_DT_STRSZ, len(self.strings)),
            (_DT_SYMENT, 24),
            (0, 0),
        ]
        return b"".join(struct.pack("<QQ", *e) for e in entries)

    def _program_headers(self, file_end: int) -> bytes:
        def header(kind, flags, offset, address, in_file, in_memory, align):
            return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, in_file, in_memory, align)

        offset, address = self.dynamic_offset, self.dynamic_at
        return b"".join(
            (
                header(_PT_LOAD, 5, 0, 0, self.text_end, self.text_end, self.page),
                header(_PT_LOAD, 6, offset, address, file_end - offset, self.end - address, self.page),
                header(_PT_DYNAMIC, 6, offset, address, self.dynamic_size, self.dynamic_size, 8),
                header(_PT_GNU_STACK, 6, 0, 0, 0, 0, 16),
            )
        )

    def _header(self, section_table: int, sections: int) -> bytes:
        return b"\x7fELF\2\1\1" + bytes(9) + struct.pack(
            "<HHIQQQIHHHHHH", 3, self.machine, 1, 0, _HEADER, section_table, self.objects[0].flags,
            _HEADER, 56, _PROGRAM_HEADERS, 64, sections, sections - 1,
        )  # fmt: skip

    def _section_headers(self, at: int) -> tuple[int, bytes, int]:
        """(where the table starts behind the image, names and table, number): for static linkers and debuggers."""
        names = b"\0.dynsym\0.dynstr\0.hash\0.text\0.dynamic\0.shstrtab\0"
        padding = bytes(-(at + len(names)) % 8)

        def header(name, kind, flags, address, offset, size, link=0, info=0, align=1, entry=0):
            start = names.index(b"\0" + name + b"\0") + 1
            return struct.pack("<IIQQQQIIQQ", start, kind, flags, address, offset, size, link, info, align, entry)

        count = len(self.exports)
        dynamic, text = self.dynamic_offset, self.text_at
        table = bytes(64) + b"".join(
            (
                header(b".text", 1, 6, text, text, self.text_end - text, align=1),
                header(b".dynsym", 11, 2, self.symbols_at, self.symbols_at, 24 * (count + 1), 3, 1, 8, 24),
                header(b".dynstr", 3, 2, self.strings_at, self.strings_at, len(self.strings)),
                header(b".hash", 5, 2, self.hash_at, self.hash_at, 4 * (4 + count), 2, 0, 8, 4),
                header(b".dynamic", 6, 3, self.dynamic_at, dynamic, self.dynamic_size, 3, 0, 8, 16),
                header(b".shstrtab", 3, 0, 0, at, len(names)),
            )
        )
        return len(names) + len(padding), names + padding + table, len(table) // 64


def _patch_x86_64(image: bytearray, place: int, value: int, kind: int) -> None:
    if kind in (2, 4):  # R_X86_64_PC32, R_X86_64_PLT32
        struct.pack_into("<i", image, place, value - place)
    elif kind == 24:  # R_X86_64_PC64
        struct.pack_into("<q", image, place, value - place)
    else:
        raise KernelError(f"cannot link x86-64 relocation {kind}")


#: bits of the address that R_AARCH64_*_LO12_NC relocations drop: the operand is scaled
_LOW12_SHIFT = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}


def _patch_aarch64(image: bytearray, place: int, value: int, kind: int) -> None:
    (word,) = struct.unpack_from("<I", image, place)
    if kind == 275:  # ADR_PREL_PG_HI21
        pages = ((value >> 12) - (place >> 12)) & 0x1FFFFF
        word = word & 0x9F00001F | (pages & 3) << 29 | pages >> 2 << 5
    elif kind == 274:  # ADR_PREL_LO21
        distance = (value - place) & 0x1FFFFF
        word = word & 0x9F00001F | (distance & 3) << 29 | distance >> 2 << 5
    elif kind in _LOW12_SHIFT:
        word = word & ~(0xFFF << 10) | (value & 0xFFF) >> _LOW12_SHIFT[kind] << 10
    elif kind in (282, 283):  # JUMP26, CALL26
        word = word & 0xFC000000 | ((value - place) >> 2) & 0x3FFFFFF
    elif kind == 261:  # PREL32
        word = (value - place) & 0xFFFFFFFF
    elif kind == 260:  # PREL64
        struct.pack_into("<q", image, place, value - place)
        return
    else:
        raise KernelError(f"cannot link aarch64 relocation {kind}")
    struct.pack_into("<I", image, place, word)
