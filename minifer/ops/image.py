"""ImageDecoder: the bytes of an image file to a (height, width, channels) array of uint8."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from minifer.errors import InputError
from minifer.ir import TensorType, Type
from minifer.ops.registry import Call, Op, register

#: What the specification lists. Pillow knows more formats; some of them start other programs.
_FORMATS = ("BMP", "JPEG", "JPEG2000", "TIFF", "PNG", "WEBP", "PPM")
#: Larger pictures are refused before they are decoded: a file of a few bytes can claim any size.
MOST_PIXELS = 89_000_000
_MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


def _eight_bits(image: Any) -> Any:
    """Sixteen-bit grey values scaled to eight bits; Pillow's own conversion would clip them."""
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image


def _decode(encoded, *, pixel_format="RGB"):
    """Transparency is dropped, the orientation that a camera notes is not applied.

    Bytes that cannot be decoded raise InputError (the specification's empty matrix would only fail later, and
    with less to say).
    """
    if pixel_format not in _MODES:
        raise InputError(f"pixel_format must be one of {', '.join(_MODES)}, not {pixel_format!r}")
    if encoded.ndim != 1 or encoded.dtype != np.uint8:
        raise InputError(f"the file must come as uint8 of shape [N], not {encoded.dtype}{list(encoded.shape)}")
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded.tobytes()), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise InputError(f"the image has {width} x {height} pixels, and {MOST_PIXELS} is the most")
            pixels = np.array(_eight_bits(image).convert(_MODES[pixel_format]))
    except UnidentifiedImageError:
        known = ", ".join(_FORMATS)
        raise InputError(f"the {encoded.size} bytes are no image of a known format ({known})") from None
    except InputError:
        raise
    except Exception as error:  # decoders raise all kinds on broken files
        raise InputError(f"the image cannot be decoded: {type(error).__name__}: {error}") from error
    if pixel_format == "BGR":
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    return pixels.reshape(height, width, -1)


def _infer(call: Call) -> Type:
    encoded = call.tensor(0)
    if encoded.dtype != "uint8" or encoded.rank not in (None, 1):
        raise call.fail("the file must come as uint8 of shape [N]")
    pixel_format = call.attr("pixel_format", "RGB")
    if pixel_format not in _MODES:
        raise call.fail(f"pixel_format must be one of {', '.join(_MODES)}, not {pixel_format!r}")
    return TensorType("uint8", (None, None, 1 if pixel_format == "Grayscale" else 3))


register(Op("ImageDecoder", since=20, infer=_infer, reference=_decode))
