"""Image files to class labels: read, orient, resize, crop, normalise, run a classifier, name the best classes.

    from minifer.pipelines.image import classify
    for label, index, probability in classify("photo.jpg"): ...

The default model is the EfficientNet-Lite0 that minifer carries, and images are prepared as it was trained:
a centred square of 224/256 of the shorter side, resized to 224 x 224 by bicubic interpolation, (x - 127) / 128.
Pillow decodes, and is imported when the first image comes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np

import minifer.models as carried
from minifer import dtypes
from minifer.errors import InputError
from minifer.session import Session, load

if TYPE_CHECKING:
    from PIL import Image

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray"

#: Larger images are refused before they are decoded.
MAX_PIXELS = 100_000_000

# The raster formats that are read. Left out on purpose: formats that start other programs (EPS) or that hold no raster.
_FORMATS = (
    "PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "ICNS", "PCX",
    "QOI", "SGI", "DDS",
)  # fmt: skip


# ---- reading -------------------------------------------------------------------------------------------------------


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image as RGB: uint8 (height, width, 3), turned upright by its EXIF orientation.

    `source`: a path, the bytes of a file, a binary file object, a Pillow image, or an array (height, width) or
    (height, width, 1 | 3 | 4) of uint8, uint16, bool, or floats between 0 and 1.

    Transparent pixels are laid on white, as a page shows them. Grey becomes three equal channels, 16 bits are scaled
    to 8, palettes and CMYK are converted, of an animation the first frame is taken. Colour profiles are not applied.

    Raises InputError where there is no file, no image in it, no pixel, more than `max_pixels`, or a broken file.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    from PIL import Image

    if isinstance(source, Image.Image):
        return _to_rgb(_checked(source, "the image", max_pixels), "the image")
    stream, name = _open_stream(source)
    try:
        return _to_rgb(_checked(_open_image(stream, name), name, max_pixels), name)
    finally:
        if stream is not source:
            stream.close()


def _open_stream(source: Any) -> tuple[BinaryIO, str]:
    """A seekable binary stream, and what messages call it."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), f"the image ({len(bytes(source))} bytes)"
    if isinstance(source, str | os.PathLike):
        name = f"'{os.fspath(source)}'"
        try:
            return open(source, "rb"), name
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"cannot open the image {name}: {reason}") from error
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise InputError("the image file object gives text: open it in binary mode, open(path, 'rb')")
        return io.BytesIO(data), f"the image '{getattr(source, 'name', 'file object')}'"
    raise InputError(
        f"an image is a path, bytes, a binary file object, a Pillow image or an array, not {type(source).__name__}"
    )


def _open_image(stream: BinaryIO, name: str) -> Image.Image:
    """The image, its pixels not yet decoded. The common formats are tried before all plugins are imported."""
    from PIL import Image, UnidentifiedImageError

    for prepare in (Image.preinit, Image.init):
        prepare()
        stream.seek(0)
        try:
            return Image.open(stream, formats=[f for f in _FORMATS if f in Image.OPEN])
        except UnidentifiedImageError:
            continue
        except Exception as error:  # decoders raise anything on a hostile header: it is the file's fault
            raise InputError(_explain(name, error)) from error
    raise InputError(f"{name} is no image in a known format ({', '.join(_FORMATS)})")


def _explain(name: str, error: Exception) -> str:
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"{name} has too many pixels ({error})"
    return f"{name} cannot be decoded, it is truncated or damaged ({error or type(error).__name__})"


def _checked(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels: it is {width} x {height}")
    if width * height > max_pixels:
        raise InputError(f"{name} has {width} x {height} pixels, more than the limit of {max_pixels}")
    return image


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
        image = _upright(image)
        if image.mode.startswith("I") or image.mode == "F":
            return _from_array(np.asarray(image))
        if image.mode in ("RGBa", "La"):
            image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            from PIL import Image

            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise anything on hostile data: it is the file's fault
        raise InputError(_explain(name, error)) from error


def _upright(image: Image.Image) -> Image.Image:
    """Undo the rotation that the EXIF tag Orientation (0x0112, EXIF 2.3 table 4) states; a broken tag is ignored."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        orientation = image.getexif().get(0x0112)
        turn = turns.get(orientation) if isinstance(orientation, int) else None
    except Exception:  # a photograph with damaged metadata is still a photograph
        return image
    return image if turn is None else image.transpose(turn)


def _from_array(array: np.ndarray) -> np.ndarray:
    """RGB uint8 of an array of pixels; 16-bit integers and floats in [0, 1] are scaled."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"an image array is (height, width) or (height, width, 1, 3 or 4), and this one is {array.shape}"
        )
    if array.size == 0:
        raise InputError(f"the image array has no pixels: its shape is {array.shape}")
    pixels = _to_bytes(array)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.uint32)
        pixels = ((pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise InputError(f"integer pixels lie in 0 .. 65535, and these lie in {low} .. {high}")
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        darkest, brightest = float(array.min()), float(array.max())
        if not (darkest >= 0 and brightest <= 1):
            raise InputError(f"float pixels lie in 0 .. 1, these in {darkest:g} .. {brightest:g}: scale them first")
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    raise InputError(f"an image array holds numbers, not {array.dtype}")


# ---- preparing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier was trained to see an image: (pixel - mean) / scale over a centred square crop.

    `size` is the side of the network's input in pixels. The crop's side is `size / (size + padding)` of the image's
    shorter one. `mean` and `scale` are per channel (or one for all), in units of 0 .. 255.
    """

    size: int = 224
    padding: int = 32
    mean: tuple[float, ...] = (127.0,)
    scale: tuple[float, ...] = (128.0,)
    interpolation: str = "bicubic"

    def crop_and_resize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) -> uint8 (size, size, 3)."""
        from PIL import Image

        height, width = pixels.shape[:2]
        side = max(1, int(min(height, width) * (self.size / (self.size + self.padding))))
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
        return np.asarray(square.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()]))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (..., 3) -> float32 (..., 3)."""
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.scale, np.float32)


#: By name; a model names its own in the metadata key "preprocessing".
PREPROCESSINGS = {
    "efficientnet-lite": Preprocessing(),
    "imagenet": Preprocessing(mean=(123.675, 116.28, 103.53), scale=(58.395, 57.12, 57.375), interpolation="bilinear"),
    "inception": Preprocessing(mean=(127.5,), scale=(127.5,)),
}


# ---- classifying ---------------------------------------------------------------------------------------------------


class Prediction(NamedTuple):
    """One class that a classifier sees in an image."""

    label: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    probability: float


class ImageClassifier:
    """A loaded classifier: `classifier(image, top=5)` is a list of `Prediction`, best first.

    `model`: a Session, or what `minifer.load` takes; None is the EfficientNet-Lite0 that minifer carries. It has one
    image input, (N, 3, H, W) or (N, H, W, 3), and its first output has a score per class.
    `labels`: the class names; where None, those of ImageNet for a model of 1000 classes, else "class 17".
    `preprocessing`: a `Preprocessing` or the name of one; where None, the one that the model's metadata names under
    "preprocessing", else "imagenet". The size of the input is taken from the model where it is fixed there.
    """

    def __init__(
        self,
        model: Any = None,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | str | None = None,
        threads: int | None = None,
    ) -> None:
        source = carried.path(carried.EFFICIENTNET_LITE0) if model is None else model
        self.session = source if isinstance(source, Session) else load(source, threads=threads)
        self.labels = None if labels is None else list(labels)
        self._channels_first, side = _image_input(self.session)
        chosen = preprocessing or self.session.metadata.get("preprocessing") or "imagenet"
        if not isinstance(chosen, Preprocessing):
            if chosen not in PREPROCESSINGS:
                raise InputError(f"no preprocessing is called '{chosen}'; there is {', '.join(PREPROCESSINGS)}")
            chosen = PREPROCESSINGS[chosen]
        self.preprocessing = chosen if side is None else replace(chosen, size=side)

    def prepare(self, images: Sequence[ImageSource]) -> np.ndarray:
        """The model's input for some images: (len(images), 3, size, size), or channels last where it wants them so."""
        if not images:
            raise InputError("there is no image to classify")
        squares = np.stack([self.preprocessing.crop_and_resize(load_image(image)) for image in images])
        dtype = self.session.inputs[0].dtype
        batch = squares if dtype == "uint8" else self.preprocessing.normalise(squares).astype(dtypes.to_numpy(dtype))
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)) if self._channels_first else batch

    def probabilities(self, batch: np.ndarray) -> np.ndarray:
        """Prepared images -> float32 (len(batch), classes). Scores that are no probabilities go through a softmax."""
        name = self.session.inputs[0].name
        shape = self.session.inputs[0].shape
        fixed = shape[0] if shape and isinstance(shape[0], int) else None
        step = fixed or len(batch)
        if len(batch) % step:
            raise InputError(f"the model takes {step} images at a time, and {len(batch)} came")
        output = self.session.outputs[0].name
        rows = [self.session.run({name: batch[i : i + step]})[output] for i in range(0, len(batch), step)]
        scores = np.concatenate(rows).astype(np.float32)
        if scores.ndim < 2 or scores.shape[0] != len(batch):
            raise InputError(f"the model gives scores of shape {scores.shape} for {len(batch)} images: no classifier")
        return softmax_of_scores(scores.reshape(len(batch), -1))

    def classify(self, images: Sequence[ImageSource], top: int = 5) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, in one batch."""
        return [self.best(row, top) for row in self.probabilities(self.prepare(images))]

    def __call__(self, image: ImageSource, top: int = 5) -> list[Prediction]:
        return self.classify([image], top)[0]

    def best(self, probabilities: np.ndarray, top: int = 5) -> list[Prediction]:
        """The `top` classes of one row of probabilities; equal ones in the order of their numbers."""
        if top < 1:
            raise InputError(f"top is the number of classes to give, at least 1, not {top}")
        labels = self.labels
        if labels is None:
            labels = carried.imagenet_labels() if len(probabilities) == 1000 else []
        elif len(labels) != len(probabilities):
            raise InputError(f"there are {len(labels)} labels for a model of {len(probabilities)} classes")
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [Prediction(labels[i] if labels else f"class {i}", int(i), float(probabilities[i])) for i in order]


def softmax_of_scores(scores: np.ndarray) -> np.ndarray:
    """(rows, classes) scores -> probabilities. Rows that all are probabilities already (none negative, sum 1 within
    1e-3) come back as they are."""
    if not np.isfinite(scores).all():
        raise InputError("the model gives scores that are not finite numbers")
    if (scores >= 0).all() and (np.abs(scores.sum(-1) - 1) < 1e-3).all():
        return scores
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _image_input(session: Session) -> tuple[bool, int | None]:
    """Whether the channels come first, and the side of the square input where it is fixed."""
    shape = session.inputs[0].shape
    if len(session.inputs) != 1 or shape is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
        inputs = ", ".join(f"{i.name}: {i.dtype}{list(i.shape or ())}" for i in session.inputs)
        raise InputError(f"an image classifier has one input (N, 3, H, W) or (N, H, W, 3), and this model has {inputs}")
    channels_first = shape[1] == 3
    height, width = shape[2:] if channels_first else shape[1:3]
    if isinstance(height, int) and isinstance(width, int) and height != width:
        raise InputError(f"the model takes images of {height} x {width}, and only square ones are prepared here")
    side = height if isinstance(height, int) else width
    return channels_first, side if isinstance(side, int) else None


@lru_cache(maxsize=1)
def _default_classifier() -> ImageClassifier:
    return ImageClassifier()


def classify(image: ImageSource, top: int = 5) -> list[Prediction]:
    """The `top` most probable of the 1000 ImageNet classes in an image (see `load_image` for what an image can be).

    The model is loaded at the first call. For another model, several images at once, or a thread count, use
    `ImageClassifier`.
    """
    return _default_classifier()(image, top)


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a file: a JSON list, or one name a line."""
    import json

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels '{os.fspath(path)}': {error}") from error
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        return text.splitlines()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"'{os.fspath(path)}' holds no JSON list of strings")
    return names
