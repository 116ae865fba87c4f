"""Cast, CastLike and BitCast: corners that the official cases leave out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minifer.dtypes import FLOAT8, TYPES, code_of_name, to_numpy
from minifer.errors import InputError, ShapeError, UnsupportedError
from minifer.ir import TensorType
from minifer.ops.cast import convert
from tests.ops.helpers import infer_op, infer_value, run_op

PLAIN = [n for n in TYPES if not n.startswith("complex") and n != "string"]


@pytest.mark.parametrize("source", PLAIN)
@pytest.mark.parametrize("shape", [(), (0,), (2,)])
def test_ones_survive_any_cast(source, shape):
    x = np.ones(shape, np.float32).astype(to_numpy(source))
    for target in PLAIN:
        (y,) = run_op("Cast", 28, x, to=code_of_name(target))
        assert isinstance(y, np.ndarray) and y.dtype == to_numpy(target) and y.shape == shape
        assert (y.astype(np.float32) == 1).all()
        assert infer_value("Cast", 28, x, to=code_of_name(target)) == [TensorType(target, shape)]


def test_integers_keep_low_bits():
    assert convert(np.array([200, -129], np.int16), "int8").tolist() == [-56, 127]
    assert convert(np.array([8, -9, 17], np.int64), "int4").astype(int).tolist() == [-8, 7, 1]
    assert convert(np.array([3, -3], np.int64), "int2").astype(int).tolist() == [-1, 1]


def test_floats_out_of_range():
    x = np.array([3e9, -3e9, np.nan, np.inf, -np.inf])
    assert convert(x, "int32").tolist() == [2**31 - 1, -(2**31), 0, 2**31 - 1, -(2**31)]
    assert convert(x, "uint64").tolist() == [3_000_000_000, 0, 0, 2**64 - 1, 0]
    assert convert(np.array([-1.5, 300.0], np.float32), "uint8").tolist() == [255, 44]
    assert convert(x, "bool").all()


def test_float64_is_rounded_once():
    just_above_tie = 1 + 2.0**-8 + 2.0**-40  # float32 would round it to the tie, and that to even, down
    assert convert(np.array([just_above_tie]), "bfloat16").astype(float).tolist() == [1 + 2.0**-7]
    x = np.random.default_rng(1).normal(size=10_000)
    fraction, exponent = np.frexp(x)
    exact = np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8)
    np.testing.assert_array_equal(convert(x, "bfloat16").astype(float), exact)
    assert run_op("Cast", 13, np.array([1e300, -1e300]), to=16)[0].astype(float).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("kind", FLOAT8)
def test_float8_saturates_or_not(kind):
    largest = float(ml_dtypes.finfo(to_numpy(kind)).max)
    x = np.array([1e9, -1e9, np.inf, -np.inf, np.nan], np.float32)
    y = convert(x, kind).astype(np.float32)
    assert y[:4].tolist() == [largest, -largest, largest, -largest] and np.isnan(y[4])
    y = convert(x, kind, saturate=False).astype(np.float32)
    assert (np.isinf(y[:4]) if kind == "float8e5m2" else np.isnan(y)).all() and np.isnan(y[4])


def test_powers_of_two():
    x = np.array([1, 1.4, 1.5, 3, np.inf, 0, -1, np.nan])
    up = convert(x, "float8e8m0").astype(np.float64)
    np.testing.assert_array_equal(up, [1, 2, 2, 4, 2.0**127, 2.0**-127, np.nan, np.nan])
    down = convert(x[:4], "float8e8m0", round_mode="down").astype(np.float64)
    nearest = convert(x, "float8e8m0", round_mode="nearest", saturate=False).astype(np.float64)
    np.testing.assert_array_equal(down, [1, 1, 1, 2])
    np.testing.assert_array_equal(nearest, [1, 1, 2, 4, np.nan, np.nan, np.nan, np.nan])
    with pytest.raises(InputError, match="round_mode is 'away'"):
        run_op("Cast", 24, x, to=24, round_mode="away")


def test_text():
    words = np.array(["3.5", " 12 ", "-INF", "+inf", "NaN", "1E3"], object)
    np.testing.assert_array_equal(run_op("Cast", 9, words, to=1)[0], [3.5, 12, -np.inf, np.inf, np.nan, 1000])
    huge = np.array([str(2**63 - 1), "-7.9"], object)
    assert run_op("Cast", 9, huge, to=7)[0].tolist() == [2**63 - 1, -7]
    for text in ("cat", "1_000", ""):
        with pytest.raises(InputError, match=f"cannot cast '{text}'"):
            run_op("Cast", 9, np.array([text], object), to=1)
    for text in ("300", "nan"):
        with pytest.raises(InputError, match=f"cannot cast '{text}' to int8"):
            run_op("Cast", 9, np.array([text], object), to=3)
    numbers = np.array([0.1, np.nan, -np.inf, 2], np.float32)
    assert run_op("Cast", 9, numbers, to=8)[0].tolist() == ["0.1", "NaN", "-INF", "2.0"]
    assert run_op("Cast", 9, np.array([[True], [False]]), to=8)[0].tolist() == [["1"], ["0"]]
    assert run_op("Cast", 9, np.zeros((0, 2)), to=8)[0].shape == (0, 2)


def test_first_opset_names_the_type():
    assert run_op("Cast", 1, np.array([1.5]), to="FLOAT")[0].dtype == np.float32
    assert run_op("Cast", 1, np.array([1.5]), to="INT64")[0].tolist() == [1]
    assert infer_op("Cast", 1, TensorType("float64", ("n",)), to="DOUBLE") == [TensorType("float64", ("n",))]
    with pytest.raises(UnsupportedError, match="'QUAD' is not known"):
        run_op("Cast", 1, np.array([1.5]), to="QUAD")
    with pytest.raises(UnsupportedError, match="code 99"):
        run_op("Cast", 13, np.array([1.5]), to=99)


def test_cast_like():
    like = np.array([], ml_dtypes.float8_e4m3fn)
    assert float(run_op("CastLike", 19, np.array([500.0]), like)[0][0]) == 448
    assert np.isnan(float(run_op("CastLike", 19, np.array([500.0]), like, saturate=0)[0][0]))
    assert infer_value("CastLike", 15, np.zeros((2, 3)), like) == [TensorType("float8e4m3fn", (2, 3))]


def test_bit_cast():
    assert run_op("BitCast", 26, np.array([-1], np.int8).astype(ml_dtypes.int4), to=21)[0].astype(int).tolist() == [15]
    assert run_op("BitCast", 26, np.array([2, 0], np.uint8), to=9)[0].tolist() == [True, False]
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert run_op("BitCast", 26, turned, to=6)[0].view(np.float32).tolist() == turned.tolist()
    for action in (run_op, infer_value):
        with pytest.raises((InputError, ShapeError), match="sizes in bits"):
            action("BitCast", 26, np.array([1.0]), to=1)


def test_all_halves_are_looked_up_as_numpy_converts_them():
    """Many are looked up in a table, also such as lie apart or in another byte order."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for x in (every, every.reshape(256, 256).T, every[::3], every.astype(">f2")):
        got = convert(x, "float32")
        assert got.shape == x.shape and got.dtype == np.float32
        assert got.tobytes() == x.astype(np.float32).tobytes()
