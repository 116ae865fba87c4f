"""DFT, STFT, windows and mel weights against sums written out."""

import numpy as np
import pytest

from minifer.dtypes import code_of_name, to_numpy
from minifer.errors import MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def plain_dft(x, length, sign):
    """sum_n x[n] exp(sign 2 pi i k n / N), the signal cut or padded with zeros."""
    padded = np.zeros(length, complex)
    padded[: min(length, len(x))] = x[:length]
    n = np.arange(length)
    return np.exp(sign * 2j * np.pi * np.outer(n, n) / length) @ padded


@pytest.mark.parametrize("length", [None, 3, 8])
def test_dft(length):
    x = np.random.default_rng(8).standard_normal((5, 2))
    n, given = length or 5, None if length is None else np.array(length)
    signal = x[:, 0] + 1j * x[:, 1]
    (y,) = run_op("DFT", 20, x, given)
    np.testing.assert_allclose(y[:, 0] + 1j * y[:, 1], plain_dft(signal, n, -1), atol=1e-9)
    (y,) = run_op("DFT", 17, x[None], given, inverse=1)
    np.testing.assert_allclose(y[0, :, 0] + 1j * y[0, :, 1], plain_dft(signal, n, 1) / n, atol=1e-9)
    (y,) = run_op("DFT", 20, x[:, :1], given, np.array(0), onesided=1)
    np.testing.assert_allclose(y[:, 0] + 1j * y[:, 1], plain_dft(x[:, 0], n, -1)[: n // 2 + 1], atol=1e-9)
    for inputs, attrs in (
        ((x, given), {}),
        ((x[:, :1], given), {"onesided": 1}),
        ((x, given), {"onesided": 1, "inverse": 1}),
    ):
        assert infer_value("DFT", 20, *inputs, **attrs)[0].shape == run_op("DFT", 20, *inputs, **attrs)[0].shape


def test_one_sided_dft_there_and_back():
    x = np.random.default_rng(9).standard_normal((2, 8, 1)).astype(np.float32)
    (y,) = run_op("DFT", 20, run_op("DFT", 20, x, onesided=1)[0], onesided=1, inverse=1)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x, atol=1e-6)


def test_dft_types_and_errors():
    kind = TensorType("float32", ("n", "t", 1))
    assert infer_op("DFT", 20, kind)[0].shape == ("n", "t", 2)
    assert infer_op("DFT", 17, kind, onesided=1)[0].shape == ("n", None, 2)
    assert infer_op("DFT", 20, kind, TensorType("int64", ()))[0].shape == ("n", None, 2)
    assert infer_op("DFT", 20, kind, None, TensorType("int64", ()))[0].shape == (None, None, None)
    x = np.zeros((2, 4, 2))
    for version, inputs, attrs, message in (
        (17, (x,), {"axis": 2}, "axis 2"),
        (20, (x, None, np.array(-1)), {}, "axis -1"),
        (20, (x, np.array(0)), {}, "dft_length"),
        (20, (x,), {"onesided": 1}, r"1 \(real\)"),
        (20, (x[..., :1],), {"onesided": 1, "inverse": 1}, r"2 \(complex\)"),
        (20, (np.zeros((2, 4, 3)),), {}, "size 3"),
        (20, (np.zeros((2, 0, 2)),), {}, "length 0"),
    ):
        with pytest.raises(ShapeError, match=message):
            run_op("DFT", version, *inputs, **attrs)
        with pytest.raises(ShapeError, match=message):
            infer_value("DFT", version, *inputs, **attrs)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft_frame_by_frame(onesided):
    rng = np.random.default_rng(10)
    x, window = rng.standard_normal((2, 20, 1)), rng.standard_normal(6)
    for inputs in ((x, np.array(3), window, np.array(6)), (x, np.array(3), window), (x[..., 0], np.array(3), window)):
        (y,) = run_op("STFT", 17, *inputs, onesided=onesided)
        assert (
            y.shape == (2, 5, 4 if onesided else 6, 2) == infer_value("STFT", 17, *inputs, onesided=onesided)[0].shape
        )
        for frame in range(5):
            expected = plain_dft(x[1, 3 * frame : 3 * frame + 6, 0] * window, 6, -1)[: y.shape[2]]
            np.testing.assert_allclose(y[1, frame, :, 0] + 1j * y[1, frame, :, 1], expected, atol=1e-9)


def test_stft_shapes_and_errors():
    x, one = np.zeros((1, 8, 2)), np.array(1)
    kinds = TensorType("float32", ("n", 8, 1)), TensorType("int64", ()), TensorType("float32", (None,))
    assert infer_op("STFT", 17, *kinds)[0].shape == ("n", None, None, 2)
    assert infer_op("STFT", 17, *kinds[:2], None, TensorType("int64", ()))[0].shape == ("n", None, None, 2)
    for inputs, attrs, message in (
        ((x, one), {}, "size 2"),
        ((x, np.array(0)), {"onesided": 0}, "frame_step"),
        ((x, one, np.ones(9)), {"onesided": 0}, "longer than"),
        ((x, one, np.ones(4), np.array(5)), {"onesided": 0}, "equal"),
        ((x, one, np.ones((4, 1))), {"onesided": 0}, "1-D"),
        ((x[0, 0], one), {}, "signal"),
    ):
        with pytest.raises(ShapeError, match=message):
            run_op("STFT", 17, *inputs, **attrs)
        with pytest.raises(ShapeError, match=message):
            infer_value("STFT", 17, *inputs, **attrs)


@pytest.mark.parametrize("name", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(name):
    (y,) = run_op(name, 17, np.array(9), periodic=0, output_datatype=code_of_name("float64"))
    np.testing.assert_allclose(y, y[::-1], atol=1e-12)
    assert y.argmax() == 4 and abs(y[4] - 1) < 1e-12
    np.testing.assert_allclose(run_op(name, 17, np.array(8), output_datatype=11)[0], y[:8], atol=1e-12)
    assert run_op(name, 17, np.array(0))[0].shape == (0,)
    assert run_op(name, 17, np.array(1), periodic=0)[0].tolist() == [1]
    assert run_op(name, 17, np.array([9]), periodic=0, output_datatype=code_of_name("int8"))[0][4] == 1
    (y,) = run_op(name, 17, np.array(4), output_datatype=code_of_name("bfloat16"))
    assert y.dtype == to_numpy("bfloat16")
    assert infer_op(name, 17, TensorType("int64", ())) == [TensorType("float32", (None,))]
    for size, code, message in ((-1, 1, "size"), (4, code_of_name("string"), "string"), (4, 99, "99")):
        with pytest.raises(MiniferError, match=message):
            run_op(name, 17, np.array(size), output_datatype=code)


def test_mel_weight_matrix():
    inputs = np.array(20), np.array(400), np.array(16000), np.array(0, np.float32), np.array(8000, np.float32)
    (y,) = run_op("MelWeightMatrix", 17, *inputs)
    assert y.shape == (201, 20) and y.dtype == np.float32 and y.min() == 0
    assert (y.max(axis=0) == 1).all() and (np.diff(y.argmax(axis=0)) >= 0).all()
    assert infer_value("MelWeightMatrix", 17, *inputs) == [TensorType("float32", (201, 20))]
    for place, value, message in (
        (0, -1, "num_mel_bins"),
        (1, 0, "dft_length"),
        (2, 0, "sample_rate"),
        (3, 9000, "edges"),
    ):
        wrong = [*inputs]
        wrong[place] = np.array(value, inputs[place].dtype)
        with pytest.raises(MiniferError, match=message):
            run_op("MelWeightMatrix", 17, *wrong)
