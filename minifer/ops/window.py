"""How a kernel slides over spatial axes: the arithmetic that convolutions and pools share.

A `Window` says for each spatial axis how far the kernel reaches, how it steps, how much padding lies before and
behind the data, and how many places it takes. Type rules (unknown sizes allowed) and references (all sizes known)
build it with the same function, so that they cannot disagree.
Source: the Conv, AveragePool and MaxPool pages of the ONNX specification.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from minifer.errors import ShapeError
from minifer.ir import Dim
from minifer.ops.registry import Call
from minifer.ops.shapes import Fail
from minifer.record import Record

LARGEST = 2**31 - 1  # of a kernel size, stride, dilation or pad: positions can then be counted in 64 bits
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


class Window(Record):
    """A sliding kernel, one entry per spatial axis. `out` and the pads hold None or a symbol where unknown."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int | None, ...]
    end: tuple[int | None, ...]
    out: tuple[Dim, ...]

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """(before, behind) of each axis, where all are known."""
        return tuple((int(b), int(e)) for b, e in zip(self.begin, self.end))  # type: ignore[arg-type]


def wide(x: np.ndarray) -> np.ndarray:
    """The array in a type that can be computed in: 16-bit floats and smaller become float32."""
    return x if x.dtype.kind == "f" and x.dtype.itemsize >= 4 else x.astype(np.float32)


def per_axis(values: Sequence[int] | None, rank: int, name: str, least: int, fail: Fail) -> tuple[int, ...]:
    """An attribute with one integer per spatial axis; `least` where absent, and no value may be below it."""
    if not values:
        return (least,) * rank
    if len(values) != rank:
        raise fail(f"{name} {list(values)} has {len(values)} entries; {rank} spatial axes need {rank}")
    if min(values) < least or max(values) > LARGEST:
        raise fail(f"{name} {list(values)} has an entry {f'below {least}' if min(values) < least else 'far too large'}")
    return tuple(int(v) for v in values)


def split_pads(pads: Sequence[int] | None, rank: int, fail: Fail) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The `pads` attribute as (before, behind)."""
    if not pads:
        return (0,) * rank, (0,) * rank
    if len(pads) != 2 * rank:
        raise fail(f"pads {list(pads)} has {len(pads)} entries; {rank} spatial axes need {2 * rank}")
    if min(pads) < 0:
        raise fail(f"pads {list(pads)} has a negative entry; use Slice to crop")
    if max(pads) > LARGEST:
        raise fail(f"pads {list(pads)} has an entry far too large")
    return tuple(pads[:rank]), tuple(pads[rank:])


def slide(
    fail: Fail,
    spatial: Sequence[Dim],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Window:
    """The window of a kernel over `spatial` sizes; raises `fail(...)` for attributes that do not fit.

    With auto_pad other than NOTSET `pads` is ignored. A window that would start behind the data and its front
    padding is left out (ceil_mode can bring one forth).
    """
    given = (tuple(v) if v is not None else () for v in (kernel, strides, dilations, pads))
    try:
        return _slide(tuple(spatial), *given, auto_pad, ceil_mode)
    except ShapeError as error:
        raise fail(str(error)) from None


@functools.lru_cache(1024)  # passes, type rules and lowerings ask for the same ones
def _slide(
    spatial: tuple[Dim, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], auto_pad: str, ceil_mode: int,
) -> Window:  # fmt: skip
    rank, fail = len(spatial), ShapeError
    sizes = per_axis(kernel, rank, "kernel_shape", 1, fail)
    steps = per_axis(strides, rank, "strides", 1, fail)
    spread = per_axis(dilations, rank, "dilations", 1, fail)
    if auto_pad not in AUTO_PADS:
        raise fail(f"auto_pad '{auto_pad}' is not one of {', '.join(AUTO_PADS)}")
    begin, end = split_pads(pads if auto_pad == "NOTSET" else None, rank, fail)
    axes = [
        _axis(fail, i, spatial[i], (sizes[i] - 1) * spread[i] + 1, steps[i], (begin[i], end[i]), auto_pad, ceil_mode)
        for i in range(rank)
    ]
    return Window(sizes, steps, spread, tuple(a[1] for a in axes), tuple(a[2] for a in axes), tuple(a[0] for a in axes))


def _axis(
    fail: Fail, i: int, size: Dim, extent: int, step: int, pad: tuple[int, int], auto_pad: str, ceil_mode: int
) -> tuple[Dim, int | None, int | None]:
    """(places, padding before, padding behind) of one axis."""
    same = auto_pad.startswith("SAME")
    if not isinstance(size, int):
        keeps = step == 1 and (same or sum(pad) == extent - 1)
        known = (None, None) if same else pad
        return (size if keeps else None, *known)
    if same:
        out = -(-size // step)
        total = max(0, (out - 1) * step + extent - size)
        small, large = total // 2, total - total // 2
        return (out, small, large) if auto_pad == "SAME_UPPER" else (out, large, small)
    room = size + pad[0] + pad[1] - extent
    if ceil_mode and auto_pad == "NOTSET":
        out = -(-room // step) + 1
        if (out - 1) * step >= size + pad[0]:
            out -= 1
    else:
        out = room // step + 1
    if out < 1 and size:
        raise fail(f"the kernel spans {extent} on spatial axis {i}, more than the {size + sum(pad)} of padded input")
    return max(out, 0), *pad


def window_of_call(call: Call, spatial: Sequence[Dim], kernel: Sequence[int]) -> Window:
    """The window that a node's attributes describe."""
    return slide(
        call.fail,
        spatial,
        kernel,
        strides=call.attr("strides"),
        dilations=call.attr("dilations"),
        pads=call.attr("pads"),
        auto_pad=call.attr("auto_pad", "NOTSET"),
        ceil_mode=call.attr("ceil_mode", 0),
    )


def taps_inside(window: Window, i: int, size: int) -> range:
    """The kernel taps of spatial axis `i` that meet the data at one place or another, of an axis of `size`."""
    step, spread, out = window.strides[i], window.dilations[i], int(window.out[i])  # type: ignore[arg-type]
    begin = int(window.begin[i])  # type: ignore[arg-type]
    first = max(0, -((max(out - 1, 0) * step - begin) // spread))
    return range(first, min(window.kernel[i], (begin + size - 1) // spread + 1))


def tap_range(window: Window, i: int, tap: int, size: int) -> tuple[slice, slice]:
    """Which places of spatial axis `i` have kernel tap `tap` inside the data, and which elements it meets there.

    Two slices of one length: (places of the output, elements of an axis of `size`).
    """
    step, out = window.strides[i], int(window.out[i])  # type: ignore[arg-type]
    shift = tap * window.dilations[i] - int(window.begin[i])  # type: ignore[arg-type]
    first = max(0, -(shift // step))  # the first place with place * step + shift >= 0
    stop = min(out, (size - 1 - shift) // step + 1)
    if stop <= first:
        return slice(0, 0), slice(0, 0)
    return slice(first, stop), slice(first * step + shift, (stop - 1) * step + shift + 1, step)


def need_rank(x: np.ndarray, least: int, name: str) -> None:
    """ShapeError unless the array has at least `least` axes."""
    if x.ndim < least:
        raise ShapeError(f"{name} of shape {list(x.shape)} has rank {x.ndim}; at least {least} is needed")
