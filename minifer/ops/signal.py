"""Signal processing: DFT, STFT, HannWindow, HammingWindow, BlackmanWindow, MelWeightMatrix.

A complex signal is a real tensor whose last axis holds real and imaginary part.
"""

from __future__ import annotations

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Op, register
from minifer.ops.resize import from_float64
from minifer.ops.shapes import integers


def _number(value, name, fail, least=1):
    """The integer in a tensor of one element."""
    numbers = integers(value)
    if len(numbers) != 1 or numbers[0] < least:
        raise fail(f"{name} must be one number of at least {least}, and is {list(numbers)}")
    return numbers[0]


def _parts(x):
    """The complex signal (or the real one, where the last axis has size 1), in single or double precision.

    Single precision stays single: the official cases expect its rounding (1.9e-7 where the exact value is 0).
    """
    wide = np.ascontiguousarray(x, np.float64 if x.dtype == np.float64 else np.float32)
    if x.shape[-1] == 1:
        return wide[..., 0]
    return wide.view(np.complex128 if x.dtype == np.float64 else np.complex64)[..., 0]


def _pairs(y, dtype):
    """Back to real and imaginary part; real results get a last axis of size 1."""
    return np.stack([y.real, y.imag] if np.iscomplexobj(y) else [y], axis=-1).astype(dtype)


# --- DFT


def _dft_shape(shape, axis, length, inverse, onesided, fail):
    """(output shape, axis, dft length); sizes that are unknown stay so."""
    rank = len(shape)
    if rank < 2 or not -rank <= axis < rank or axis % rank == rank - 1:
        raise fail(f"axis {axis} must name one of the {max(rank - 1, 0)} signal axes, not the complex one")
    at, real = axis % rank, onesided and not inverse
    if isinstance(shape[-1], int) and shape[-1] not in ((1,) if real else (2,) if onesided else (1, 2)):
        need = "1 (real) for a one-sided" if real else "2 (complex) for an inverse one-sided" if onesided else "1 or 2"
        raise fail(f"the last axis has size {shape[-1]}, and must have {need} DFT")
    if length is None and isinstance(shape[at], int):
        length = 2 * (shape[at] - 1) if inverse and onesided else shape[at]
    if length is not None and length < 1:
        raise fail(f"a DFT of length {length} is not possible")
    out = list(shape)
    out[at] = length // 2 + 1 if real and length is not None else length
    out[-1] = 1 if inverse and onesided else 2
    return tuple(out), at, length


def _dft(x, dft_length=None, axis=None, *, inverse=0, onesided=0):
    at = -2 if axis is None else _number(axis, "axis", ShapeError, -x.ndim)
    length = None if dft_length is None else _number(dft_length, "dft_length", ShapeError)
    shape, at, length = _dft_shape(x.shape, at, length, inverse, onesided, ShapeError)
    if 0 in shape or 0 in x.shape:
        return np.zeros(shape, x.dtype)
    signal = _parts(x)
    if onesided:
        return _pairs((np.fft.irfft if inverse else np.fft.rfft)(signal, length, at), x.dtype)
    return _pairs((np.fft.ifft if inverse else np.fft.fft)(signal, length, at), x.dtype)


def _dft_17(x, dft_length=None, *, axis=1, inverse=0, onesided=0):
    return _dft(x, dft_length, axis, inverse=inverse, onesided=onesided)


def _infer_dft_at(call, axis):
    shape, dtype = call.shape(0), call.dtype(0)
    if shape is None or axis is None:
        return TensorType(dtype, None if shape is None else (None,) * len(shape))
    flags = call.attr("inverse", 0), call.attr("onesided", 0)
    length = None if call.value(1) is None else _number(call.value(1), "dft_length", call.fail)
    if call.has(1) and length is None:  # known at run time only
        sizes, at, _ = _dft_shape((None,) * (len(shape) - 1) + shape[-1:], axis, None, *flags, call.fail)
    else:
        sizes, at, _ = _dft_shape(shape, axis, length, *flags, call.fail)
    same = isinstance(shape[at], str) and not call.has(1) and not flags[1]
    along = shape[at] if same else sizes[at]
    return TensorType(dtype, (*shape[:at], along, *shape[at + 1 : -1], sizes[-1]))


def _infer_dft(call):
    if not call.has(2):
        return _infer_dft_at(call, -2)
    rank = call.shape(0)
    known = call.value(2) is not None and rank is not None
    return _infer_dft_at(call, _number(call.value(2), "axis", call.fail, -len(rank)) if known else None)


register(Op("DFT", since=17, infer=lambda call: _infer_dft_at(call, call.attr("axis", 1)), reference=_dft_17))
register(Op("DFT", since=20, infer=_infer_dft, reference=_dft))

# --- STFT


def _frame_length(signal, window, length, fail):
    """The length of a frame from the sizes of signal and window (None: omitted or unknown) and the input."""
    if length is not None and isinstance(window, int) and window != length:
        raise fail(f"the window has length {window}, and frame_length is {length}; they must be equal")
    return length if length is not None else window if window is not None else signal


def _stft_shape(shape, step, length, onesided, fail):
    if len(shape) not in (2, 3):
        raise fail(f"the signal must have shape [batch, length, 1 or 2], and has {list(shape)}")
    if len(shape) == 3 and isinstance(shape[2], int) and shape[2] not in ((1,) if onesided else (1, 2)):
        raise fail(f"the last axis has size {shape[2]}; onesided={onesided} needs {'1' if onesided else '1 or 2'}")
    if isinstance(length, int) and length < 1:
        raise fail("a frame must have at least one sample")
    if isinstance(length, int) and isinstance(shape[1], int) and length > shape[1]:
        raise fail(f"a frame of {length} samples is longer than the signal of {shape[1]}")
    known = all(isinstance(v, int) for v in (shape[1], step, length))
    frames = (shape[1] - length) // step + 1 if known else None
    bins = (length // 2 + 1 if onesided else length) if isinstance(length, int) else None
    return shape[0], frames, bins, 2


def _stft(signal, frame_step, window=None, frame_length=None, *, onesided=1):
    step = _number(frame_step, "frame_step", ShapeError)
    length = None if frame_length is None else _number(frame_length, "frame_length", ShapeError)
    if window is not None and window.ndim != 1:
        raise ShapeError(f"the window must be 1-D, and has rank {window.ndim}")
    size = signal.shape[1] if signal.ndim > 1 else 0
    length = _frame_length(size, None if window is None else len(window), length, ShapeError)
    shape = _stft_shape(signal.shape, step, length, onesided, ShapeError)
    if 0 in shape:
        return np.zeros(shape, signal.dtype)
    values = _parts(signal if signal.ndim == 3 else signal[..., None])
    frames = np.lib.stride_tricks.sliding_window_view(values, length, axis=1)[:, ::step]
    frames = frames if window is None else frames * window.astype(frames.real.dtype)
    return _pairs((np.fft.rfft if onesided else np.fft.fft)(frames, axis=-1), signal.dtype)


def _infer_frame_length(call, signal):
    """The length of a frame where it is known, else None."""
    window = call.shape(2) if call.has(2) else None
    if window is not None and len(window) != 1:
        raise call.fail("the window must be 1-D")
    size = window[0] if window and isinstance(window[0], int) else None
    if call.value(3) is not None:
        return _frame_length(signal, size, _number(call.value(3), "frame_length", call.fail), call.fail)
    return size if call.has(2) or call.has(3) else signal


def _infer_stft(call):
    shape = call.shape(0)
    if shape is None:
        return TensorType(call.dtype(0), (None, None, None, 2))
    step = None if call.value(1) is None else _number(call.value(1), "frame_step", call.fail)
    length = _infer_frame_length(call, shape[1] if len(shape) > 1 else None)
    return TensorType(call.dtype(0), _stft_shape(shape, step, length, call.attr("onesided", 1), call.fail))


register(Op("STFT", since=17, infer=_infer_stft, reference=_stft))

# --- windows

# A window is sum_k c[k] cos(2 pi k n / N) over n = 0 ... size - 1.
_WINDOWS = {"HannWindow": (0.5, -0.5), "HammingWindow": (25 / 46, -21 / 46), "BlackmanWindow": (0.42, -0.5, 0.08)}


def _output_type(code, fail):
    name = dtypes.name_of_code(code)
    if name not in dtypes.FLOATS + dtypes.INTEGERS:
        raise fail(f"output_datatype {code} ({name}) is no plain number type")
    return name


def _window(coefficients):
    def window(size, *, output_datatype=1, periodic=1):
        count = _number(size, "size", ShapeError, 0)
        dtype = dtypes.to_numpy(_output_type(output_datatype, InputError))
        if count == 1 and not periodic:
            return np.ones(1, dtype)  # the formula has no value here
        angle = 2 * np.pi * np.arange(count) / max(count - (not periodic), 1)
        return from_float64(sum(c * np.cos(k * angle) for k, c in enumerate(coefficients)), dtype)

    return window


def _infer_window(call):
    count = None if call.value(0) is None else _number(call.value(0), "size", call.fail, 0)
    return TensorType(_output_type(call.attr("output_datatype", 1), call.fail), (count,))


for _name, _coefficients in _WINDOWS.items():
    register(Op(_name, since=17, infer=_infer_window, reference=_window(_coefficients)))

# --- MelWeightMatrix


def _mel_weight_matrix(num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz, *, output_datatype=1):
    dtype = dtypes.to_numpy(_output_type(output_datatype, InputError))
    bands, length = _number(num_mel_bins, "num_mel_bins", ShapeError, 0), _number(dft_length, "dft_length", ShapeError)
    rate = _number(sample_rate, "sample_rate", InputError)
    low, high = (float(v.reshape(-1)[0]) for v in (lower_edge_hertz, upper_edge_hertz))
    if not 0 <= low <= high < np.inf:
        raise InputError(f"the edges {low} and {high} Hz must not be negative, and rise")
    low, high = (2595 * np.log10(1 + f / 700) for f in (low, high))
    mels = low + np.arange(bands + 2) * (high - low) / (bands + 2)  # the spec's step: one for each edge and band
    edges = np.floor((length + 1) * 700 * (10 ** (mels / 2595) - 1) / rate)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(length // 2 + 1)[:, None]
    rise = np.where(centre > left, (at - left) / (centre - left), at == centre)
    fall = (right - at) / (right - centre)
    weight = np.where((at >= left) & (at <= centre), rise, np.where((at > centre) & (at < right), fall, 0.0))
    return from_float64(weight, dtype)


def _infer_mel_weight_matrix(call):
    dtype = _output_type(call.attr("output_datatype", 1), call.fail)
    bands, length = call.value(0), call.value(1)
    rows = None if length is None else _number(length, "dft_length", call.fail) // 2 + 1
    return TensorType(dtype, (rows, None if bands is None else _number(bands, "num_mel_bins", call.fail, 0)))


register(Op("MelWeightMatrix", since=17, infer=_infer_mel_weight_matrix, reference=_mel_weight_matrix))
