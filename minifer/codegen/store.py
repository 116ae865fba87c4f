"""Where built kernel libraries are kept, and by which key they are found.

A unit (module, group) is keyed by the text of every module under minifer.kernels that its module reaches, the code
generator's own text, the names of its kernels and the target. A library of another Numba version has another file
name. Files end with a digest of their content: one that is cut off or altered is built again instead of being loaded.
Nothing here imports numba or llvmlite.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import minifer.kernels as kernels
from minifer.kernels.target import Target

#: the code generator's files that decide what is built
_GENERATOR = ("numba_bridge.py", "lowering.py", "lowering_tile.py", "emit.py", "elf.py", "objects.py")
_MENTION = re.compile(r"minifer\.kernels\.(\w+)|from minifer\.kernels import ([\w, \n()]+)")
_MAGIC = b"minifer\x01"

Unit = tuple[str, str]

# ---------------------------------------------------------------- keys


@functools.cache
def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _kernel_file(name: str) -> str | None:
    path = os.path.join(os.path.dirname(kernels.__file__), name + ".py")
    return path if os.path.exists(path) else None


def reached_files(module: str) -> list[str]:
    """The kernel sources that a module mentions, directly or through others, with its own first."""
    first = getattr(sys.modules.get(module), "__file__", None) or _kernel_file(module.rpartition(".")[2])
    found: list[str] = [] if first is None else [first]
    for path in found:
        for match in _MENTION.finditer(_text(path)):
            names = [match[1]] if match[1] else re.findall(r"\w+", match[2])
            found += [p for p in map(_kernel_file, names) if p is not None and p not in found]
    return found


@functools.cache
def _generator_digest() -> bytes:
    here = os.path.dirname(__file__)
    return hashlib.sha256("".join(_text(os.path.join(here, name)) for name in _GENERATOR).encode()).digest()


@functools.cache
def _sources_digest(module: str) -> bytes:
    return hashlib.sha256("\0".join(_text(p) for p in reached_files(module)).encode()).digest()


def unit_key(unit: Unit, names: Iterable[str], target: Target) -> str:
    """A key that changes with anything that decides what the unit's library holds, but for Numba's version."""
    digest = hashlib.sha256(_generator_digest() + _sources_digest(unit[0]))
    digest.update("\0".join((*sorted(names), unit[1], repr(target))).encode())
    return digest.hexdigest()[:20]


def forget_sources() -> None:
    """Read the source files anew next time (for tests that change them)."""
    for cached in (_text, _generator_digest, _sources_digest):
        cached.cache_clear()


@functools.cache
def numba_version() -> str:
    """The installed Numba's version without importing it; "" if there is none."""
    try:
        found = importlib.util.find_spec("numba")
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        return ""
    site = Path(next(iter(found.submodule_search_locations))).parent
    for entry in os.listdir(site):
        if match := re.fullmatch(r"numba-([\w.+!]+)\.dist-info", entry):
            return match[1]
    from importlib import metadata

    return metadata.version("numba")


# ---------------------------------------------------------------- folders

PREBUILT = Path(kernels.__file__).parent / "prebuilt"


def _user_cache() -> Path:
    if override := os.environ.get("MINIFER_CACHE_DIR"):
        return Path(override)
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        root = os.path.expanduser("~/Library/Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "minifer"


_temporary: Path | None = None


def cache_directory() -> Path:
    """The user's cache directory for minifer (see MINIFER_CACHE_DIR), or a temporary one if it is unwritable."""
    global _temporary
    wanted = _user_cache()
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(wanted, os.W_OK | os.X_OK):
            return wanted
    except OSError:
        pass
    if _temporary is None:
        _temporary = Path(tempfile.mkdtemp(prefix="minifer-"))
        atexit.register(shutil.rmtree, _temporary, ignore_errors=True)
        warnings.warn(
            f"cannot write to {wanted}: kernels are built into a temporary directory and lost when the process ends; "
            "set MINIFER_CACHE_DIR to a writable directory",
            RuntimeWarning,
            stacklevel=2,
        )
    return _temporary


def file_name(unit: Unit, target: Target, key: str, suffix: str, version: str = "") -> str:
    """A unit's file name; without a Numba version, as it is shipped with the package."""
    short = unit[0].rpartition(".")[2] + (f".{unit[1]}" if unit[1] else "")
    return f"{short}-{target.name}-{key}{'-numba' + version if version else ''}{suffix}"


# ---------------------------------------------------------------- files


def find(unit: Unit, target: Target, key: str, suffix: str) -> Path | None:
    """The intact file of a unit: shipped with the package, or built earlier."""
    shipped = PREBUILT / file_name(unit, target, key, suffix)
    if shipped.exists() and read(shipped) is not None:
        return shipped
    candidates = [cached_path(unit, target, key, suffix)]
    if not numba_version():  # any version's will do where none can be built
        candidates = sorted(_user_cache().glob(file_name(unit, target, key, "-numba*" + suffix)))
    return next((p for p in candidates if read(p) is not None), None)


def cached_path(unit: Unit, target: Target, key: str, suffix: str) -> Path:
    """Where the unit's file is kept once it is built."""
    folder = _temporary or _user_cache()
    return folder / file_name(unit, target, key, suffix, numba_version())


def seal(data: bytes) -> bytes:
    """The content with its digest behind it."""
    return data + hashlib.sha256(data).digest() + _MAGIC


def read(path: Path) -> bytes | None:
    """The content of a sealed file; None if it is missing, cut off or altered."""
    try:
        sealed = path.read_bytes()
    except OSError:
        return None
    data, digest = sealed[:-40], sealed[-40:]
    return data if digest == hashlib.sha256(data).digest() + _MAGIC else None


def write(path: Path, data: bytes) -> None:
    """Put a sealed file in place at once, so that another process sees all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name[:40])
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(seal(data))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_text(path: Path) -> str | None:
    """The text of a sealed, compressed file, or None."""
    data = read(path)
    return None if data is None else zlib.decompress(data).decode()


def write_text(path: Path, text: str) -> None:
    """Write text compressed and sealed."""
    write(path, zlib.compress(text.encode(), 1))
