"""List, build or clear the compiled kernels.

    minifer kernels list            families, how many kernels each has, and which libraries are built
    minifer kernels build [FAMILY]  build what is missing, of all families or of those named
    minifer kernels clear           delete the built libraries of this user

Kernels are built when a model first needs them; building them all beforehand takes a few minutes and makes every
first run quick. They are kept in the user's cache directory (MINIFER_CACHE_DIR overrides it).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

#: the files that the kernel builder writes; nothing else in the directory is touched
BUILT_FILES = ("*-numba*.so", "*-numba*.o", "*-numba*.ll.z", "*-numba*.obj")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "build", "clear"))
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="kernel families such as gemm (default: all)")


def run(arguments: argparse.Namespace) -> int:
    from minifer.errors import InputError

    if arguments.action == "clear":
        if arguments.families:
            raise InputError("clear deletes all built kernels: it takes no family")
        return clear()
    from minifer.codegen import build

    known = build.all_families()
    unknown = [family for family in arguments.families if family not in known]
    if unknown:
        raise InputError(f"there is no kernel family '{unknown[0]}'; there are {', '.join(known)}")
    families = arguments.families or known
    return list_kernels(families) if arguments.action == "list" else build_kernels(families)


def list_kernels(families: Sequence[str]) -> int:
    """One line a library: what it holds and whether it is built."""
    from minifer.cli._text import bytes_text, table
    from minifer.codegen import build, store
    from minifer.kernels.target import host

    target, rows = host(), []
    for unit in build.registered_units(families):
        path = store.find(unit, target)
        where = "shipped" if path is not None and os.path.dirname(path) == store.PREBUILT else "built"
        state = f"{where}, {bytes_text(os.path.getsize(path))}" if path is not None else "not built"
        rows.append((unit[0].rpartition(".")[2], unit[1] or "-", len(store.specs_of(unit)), state))
    print("\n".join(table([("family", "group", "kernels", "library"), *rows], right=(2,))))
    built = sum(row[3] != "not built" for row in rows)
    print(f"\n{built} of {len(rows)} libraries ready for {target.name} in {store.cache_directory()}")
    return 0


def build_kernels(families: Sequence[str]) -> int:
    """Build what is missing."""
    from minifer.codegen import build, store
    from minifer.kernels.target import host

    target = host()
    units = build.registered_units(families)
    missing = [u for u in units if store.find(u, target) is None]
    if missing:
        build.build(missing, target, progress=True)
    print(f"{len(missing)} built, {len(units) - len(missing)} were ready")
    return 0


def clear() -> int:
    """Delete the built libraries in the cache directory, and the planned models."""
    from minifer.cli._text import bytes_text
    from minifer.codegen import store
    from minifer.runtime import stored

    folder = Path(store.cache_directory())
    files = sorted({path for pattern in BUILT_FILES for path in folder.glob(pattern)})
    files += sorted(p for p in Path(stored.folder()).glob("*") if p.suffix in (".plan", ".constants"))
    size = sum(path.stat().st_size for path in files)
    for path in files:
        path.unlink(missing_ok=True)
    print(f"{len(files)} files ({bytes_text(size)}) deleted in {folder}")
    return 0
