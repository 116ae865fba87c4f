"""Compares a compiled shared library with minifer itself, each on one thread:

    python docs/embedding_native.py [MODEL]

It compiles the model (default: the classifier that minifer carries) for this machine into a temporary folder, loads the
library by ctypes as any program would, and runs both in turn on the same random inputs. A model that leaves shapes open
gets 1 for them.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before NumPy is imported

import numpy as np

import minifer
from minifer import dtypes, models
from minifer.embed.abi import ALIGNMENT, STATUS_TEXT, Interface, Status
from minifer.kernels.target import host

NAME = "measured"


class Buffer(ctypes.Structure):
    """minifer_buffer of the header."""

    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def compile_here(model: str | Path, folder: str) -> tuple[Path, Interface]:
    """The shared library of a model for this machine, and how it is called."""
    target = f"{platform.machine()}-linux"
    level = host().name if host().name.startswith("x86-64") else None
    compiled = minifer.compile(model, target, folder, name=NAME, cpu=level)
    return next(path for path in compiled.files if path.suffix == ".so"), compiled.interface


def loaded(library: Path, interface: Interface, feeds: Mapping[str, np.ndarray]) -> tuple[Callable[[], None], dict]:
    """A function that runs the library on `feeds`, and the arrays that it fills, by the names of the outputs."""
    function = getattr(ctypes.CDLL(str(library)), f"{NAME}_run")
    function.restype = ctypes.c_int32
    outputs = {t.name: np.empty(t.shape, dtypes.to_numpy(t.dtype)) for t in interface.outputs}
    room = np.empty(interface.workspace_bytes + ALIGNMENT, np.uint8)
    workspace = ctypes.c_void_p(room.ctypes.data + -room.ctypes.data % ALIGNMENT)
    arguments = []
    for arrays in ([feeds[t.name] for t in interface.inputs], list(outputs.values())):
        table = (Buffer * max(len(arrays), 1))(*[Buffer(a.ctypes.data, a.nbytes) for a in arrays])
        arguments += [table, ctypes.c_size_t(len(arrays))]
    arguments += [workspace, ctypes.c_size_t(interface.workspace_bytes)]

    def run(keep=(room, feeds)) -> None:
        status = function(*arguments)
        if status != Status.OK:
            raise RuntimeError(STATUS_TEXT[Status(status)])

    return run, outputs


def random_feeds(interface: Interface) -> dict[str, np.ndarray]:
    """Normal numbers for floats, ones for integers (safe as indices)."""
    rng = np.random.default_rng(0)
    return {
        t.name: rng.standard_normal(t.shape).astype(dtypes.to_numpy(t.dtype))
        if "float" in t.dtype
        else np.ones(t.shape, dtypes.to_numpy(t.dtype))
        for t in interface.inputs
    }


def seconds(run: Callable[[], object]) -> float:
    """How long one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Compile, compare the results, measure and print."""
    parser = argparse.ArgumentParser(description="A compiled shared library against minifer itself, on one thread.")
    parser.add_argument("model", nargs="?", default=models.path(models.EFFICIENTNET_LITE0))
    parser.add_argument("--runs", type=int, default=60, help="of each (default 60)")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("shared libraries are made for Linux only")
    with tempfile.TemporaryDirectory() as folder:
        library, interface = compile_here(arguments.model, folder)
        feeds = random_feeds(interface)
        run, outputs = loaded(library, interface, feeds)
        session = minifer.load(arguments.model, threads=1)
        expected = session.run(feeds)
        run()
        for name, found in outputs.items():
            apart, most = np.abs(found - expected[name]).max(initial=0), np.abs(expected[name]).max(initial=0)
            print(f"{name}: at most {apart:.2g} apart, the largest value is {most:.3g}")
        for _ in range(3):
            run()
            session.run(feeds)
        pairs = [(seconds(run), seconds(lambda: session.run(feeds))) for _ in range(max(1, arguments.runs))]
    for what, pick in (("least", min), ("median", statistics.median)):
        ours, whole = (1000 * pick(times) for times in zip(*pairs))
        print(f"{what}: library {ours:.2f} ms, minifer {whole:.2f} ms, ratio {ours / whole:.3f}")


if __name__ == "__main__":
    main()
