"""Building kernel libraries: one unit at a time in this process, or many in parallel worker processes.

`python -m minifer.codegen.build [--target NAME] [--out DIRECTORY] [FAMILY ...]` builds families (all without names),
into the cache or, as the files that a wheel ships, into a directory.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence

import minifer
import minifer.kernels as kernels
from minifer.codegen import store
from minifer.codegen.store import SUFFIX, Unit, by_unit, key_of, specs_of
from minifer.errors import KernelError
from minifer.kernels.target import TARGETS, Target, host


def raw_ir(unit: Unit, target: Target) -> str:
    """The unit's unoptimised LLVM IR for a target's tile, from the cache or lowered now (that takes Numba)."""
    target = lowered_like(target)
    path = store.cached_path(unit, target, key_of(unit, target), ".ll.z")
    text = store.read_text(path)
    if text is None:
        _require_numba()
        from minifer.codegen import lower

        text = lower.lower_unit(specs_of(unit), target)
        store.write_text(os.path.join(store.cache_directory(), os.path.basename(path)), text)
    return text


def lowered_like(target: Target) -> Target:
    """The first target whose IR is this one's: it depends on the tile and on what the lowering asks about, no more."""

    def seen(t: Target) -> tuple:
        return (t.mr, t.nr, t.unroll, t.fma, t.half, t.masked, t.vector, t.matrix)

    return next((t for t in TARGETS.values() if seen(t) == seen(target)), target)


def lacks_ir(units: Iterable[Unit], target: Target) -> list[Unit]:
    """The units whose IR for a target is not in the cache."""
    like = lowered_like(target)
    return [u for u in units if not os.path.exists(store.cached_path(u, like, key_of(u, like), ".ll.z"))]


def object_code(unit: Unit, target: Target) -> bytes:
    """The unit as an object file for a target, from the cache or compiled now."""
    path = store.cached_path(unit, target, key_of(unit, target), ".obj")
    code = store.read(path)
    if code is None:
        code = compiled(unit, target)
        store.write(os.path.join(store.cache_directory(), os.path.basename(path)), code)
    return code


def compiled(unit: Unit, target: Target, triple: str | None = None) -> bytes:
    """The unit compiled now to an object file; `triple` overrides the target's."""
    _require_numba()
    from minifer.codegen import emit

    return emit.emit_object(raw_ir(unit, target), [s.name for s in specs_of(unit)], target, triple)


def library_bytes(unit: Unit, target: Target, suffix: str = SUFFIX) -> bytes:
    """The unit's library as this kind of system loads it: an ELF shared object, or an object file for LLVM's loader."""
    from minifer.codegen import elf

    if suffix == ".so":
        names = [s.name for s in specs_of(unit)]
        return elf.link_shared([compiled(unit, target)], names, f"minifer_{unit[1]}.so", movable=True)
    import llvmlite.binding as llvm

    return compiled(unit, target, llvm.get_process_triple() + ("-elf" if sys.platform == "win32" else ""))


def build_unit(unit: Unit, target: Target, suffix: str = SUFFIX) -> str:
    """Build one unit into the cache, in this process."""
    data = library_bytes(unit, target, suffix)
    folder = store.cache_directory()
    path = os.path.join(folder, os.path.basename(store.cached_path(unit, target, key_of(unit, target), suffix)))
    store.write(path, data)
    return path


def _require_numba() -> None:
    if not store.numba_version():
        raise KernelError(
            "Numba is not installed, and no built kernels fit this machine: install numba, "
            "or run the model by its reference executor"
        )


# ---------------------------------------------------------------- many units


def build(units: Sequence[Unit], target: Target, progress: bool | None = None) -> None:
    """Build units into the cache with all cores.

    `progress`: whether to show a bar; None: on a terminal, else one line if it takes long.
    """
    if not units:
        return
    _require_numba()
    report = _Progress(len(units), progress)
    importable = all(m.startswith("minifer.kernels.") for m, _ in units)
    workers = min(os.cpu_count() or 1, len(units))
    if not importable or not sys.executable or os.environ.get("MINIFER_BUILD_INLINE") == "1":
        for unit in units:
            build_unit(unit, target)
            report.done(unit)
    else:
        _build_in_workers(list(units), target, workers, report)
    report.close()
    _prune(units, target)


def _prune(units: Sequence[Unit], target: Target) -> None:
    """Delete what was built a month ago or more for other sources of these units, and what broken builds left."""
    folder, limit = store.cache_directory(), time.time() - 30 * 86400
    prefixes = (".building-", *(store.file_name(u, target, "", "") for u in units))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefixes) and entry.stat().st_mtime < limit:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _build_in_workers(units: list[Unit], target: Target, workers: int, report: _Progress) -> None:
    folder = store.cache_directory()  # decided here, so that workers write where this process reads
    pending, lock = units[::-1], threading.Lock()
    failures: list[str] = []

    def serve() -> None:
        environment = dict(os.environ, MINIFER_CACHE_DIR=folder, PYTHONPATH=_python_path())
        command = [sys.executable, "-m", "minifer.codegen.build", "--worker", "--target", target.name]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdin and process.stdout
            try:
                while True:
                    with lock:
                        if not pending or failures:
                            break
                        unit = pending.pop()
                    process.stdin.write(json.dumps(unit) + "\n")
                    process.stdin.flush()
                    answer = process.stdout.readline()
                    problem = json.loads(answer)["error"] if answer else "the build process ended unexpectedly"
                    with lock:
                        if problem:
                            failures.append(f"{unit[0]}{'.' + unit[1] if unit[1] else ''}: {problem}")
                        else:
                            report.done(unit)
            except BaseException as problem:
                process.kill()
                failures.append(f"{type(problem).__name__}: {problem}")

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise KernelError("cannot build the kernels of " + "; ".join(failures))


def _python_path() -> str:
    root = os.path.dirname(os.path.dirname(str(minifer.__file__)))
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _worker(target: Target) -> None:
    """Build the units named on standard input, one JSON line each; answer each with a line."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not disturb the answers
    for line in sys.stdin:
        module, group = json.loads(line)
        try:
            importlib.import_module(module)
            build_unit((module, group), target)
            error = ""
        except Exception as problem:  # the parent raises it
            error = str(problem) if isinstance(problem, KernelError) else f"{type(problem).__name__}: {problem}"
        print(json.dumps({"error": error}), file=output, flush=True)


class _Progress:
    """A bar on standard error: on a terminal or when asked; else one line if building takes more than two seconds."""

    def __init__(self, total: int, wanted: bool | None):
        self.total, self.count, self.start = total, 0, time.monotonic()
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = (self.terminal if wanted is None else wanted) and sys.stderr is not None
        self.silent = wanted is False or sys.stderr is None
        self.said = False
        self._show("")

    def done(self, unit: Unit) -> None:
        self.count += 1
        self._show(unit[0].rpartition(".")[2] + (f" {unit[1]}" if unit[1] else ""))

    def _show(self, what: str) -> None:
        if self.bar:
            filled = 24 * self.count // self.total
            end = "\r" if self.terminal else "\n"
            text = f"minifer: building kernels [{'#' * filled}{'.' * (24 - filled)}] {self.count}/{self.total} {what}"
            print(f"{text:<78}", end=end, file=sys.stderr, flush=True)
        elif not self.silent and not self.said and time.monotonic() - self.start > 2:
            self.said = True
            print(f"minifer: building kernels (once; kept in {store.cache_directory()})", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar and self.terminal:
            print(" " * 78, end="\r", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- command line


def all_families() -> list[str]:
    """The names of the modules under minifer.kernels that define kernels or native functions."""
    names = [m.name for m in pkgutil.iter_modules(kernels.__path__) if m.name not in ("spec", "simd", "target")]
    for name in names:
        importlib.import_module(f"minifer.kernels.{name}")
    present = {m for m, _ in registered_units()}
    return [n for n in names if f"minifer.kernels.{n}" in present]


def registered_units(families: Iterable[str] | None = None) -> list[Unit]:
    """The units of all registered kernels, or of the named families."""
    wanted = None if families is None else {f"minifer.kernels.{f}" for f in families}
    return sorted(u for u in by_unit() if wanted is None or u[0] in wanted)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m minifer.codegen.build", description="Build minifer's kernels.")
    parser.add_argument("families", nargs="*", help="kernel families, e.g. gemm; all if none is named")
    parser.add_argument("--target", default=host().name, choices=sorted(TARGETS))
    parser.add_argument("--out", help="write the libraries that a wheel ships into this directory")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    target = TARGETS[options.target]
    if options.worker:
        return _worker(target)
    known = all_families()
    if unknown := sorted(set(options.families) - set(known)):
        raise SystemExit(f"no kernel family {', '.join(unknown)}; there are {', '.join(known)}")
    units = registered_units(options.families or known)
    suffix = ".o" if target.name.startswith("wasm") else SUFFIX
    missing = [u for u in units if store.find(u, target, suffix) is None]
    if options.out is None:
        build(missing, target, progress=True)
        print(f"{len(missing)} built, {len(units) - len(missing)} up to date")
        return
    ship(units, target, options.out, suffix)
    print(f"{len(units)} libraries for {target.name} written to {options.out}")


def ship(units: Sequence[Unit], target: Target, folder: str, suffix: str = SUFFIX) -> None:
    """Write the libraries of units into a folder under the names that they have in the package, and delete those
    there of the same target that belong to other sources. What the cache lacks is built."""
    if suffix == SUFFIX:
        build([u for u in units if store.find(u, target, suffix) is None], target, progress=True)
    os.makedirs(folder, exist_ok=True)
    names = set()
    for unit in units:
        name = store.file_name(unit, target, key_of(unit, target), suffix)
        found = store.find(unit, target, suffix)
        code = None if found is None else store.read(found)
        store.write(os.path.join(folder, name), code or library_bytes(unit, target, suffix))
        os.chmod(os.path.join(folder, name), 0o644)
        names.add(name)
    for name in os.listdir(folder):
        if f"-{target.name}-" in name and name not in names:
            os.unlink(os.path.join(folder, name))


if __name__ == "__main__":
    main()
