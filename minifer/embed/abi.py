"""The one description of a compiled model's interface. The code generator, the C header, the Rust module and the
JavaScript module are all made from it.

A compiled model exports, under its own name (here NAME; sizes are size_t, that is 32 bits wide on wasm32):

    int32_t     NAME_run(const minifer_buffer *inputs, size_t input_count,
                         const minifer_buffer *outputs, size_t output_count,
                         void *workspace, size_t workspace_bytes [, const void *weights, size_t weights_bytes])
    size_t      NAME_workspace_bytes(void)
    size_t      NAME_weights_bytes(void)               what `weights` must hold; 0 where they are part of the file
    size_t      NAME_input_count(void), NAME_output_count(void)
    const char *NAME_input_name(size_t), NAME_output_name(size_t)             NULL beyond the last
    int32_t     NAME_input_dtype(size_t), NAME_output_dtype(size_t)           ONNX's number of the element type; 0 ...
    size_t      NAME_input_rank(size_t), NAME_output_rank(size_t)
    int64_t     NAME_input_dim(size_t, size_t axis), NAME_output_dim(size_t, size_t axis)      -1 ...
    size_t      NAME_input_bytes(size_t), NAME_output_bytes(size_t)

`minifer_buffer` is { void *data; size_t bytes; }. `run` reads the inputs, writes the outputs and uses nothing else
than the workspace: no global state, no allocation, so any number of threads may call it, each with a workspace of its
own. Tensors are dense and row-major; a workspace and weights begin at a multiple of 64 bytes. It returns a Status.
"""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass

from minifer import dtypes
from minifer.errors import InputError

ALIGNMENT = 64  # of the workspace and the weights, in bytes


class Status(enum.IntEnum):
    """What `run` returns."""

    OK = 0
    INPUTS = 1
    OUTPUTS = 2
    WORKSPACE = 3
    WEIGHTS = 4
    REFUSED = 5


#: what a status means, in the words of every binding
STATUS_TEXT = {
    Status.OK: "no error",
    Status.INPUTS: "the number of inputs, or the size of one in bytes, is not what the model takes",
    Status.OUTPUTS: "the number of outputs, or the size of one in bytes, is not what the model gives",
    Status.WORKSPACE: "the workspace is missing, too small, or does not begin at a multiple of 64 bytes",
    Status.WEIGHTS: "the weights are missing, of another size, or do not begin at a multiple of 64 bytes",
    Status.REFUSED: "a value in the inputs is out of range, such as an index or a divisor of zero",
}


@dataclass(frozen=True)
class Tensor:
    """One input or output: its name in the model, a name that every language takes, element type and shape."""

    name: str
    identifier: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return self.size * max(1, dtypes.bits(self.dtype) // 8)


@dataclass(frozen=True)
class Interface:
    """A compiled model as its callers see it."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace_bytes: int
    weights_bytes: int  # in the file itself, or beside it
    separate: bool  # weights lie in a file of their own

    @property
    def exports(self) -> tuple[str, ...]:
        """The names of all exported functions."""
        of_tensors = ("count", "name", "dtype", "rank", "dim", "bytes")
        facts = [f"{kind}_{fact}" for kind in ("input", "output") for fact in of_tensors]
        return tuple(f"{self.name}_{what}" for what in ("run", "workspace_bytes", "weights_bytes", *facts))


#: words that are no names in C, C++, Rust, Python or JavaScript
_TAKEN_WORDS = """
    abstract alignas alignof and and_eq arguments as asm assert async auto await become bitand bitor bool box break
    case catch char class compl const constexpr continue crate debugger decltype def default del delete do double dyn
    elif else enum eval except explicit export extends extern false final finally float fn for friend from function gen
    global goto if impl implements import in inline instanceof int interface is lambda let long loop macro match mod
    move mut mutable namespace new noexcept nonlocal not not_eq null nullptr operator or or_eq override package pass
    priv private protected pub public raise ref register requires restrict return self short signed sizeof static
    struct super switch template this throw trait true try type typedef typeid typename typeof union unsafe unsigned
    unsized use using var virtual void volatile wchar_t where while with xor xor_eq yield
"""
_TAKEN = frozenset(_TAKEN_WORDS.split())


def identifier(text: str, default: str = "model") -> str:
    """A name that C, Rust and JavaScript all take, in lower case, made of any text."""
    words = re.sub(r"[^0-9a-z]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()).strip("_")
    if not words:
        words = default
    if words[0].isdigit():
        words = f"{default}_{words}"
    return f"{words}_" if words in _TAKEN else words


def check_name(name: str) -> str:
    """A name that the caller chose, or InputError."""
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) and name not in _TAKEN:
        return name
    raise InputError(
        f"{name!r} cannot be the name of a compiled model: use lower-case letters, digits and underscores, "
        "with a letter first, and no word that C, Rust or JavaScript reserve"
    )


def unique_identifiers(names: list[str], default: str) -> list[str]:
    """An identifier for each name, no two the same."""
    found: list[str] = []
    for name in names:
        base = candidate = identifier(name, default)
        number = 2
        while candidate in found:
            candidate, number = f"{base}_{number}", number + 1
        found.append(candidate)
    return found
