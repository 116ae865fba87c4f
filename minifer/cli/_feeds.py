"""Inputs for a model from the command line: files of arrays, images, random values."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError
from minifer.ir import TensorType

if TYPE_CHECKING:
    from minifer.session import Session, Value

ARRAY_FILES = (".npy", ".npz", ".pb")


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """--shape and --dim, for inputs whose shapes the model leaves open; --set for their values."""
    parser.add_argument(
        "--shape", action="append", default=[], metavar="NAME=1,3,224,224", help="the shape of an input; repeatable"
    )
    parser.add_argument(
        "--dim", action="append", default=[], metavar="SYMBOL=SIZE",
        help="the size of a symbolic dimension (default 1); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="values",
        help="fill an input with a number in place of random ones; repeatable",
    )  # fmt: skip


def shapes_of(session: Session, shapes: Sequence[str], dims: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """A concrete shape for each tensor input: what --shape and --dim say, 1 for what is still open."""
    given = {name: _sizes(text) for name, text in _pairs(shapes, "--shape")}
    sizes = {name: _sizes(text)[0] for name, text in _pairs(dims, "--dim")}
    names = [value.name for value in session.inputs]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InputError(f"--shape names '{unknown[0]}', which is no input; the inputs are {', '.join(names)}")
    symbols = {d for value in session.inputs for d in value.shape or () if isinstance(d, str)}
    strange = [name for name in sizes if name not in symbols]
    if strange:
        known = ", ".join(sorted(symbols)) or "none"
        raise InputError(f"--dim names '{strange[0]}', which is no symbolic dimension of an input; there is {known}")
    out = {}
    for value in session.inputs:
        if value.name in given:
            out[value.name] = given[value.name]
        elif isinstance(value.type, TensorType):
            if value.shape is None:
                raise InputError(f"the model leaves the rank of '{value.name}' open: give --shape {value.name}=...")
            out[value.name] = tuple(d if isinstance(d, int) else sizes.get(d or "", 1) for d in value.shape)
    return out


def compile_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """--shape, --dim and --set as the arguments of minifer.compile."""
    values = {}
    for name, text in _pairs(arguments.values, "--set"):
        try:
            values[name] = float(text) if "." in text or "e" in text.lower() else int(text)
        except ValueError:
            raise InputError(f"--set {name}={text}: {text!r} is no number") from None
    return {
        "shapes": {name: _sizes(text) for name, text in _pairs(arguments.shape, "--shape")},
        "dims": {name: _sizes(text)[0] for name, text in _pairs(arguments.dim, "--dim")},
        "values": values,
    }


def _pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = [text.rpartition("=")[::2] for text in texts]
    for text, (name, _) in zip(texts, pairs):
        if not name:
            raise InputError(f"{option} is written NAME=SIZE, not '{text}'")
    return pairs


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(",") if part.strip())
    except ValueError:
        sizes = (-1,)
    if not text.strip(",x ") or any(size < 0 for size in sizes):
        raise InputError(f"'{text}' is no list of sizes such as 1,3,224,224")
    return sizes


def random_value(value: Value, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal numbers for floats, 0 and 1 for integers (safe as indices), words for strings."""
    if not isinstance(value.type, TensorType):
        raise InputError(f"input '{value.name}' is {value.type}: random values are made for tensors only")
    dtype = value.type.dtype
    if dtype == "string":
        return rng.choice(np.array(["a", "bc", "def"], object), shape)
    if dtype.startswith("complex"):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtypes.to_numpy(dtype))
    if "float" in dtype:
        return np.asarray(rng.standard_normal(shape, np.float32)).astype(dtypes.to_numpy(dtype))
    return rng.integers(0, 2, shape).astype(dtypes.to_numpy(dtype))


def made_feeds(session: Session, arguments: argparse.Namespace, given: Collection[str], seed: int) -> dict[str, Any]:
    """Values for the inputs that are not given: what --set says, else random ones, in the shapes of --shape, --dim."""
    rng = np.random.default_rng(seed)
    shapes = shapes_of(session, arguments.shape, arguments.dim)
    numbers = dict(_pairs(arguments.values, "--set"))
    unknown = [name for name in numbers if name not in shapes]
    if unknown:
        raise InputError(f"--set names '{unknown[0]}', which is no tensor input; there is {', '.join(shapes)}")
    feeds = {}
    for value in session.inputs:
        if value.name in numbers:
            feeds[value.name] = _filled(value, shapes[value.name], numbers[value.name])
        elif value.name not in given:
            feeds[value.name] = random_value(value, shapes.get(value.name, ()), rng)
    return feeds


def _filled(value: Value, shape: tuple[int, ...], text: str) -> np.ndarray:
    if value.dtype == "string":
        return np.full(shape, text, object)
    dtype = dtypes.to_numpy(value.dtype)
    try:
        number = int(text) if "int" in value.dtype else complex(text) if dtype.kind == "c" else float(text)
        return np.full(shape, number).astype(dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(f"--set {value.name}={text}: '{text}' is no value of type {value.dtype}") from error


def read_feeds(session: Session, files: Sequence[str]) -> dict[str, Any]:
    """Arrays by input name. A file may be given as NAME=FILE; without a name it takes the next input that has none,
    and an .npz file gives the names itself. Images are prepared for the model as `classify` does it."""
    names = [value.name for value in (*session.inputs, *session.overridable)]
    feeds: dict[str, Any] = {}
    for text in files:
        name, _, path = text.partition("=")
        if not path or name not in names:
            name, path = "", text
        arrays = read_arrays(path) if Path(path).suffix.lower() in ARRAY_FILES else [("", _image(session, path))]
        for stored, array in arrays:
            target = name or (stored if Path(path).suffix.lower() == ".npz" else "")
            target = target or next((n for n in names if n not in feeds), "")
            if not target:
                raise InputError(f"'{path}' is one file too many: the model has the inputs {', '.join(names)}")
            if target not in names:
                raise InputError(f"'{path}' holds '{target}', which is no input; the inputs are {', '.join(names)}")
            feeds[target] = array
    return feeds


def read_arrays(path: str) -> list[tuple[str, np.ndarray]]:
    """The arrays of an .npy, .npz or .pb (TensorProto) file, with the names they have there ("" for none)."""
    suffix = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise InputError(f"there is no file '{path}'")
    if suffix == ".pb":
        from minifer.onnx_io.schema import MESSAGES
        from minifer.onnx_io.tensor import read_tensor
        from minifer.onnx_io.wire import decode

        proto = decode(MESSAGES["TensorProto"], memoryview(Path(path).read_bytes()))
        return [(proto.name, read_tensor(proto, who=f"'{path}'"))]
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return [("", loaded)]
        with loaded:
            return [(name, loaded[name]) for name in loaded.files]
    except Exception as error:  # NumPy, zipfile and zlib raise anything on a damaged file
        raise InputError(f"'{path}' cannot be read as NumPy arrays: {error}") from error


def _image(session: Session, path: str) -> np.ndarray:
    from minifer.pipelines.image import ImageClassifier

    return ImageClassifier(session).prepare([path])


def savable(results: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs as .npz can hold them: types that NumPy lacks are widened without loss, sequences get numbered names."""
    out: dict[str, np.ndarray] = {}
    for name, value in results.items():
        if isinstance(value, list):
            out.update(savable({f"{name}.{i}": item for i, item in enumerate(value)}))
        elif isinstance(value, np.ndarray | np.generic):
            out[name] = _plain(np.asarray(value))
        elif value is not None:
            raise InputError(f"output '{name}' is a {type(value).__name__}, which .npz cannot hold")
    return out


def _plain(array: np.ndarray) -> np.ndarray:
    kind = dtypes.from_numpy(array.dtype)
    if kind == "string":
        return array.astype(str)
    if array.dtype.isbuiltin == 1:
        return array
    return array.astype(np.float32 if "float" in kind else np.int8 if kind.startswith("int") else np.uint8)
