"""Every primitive, compiled, gives bit for bit what its Python meaning gives."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.codegen import build, library
from minifer.codegen.lower import LOWERINGS
from minifer.codegen.native import undefined_symbols
from minifer.embed.targets import PLATFORMS
from minifer.kernels import simd
from minifer.kernels.simd import (
    MR,
    NR,
    SCALARS,
    SHORT,
    address_of,
    as_element,
    as_ptr,
    atomic_add,
    atomic_cas,
    atomic_load,
    atomic_store,
    bf16_to_f32,
    bitcast,
    call_c,
    call_entry,
    cast,
    f16_to_f32,
    f32,
    f32_to_bf16,
    f32_to_f16,
    f64,
    hmax,
    hmin,
    hsum,
    i8,
    i16,
    i32,
    i64,
    lanes,
    like,
    pause,
    prefetch,
    rows_strided,
    rows_table,
    tile_add,
    tile_axpy,
    tile_bias,
    tile_bias_column,
    tile_clamp,
    tile_outer,
    tile_outer4,
    tile_outer_part,
    tile_scale,
    tile_scale_columns,
    tile_store,
    tile_zero,
    tile_zero_row,
    tile_zero_short,
    u8,
    u16,
    u32,
    u64,
    vabs,
    vall,
    vany,
    vceil,
    vconvert,
    vcopysign,
    veven,
    vfloor,
    vfma,
    vgather,
    vget,
    vhigh,
    viota,
    vjoin,
    vload,
    vload_n,
    vload_part,
    vlow,
    vmax,
    vmax_quick,
    vmin,
    vmin_quick,
    vodd,
    vround,
    vselect,
    vset,
    vsplat,
    vsqrt,
    vstore,
    vstore_part,
    vtrunc,
    vzip_high,
    vzip_low,
)
from minifer.kernels.spec import Pointer, kernel, native, ptr, ptr_f32, ptr_i64
from minifer.kernels.target import TARGETS

FLOATS = (f32, f64)
INTEGERS = (i8, i16, i32, i64, u8, u16, u32, u64)
ALL = FLOATS + INTEGERS
KERNELS = {}


def define(name, function, types, out=None):
    """A kernel per type that stores function(a, b, c), of three vectors of the type, to `out` elements."""
    for element in types:
        result = out or element

        def body(x, y, tid, nthreads):
            w = lanes(x)
            vstore(y, 0, function(vload(x, 0), vload(x, w), vload(x, 2 * w)))

        body.__annotations__ = {"x": Pointer(element), "y": Pointer(result)}
        label = f"{name}_{element}"
        KERNELS[label] = kernel(name=f"test_lowering_{label}")(body)


define("add", lambda a, b, c: a + b, ALL)
define("subtract", lambda a, b, c: a - b, ALL)
define("multiply", lambda a, b, c: a * b, ALL)
define("divide", lambda a, b, c: a / b, FLOATS)
define("and", lambda a, b, c: (a & b) ^ (c | 5), INTEGERS)
define("shift", lambda a, b, c: (a << 3) + (b >> 2), INTEGERS)
define("negate", lambda a, b, c: -a, ALL)
define("invert", lambda a, b, c: ~a, INTEGERS)
define("numbers", lambda a, b, c: (3 + a) * 2 - (1 - b) * 3, ALL)
define("fraction", lambda a, b, c: 0.1 * a + 1 / b - 2.5, FLOATS)
define("less", lambda a, b, c: vselect(a < b, a, c), ALL)
define("compare", lambda a, b, c: vselect((a <= b) & ~(b == c) | (a != a), 1 + a, 2), ALL)
define("greater", lambda a, b, c: vselect((a > 3) ^ (b >= c), a, b), ALL)
define("max", lambda a, b, c: vmax(vmax(a, b), 1), ALL)
define("min", lambda a, b, c: vmin(vmin(2, a), b), ALL)
define("max_quick", lambda a, b, c: vmax_quick(a, b), ALL)
define("min_quick", lambda a, b, c: vmin_quick(a, b), ALL)
define("abs", lambda a, b, c: vabs(a), ALL)
define("sqrt", lambda a, b, c: vsqrt(a), FLOATS)
define("floor", lambda a, b, c: vfloor(a) + vceil(b), FLOATS)
define("trunc", lambda a, b, c: vtrunc(a) + vround(b * 0.5), FLOATS)
define("copysign", lambda a, b, c: vcopysign(a, b) + vcopysign(2, c), FLOATS)
define("fma_integer", lambda a, b, c: vfma(a, b, c), INTEGERS)
define("zip", lambda a, b, c: vzip_low(a, b) - vzip_high(b, c), ALL)
define("even", lambda a, b, c: veven(a, b) - vodd(b, c), ALL)
define("join", lambda a, b, c: vjoin(vhigh(a), vlow(b)), ALL)
define("set", lambda a, b, c: vset(vset(a, 1, vget(b, 2)), 0, c[3]), ALL)
define("iota", lambda a, b, c: viota(a) + vsplat(a, 2) + like(a, 1), ALL)
define("sum", lambda a, b, c: vset(a, 0, hsum(b)), ALL)
define("extremes", lambda a, b, c: vset(vset(a, 0, hmax(b)), 1, hmin(c)), ALL)
define("any", lambda a, b, c: vselect(vany(a < b) & vall(a == a), a, b), ALL)
define("element", lambda a, b, c: a + as_element(a, 2.75), ALL)


def converting(element):
    return lambda a, b, c: vconvert(vlow(vlow(a)), element)


for _element in ALL:
    define(f"convert_{_element}", converting(_element), ALL, _element)
define("bits", lambda a, b, c: bitcast(a, u8), ALL, u8)
define("bits_to_f32", lambda a, b, c: bitcast(a, f32), (i32, u32, f64, u8), f32)
define("half", lambda a, b, c: f16_to_f32(vlow(a)), (u16,), f32)
define("to_half", lambda a, b, c: f32_to_f16(a), (f32,), u16)
define("brain", lambda a, b, c: bf16_to_f32(vlow(a)), (u16,), f32)
define("to_brain", lambda a, b, c: f32_to_bf16(a), (f32,), u16)


def inputs(element, rng):
    """Three vectors full of awkward values."""
    count = 3 * element.lanes
    if element.integer:
        info = np.iinfo(element.dtype)
        values = rng.integers(info.min, info.max, count, element.dtype, endpoint=True)
        some = rng.random(count) < 0.4
        values[some] = rng.integers(0, 6, some.sum())
        return values
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-3, 12, count)
    special = np.array([0, -0.0, np.nan, np.inf, -np.inf, 0.5, 1.5, 2.5, -0.5, 300, -200, 2**31, 65519, 65520, 1e-40])
    some = rng.random(count) < 0.6
    values[some] = rng.choice(special, some.sum())
    return values.astype(element.dtype)


def same_bits(got, expected):
    """Equal bit for bit, where any NaN is as good as another."""
    nan = (got != got) & (expected != expected)
    return (got.tobytes() == expected.tobytes()) or bool(
        np.all(nan | (got.view(f"u{got.itemsize}") == expected.view(f"u{got.itemsize}")))
    )


@pytest.mark.parametrize("label", KERNELS)
def test_lane_wise(label):
    spec = KERNELS[label]
    source, result = (p.type.element for p in spec.parameters)
    rng = np.random.default_rng(len(label))
    for _ in range(20):
        x = inputs(source, rng)
        compiled, plain = np.zeros(64, result.dtype), np.zeros(64, result.dtype)
        assert library.run(spec, {"x": x, "y": compiled}) == 0
        assert spec(x, plain) == 0
        if label.startswith("fraction"):  # nothing may be fused
            np.testing.assert_array_equal(compiled, plain)
        assert same_bits(compiled, plain), (label, x, compiled, plain)


@kernel(over={"T": ALL}, name="test_lowering_parts", group="")
def parts(x: ptr("T"), y: ptr("T"), n: i64, tid: i64, nthreads: i64):
    prefetch(x, n)
    v = vload_part(x, 0, n)
    vstore(y, 0, v)
    vstore_part(y, lanes(x), v, n)
    vstore_part(y + 2 * lanes(x), 0, vload_n(y, 0, 4), n)


@pytest.mark.parametrize("element", ALL, ids=repr)
def test_parts(element):
    """Partial loads and stores touch only what they should, for any count."""
    width = element.lanes
    for n in (-3, 0, 1, 2, 3, 4, 5, width - 1, width, width + 1, 100):
        x = np.arange(1, min(max(n, 0), width) + 1).astype(element.dtype)  # nothing behind may be read
        compiled, plain = np.full(2 * width + 4, 99, element.dtype), np.full(2 * width + 4, 99, element.dtype)
        library.run(parts[element], {"x": x, "y": compiled, "n": n})
        parts[element](x, plain, n)
        np.testing.assert_array_equal(compiled, plain)


@kernel(name="test_lowering_numbers", outputs=("y", "z"))
def numbers(x: ptr_f32, k: ptr_i64, y: ptr_f32, z: ptr_i64, s: f32, n: i64, tid: i64, nthreads: i64):
    y[0] = vfma(x[0], 2.0, 0.1)
    y[1] = vmax(x[1], 0.3)
    y[2] = vselect(x[2] < x[3], x[2], 7)
    y[3] = vsqrt(x[4]) + vabs(x[5])
    y[4] = vround(x[6]) * vfloor(x[7])
    y[5] = bitcast(bitcast(x[0], i32) + 8388608, f32)
    y[6] = like(x[0], 3) * s + f32(n)
    y[7] = vconvert(x[1], f64) * 0.1
    z[0] = min(k[0], n, 4) + max(k[1], n) * abs(k[2])
    z[1] = k[0] // 3 + k[1] % 7 - (k[2] >> 1)
    z[2] = vconvert(x[3], i64)
    z[3] = vmin(k[0], k[1])
    z[4] = i8(k[3]) + u8(k[3]) + 5
    z[5] = lanes(f64) * 100 + lanes(x)
    vstore(y, 8, vgather(x, vconvert(vload_n(k, 4, 4), i32)))
    p = cast(x + 3, i32) - 1
    z[6] = p[1]
    q = as_ptr(address_of(k) + 8, i64)
    z[7] = q[0]


def test_numbers():
    rng = np.random.default_rng(3)
    x = rng.uniform(0.1, 9, 16).astype(np.float32)
    k = np.array([17, -23, -5, 300, 3, 1, 15, 0], np.int64)
    outputs = []
    for run in (lambda **a: library.run(numbers, a), numbers):
        y, z = np.zeros(12, np.float32), np.zeros(8, np.int64)
        assert run(x=x, k=k, y=y, z=z, s=1.5, n=9) == 0
        outputs.append((y, z))
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])


@kernel(name="test_lowering_status", outputs=())
def status(n: i64, tid: i64, nthreads: i64):
    if n > 3:
        return n
    return 0


def test_status():
    assert [library.run(status, {"n": n}) for n in (1, 5)] == [0, 5]


# ---------------------------------------------------------------- the tile


@kernel(name="test_lowering_tile", outputs=("c",))
def tile(
    a: ptr_f32, b: ptr_f32, c: ptr_f32, v: ptr_f32, table: ptr_i64, m: i64, n: i64, k: i64, which: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    rows = rows_strided(a, k, m)
    if which % 2 == 1:
        rows = rows_table(a, table, m)
    if m == 1:
        work_on(tile_zero_row(), rows, b, c, v, m, n, k, which)
    elif m <= SHORT:
        work_on(tile_zero_short(), rows, b, c, v, m, n, k, which)
    else:
        work_on(tile_zero(), rows, b, c, v, m, n, k, which)


def work_on(acc, rows, b, c, v, m, n, k, which):
    p = 0
    while p + 4 <= k:
        acc = tile_outer4(acc, rows, p, b + p * NR)
        p += 4
    while p < k - 1:
        acc = tile_outer(acc, rows, p, b + p * NR)
        p += 1
    if p < k:
        acc = tile_outer_part(acc, rows, p, b + p * NR, n)
    if which == 2:
        acc = tile_bias(acc, v, n)
    if which == 3:
        acc = tile_bias_column(acc, v, m)
    if which == 4:
        acc = tile_scale(acc, 1.5)
    if which == 5:
        acc = tile_scale_columns(acc, v, n)
    if which == 6:
        acc = tile_clamp(acc, f32(-0.5), 0.75)
    if which == 7:
        acc = tile_add(acc, c, n + 2, m, n)
    if which == 8:
        acc = tile_axpy(acc, f32(0.5), c, n + 2, m, n)
    tile_store(c, n + 2, acc, m, n)


@pytest.mark.parametrize("which", range(9))
def test_tile(which):
    rng = np.random.default_rng(which)
    for m, n, k in ((MR, NR, 9), (1, 1, 1), (MR - 1, NR - 1, 6), (2, NR, 0), (MR, 3, 5), (1, NR // 2, 8)):
        a = rng.standard_normal((m, k)).astype(np.float32)
        size = (k - 1) * NR + n if k % 4 else k * NR  # a last row read by tile_outer_part holds n elements
        b = rng.standard_normal(size).astype(np.float32)
        v = rng.standard_normal(max(m, n) if which in (3, 5) else n).astype(np.float32)
        table = rng.permutation(m) * k
        start = rng.standard_normal((m, n + 2)).astype(np.float32)[:, : n + 2]
        start = np.concatenate([start.reshape(-1)[: (m - 1) * (n + 2) + n]])
        compiled, plain = start.copy(), start.copy()
        arguments = {"a": a, "b": b, "v": v, "table": table, "m": m, "n": n, "k": k, "which": which}
        library.run(tile, arguments | {"c": compiled})
        tile(**arguments, c=plain)
        np.testing.assert_allclose(compiled, plain, rtol=1e-5, atol=1e-6)
        inside = np.zeros((m, n + 2), bool)
        inside[:, :n] = True
        untouched = ~inside.reshape(-1)[: start.size]
        np.testing.assert_array_equal(compiled[untouched], start[untouched])


def test_clamp_keeps_nan():
    a, c = np.full((1, 1), np.nan, np.float32), np.zeros(1, np.float32)
    arguments = {"a": a, "b": np.ones(NR, np.float32), "c": c, "v": a, "table": np.zeros(1, np.int64)}
    library.run(tile, arguments | {"m": 1, "n": 1, "k": 1, "which": 6})
    assert np.isnan(c[0])


# ---------------------------------------------------------------- threads and calls


@native
def lowering_atomics(p: ptr_i64) -> i64:
    pause()
    atomic_store(p, 1, atomic_load(p, 0) + 1)
    old = atomic_add(p, 2, 10)
    return old * 1000 + atomic_cas(p, 3, 7, 8) + atomic_cas(p, 3, 7, 9)


@native
def lowering_calls(entry: i64, c_function: i64, scale: f64) -> i64:
    return call_entry(entry, 1, 2, 3, 4) * 100 + call_c(c_function, 1, 2, 3, 4, 5, 6) + vconvert(scale, i64)


def test_atomics():
    import ctypes

    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(library.address_of_native(lowering_atomics))
    words = np.array([5, 0, 3, 7], np.int64)
    assert function(words.ctypes.data) == 3000 + 7 + 8
    assert words.tolist() == [5, 6, 13, 8]


def test_calls():
    import ctypes

    four = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)(lambda *a: sum(a))
    six = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 6)(lambda *a: a[-1] - a[0])
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_double)(
        library.address_of_native(lowering_calls)
    )
    addresses = [ctypes.cast(f, ctypes.c_void_p).value for f in (four, six)]
    assert function(*addresses, 2.9) == 10 * 100 + 5 + 2


def test_every_primitive_has_a_lowering():
    assert set(LOWERINGS) >= simd.PRIMITIVES
    assert SCALARS.keys() == {str(t) for t in ALL}


#: what the compiler's own library has on machines for which others link
RUNTIME = {p.levels[next(iter(p.levels))]: set(p.runtime) for p in PLATFORMS.values() if not p.tested}


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "thumbv7em"])
def test_no_primitive_needs_a_library(target):
    """On every target each primitive becomes instructions, none a call. (thumbv7em lacks what threads need.)"""
    assert undefined_symbols(build.object_code(tile.unit, TARGETS[target])) <= RUNTIME.get(target, set())


def test_vectors_are_values():
    """The Python meaning refuses what would behave differently when compiled."""
    v = vsplat(f32, 1)
    w = v
    w += 1
    assert v[0] == 1 and w[0] == 2 and w.dtype == np.float32
    with pytest.raises(TypeError, match="vset"):
        v[0] = 3
    with pytest.raises(TypeError, match="vconvert"):
        vstore(simd.Ptr(np.zeros(8, np.int32)), 0, v)
    with pytest.raises(TypeError, match="differ"):
        v + vsplat(i32, 1)
    with pytest.raises(IndexError, match="outside"):
        vload(simd.Ptr(np.zeros(9, np.float32)), 2)
    with pytest.raises(IndexError, match="outside"):
        simd.Ptr(np.zeros(9, np.float32))[-1]
