"""Native files of a compiled model: an object that holds its constants, a static archive.

The weights of a model never pass through LLVM, which would take minutes and gigabytes for them: the code refers to
them as an undefined symbol, and they are put into LLVM's object file afterwards. Nothing here needs a linker or `ar`.

Sources: System V ABI (gABI) chapters 4 and 5; the archive format as GNU binutils describes it (`ar`, bfd).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence

from minifer.codegen import wasm
from minifer.codegen.objects import (
    GLOBAL,
    HIDDEN,
    LARGEST_ALIGNMENT,
    NAMES,
    OBJECT,
    RESERVED,
    SHF_ALLOC,
    SHT_PROGBITS,
    SIZE,
    ElfObject,
    Symbol,
)
from minifer.errors import KernelError

#: LLVM's usual code model reaches 2 GiB; some of it is left for the code
_REACH = (1 << 31) - (1 << 24)


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
    if align < 1 or align > LARGEST_ALIGNMENT or align & (align - 1):
        raise KernelError(f"cannot align constants to {align}: give a power of two up to {LARGEST_ALIGNMENT}")
    if len(content) > _REACH:
        raise KernelError(
            f"{len(content)} bytes of constants do not fit into a native object, whose code reaches {_REACH}: "
            "keep the weights in a file of their own (--weights separate)"
        )
    target, wanted = ElfObject(object_code), symbol.encode(errors="replace")
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


def _define(target: ElfObject, entry: Symbol, size: int) -> None:
    """The symbol as hidden data at the start of the section that comes next."""
    layout, section = target.layout, len(target.sections)
    table = bytearray(target.contents[target.symbol_table])
    at = entry.index * layout.symbol.size
    fields = list(layout.symbol.unpack_from(table, at))
    new = (fields[layout.order[0]], GLOBAL << 4 | OBJECT, entry.other & ~3 | HIDDEN, section, 0, size)
    for place, value in zip(layout.order, new):
        fields[place] = value
    layout.symbol.pack_into(table, at, *fields)
    target.contents[target.symbol_table] = memoryview(table)


def _append(target: ElfObject, name: str, content: memoryview, align: int) -> None:
    """A read-only section behind all others, so that these keep their numbers."""
    if len(target.sections) + 1 >= RESERVED:
        raise KernelError("the object has too many sections")
    names = target.header[NAMES]
    strings = bytes(target.contents[names])
    if not strings.endswith(b"\0"):
        strings += b"\0"
    longer = strings + name.encode() + b"\0"
    target.contents[names] = memoryview(longer)
    target.sections[names][SIZE] = len(longer)
    target.sections.append(
        [len(strings), SHT_PROGBITS, SHF_ALLOC, 0, 0, len(content), 0, 0, align, 0],
    )
    target.contents.append(content)


# -------- undefined symbols


def undefined_symbols(object_code: bytes) -> set[str]:
    """The names, as C has them, that an ELF, COFF (x86-64), Mach-O (64-bit) or WebAssembly object expects from
    elsewhere; KernelError if it is damaged."""
    kind = bytes(object_code[:4])
    try:
        if kind == b"\0asm":
            return wasm.undefined_symbols(object_code)
        if kind == _MACH_O:
            return set(_mach_o_undefined(object_code))
        if kind[:2] == _COFF_X86_64:
            return set(_coff_undefined(object_code))
    except (struct.error, IndexError, ValueError):
        raise KernelError("the symbols of an object cannot be read: it is damaged") from None
    found = (s.name for s in ElfObject(object_code).symbols() if s.name and not s.section)
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
    return [s.name for s in ElfObject(content).symbols() if s.name and s.is_global and s.section]


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
