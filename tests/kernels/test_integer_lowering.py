"""Products of 8-bit integers through the whole engine: native against reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.codegen import library
from minifer.kernels.simd import (
    MR,
    NR,
    rows_strided,
    rows_table,
    tile_dot_i32,
    tile_row_i32,
    tile_store_i32,
    tile_zero_i32,
)
from minifer.kernels.spec import i64, kernel, ptr_i8, ptr_i16, ptr_i32, ptr_i64
from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(5)
MICROSOFT = "com.microsoft"


def whole(dtype, *shape):
    """All values of an 8-bit type, its extremes often."""
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.max + 1, shape)
    extreme = RNG.choice([info.min, info.max], shape)
    return np.where(RNG.random(shape) < 0.3, extreme, x).astype(dtype)


def scale(*shape, least=0.002):
    return RNG.uniform(least, 10 * least, shape).astype(np.float32)


def run(nodes, inputs, consts, native=True, tolerance=1e-6):
    return check_native(model(nodes, inputs, consts, ["y"]), inputs, native=native, tolerance=tolerance)


# ---------------------------------------------------------------- the tile


@kernel(name="test_integer_tile", outputs=("c",))
def tile(a: ptr_i16, b: ptr_i8, c: ptr_i32, table: ptr_i64, m: i64, n: i64, k: i64, lone: i64, tid: i64, nthreads: i64):
    rows = rows_strided(a, k, m) if lone != 0 else rows_table(a, table, m)
    if lone != 0:
        row = tile_row_i32()
        for p in range(0, k, 2):
            row = tile_dot_i32(row, rows, p, b + p * NR)
        tile_store_i32(c, n, row, 1, n)
    else:
        acc = tile_zero_i32()
        for p in range(0, k, 2):
            acc = tile_dot_i32(acc, rows, p, b + p * NR)
        tile_store_i32(c, n, acc, m, n)


@pytest.mark.parametrize("lone", [0, 1])
def test_tile(lone):
    for m, n, k in ((MR, NR, 8), (1, 1, 2), (MR - 1, NR - 1, 6), (2, 3, 0)):
        m = 1 if lone else m
        a = RNG.integers(-255, 256, (m, k)).astype(np.int16)
        b = RNG.integers(-128, 128, (k // 2, NR, 2)).astype(np.int8)
        wide = b.transpose(0, 2, 1).reshape(k, NR)[:, :n].astype(np.int32)
        for call in (lambda **v: library.run(tile, v), tile):
            c = np.full((m, n), -1, np.int32)
            call(a=a, b=b, c=c, table=np.arange(m) * k, m=m, n=n, k=k, lone=lone)
            np.testing.assert_array_equal(c, a.astype(np.int32) @ wide)


# ---------------------------------------------------------------- matrix products

PRODUCTS = [
    ((4, 3), (3, 2)), ((17, 40), (40, 33)), ((5, 7, 31), (31, 19)), ((40,), (40, 9)), ((7, 40), (40,)),
    ((1, 300), (300, 70)), ((600, 21), (21, 18)),
]  # fmt: skip


@pytest.mark.parametrize("a, b", PRODUCTS)
@pytest.mark.parametrize("kinds", ["uint8 int8", "int8 uint8", "uint8 uint8", "int8 int8"])
@pytest.mark.parametrize("constant", [True, False])
def test_matmul_integer(a, b, kinds, constant):
    left, right = kinds.split()
    given = {"b": whole(right, *b), "za": whole(left), "zb": whole(right, *b[1:])}
    inputs = {"a": whole(left, *a), **({} if constant else given)}
    consts = given if constant else {}
    run([node("MatMulInteger", ["a", "b"], ["y"])], inputs, consts)
    run([node("MatMulInteger", ["a", "b", "za"], ["y"])], inputs, consts)
    run([node("MatMulInteger", ["a", "b", "za", "zb"], ["y"])], inputs, consts)


def test_zero_point_of_each_row():
    inputs = {"a": whole("uint8", 9, 12), "za": whole("uint8", 9)}
    run([node("MatMulInteger", ["a", "b", "za"], ["y"])], inputs, {"b": whole("int8", 12, 20)})


@pytest.mark.parametrize("a, b", [((3, 5, 8), (3, 8, 6)), ((2, 1, 4, 9), (1, 3, 9, 17)), ((4, 9), (2, 9, 5))])
@pytest.mark.parametrize("constant", [True, False])
def test_batches(a, b, constant):
    right = {"b": whole("uint8", *b), "zb": whole("uint8")}
    inputs = {"a": whole("int8", *a), **({} if constant else right)}
    run([node("MatMulInteger", ["a", "b", "", "zb"], ["y"])], inputs, right if constant else {})


def test_large_sums_are_exact():
    """Where instructions that saturate in 16 bits go wrong."""
    inputs = {"a": np.full((13, 1200), 255, np.uint8)}
    b = np.where(np.arange(20) % 2, 127, -128).astype(np.int8)
    run([node("MatMulInteger", ["a", "b"], ["y"])], inputs, {"b": np.broadcast_to(b, (1200, 20)).copy()})


@pytest.mark.parametrize("shape", [(6, 33, 18), (1, 64, 40), (130, 16, 5)])
@pytest.mark.parametrize("out", ["uint8", "int8"])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("constant", [True, False])
def test_qlinear_matmul(shape, out, per_column, constant):
    m, k, n = shape
    columns = (n,) if per_column else ()
    given = {
        "as": scale(), "az": whole("uint8"), "b": whole("int8", k, n), "bs": scale(*columns),
        "bz": whole("int8", *columns), "ys": scale(least=0.1), "yz": whole(out),
    }  # fmt: skip
    inputs = {"a": whole("uint8", m, k), **({} if constant else given)}
    nodes = [node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])]
    run(nodes, inputs, given if constant else {})


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("per_column", [False, True])
def test_products_to_float(biased, per_column):
    columns = (26,) if per_column else ()
    b = {"b": whole("int8", 31, 26), "bs": scale(*columns), "bz": whole("int8", *columns)}
    extra = {"bias": RNG.standard_normal(26).astype(np.float32)} if biased else {}
    float_input = {"a": RNG.standard_normal((2, 9, 31)).astype(np.float32)}
    names = ["a", "b", "bs", "bz", *extra]
    run([node("DynamicQuantizeMatMul", names, ["y"], 1, MICROSOFT)], float_input, b | extra)
    inputs = {"a": whole("uint8", 9, 31), "as": scale(), "az": whole("uint8")}
    names = ["a", "b", "as", "bs", "az", "bz", *extra]
    run([node("MatMulIntegerToFloat", names, ["y"], 1, MICROSOFT)], inputs, b | extra)


@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("addend", [None, (), (1, 14), (14,)])
@pytest.mark.parametrize("quantised", [True, False])
def test_qgemm(turned, addend, quantised):
    a, b = whole("int8", *((21, 10) if turned[0] else (10, 21))), whole("int8", *((14, 21) if turned[1] else (21, 14)))
    consts = {"b": b, "as": scale(), "az": whole("int8"), "bs": scale(14), "bz": whole("int8", 14)}
    if addend is not None:
        consts["c"] = RNG.integers(-9999, 9999, addend).astype(np.int32)
    names = ["a", "as", "az", "b", "bs", "bz", "c" if addend is not None else ""]
    if quantised:
        consts |= {"ys": scale(least=0.1), "yz": whole("int8")}
        names += ["ys", "yz"]
    nodes = [node("QGemm", names, ["y"], 1, MICROSOFT, alpha=0.5, transA=turned[0], transB=turned[1])]
    run(nodes, {"a": a}, consts)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [None, "packed", "float"])
@pytest.mark.parametrize("m, k, n", [(1, 64, 40), (9, 600, 17), (7, 33, 5)])
def test_matmul_n_bits(bits, zeros, m, k, n):
    block = 32
    blocks = -(-k // block)
    consts = {"b": whole("uint8", n, blocks, block * bits // 8), "s": scale(n * blocks)}
    if zeros == "packed":
        consts["z"] = whole("uint8", n * -(-blocks * bits // 8))
    elif zeros == "float":
        consts["z"] = RNG.uniform(0, 3, n * blocks).astype(np.float32)
    consts["bias"] = RNG.standard_normal(n).astype(np.float32)
    names = ["a", "b", "s", "z" if zeros else "", "", "bias"]
    made = node("MatMulNBits", names, ["y"], 1, MICROSOFT, K=k, N=n, bits=bits, block_size=block)
    run([made], {"a": RNG.standard_normal((2, m, k)).astype(np.float32)}, consts, tolerance=5e-6)


def test_what_kernels_decline_runs_by_reference():
    a, b = {"a": whole("uint8", 2, 3, 4, 5)}, {"b": whole("int8", 5, 6)}
    zeros = {"za": whole("uint8", 4)}  # one per row of each matrix
    run([node("MatMulInteger", ["a", "b", "za"], ["y"])], a, b | zeros, native=False)


# ---------------------------------------------------------------- convolutions

CONVS = [
    # x, w, attributes
    ((1, 3, 17, 19), (8, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((2, 16, 9, 11), (24, 16, 1, 1), {}),
    ((1, 17, 9, 11), (5, 17, 3, 5), {"pads": [1, 0, 2, 3], "dilations": [2, 1]}),
    ((1, 12, 8, 8), (18, 4, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    ((1, 15, 8, 8), (6, 5, 3, 3), {"group": 3, "dilations": [1, 2]}),
    ((1, 40, 10, 13), (40, 1, 3, 3), {"group": 40, "pads": [1, 1, 1, 1]}),
    ((2, 13, 10, 13), (13, 1, 5, 5), {"group": 13, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((1, 6, 7, 7), (12, 1, 3, 3), {"group": 6}),
    ((1, 8, 31), (20, 8, 5), {"pads": [4, 0], "dilations": [2]}),
    ((1, 9, 6, 7, 8), (10, 9, 3, 2, 3), {"pads": [1, 0, 1, 0, 1, 1], "strides": [1, 2, 1]}),
    ((3, 2, 5, 5), (1, 2, 5, 5), {"pads": [2, 2, 2, 2]}),
]


@pytest.mark.parametrize("x, w, attrs", CONVS)
@pytest.mark.parametrize("kinds", ["uint8 int8", "uint8 uint8", "int8 int8"])
def test_conv_integer(x, w, attrs, kinds):
    left, right = kinds.split()
    inputs = {"x": whole(left, *x)}
    consts = {"w": whole(right, *w), "zx": whole(left), "zw": whole(right, w[0]), "z": whole(right)}
    run([node("ConvInteger", ["x", "w"], ["y"], **attrs)], inputs, consts)
    run([node("ConvInteger", ["x", "w", "zx", "z"], ["y"], **attrs)], inputs, consts)
    run([node("ConvInteger", ["x", "w", "zx", "zw"], ["y"], **attrs)], inputs, consts)


@pytest.mark.parametrize("x, w, attrs", CONVS)
@pytest.mark.parametrize("out", ["uint8", "int8"])
@pytest.mark.parametrize("per_filter", [False, True])
def test_qlinear_conv(x, w, attrs, out, per_filter):
    filters = (w[0],) if per_filter else ()
    zero = np.zeros(filters, np.int8)
    consts = {
        "xs": scale(), "xz": whole("uint8"), "w": whole("int8", *w), "ws": scale(*filters), "wz": zero,
        "ys": scale(least=0.1), "yz": whole(out), "b": RNG.integers(-9999, 9999, w[0]).astype(np.int32),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    inputs = {"x": whole("uint8", *x)}
    run([node("QLinearConv", names, ["y"], **attrs)], inputs, consts)
    run([node("QLinearConv", [*names, "b"], ["y"], **attrs)], inputs, consts)


def test_a_chain_stays_channels_last():
    consts = {
        "s": scale(),
        "z": whole("uint8"),
        "w": whole("int8", 16, 16, 3, 3),
        "wz": np.int8(0),
        "t": scale(least=0.1),
    }
    names = ["w", "s", "wz", "t", "z"]
    nodes = [
        node("QLinearConv", ["x", "s", "z", *names], ["p"]), node("QLinearConv", ["p", "t", "z", *names], ["q"]),
        node("DequantizeLinear", ["q", "t", "z"], ["d"]), node("GlobalAveragePool", ["d"], ["y"]),
    ]  # fmt: skip
    made = model(nodes, {"x": whole("uint8", 1, 16, 9, 9)}, consts, ["q"])
    kernels = check_native(made, {"x": whole("uint8", 1, 16, 9, 9)})
    moves = [k.kernel.name for k in kernels if "transpose" in k.kernel.name]
    assert len(moves) == 2, moves  # at the borders
