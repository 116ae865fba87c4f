"""Which module holds which operator: lets a model import only the operator families that it uses.

The catalogue is what a full import of minifer.ops found, kept in the user's cache under the sizes and times of the
source files. Without it, or for an operator that it does not name, all families are imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from minifer.codegen.folders import blake2b, user_cache

Key = tuple[str, str]  # domain, operator


def _path(folder: str) -> str:
    """The catalogue's file for the modules as they stand now."""
    stamp = blake2b(folder.encode(), digest_size=10)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.endswith((".py", ".pyc")) and not entry.name.startswith("lower_"):  # these register nothing
                status = entry.stat()
                stamp.update(f"{entry.name} {status.st_size} {status.st_mtime_ns};".encode())
    return os.path.join(user_cache(), f"operators-{stamp.hexdigest()}.txt")


def read(folder: str) -> dict[Key, list[str]]:
    """(domain, operator) -> modules that register it; empty where nothing is kept or it cannot be read."""
    try:
        with open(_path(folder), encoding="utf-8") as file:
            lines = [line.split("\t") for line in file.read().splitlines()]
        return {(domain, name): modules for domain, name, *modules in lines}
    except (OSError, ValueError):
        return {}


def write(folder: str, found: Mapping[Key, Iterable[str]]) -> None:
    """Keep a catalogue for the next process; a cache that cannot be written is left alone."""
    lines = ["\t".join((*key, *sorted(modules))) + "\n" for key, modules in sorted(found.items())]
    try:
        path = _path(folder)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(temporary, path)
    except OSError:
        pass
