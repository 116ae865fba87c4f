"""The machine code of a built kernel library, to be run from anywhere in memory.

The libraries that minifer links (see `elf`) need nothing of the system's loader: code and constants refer to each
other by distance. So the first segment of the file, copied or mapped as it is, runs.
"""

from __future__ import annotations

import struct

_HEADER, _PROGRAM_HEADERS, _PROGRAM_HEADER = 64, 4, 56


def code_of(library: bytes) -> tuple[bytes, dict[str, int]] | None:
    """(code and constants, exported name -> place) of a shared object that minifer linked to be movable; None for any
    other file."""
    if library[:4] != b"\x7fELF" or len(library) < _HEADER + _PROGRAM_HEADERS * _PROGRAM_HEADER:
        return None
    headers = [struct.unpack_from("<IIQQQQQQ", library, _HEADER + _PROGRAM_HEADER * i) for i in range(_PROGRAM_HEADERS)]
    (kind, _, offset, address, _, size, _, _), (_, _, at, _, _, in_file, _, _), _, _ = headers
    if (kind, offset, address) != (1, 0, 0) or at + in_file > len(library):
        return None
    entries = dict(struct.iter_unpack("<QQ", library[at : at + in_file]))
    strings, symbols, table = entries[5], entries[6], entries[4]
    (count,) = struct.unpack_from("<I", library, table + 4)
    places = {}
    for i in range(1, count):
        name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", library, symbols + 24 * i)
        start = strings + name
        places[library[start : library.index(b"\0", start)].decode()] = value
    return library[:size], places
