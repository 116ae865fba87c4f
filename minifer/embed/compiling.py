"""`minifer.compile`: a model becomes a C object, an archive, a shared library or a WebAssembly module, with bindings.

No compiler, linker or other tool is needed. The same input gives the same files.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifer.embed import texts
from minifer.embed.abi import Interface, check_name, identifier
from minifer.embed.targets import RELAXED, Platform, kernel_target, platform_of
from minifer.embed.worker import Job
from minifer.errors import InputError, KernelError, MiniferError

if TYPE_CHECKING:
    import numpy as np

    from minifer.embed.module import Code


@dataclass(frozen=True)
class Compiled:
    """What was written: the files, and how the model is called."""

    files: tuple[Path, ...]
    interface: Interface
    code_bytes: int  # of the object or module without its weights
    weights_bytes: int


def compile(
    model: Any,
    target: str = "wasm32",
    out: str | os.PathLike[str] = "build",
    *,
    name: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dims: Mapping[str, int] | None = None,
    values: Mapping[str, Any] | None = None,
    weights: str = "embedded",
    cpu: str | None = None,
    demo: bool = False,
) -> Compiled:
    """Compile a model for a target and write the files into the folder `out`.

    `model`: a path, bytes, a binary file object or an onnx.ModelProto. `target`: see minifer.embed.targets. `name`: of
    the files and functions (default: made of the file's name). `shapes`, `dims`: of inputs, and of symbolic dimensions,
    that the model leaves open; an open first dimension is 1 unless given. `values`: inputs that get a value for good.
    `weights`: "embedded", or "separate" for a file that the caller maps. `cpu`: a level of the target. `demo`: a page
    beside the WebAssembly module.

    Raises InputError, ShapeError, ModelError as `load` does, and UnsupportedError listing all that cannot be compiled;
    nothing is written then.
    """
    platform = platform_of(target)
    kernels = kernel_target(platform, cpu)
    if weights not in ("embedded", "separate"):
        raise InputError(f"weights can be 'embedded' or 'separate', not {weights!r}")
    if demo and platform.form != "wasm":
        raise InputError(f"a demo page needs the target wasm32, not {target}")
    source, default = _source(model)
    chosen = identifier(default) if name is None else check_name(name)
    separate = weights == "separate" or platform.form == "object"
    job = Job(source, chosen, dict(shapes or {}), dict(dims or {}), dict(values or {}), separate)
    names = [kernels, RELAXED] if platform.form == "wasm" else [kernels]
    codes = _run_jobs(job, names)
    files = _files(platform, chosen, codes, separate)
    interface = codes[0].interface
    files.update(texts.files(interface, platform, codes[0].metadata))
    if demo:
        from minifer.embed.demo import pages
        from minifer.onnx_io import read_model

        files.update(pages(interface, chosen, metadata=read_model(source).metadata))
    written = _write(files, Path(out))
    held = codes[0].weights.nbytes
    return Compiled(written, interface, len(codes[0].object_code), held)


def _source(model: Any) -> tuple[str | bytes, str]:
    """(an absolute path or the content, a name) of what `load` takes."""
    if isinstance(model, str | os.PathLike):
        path = os.path.abspath(os.fspath(model))
        return path, os.path.splitext(os.path.basename(path))[0]
    if isinstance(model, bytes | bytearray | memoryview):
        return bytes(model), "model"
    if hasattr(model, "SerializeToString"):
        return model.SerializeToString(), model.graph.name or "model"
    if hasattr(model, "read"):
        data = model.read()
        if isinstance(data, bytes):
            return data, "model"
    raise InputError(f"cannot compile {type(model).__name__}: give a path, bytes, a binary file or a ModelProto")


def _run_jobs(job: Job, targets: list[str]) -> list[Code]:
    """The code of the job for each kernel target, each made in a process of its own, side by side."""
    from minifer.kernels.target import PLAN_FOR

    data = pickle.dumps(job, protocol=5)
    command = [sys.executable, "-m", "minifer.embed.worker"]
    found: list[Any] = []
    with contextlib.ExitStack() as opened:
        started = []
        for target in targets:
            incoming, outgoing = (opened.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            incoming.write(data)
            incoming.seek(0)
            environment = {**os.environ, PLAN_FOR: target, "PYTHONPATH": _python_path()}
            started.append((subprocess.Popen(command, env=environment, stdin=incoming, stdout=outgoing), outgoing))
        for (process, outgoing), target in zip(started, targets):
            status = process.wait()
            outgoing.seek(0)
            try:
                found.append(pickle.load(outgoing))
            except (EOFError, pickle.UnpicklingError):
                found.append(KernelError(f"the process that compiles for {target} ended with status {status}"))
    problem = next((answer for answer in found if isinstance(answer, Exception)), None)
    if problem is not None:
        raise problem
    return found


def _python_path() -> str:
    import minifer

    root = os.path.dirname(os.path.dirname(str(minifer.__file__)))
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


# ---------------------------------------------------------------- files

Content = Any  # bytes, text or an array


def _files(platform: Platform, name: str, codes: list[Code], separate: bool) -> dict[str, Content]:
    """File name -> content."""
    code = codes[0]
    files: dict[str, Content] = {}
    if separate:
        files[f"{name}.weights"] = code.weights
    if platform.form == "wasm":
        from minifer.embed import javascript

        if any(c.weights.tobytes() != code.weights.tobytes() for c in codes):
            raise KernelError("the two builds for WebAssembly want different weights: report this, please")
        wasm, relaxed = f"{name}.wasm", f"{name}.relaxed.wasm"
        files[wasm], files[relaxed] = (_module(c, separate) for c in codes)
        files[f"{name}.js"] = javascript.module(
            code.interface, wasm_file=wasm, relaxed_file=relaxed, weights_file=f"{name}.weights" if separate else None
        )
        files[f"{name}.d.ts"] = javascript.types(code.interface)
        return files
    from minifer.codegen import elf, native
    from minifer.embed import header, rust

    whole = code.object_code
    if not separate:
        whole = native.with_data(whole, code.weights_symbol, code.weights)
    native.check_no_undefined(whole, {s for s in native.undefined_symbols(whole) if s.startswith(platform.runtime)})
    if platform.form == "elf":
        files[f"lib{name}.a"] = native.archive([(f"{name}.o", whole)])
        if platform.shared:
            files[f"lib{name}.so"] = elf.link_shared([whole], code.interface.exports, f"lib{name}.so")
    files[f"{name}{platform.suffix}"] = whole
    files[f"{name}.h"] = header.header(code.interface)
    files[f"{name}.rs"] = rust.module(code.interface)
    return files


def _module(code: Code, separate: bool) -> bytes:
    from minifer.codegen import wasm

    data: dict[str, np.ndarray] = {} if separate else {code.weights_symbol: code.weights}
    return wasm.link_module(code.object_code, code.interface.exports, data)


def _write(files: Mapping[str, Content], folder: Path) -> tuple[Path, ...]:
    """Write all files, each at once: a reader never sees half of one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content.encode() if isinstance(content, str) else memoryview(content).cast("B"))
                os.chmod(temporary, 0o755 if name.endswith(".so") else 0o644)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
    except OSError as error:
        raise MiniferError(f"cannot write the compiled model to {folder}: {error}") from error
    return tuple(folder / name for name in files)
