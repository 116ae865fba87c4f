"""Elementwise operators as kernel calls: functions of one number, of two with broadcasting, casts.

They work in whatever layout the data lies in already, so that a chain of convolutions stays channels-last. float16 and
bfloat16 are computed in float32, narrow integers in int32, uint32 in int64, and cast back, as the references do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.kernels import activation, unary
from minifer.kernels.binary import BINARY
from minifer.kernels.cast import CAST
from minifer.kernels.elementwise import broadcast_table, dense_strides
from minifer.kernels.unary import UNARY
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined
from minifer.record import Record

#: the type to compute in, where it is another
WIDE = {
    "float16": "float32", "bfloat16": "float32", "int8": "int32", "uint8": "int32", "int16": "int32",
    "uint16": "int32", "uint32": "int64",
}  # fmt: skip
#: how kernel names spell the types that they compute in
SPELLED = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}
Lower = Callable[[Any], "Declined | None"]


class Operand(Record):
    """A tensor to broadcast: its ONNX dimensions and where it lies."""

    slot: Any
    dims: tuple[int, ...]
    layout: str = PLAIN

    def strides(self, shape: Sequence[int], layout: str) -> list[int]:
        """Strides in elements along the axes of a result of ONNX dimensions `shape`, in its memory order."""
        if self.layout == PLAIN:
            own = dense_strides(self.dims)
        else:
            last = dense_strides((self.dims[0], *self.dims[2:], self.dims[1]))
            own = [last[0], last[-1], *last[1:-1]]
        padded = [0] * (len(shape) - len(own)) + own
        return [padded[i] for i in memory_order(len(shape), layout)]


#: the bounds of a binary kernel that clamps nothing
UNBOUNDED = (-float("inf"), float("inf"))


def memory_order(rank: int, layout: str) -> tuple[int, ...]:
    """ONNX axes in the order in which they lie in memory."""
    return tuple(range(rank)) if layout == PLAIN or rank < 3 else (0, *range(2, rank), 1)


def memory_shape(dims: Sequence[int], layout: str) -> tuple[int, ...]:
    """ONNX dimensions in memory order."""
    return tuple(dims[i] for i in memory_order(len(dims), layout))


def no_kernel(low: Any, dtype: str) -> Declined:
    """The usual reason."""
    return Declined(f"no kernel of {low.node.op} for {dtype}")


#: (code, first, second) of no activation
IDENTITY = (activation.CLAMP, -math.inf, math.inf)


def activation_after(low: Any) -> tuple[int, float, float]:
    """Absorb the activation that follows a float32 output 0: (code, first, second)."""
    after = low.epilogue(channel_axis=None, residual=False)
    return after.code, after.first, after.second


def bounds_after(low: Any) -> tuple[float, float]:
    """Absorb a Relu or Clip that follows a float32 output 0."""
    follower = low.follower()
    if follower is None or follower[1].op not in ("Relu", "Clip"):
        return IDENTITY[1:]
    return activation_after(low)[1:]


# ---------------------------------------------------------------- types


def cast_slot(low: Any, slot: Any, dtype: str) -> Any:
    """The tensor in another element type, in scratch memory."""
    made = low.scratch(slot.size * np.dtype(dtype).itemsize, dtype)
    low.call(CAST[slot.dtype, dtype], slot, made, slot.size)
    return made.with_(shape=slot.shape, layout=slot.layout)


def widened(low: Any, slot: Any) -> Any:
    """The tensor in the type to compute in."""
    return cast_slot(low, slot, WIDE[slot.dtype]) if slot.dtype in WIDE else slot


class Result:
    """Output `i` while it is computed in a wider type: kernels write `slot`, and `close` brings it home."""

    def __init__(self, low: Any, layout: str, i: int = 0, dtype: str | None = None):
        """`dtype`: what the kernels write (None: the type to compute in)."""
        self.low, self.home = low, low.output(i, layout)
        wanted = dtype or WIDE.get(self.home.dtype, self.home.dtype)
        self.slot = self.home
        if wanted != self.home.dtype:
            made = low.scratch(self.home.size * np.dtype(wanted).itemsize, wanted)
            self.slot = made.with_(shape=self.home.shape, layout=layout)

    def close(self) -> None:
        """Cast into the output, where that has another type."""
        if self.slot is not self.home:
            self.low.call(CAST[self.slot.dtype, self.home.dtype], self.slot, self.home, self.home.size)


def layout_of(low: Any, i: int = 0) -> str:
    """The layout in which an elementwise operator keeps input `i`."""
    return CHANNELS_LAST if CHANNELS_LAST in low.layouts(i) else PLAIN


# ---------------------------------------------------------------- functions of one number


def apply_unary(low: Any, name: str, first: float = 0, second: float = 0) -> Declined | None:
    """Output 0 = the function `name` (of kernels/unary.py) of input 0."""
    dtype = low.dtype(0)
    kernel = UNARY.get(f"{name}_{SPELLED.get(WIDE.get(dtype, dtype))}")
    if kernel is None:
        return no_kernel(low, dtype)
    layout = layout_of(low)
    x = widened(low, low.input(0, layout))
    y = Result(low, layout)
    low.call(kernel, x, y.slot, x.size, first, second)
    y.close()
    return None


def lower_unary(name: str, **parameters: tuple[str, float]) -> Lower:
    """The lowering of a function of one number; `first` and `second` are (attribute, default)."""

    def lower(low: Any) -> Declined | None:
        given = {p: low.attr(attribute, default) for p, (attribute, default) in parameters.items()}
        return apply_unary(low, name, **given)

    return lower


def apply_activation(low: Any, code: int, first: float = 0, second: float = 0) -> Declined | None:
    """Output 0 = an activation (by its code in kernels/activation.py) of input 0."""
    dtype = low.dtype(0)
    if WIDE.get(dtype, dtype) != "float32":
        return no_kernel(low, dtype)
    layout = layout_of(low)
    x = widened(low, low.input(0, layout))
    y = Result(low, layout)
    low.call(unary.activation, x, y.slot, x.size, code, first, second)
    y.close()
    return None


def lower_activation(name: str, **parameters: tuple[str, float]) -> Lower:
    """The lowering of an activation by its name in kernels/activation.py; `first`, `second`: (attribute, default)."""
    code = getattr(activation, name)

    def lower(low: Any) -> Declined | None:
        given = {p: low.attr(attribute, default) for p, (attribute, default) in parameters.items()}
        return apply_activation(low, code, **given)

    return lower


def lower_gelu(low: Any) -> Declined | None:
    """Gelu in either form."""
    tanh = low.attr("approximate", "none") == "tanh"
    return apply_activation(low, activation.GELU_TANH if tanh else activation.GELU)


def lower_swish(low: Any) -> Declined | None:
    """Swish; SiLU where alpha is 1."""
    alpha = low.attr("alpha", 1.0)
    return apply_activation(low, activation.SILU) if alpha == 1 else apply_unary(low, "swish", alpha)


def clip_between(low: Any, least: float | int | None, most: float | int | None) -> Declined | None:
    """Input 0 between two bounds known while planning (None: no bound)."""
    dtype = low.dtype(0)
    wide = WIDE.get(dtype, dtype)
    if wide == "float32":
        return apply_activation(
            low, activation.CLAMP, -math.inf if least is None else least, math.inf if most is None else most
        )
    if wide == "float64":
        limits = (-math.inf, math.inf)
    elif wide in SPELLED:
        limits = (int(np.iinfo(wide).min), int(np.iinfo(wide).max))
    else:
        return no_kernel(low, dtype)
    return apply_unary(low, "clip", limits[0] if least is None else least, limits[1] if most is None else most)


def lower_relu(low: Any) -> Declined | None:
    """max(x, 0)."""
    return clip_between(low, 0, None)


def lower_clip_by_attributes(low: Any) -> Declined | None:
    """Clip before opset 11."""
    return clip_between(low, low.attr("min"), low.attr("max"))


def lower_clip(low: Any) -> Declined | None:
    """Clip with bounds that are inputs: known while planning, or only in the run."""
    given = [i for i in (1, 2) if low.has(i)]
    if all(low.value(i) is not None for i in given):
        bounds = {i: np.asarray(low.value(i)).reshape(-1)[0].item() for i in given}
        return clip_between(low, bounds.get(1), bounds.get(2))
    return apply_chain(low, [(name, i) for name, i in (("max", 1), ("min", 2)) if low.has(i)])


def lower_is_nan(low: Any) -> Declined | None:
    """IsNaN."""
    return _test(low, unary.is_nan)


def lower_is_inf(low: Any) -> Declined | None:
    """IsInf."""
    return _test(low, unary.is_infinite, low.attr("detect_negative", 1), low.attr("detect_positive", 1))


def _test(low: Any, kernel: Any, *flags: int) -> Declined | None:
    if WIDE.get(low.dtype(0), low.dtype(0)) != "float32":
        return no_kernel(low, low.dtype(0))
    layout = layout_of(low)
    x = widened(low, low.input(0, layout))
    low.call(kernel, x, low.output(0, layout), x.size, *flags)
    return None


# ---------------------------------------------------------------- broadcasting


def chosen_layout(low: Any, indices: Sequence[int]) -> str:
    """The layout of a broadcasting operator's result: channels-last where an input of its shape lies only so."""
    shape = low.out_shape()
    if len(shape) < 3:
        return PLAIN
    whole = [low.layouts(i) for i in indices if low.shape(i) == shape and low.value(i) is None]
    if whole and (any(PLAIN not in held for held in whole) or all(CHANNELS_LAST in held for held in whole)):
        return CHANNELS_LAST
    return PLAIN


def operand(low: Any, i: int, layout: str, dims: tuple[int, ...] | None = None) -> Operand:
    """Input `i` to broadcast into a result of this layout; `dims`: the shape to take it in, where it is another."""
    dims = low.shape(i) if dims is None else dims
    shape = low.out_shape()
    plain = Operand(None, dims)
    if layout == PLAIN or len(dims) != len(shape) or dims != low.shape(i):
        return plain.with_(slot=low.input(i))
    if CHANNELS_LAST in low.layouts(i):
        return Operand(low.input(i, CHANNELS_LAST), dims, CHANNELS_LAST)
    inner = next((k for k in reversed(memory_order(len(shape), layout)) if shape[k] != 1), 0)
    steps = dict(zip(memory_order(len(shape), layout), plain.strides(shape, layout)))
    if steps[inner] <= 1:
        return plain.with_(slot=low.input(i))
    if low.value(i) is not None:
        packed = low.pack(i, CHANNELS_LAST, lambda v: np.ascontiguousarray(np.moveaxis(v, 1, -1)))
        return Operand(packed, dims, CHANNELS_LAST)
    return Operand(low.input(i, CHANNELS_LAST), dims, CHANNELS_LAST)


def widened_operand(low: Any, given: Operand, i: int | None = None) -> Operand:
    """The operand in the type to compute in; a small known one is converted while planning."""
    if given.slot.dtype not in WIDE:
        return given
    if i is not None and low.value(i) is not None and given.layout == PLAIN:
        value = np.asarray(low.value(i)).astype(WIDE[given.slot.dtype])
        return given.with_(slot=low.const(value))
    return given.with_(slot=widened(low, given.slot))


def table_of(a: Operand, b: Operand, dims: Sequence[int], layout: str) -> np.ndarray | None:
    """The kernels' table for broadcasting two operands; None where the kernels cannot do it."""
    return _table(*map(tuple, (memory_shape(dims, layout), a.strides(dims, layout), b.strides(dims, layout))))


@functools.lru_cache(512)  # a graph asks for few different ones, each many times
def _table(sizes: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> np.ndarray | None:
    table = broadcast_table(sizes, a, b)
    if table is None or table[1:, -1].max() > 1:
        return None
    table.flags.writeable = False
    return table


def operands(low: Any, indices: Sequence[int], dims: Sequence[tuple[int, ...]] | None = None):
    """(layout, operands) of a broadcasting operator, or None where it needs too many axes."""
    shape = low.out_shape()
    listed = [low.shape(i) for i in indices] if dims is None else dims
    for layout in dict.fromkeys((chosen_layout(low, indices), PLAIN)):
        found = [operand(low, i, layout, d) for i, d in zip(indices, listed)]
        full = Operand(None, shape, layout)
        if all(table_of(o, full, shape, layout) is not None for o in found):
            return layout, found
    return None


TOO_MANY_AXES = Declined("broadcasting over too many axes")


def binary_kernel(name: str, dtype: str) -> Any:
    """The kernel of a function for an ONNX type, or None. Where the sign makes no difference, uint64 is as int64."""
    if dtype == "uint64" and name in ("add", "sub", "mul", "equal"):
        dtype = "int64"
    return BINARY.get(f"{name}_{SPELLED.get(WIDE.get(dtype, dtype))}")


def apply_binary(
    low: Any, name: str, indices: tuple[int, int] = (0, 1), dims: Sequence[tuple[int, ...]] | None = None
) -> Declined | None:
    """Output 0 = the function `name` (of kernels/binary.py) of two inputs; `dims`: other shapes to take them in."""
    dtype = low.dtype(indices[0])
    kernel = binary_kernel(name, dtype)
    if kernel is None:
        return no_kernel(low, dtype)
    found = operands(low, indices, dims)
    if found is None:
        return TOO_MANY_AXES
    layout, pair = found
    a, b = (widened_operand(low, o, i) for o, i in zip(pair, indices))
    result = None if low.out_type().dtype == "bool" else WIDE.get(dtype, dtype)
    bounds = bounds_after(low) if result == dtype and is_bounded(kernel) else None
    y = Result(low, layout, dtype=result)
    call_binary(low, kernel, a, b, y.slot, low.out_shape(), layout, bounds)
    y.close()
    return None


def is_bounded(kernel: Any) -> bool:
    """Whether a kernel holds its result between two bounds."""
    return kernel.parameters[-1].name == "second"


def call_binary(
    low: Any, kernel: Any, a: Operand, b: Operand, y: Any, dims: Sequence[int], layout: str,
    bounds: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """y = kernel(a, b), with a result of ONNX dimensions `dims`, held between bounds."""
    table = table_of(a, b, dims, layout)
    assert table is not None, "operands() admits no others"
    counted = [b.slot.size] if any(p.name == "divisors" for p in kernel.parameters) else []
    ends = (bounds or IDENTITY[1:]) if is_bounded(kernel) else ()
    low.call(kernel, a.slot, b.slot, y, *counted, low.const(table), *ends)


def apply_chain(low: Any, steps: Sequence[tuple[str, int]], last: tuple[str, Any] | None = None) -> Declined | None:
    """Input 0 combined with further inputs in turn: `steps` are (function, input); `last` is one with a constant."""
    dtype = low.dtype(0)
    wide = WIDE.get(dtype, dtype)
    kernels = [binary_kernel(name, dtype) for name, _ in (*steps, *([last] if last else []))]
    if None in kernels:
        return no_kernel(low, dtype)
    found = operands(low, [0, *(i for _, i in steps)])
    if found is None:
        return TOO_MANY_AXES
    layout, rest = found
    every = [widened_operand(low, o, i) for o, i in zip(rest, (0, *(i for _, i in steps)))]
    if last is not None:
        every.append(Operand(low.const(np.asarray(last[1], wide)), ()))
    if len(every) == 1:
        low.alias(low.input(0, layout))
        return None
    bounds = bounds_after(low) if dtype == wide and is_bounded(kernels[-1]) else None
    y = Result(low, layout)
    total = every[0]
    for k, (kernel, other) in enumerate(zip(kernels, every[1:])):
        dims = np.broadcast_shapes(total.dims, other.dims)
        target = y.slot
        if k + 1 < len(kernels):
            size = math.prod(dims)
            made = low.scratch(size * np.dtype(wide).itemsize, wide)
            target = made.with_(shape=memory_shape(dims, layout))
        own = layout if len(dims) == len(low.out_shape()) else PLAIN
        call_binary(low, kernel, total, other, target, dims, own, bounds if k + 1 == len(kernels) else None)
        total = Operand(target, dims, own)
    y.close()
    return None


def lower_binary(name: str) -> Lower:
    """The lowering of a function of two numbers with broadcasting."""
    return lambda low: apply_binary(low, name)


def lower_legacy(name: str, swapped: bool = False) -> Lower:
    """The same with the limited broadcasting before opset 7."""

    def lower(low: Any) -> Declined | None:
        first, second = low.shape(0), low.shape(1)
        axis = low.attr("axis")
        if low.attr("broadcast", 0) and axis is not None and second and math.prod(second) != 1:
            start = axis + len(first) if axis < 0 else axis
            second = second + (1,) * (len(first) - start - len(second))
        dims = (second, first) if swapped else (first, second)
        return apply_binary(low, name, (1, 0) if swapped else (0, 1), dims)

    return lower


def lower_variadic(name: str, mean: bool = False) -> Lower:
    """Max, Min, Sum and Mean of any number of tensors."""

    def lower(low: Any) -> Declined | None:
        count = len(low.node.inputs)
        return apply_chain(low, [(name, i) for i in range(1, count)], ("div", count) if mean and count > 1 else None)

    return lower


def lower_mod(low: Any) -> Declined | None:
    """Mod in either form."""
    return apply_binary(low, "fmod" if low.attr("fmod", 0) else "mod")


#: exponents that need no logarithm
_POWERS = {2: "square", 3: "cube", 0.5: "power_half", -0.5: "power_minus_half", -1: "reciprocal"}


def lower_pow(low: Any) -> Declined | None:
    """Pow: by multiplication, root or division for the usual exponents, else by logarithm and exponential."""
    exponent = low.value(1)
    if exponent is not None and exponent.size == 1 and low.shape(0) == low.out_shape():
        name = _POWERS.get(float(np.asarray(exponent).reshape(-1)[0]))
        if name is not None and (declined := apply_unary(low, name)) is None:
            return declined
    if low.dtype(0) != low.dtype(1):
        return Declined(f"no kernel for {low.dtype(0)} to the power of {low.dtype(1)}")
    return apply_binary(low, "pow")


# ---------------------------------------------------------------- truth and bits


def lower_compare(name: str, swapped: bool = False) -> Lower:
    """A comparison."""

    def lower(low: Any) -> Declined | None:
        if low.dtype(0) == "bool":
            return _bytewise(low, BINARY.get(f"{name}_u8"))
        return apply_binary(low, name, (1, 0) if swapped else (0, 1))

    return lower


def lower_bits(name: str) -> Lower:
    """And, Or, Xor of bools (held as bytes 0 and 1) or of the bits of integers."""
    return lambda low: _bytewise(low, BINARY.get(f"{name}_u{max(8, dtypes.bits(low.dtype(0)))}"))


def _bytewise(low: Any, kernel: Any) -> Declined | None:
    """A kernel that sees the bits alone."""
    if kernel is None:
        return no_kernel(low, low.dtype(0))
    found = operands(low, (0, 1))
    if found is None:
        return TOO_MANY_AXES
    layout, (a, b) = found
    call_binary(low, kernel, a, b, low.output(0, layout), low.out_shape(), layout)
    return None


def lower_not(low: Any) -> Declined | None:
    """Not: of a bool, or of all bits of an integer."""
    dtype = low.dtype(0)
    bits = max(8, dtypes.bits(dtype))
    layout = layout_of(low)
    shape = low.out_shape()
    x = Operand(low.input(0, layout), shape, layout)
    ones = np.array(1 if dtype == "bool" else (1 << bits) - 1, f"uint{bits}")
    call_binary(
        low, BINARY[f"xor_u{bits}"], x, Operand(low.const(ones), ()), low.output(0, layout), shape, layout
    )  # fmt: skip
    return None


# ---------------------------------------------------------------- casts


def cast_steps(source: str, target: str) -> list[str] | None:
    """The types after `source` by way of which it becomes `target`; None where no kernels lead there exactly."""
    if source == target:
        return []
    if (source, target) in CAST:
        return [target]
    if target in ("float16", "bfloat16") and source not in ("float16", "bfloat16", "bool", "uint8", "int8"):
        return None  # two roundings might differ from one
    for middle in ("float32", "int32", "int64"):
        if (source, middle) in CAST and (middle, target) in CAST and _exact(source, middle):
            return [middle, target]
    return None


def _exact(source: str, middle: str) -> bool:
    """Whether every `source` number is a `middle` number."""
    if source in ("float16", "bfloat16", "float32"):
        return middle == "float32"
    if source == "float64":
        return False
    if middle == "float32":
        return dtypes.bits(source) <= 16
    unsigned = source.startswith("u")
    return dtypes.bits(source) < dtypes.bits(middle) if unsigned else dtypes.bits(source) <= dtypes.bits(middle)


def lower_cast(low: Any) -> Declined | None:
    """Cast and CastLike between the types that kernels know."""
    source, target = low.dtype(0), low.out_type().dtype
    layout = layout_of(low)
    steps = cast_steps(source, target)
    if steps is None:
        return Declined(f"no kernel that casts {source} to {target}")
    x = low.input(0, layout)
    if not steps:
        low.alias(x)
        return None
    for middle in steps[:-1]:
        x = cast_slot(low, x, middle)
    low.call(CAST[x.dtype, target], x, low.output(0, layout), x.size)
    return None
