"""ImageDecoder: modes of pictures, colour order, refused files."""

from __future__ import annotations

import io

import numpy as np
import pytest

from minifer.errors import InputError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, run_op

Image = pytest.importorskip("PIL.Image")


def encoded(image, kind):
    stream = io.BytesIO()
    image.save(stream, kind)
    return np.frombuffer(stream.getvalue(), np.uint8)


def decode(image, kind="PNG", pixel_format="RGB"):
    return run_op("ImageDecoder", 20, encoded(image, kind), pixel_format=pixel_format)[0]


def test_colour_orders():
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    for pixel_format, pixel in (("RGB", [10, 20, 30]), ("BGR", [30, 20, 10])):
        got = decode(image, pixel_format=pixel_format)
        assert got.shape == (2, 3, 3) and got.dtype == np.uint8 and got[1, 2].tolist() == pixel
        assert got.flags.c_contiguous
    assert decode(image, pixel_format="Grayscale").shape == (2, 3, 1)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("L", 7, "PNG", [7, 7, 7]),
        ("1", 1, "TIFF", [255, 255, 255]),
        ("RGBA", (1, 2, 3, 0), "PNG", [1, 2, 3]),
        ("LA", (9, 0), "PNG", [9, 9, 9]),
        ("P", 0, "BMP", [0, 0, 0]),
        ("I;16", 0x1234, "PNG", [0x12, 0x12, 0x12]),
        ("I;16", 0x1234, "TIFF", [0x12, 0x12, 0x12]),
    ],
)
def test_modes(mode, colour, kind, expected):
    assert decode(Image.new(mode, (4, 3), colour), kind)[2, 3].tolist() == expected


def test_refused_files():
    good = encoded(Image.new("RGB", (300, 200), 5), "PNG")
    for data, why in (
        (good[:60], "cannot be decoded"),
        (good[:0], "no image of a known format"),
        (np.zeros(99, np.uint8), "no image of a known format"),
        (encoded(Image.new("RGB", (2, 2)), "GIF"), "no image of a known format"),
        (good[None], "uint8 of shape"),
    ):
        with pytest.raises(InputError, match=why):
            run_op("ImageDecoder", 20, data)
    with pytest.raises(InputError, match="pixel_format"):
        run_op("ImageDecoder", 20, good, pixel_format="CMYK")


def test_size_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr("minifer.ops.image.MOST_PIXELS", 59_999)
    with pytest.raises(InputError, match="300 x 200 pixels, and 59999 is the most"):
        decode(Image.new("RGB", (300, 200)))


def test_type_rule():
    data = TensorType("uint8", ("n",))
    assert infer_op("ImageDecoder", 20, data) == [TensorType("uint8", (None, None, 3))]
    assert infer_op("ImageDecoder", 20, data, pixel_format="Grayscale") == [TensorType("uint8", (None, None, 1))]
    with pytest.raises(ShapeError, match="uint8"):
        infer_op("ImageDecoder", 20, TensorType("float32", ("n",)))
