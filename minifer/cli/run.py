"""Run a model once on arrays from files, on images, or on random values.

    minifer run model.onnx x.npy                   inputs in the order of the model
    minifer run model.onnx mask=m.npy x.pb         ... or by name
    minifer run model.onnx photo.jpg               prepared as `minifer classify` does
    minifer run model.onnx --random --shape x=1,3,640,640 --output out.npz
"""

from __future__ import annotations

import argparse
import time
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from minifer.cli._feeds import add_shape_arguments

    parser.add_argument("model", help="an .onnx file")
    parser.add_argument("files", nargs="*", metavar="[NAME=]FILE", help=".npy, .npz, .pb (TensorProto) or an image")
    parser.add_argument("--random", action="store_true", help="random values for the inputs that no file gives")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random values (default 0)")
    add_shape_arguments(parser)
    parser.add_argument("--output", metavar="FILE.npz", help="write the outputs here")
    parser.add_argument("--threads", type=int, help="how many threads to use (default: all CPUs)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run N times and state the best time")


def run(arguments: argparse.Namespace) -> int:
    from minifer.cli._feeds import made_feeds, read_feeds, savable
    from minifer.cli._text import time_text
    from minifer.errors import InputError
    from minifer.session import load

    if arguments.repeat < 1:
        raise InputError(f"--repeat is at least 1, not {arguments.repeat}")
    session = load(arguments.model, threads=arguments.threads)
    feeds = read_feeds(session, arguments.files)
    if arguments.random:
        feeds |= made_feeds(session, arguments, feeds, arguments.seed)
    elif arguments.shape or arguments.dim or arguments.values:
        raise InputError("--shape, --dim and --set are for --random: the array in a file has its own shape and values")
    seconds = []
    for _ in range(arguments.repeat):
        start = time.perf_counter()
        results = session.run(feeds)
        seconds.append(time.perf_counter() - start)
    for name, value in results.items():
        print(f"{name}: {describe(value)}")
    first = f", the first {time_text(seconds[0])}" if len(seconds) > 1 else ""
    print(f"{len(seconds)} run{'s' if len(seconds) > 1 else ''}, best {time_text(min(seconds))}{first}")
    if arguments.output:
        write_npz(arguments.output, savable(results))
    return 0


def write_npz(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """np.savez for arrays of any name ("file" too)."""
    from numpy.lib.format import write_array

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                write_array(file, array, allow_pickle=False)


def describe(value: Any) -> str:
    """Type of an output, and its values where they are few, else their range."""
    import numpy as np

    from minifer.ir import type_of_value

    if isinstance(value, list):
        return f"sequence of {len(value)}" + "".join(f"\n  {i}: {describe(item)}" for i, item in enumerate(value[:8]))
    if not isinstance(value, np.ndarray | np.generic):
        return repr(value)
    kind, array = str(type_of_value(value)), np.asarray(value)
    if array.size <= 8 or array.dtype == object:
        shown = ", ".join(str(v) for v in array.reshape(-1)[:8].tolist())
        return f"{kind} = [{shown}{', ...' if array.size > 8 else ''}]"
    if array.dtype.kind == "c":
        return f"{kind}, magnitudes {np.abs(array).min():.6g} .. {np.abs(array).max():.6g}"
    numbers = array.astype(np.float64)
    strange = int(np.count_nonzero(~np.isfinite(numbers)))
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return f"{kind}, none of the values finite"
    text = f"{kind}, from {finite.min():.6g} to {finite.max():.6g}, mean {finite.mean():.6g}"
    return text + (f", {strange} not finite" if strange else "")
