"""Compile a model to a file for C, Rust or the web: an object, an archive, a shared library, a WebAssembly module.

No compiler or linker is needed. Shapes are fixed when a model is compiled.
"""

from __future__ import annotations

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from minifer.cli._feeds import add_shape_arguments
    from minifer.embed.targets import PLATFORMS

    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    parser.add_argument(
        "--target", default="wasm32", choices=list(PLATFORMS), help="what to compile for (default wasm32)"
    )
    parser.add_argument("--out", default="build", metavar="DIR", help="where to write the files (default build)")
    parser.add_argument("--name", metavar="IDENT", help="of the files and functions (default: from the model's file)")
    parser.add_argument("--cpu", metavar="LEVEL", help="a CPU level of the target, e.g. x86-64-v2")
    parser.add_argument(
        "--weights", default="embedded", choices=["embedded", "separate"],
        help="inside the file, or in a file of their own that the program maps (default embedded)",
    )  # fmt: skip
    parser.add_argument("--demo", action="store_true", help="write a page that runs the model in the browser, too")
    add_shape_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    import time

    from minifer.cli._feeds import compile_options
    from minifer.embed.compiling import compile
    from minifer.embed.targets import PLATFORMS

    start = time.perf_counter()
    done = compile(
        arguments.model, arguments.target, arguments.out, name=arguments.name, cpu=arguments.cpu,
        weights=arguments.weights, demo=arguments.demo, **compile_options(arguments),
    )  # fmt: skip
    for path in done.files:
        print(f"{path.stat().st_size:>12,}  {path}")
    interface = done.interface
    for kind, tensors in (("input", interface.inputs), ("output", interface.outputs)):
        for tensor in tensors:
            print(f"{kind} {tensor.name}: {tensor.dtype} {list(tensor.shape)}")
    print(f"workspace {interface.workspace_bytes:,} bytes, weights {done.weights_bytes:,} bytes", end="; ")
    print(f"compiled in {time.perf_counter() - start:.1f} s")
    if arguments.demo:
        print(f"to see the page: {os.path.basename(sys.executable)} -m http.server --directory {arguments.out}")
    if not PLATFORMS[arguments.target].tested:
        print(f"minifer: {arguments.target} is emitted but not tested: no such machine was at hand", file=sys.stderr)
    return 0
