"""Conv as kernel calls: depthwise, Winograd, matrix product or implicit GEMM, all on channels-last tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minifer.errors import ShapeError
from minifer.kernels import conv, conv_transpose, depthwise, expand, matrix, stem, winograd
from minifer.kernels.simd import MR, NR, SHORT, f32
from minifer.kernels.target import host
from minifer.ops.lower_fused import conv_tail
from minifer.ops.lower_matmul import dense, packed, worth_matrix
from minifer.ops.registry import CHANNELS_LAST, Call, Declined
from minifer.ops.window import Window, slide

# the kernels of a convolution
DEPTHWISE, GEMM, WINOGRAD, STEM, IMPLICIT_GEMM = "depthwise", "gemm", "winograd", "stem", "implicit gemm"
#: input channels up to which a row of taps is better read as one run, from a copy with the padding written out
FEW_CHANNELS = 8
#: bytes of all transformed tiles of Winograd's algorithm up to which threads share them: what stays in a cache; and for
#: each thread as many tiles that it had better transform those that it multiplies, and wait for nobody
SHARED_TILES, OWN_TILES = 3 << 20, 24
#: bytes between a 1x1 convolution and a depthwise one from which on the two are done in one: what leaves a second-level
#: cache. Measured, one thread: 0.65 of the time for 5 MB (stride 2), 0.85 for 0.6 MB and stride 2, 0.9 for 0.3 to 2 MB
WIDE = 1 << 18
#: and input channels up to which that is so where the cache is larger: with 240, 921 KB and 2 MB of cache, two kernels
#: take 0.88 of the time of one. The other is for matrix registers and one thread: two would send each other what lies
#: between
FEW_INPUTS, FEWER_INPUTS = 128, 64


class Rates(NamedTuple):
    """What a core does in a nanosecond: FLOPs of an implicit product and of one of tiles, bytes of weights; what of
    that it takes to read weights again; and nanoseconds to transform a value."""

    direct: float
    tiles: float
    weights: float
    again: float
    transform: float


#: by the width of vectors: 32 bytes, measured on Zen 3, and 64, measured on Granite Rapids
RATES, WIDE_RATES = Rates(97, 97, 25, 1, 0.3), Rates(175, 190, 20, 0.25, 0.12)
#: and FLOPs in a nanosecond of an implicit product on matrix registers, measured there as well
MATRIX_RATE = 300


def three(values: Sequence[Any], fill: int) -> tuple[int, ...]:
    """One to three numbers as depth, height, width."""
    return (fill,) * (3 - len(values)) + tuple(values)


def lower_conv(low: Any) -> Declined | None:
    """float32 Conv in one to three dimensions; weights that only the run knows are packed as it goes."""
    chosen = choose(low)
    if isinstance(chosen, Declined):
        return chosen
    window, kernel, size = chosen
    x_shape, filters = low.shape(0), low.shape(1)[0]
    if kernel == DEPTHWISE:
        low.note(lambda: "depthwise: each channel has its own filter")
        _depthwise(low, window, x_shape[1])
    elif kernel == GEMM:
        _pointwise(low, filters)
    elif kernel == STEM:
        low.note(lambda: "Winograd F(4, 4) and F(4, 3) of lines: seven taps, stride 2, few channels")
        _stem(low, window, filters)
    else:
        low.note(lambda: _reason(low, window, size))
        if kernel == WINOGRAD:
            _winograd(low, window, filters, size, window.strides[0])
        else:
            _implicit_gemm(low, window, x_shape, filters, low.attr("group", 1))
    return None


def choose(low: Any) -> Declined | tuple[Window, str, int]:
    """(window, kernel, size of a Winograd tile's result) for a Conv; `low` is its Lowering, or its Call."""
    x_shape, w_shape = low.shape(0), low.shape(1)
    rank = len(x_shape) - 2
    if low.dtype(0) != "float32":
        return Declined(f"no convolution kernel for {low.dtype(0)}")
    if not 1 <= rank <= 3:
        return Declined(f"no convolution kernel for {rank} spatial dimensions")
    window = slide(
        ShapeError, x_shape[2:], low.attr("kernel_shape") or w_shape[2:], strides=low.attr("strides"),
        dilations=low.attr("dilations"), pads=low.attr("pads"), auto_pad=low.attr("auto_pad", "NOTSET"),
    )  # fmt: skip
    groups, channels, filters = low.attr("group", 1), x_shape[1], w_shape[0]
    if groups == channels == filters and groups > 1:
        return window, DEPTHWISE, 0
    if low.value(1) is None:  # the other kernels want weights in forms that take long to make
        return window, IMPLICIT_GEMM, 0
    if groups == 1 and {*window.kernel, *window.strides} == {1} and not any(map(any, window.pads)):
        return window, GEMM, 0
    if groups == 1 and _is_stem(window, channels, filters):
        return window, STEM, 0
    stride = _winograd_stride(window, groups)
    size = winograd_size(x_shape[0], channels, filters, window.out, stride) if stride else 0
    return window, WINOGRAD if size else IMPLICIT_GEMM, size


def _is_stem(window: Window, channels: int, filters: int) -> bool:
    """Whether kernels/stem.py is for a convolution. Measured, 3 channels of 224 x 224 pixels to 64 filters of 7 x 7
    taps: 1.66 ms, and 2.62 as implicit GEMM."""
    if len(window.kernel) != 2 or window.kernel[1] != stem.TAPS or window.strides[1] != 2:
        return False
    return {*window.dilations} == {1} and channels <= FEW_CHANNELS <= filters and window.out[1] >= 2 * stem.SIZE


def _winograd_stride(window: Window, groups: int) -> int:
    """The stride of a convolution that Winograd's algorithm is for, else 0."""
    plain = len(window.kernel) == 2 and groups == 1 and window.kernel == (3, 3) and {*window.dilations} == {1}
    return window.strides[0] if plain and window.strides in ((1, 1), (2, 2)) else 0


def rows_of_conv(call: Call) -> int:
    """Op.rows of Conv: a matrix product and the implicit one read pixels by their addresses."""
    chosen = choose(call)
    if isinstance(chosen, Declined):
        return 0
    window, kernel, _ = chosen
    return window.strides[-1] if kernel in (GEMM, IMPLICIT_GEMM) and call.tensor(0).dims[1] > FEW_CHANNELS else 0


def _reason(low: Any, window: Window, size: int) -> str:
    """Why a convolution of several taps gets the kernel that it gets."""
    (batch, channels), filters, out = low.shape(0)[:2], low.shape(1)[0], window.out
    stride = _winograd_stride(window, low.attr("group", 1))
    chosen = f"Winograd F({size}x{size}, 3x3)" if size else "implicit GEMM"
    if low.value(1) is None:
        return f"{chosen}: only the run knows the weights, and they are packed each time"
    if not stride:
        return f"{chosen}: Winograd is for 3x3 taps in two dimensions, stride 1 or 2, no dilation, one group"
    if channels < f32.lanes or filters < FEW_CHANNELS:
        return f"{chosen}: {channels} channels or {filters} filters are too few for Winograd"
    costs = [conv_cost(batch, channels, filters, out, s, stride) / 1e3 for s in (0, 2, 4)]
    return f"{chosen}: expected are {costs[0]:.0f} us direct, {costs[1]:.0f} by F(2x2), {costs[2]:.0f} by F(4x4)"


def winograd_size(batch: int, channels: int, filters: int, out: Sequence[Any], stride: int = 1) -> int:
    """Results per side of a tile with which Winograd's algorithm is fastest for a 3x3 convolution; 0: not at all.

    Measured in GFLOP/s of the plain formula on one core of a Zen 3 (register tile at 97 GFLOP/s):

        channels = filters, size    direct  F(2x2)  F(4x4)  ONNX Runtime  OpenVINO
        16, 56x56                     88      83     147        89           128
        32, 28x28                    104     151     210       105           105
        64, 56x56                     85     167     278        88            92
        128, 28x28                    97     180     251        83            88
        256, 14x14                    91     155     171        94            92
        512, 14x14                    73     159     176        83            75
        512, 7x7                      71      99      80        78            75

    and with stride 2, where there is less to gain (size: of the result):

        128, 28x28                    83      78     102
        256, 14x14                    84     100      87

    On a core of a Granite Rapids with AVX-512 (register tile at 200 GFLOP/s, weights from memory at 15 GB/s):

        channels = filters, size    direct  F(2x2)  F(4x4)      stride 2:    direct  F(2x2)  F(4x4)
        32, 28x28                      167     223     330
        64, 56x56                      163     287     443      64, 28x28       144     173     134
        128, 28x28                     180     320     518      128, 28x28      152     176     157
        256, 14x14                     179     321     354      256, 14x14      160     177     106
        512, 14x14                     152     261     226
        512, 7x7                       132     146      69      512, 7x7         82      85      31

    A larger tile has heavier weights (4 instead of 1.8 times the original ones; with stride 2, 9 instead of 2.8), and
    is taken where it saves a tenth of the time. What is best for one thread is so for two.
    """
    if channels < f32.lanes or filters < FEW_CHANNELS:
        return 0
    best, least = 0, conv_cost(batch, channels, filters, out, 0, stride)
    for size in (2, 4):
        cost = conv_cost(batch, channels, filters, out, size, stride)
        if cost < 0.9 * least:
            best, least = size, cost
    return best


def conv_cost(batch: int, channels: int, filters: int, out: Sequence[Any], size: int, stride: int = 1) -> float:
    """Nanoseconds of a 3x3 convolution by Winograd tiles of size x size results, or directly (size 0).

    Three terms: products at the rate of the register tile, weights at what the third-level cache delivers, and
    what it takes to transform each value of a tile. Within about 10 % of what was measured.
    """
    across = [-(-o // max(size, 1)) for o in out]
    points = winograd.side_of(size, stride) ** 2 if size else 9
    rows = batch * across[0] * across[1]
    columns = -(-filters // NR) * NR
    blocks = -(-rows // winograd.BLOCK) if size else 1
    rates = WIDE_RATES if host().vector == 64 else RATES
    rate, together = rates.tiles if size else rates.direct, SHORT
    if not size and by_matrix(rows, channels, filters, 9, 1):
        rate, together = MATRIX_RATE, matrix.SIDE
    products = 2 * points * -(-rows // together) * together * channels * columns / rate
    weights = 4 * points * channels * columns * (1 + (blocks - 1) * rates.again) / rates.weights
    transforms = rates.transform * points * rows * (channels + filters) if size else 0
    return products + weights + transforms


def _winograd(low: Any, window: Window, filters: int, size: int, stride: int) -> None:
    batch, channels, *inside = low.shape(0)
    begin = [b for b, _ in window.pads]
    kernels = winograd.KERNELS[size, stride]
    tiles = batch * math.prod([-(-o // size) for o in low.out_shape()[2:]])
    block = min(tiles, winograd.BLOCK)

    def table_of(rows: int) -> np.ndarray:
        return winograd.geometry(batch, channels, filters, inside, window.out, begin, stride, rows, block)

    g = table_of(tiles)
    shared = 4 * winograd.tiles_words(g, size, stride)
    split = tiles < OWN_TILES * low.threads and shared <= SHARED_TILES
    if not split:
        g = table_of(block)
    x = low.input(0, CHANNELS_LAST)
    weight = low.pack(1, ("winograd", size, stride, int(NR)), lambda w: winograd.pack_weights(w, size, stride))
    (bias, residual), numbers = _tail(low, filters)
    y = low.output(0, CHANNELS_LAST, over=residual)
    zeros, g_slot = low.const(np.zeros(channels, np.float32)), low.const(g)
    table = low.scratch(8 * low.threads * winograd.table_words(size, stride), "int64")
    if split:
        u = low.scratch(shared, "float32")
        half = low.scratch(4 * low.threads * winograd.half_words(size, stride), "float32")
        scratch = low.scratch(4 * low.threads * winograd.products_words(g, size, stride), "float32")
        low.call(kernels.tiles, x, u, zeros, table, half, g_slot)
        low.call(kernels.products, u, weight, bias, residual, y, scratch, g_slot, *numbers)
    else:
        scratch = low.scratch(4 * low.threads * winograd.scratch_words(g, size, stride), "float32")
        low.call(kernels.whole, x, weight, bias, residual, y, zeros, table, scratch, g_slot, *numbers)


def _stem(low: Any, window: Window, filters: int) -> None:
    batch, channels, *size = low.shape(0)
    last = CHANNELS_LAST in low.layouts(0)
    x = low.input(0, CHANNELS_LAST) if last else low.input(0)
    weight = low.pack(1, ("stem", int(NR)), stem.pack_weights)
    (bias, residual), numbers = _tail(low, filters)
    y = low.output(0, CHANNELS_LAST)
    (taps_h, _), (stride_h, _), pads = window.kernel, window.strides, [b for b, _ in window.pads]
    g = stem.geometry(batch, channels, filters, size, window.out, taps_h, stride_h, pads)
    band = stem.BAND if low.threads == 1 else stem.BAND_SHARED
    scratch = low.scratch(4 * low.threads * int(stem.scratch_words(g, band)), "float32")
    steps = (channels, 1) if last else (1, math.prod(size))
    low.call(stem.stem, x, weight, bias, residual, y, scratch, low.const(g), band, *steps, *numbers)


def lower_conv_transpose(low: Any, window: Window) -> Declined | None:
    """float32 ConvTranspose with known weights, in one to three dimensions."""
    x_shape, w_shape = low.shape(0), low.shape(1)
    rank, groups = len(x_shape) - 2, low.attr("group", 1)
    if low.dtype(0) != "float32" or not 1 <= rank <= 3:
        return Declined(f"no transposed convolution kernel for {low.dtype(0)} in {rank} spatial dimensions")
    if low.value(1) is None or (low.has(2) and low.value(2) is None):
        return Declined("the weights are not constant")
    batch, channels, filters = x_shape[0], x_shape[1], w_shape[1] * groups
    apart = window.kernel == window.strides and {*window.dilations} == {1} and not any(map(any, window.pads))
    exact = all(o == i * s for o, i, s in zip(window.out, x_shape[2:], window.strides))
    if apart and exact and rank <= 2 and groups == 1:
        _spread(low, window, filters)
        return None
    g = conv.geometry(
        batch, channels, filters, groups, three(x_shape[2:], 1), three(window.out, 1), three(window.kernel, 1),
        three(window.strides, 1), three([b for b, _ in window.pads], 0), three(window.dilations, 1),
    )  # fmt: skip
    x = low.input(0, CHANNELS_LAST)
    weight = low.pack(1, ("transposed", groups, int(NR)), lambda w: conv_transpose.pack_transposed(w, groups))
    (bias, residual), numbers = _tail(low, filters)
    y = low.output(0, CHANNELS_LAST, over=residual)
    zeros = low.const(np.zeros(channels, np.float32))
    table = low.scratch(8 * low.threads * conv_transpose.scratch_words(g), "int64")
    low.call(conv_transpose.conv_transpose, x, weight, bias, residual, y, zeros, table, low.const(g), *numbers)
    return None


def _spread(low: Any, window: Window, filters: int) -> None:
    """A transposed convolution whose output pixels each have one tap."""
    batch, channels, *size = low.shape(0)
    height, width = three(size, 1)[1:]
    taps_h, taps_w = three(window.kernel, 1)[1:]
    x = low.input(0, CHANNELS_LAST)
    weight = low.pack(1, ("spread", int(NR)), conv_transpose.pack_spread)
    tail = low.epilogue(channel_axis=1, residual=False)
    given = [b for b in (low.value(2) if low.has(2) else None, tail.bias) if b is not None]
    bias = low.const(np.tile(sum(given), taps_h * taps_w).astype(np.float32)) if given else None
    y = low.output(0, CHANNELS_LAST)
    piece = low.scratch(4 * low.threads * int(MR) * int(NR), "float32")
    low.call(conv_transpose.spread, x, weight, bias, y, piece, batch * height, width, channels, filters, taps_h, taps_w,
             tail.code, tail.first, tail.second, int(bool(given)))  # fmt: skip


def _tail(low: Any, filters: int, gaps: bool = False) -> tuple[Any, ...]:
    """The epilogue's arguments: (bias slot, residual slot), (code, first, second, has_bias, has_residual).

    `gaps`: the kernel takes a residual whose pixels lie apart.
    """
    unknown = low.has(2) and low.value(2) is None
    tail = conv_tail(low) or low.epilogue(channel_axis=None if unknown else 1)
    bias = low.input(2) if unknown else None
    given = [np.asarray(b, np.float32) for b in (low.value(2) if low.has(2) else None, tail.bias) if b is not None]
    if given:
        bias = low.const(sum(given[1:], given[0]))
    residual = tail.residual_slot(low, CHANNELS_LAST, gaps)
    return (bias, residual), (tail.code, tail.first, tail.second, int(bias is not None), int(residual is not None))


def _weights(low: Any, key: Any, make: Any, groups: int, lanes: int) -> Any:
    """The weights as panels of `lanes` filters: `make` of constants, else packed at run time."""
    if low.value(1) is not None:
        return low.pack(1, key, make)
    filters, channels, *taps = low.shape(1)
    sizes = (groups, filters // groups, channels, math.prod(taps))
    packed = low.scratch(4 * groups * -(-sizes[1] // lanes) * lanes * channels * sizes[3], "float32")
    low.call(conv.pack_filters, low.input(1), packed, *sizes, lanes)
    return packed


def _depthwise(low: Any, window: Window, channels: int) -> None:
    x = low.input(0, CHANNELS_LAST)
    g, weight, (bias, residual), numbers = _filtered(low, window, channels)
    y = low.output(0, CHANNELS_LAST)
    form = depthwise.Buffer(g)
    low.call(depthwise.depthwise, x, weight, bias, residual, y, *_lines(low, form), low.const(g),
             form.tile, form.columns, form.group, *numbers)  # fmt: skip


def _filtered(low: Any, window: Window, channels: int) -> tuple[Any, ...]:
    """Of a depthwise convolution: geometry, weights, epilogue."""
    g = conv.geometry(
        low.shape(0)[0], channels, channels, channels, three(low.shape(0)[2:], 1), three(window.out, 1),
        three(window.kernel, 1), three(window.strides, 1), three([b for b, _ in window.pads], 0),
        three(window.dilations, 1),
    )  # fmt: skip
    lanes = int(depthwise.LANES)
    weight = _weights(low, ("depthwise", lanes), depthwise.pack_weights, 1, lanes)
    return g, weight, *_tail(low, channels)


def _lines(low: Any, form: Any) -> tuple[Any, Any]:
    """Each thread's buffer of lines, and the list of them."""
    buffer = low.scratch(4 * low.threads * form.floats, "float32")
    return buffer, low.scratch(8 * low.threads * form.words, "int64")


def _pointwise(low: Any, filters: int) -> None:
    """A 1x1 convolution is a matrix product as it stands: pixels by channels times channels by filters."""
    shape = low.shape(0)
    rows, channels = shape[0] * math.prod(shape[2:]), shape[1]
    x = low.input(0, CHANNELS_LAST, gaps=True)
    tail = _tail(low, filters, gaps=True)
    if tail[0][1] is None and (behind := _depthwise_behind(low)) is not None:
        low.note(lambda: "gemm by lines: a depthwise convolution alone reads them, and makes those that it wants")
        _expand(low, x, tail, *behind)
        return
    low.note(lambda: "gemm: with one tap, pixels by channels are a matrix as they lie")
    y = low.output(0, CHANNELS_LAST, over=tail[0][1], gaps=True)
    dense(low, x, (), _matrix, y, (rows, filters, channels), tail)


def _matrix(weight: np.ndarray) -> np.ndarray:
    """The weights of a 1x1 convolution as (channels, filters)."""
    return weight.reshape(weight.shape[:2]).T


def _depthwise_behind(low: Any) -> tuple[int, Window] | None:
    """The depthwise convolution that alone reads the result so far, where the two are better done in one."""
    dims, follower = low.out_shape(), low.follower()
    if follower is None or follower[1].op != "Conv" or not expand.fits() or 4 * math.prod(dims) < WIDE:
        return None
    few = FEWER_INPUTS if host().matrix and low.threads == 1 else FEW_INPUTS
    if low.shape(0)[1] > few and 4 * math.prod(dims) < 8 * host().block:
        return None
    index, node = follower
    call = low.call_of(node)
    given = [i for i in range(1, len(node.inputs)) if call.has(i)]
    if node.inputs[0] != low.outputs[0] or any(call.value(i) is None for i in given):
        return None
    chosen = choose(call)
    return (index, chosen[0]) if not isinstance(chosen, Declined) and chosen[1] == DEPTHWISE else None
def _expand(low: Any, x: Any, tail: tuple[Any, ...], index: int, window: Window) -> None:
    """The 1x1 convolution and node `index`, the depthwise one behind it."""
    (offset, _), (inner_code, inner_first, inner_second, has_offset, _) = tail
    k, channels = low.shape(0)[1], low.out_shape()[1]
    b = packed(low, (), _matrix)
    behind = low.join(index)
    g, weight, (bias, residual), numbers = _filtered(behind, window, channels)
    y = low.output(0, CHANNELS_LAST)
    form = depthwise.Buffer(g)
    inner = (k, k + x.gap, inner_code, inner_first, inner_second, has_offset)
    low.call(expand.expand_depthwise, x, b, offset, weight, bias, residual, y, *_lines(low, form), low.const(g),
             *inner, form.tile, form.columns, form.group, *numbers)  # fmt: skip


def _implicit_gemm(low: Any, window: Window, x_shape: tuple[int, ...], filters: int, groups: int) -> None:
    batch, channels = x_shape[:2]
    size = three(x_shape[2:], 1)
    begin, end = three([b for b, _ in window.pads], 0), three([e for _, e in window.pads], 0)
    taps, strides, dilations = three(window.kernel, 1), three(window.strides, 1), three(window.dilations, 1)
    merged = groups == 1 and dilations[2] == 1 and taps[2] > 1 and channels <= FEW_CHANNELS
    if merged and any((*begin, *end)):
        x, size = _with_halo(low, batch, channels, size, begin, end)
        begin = (0, 0, 0)
    else:
        x = low.input(0, CHANNELS_LAST, gaps=not merged)
    weight = _weights(low, ("conv", groups, int(NR)), lambda w: conv.pack_weights(w, groups), groups, int(NR))
    (bias, residual), numbers = _tail(low, filters, gaps=True)
    y = low.output(0, CHANNELS_LAST, over=residual, gaps=True)
    g = conv.geometry(
        batch, channels, filters, groups, size, three(window.out, 1), taps, strides, begin, dilations, merged=merged,
        gaps=(x.gap, y.gap, residual.gap if residual else 0),
    )  # fmt: skip
    zeros = low.const(np.zeros(int(g[conv.RUN]) * groups, np.float32))
    pixels = batch * math.prod(low.out_shape()[2:])
    if by_matrix(pixels, channels, filters, math.prod(taps), groups):
        low.note(lambda: "on the matrix registers: each float as three bfloat16")
        words = matrix.conv_words(pixels, filters, math.prod(taps), channels)
        scratch = low.scratch(4 * low.threads * words, "float32")
        low.call(matrix.conv_matrix, x, weight, bias, residual, y, zeros, scratch, low.const(g), *numbers)
        return
    table = low.scratch(8 * low.threads * conv.scratch_words(g), "int64")
    low.call(conv.conv, x, weight, bias, residual, y, zeros, table, low.const(g), *numbers)


def by_matrix(pixels: int, channels: int, filters: int, taps: int, groups: int) -> bool:
    """Whether the implicit product of a convolution is one for kernels/matrix.py."""
    return groups == 1 and channels % matrix.UNIT == 0 and worth_matrix(pixels, filters, channels * taps)


def _with_halo(low: Any, batch: int, channels: int, size, begin, end) -> tuple[Any, tuple[int, ...]]:
    """The input channels last with its padding written out; read in the order that it has."""
    padded = tuple(s + b + e for s, b, e in zip(size, begin, end))
    last = CHANNELS_LAST in low.layouts(0)
    x = low.input(0, CHANNELS_LAST) if last else low.input(0)
    count = batch * channels * padded[0] * padded[1] * padded[2]
    halo = low.scratch(4 * count, "float32")
    # elements from one pixel, channel and image to the next in the source
    area = size[0] * size[1] * size[2]
    pixel, channel = (channels, 1) if last else (1, area)
    low.call(conv.halo, x, halo, batch, channels, *size, *padded, *begin, pixel, channel)
    return halo, padded
