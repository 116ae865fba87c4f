"""A small linker: relocatable ELF64 objects -> one shared object, for x86-64, aarch64 and riscv64.

The objects must be position independent, have no writable data and no undefined symbol. Source: System V ABI (gABI)
chapters 4 and 5 and the processor supplements.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from minifer.codegen.objects import (
    ALIGN,
    EM_AARCH64,
    EM_RISCV,
    EM_X86_64,
    FLAGS,
    FUNCTION,
    GLOBAL,
    INFO,
    KIND,
    LAYOUTS,
    MACHINE,
    OBJECT,
    SHF_ALLOC,
    SHF_EXECUTE,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_PROGBITS,
    SHT_REL,
    SHT_RELA,
    SIZE,
    ElfObject,
    Symbol,
)
from minifer.errors import KernelError

_PAGE = {EM_X86_64: 0x1000, EM_AARCH64: 0x10000, EM_RISCV: 0x1000}
_READ, _READ_WRITE, _READ_EXECUTE = 4, 6, 5  # flags of a segment
_HEADER = 64
#: how far the jumps and addresses of aarch64 reach whose patches drop higher bits
_AARCH64_REACH = {274: 1 << 20, 282: 1 << 27, 283: 1 << 27}
_SECTION_NAMES = (b"", b".dynsym", b".dynstr", b".hash", b".rodata", b".text", b".dynamic", b".shstrtab")
_DYNSYM, _DYNSTR, _HASH, _RODATA, _TEXT, _DYNAMIC, _SHSTRTAB = range(1, 8)


def link_shared(files: Sequence[bytes], exports: Sequence[str], name: str, *, movable: bool = False) -> bytes:
    """The shared library `name` of relocatable ELF64 objects for x86-64, aarch64 or riscv64; exports only `exports`.

    Constants are not executable, and are copied just once, so that they may be large. `movable`: they lie with the code
    in one segment instead, which then runs wherever it is copied to (see image.py). There is no memory to write to.
    KernelError for what cannot be linked: undefined symbols, writable data, damaged objects.
    """
    return _Library([ElfObject(file) for file in files], list(exports), name, movable).link()


class _Library:
    """One segment to read (tables, constants), one to execute, and one with the dynamic section, which loaders write
    to; of a movable library the first two are one. In the file they follow one another; in memory each begins a page
    further on, so that none shares a page."""

    def __init__(self, files: list[ElfObject], exports: list[str], name: str, movable: bool):
        self.files, self.exports, self.movable = files, exports, movable
        if not files or any(f.header[MACHINE] not in _PAGE or f.layout is not LAYOUTS[2] for f in files):
            raise KernelError("shared libraries can be linked of ELF objects for x86-64, aarch64 and riscv64")
        self.machine, self.flags = files[0].header[MACHINE], files[0].header[6]
        if any((f.header[MACHINE], f.header[6]) != (self.machine, self.flags) for f in files):
            raise KernelError("objects for different machines cannot be linked")
        if any(not text or not text.isprintable() for text in (name, *exports)):
            raise KernelError("a library and what it exports need names")
        self.page = _PAGE[self.machine]
        self.apart = 0 if movable else self.page  # how far code lies above its place in the file
        self.segments = 4 if movable else 5
        self.symbols = [list(f.symbols()) for f in files]
        self.strings = b"\0" + b"".join(text.encode() + b"\0" for text in (name, *exports))
        self.places: dict[tuple[int, int], int] = {}  # (file, section) -> address
        self._lay_out()
        self.globals = self._find_globals()

    def _lay_out(self) -> None:
        """Place of everything: (start in the file, end) of every section of the library."""
        count = len(self.exports)
        self.spans = {_DYNSYM: (at := _HEADER + 56 * self.segments, at + 24 * (count + 1))}
        self.spans[_DYNSTR] = (at := self.spans[_DYNSYM][1], at + len(self.strings))
        self.spans[_HASH] = (at := _aligned(self.spans[_DYNSTR][1], 8), at + 4 * (4 + count))
        self.spans[_RODATA] = self._place(self.spans[_HASH][1], 0, executable=False)
        self.spans[_TEXT] = self._place(self.spans[_RODATA][1], self.apart, executable=True)
        self.spans[_DYNAMIC] = (at := _aligned(self.spans[_TEXT][1], 16), at + 16 * 7)
        self.spans[_SHSTRTAB] = (at := self.spans[_DYNAMIC][1], at + len(b"\0".join(_SECTION_NAMES)) + 1)

    def _address(self, section: int) -> int:
        return self.spans[section][0] + {_TEXT: self.apart, _DYNAMIC: self.apart + self.page}.get(section, 0)

    def _place(self, position: int, distance: int, executable: bool) -> tuple[int, int]:
        """Addresses, `distance` above the place in the file, of all constants or of all code."""
        start = None
        for i, file in enumerate(self.files):
            for j, section in enumerate(file.sections):
                flags, kind, size = section[FLAGS], section[KIND], section[SIZE]
                if not flags & SHF_ALLOC:
                    continue
                if size and (flags & SHF_WRITE or kind == SHT_NOBITS):
                    raise KernelError(f"cannot link data that is written to (section {file.section_name(j)})")
                if kind != SHT_PROGBITS or bool(flags & SHF_EXECUTE) != executable:
                    continue
                if section[ALIGN] > self.page:
                    raise KernelError(f"cannot link a section that is aligned to {section[ALIGN]}")
                if file.section_name(j) == ".eh_frame":
                    continue
                position = _aligned(position, section[ALIGN])
                start = position if start is None else start
                self.places[i, j] = position + distance
                position += size
        return position if start is None else start, position

    def _find_globals(self) -> dict[bytes, tuple[int, Symbol]]:
        """Name -> (address, symbol) of what the files define for one another."""
        found: dict[bytes, tuple[int, Symbol]] = {}
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
            distance = self.apart if self.files[i].sections[j][FLAGS] & SHF_EXECUTE else 0
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
            k for k, section in enumerate(file.sections) if section[KIND] in (SHT_RELA, SHT_REL) and section[INFO] == j
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
            if file.sections[k][KIND] == SHT_REL or len(table) % 24:
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
            raise KernelError(f"undefined symbol {name}: kernels may not need a library")
        return self.globals[symbol.name][0]

    def _patch(self, image: bytearray, patches: list[tuple[int, int, int]]) -> None:
        if self.machine == EM_RISCV:
            _patch_riscv(image, patches)
            return
        for place, value, kind in patches:
            if self.machine == EM_X86_64:
                _patch_x86_64(image, place, value, kind)
            else:
                reach = _AARCH64_REACH.get(kind, 1 << 32)
                if not -reach <= value - place < reach:
                    raise struct.error
                _patch_aarch64(image, place, value, kind)

    # -------- tables

    def _symbol_table(self) -> bytes:
        table = bytearray(24)
        at = self.strings.index(b"\0", 1) + 1
        for name in self.exports:
            address, symbol = self.globals.get(name.encode(), (0, None))
            if symbol is None or symbol.is_hidden or symbol.info & 15 not in (0, OBJECT, FUNCTION):
                raise KernelError(f"no function {name} to export")
            section = _TEXT if address >= self._address(_TEXT) else _RODATA
            table += struct.pack("<IBBHQQ", at, GLOBAL << 4 | symbol.info & 15, 0, section, address, symbol.size)
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
        first = [
            segment(load, _READ, 0, self.spans[_RODATA][1], 0, self.page),
            segment(load, _READ_EXECUTE, *text, self.page),
        ]
        if self.movable:
            first = [segment(load, _READ_EXECUTE, 0, self.spans[_TEXT][1], 0, self.page)]
        return b"".join(
            (
                *first,
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
            _HEADER, 56, self.segments, 64, count, _SHSTRTAB,
        )  # fmt: skip

    def _sections(self) -> bytes:
        """Section headers, which static linkers and debuggers look at: kind, flags, link, info, align, entry size."""
        alloc, write, execute = SHF_ALLOC, SHF_WRITE, SHF_EXECUTE
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
