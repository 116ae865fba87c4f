"""The image pipeline: every kind of input becomes the same RGB, bad input an InputError, and the known answers stay."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from minifer import models
from minifer.errors import InputError
from minifer.pipelines.image import (
    PREPROCESSINGS,
    ImageClassifier,
    Prediction,
    Preprocessing,
    classify,
    load_image,
    read_labels,
    softmax_of_scores,
)
from minifer.session import load

pytestmark = [pytest.mark.filterwarnings("ignore:Image size"), pytest.mark.filterwarnings("ignore:Tag data")]

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (11, 17, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# ---- reading -------------------------------------------------------------------------------------------------------


def test_sources_agree(tmp_path: Path) -> None:
    """Path, text path, bytes, file object, Pillow image and array give the same pixels."""
    image = Image.fromarray(PIXELS)
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image))
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), image, PIXELS):
        got = load_image(source)
        assert got.dtype == np.uint8 and got.flags.c_contiguous
        np.testing.assert_array_equal(got, PIXELS)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_image(file), PIXELS)
        assert not file.closed


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "GIF"])
def test_formats(kind: str) -> None:
    image = Image.fromarray(PIXELS).quantize(16).convert("RGB")  # few colours, so that GIF keeps them
    np.testing.assert_array_equal(load_image(encoded(image, kind)), np.asarray(image))


def test_grey_becomes_rgb() -> None:
    grey = PIXELS[:, :, 0]
    want = np.repeat(grey[:, :, None], 3, axis=2)
    for source in (encoded(Image.fromarray(grey)), grey, grey[:, :, None]):
        np.testing.assert_array_equal(load_image(source), want)


def test_transparency_lies_on_white() -> None:
    alpha = RNG.integers(0, 256, PIXELS.shape[:2], np.uint8)
    alpha[0, 0], alpha[0, 1] = 0, 255
    rgba = np.dstack([PIXELS, alpha])
    share = alpha[:, :, None] / 255
    want = PIXELS * share + 255 * (1 - share)
    for source in (encoded(Image.fromarray(rgba)), rgba):
        got = load_image(source)
        assert np.abs(got - want).max() <= 1
        assert (got[0, 0] == 255).all() and (got[0, 1] == PIXELS[0, 1]).all()
    grey_alpha = Image.fromarray(rgba[:, :, 0]).convert("LA")
    grey_alpha.putalpha(Image.fromarray(alpha))
    want = PIXELS[:, :, :1] * share + 255 * (1 - share)
    assert np.abs(load_image(encoded(grey_alpha)) - want).max() <= 1


def test_palette_with_a_transparent_entry() -> None:
    image = Image.fromarray(PIXELS).quantize(4)
    colours = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_image(encoded(image)), colours)
    index = int(np.asarray(image)[0, 0])
    got = load_image(encoded(image, transparency=index))
    want = np.where((np.asarray(image) == index)[:, :, None], 255, colours)
    np.testing.assert_array_equal(got, want)


def test_sixteen_bits() -> None:
    deep = RNG.integers(0, 65536, (5, 6)).astype(np.uint16)
    deep[0, 0], deep[0, 1] = 0, 65535
    want = np.repeat(np.rint(deep / 257).astype(np.uint8)[:, :, None], 3, axis=2)
    for source in (deep, encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "TIFF")):
        np.testing.assert_array_equal(load_image(source), want)


def test_bits_and_floats() -> None:
    bits = RNG.integers(0, 2, (4, 5)).astype(bool)
    want = np.repeat(bits[:, :, None] * np.uint8(255), 3, axis=2)
    for source in (bits, Image.fromarray(bits), bits.astype(np.float32), bits.astype(np.float64)):
        np.testing.assert_array_equal(load_image(source), want)


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (3, 2), (0, 255, 255, 0))  # magenta and yellow ink: red
    red = load_image(encoded(cmyk, "TIFF"))
    assert (red == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """A marked corner comes back to the top left, whatever the camera was held like (EXIF 2.3, tag 0x0112)."""
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255  # the corner
    upright[0, 5, 0] = 255  # the end of the top edge
    stored = {  # how a camera stores it: the value says where row 0 and column 0 of the file belong
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }[orientation](upright)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(load_image(data), upright)


def test_damaged_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(PIXELS), exif=b"Exif\x00\x00not a TIFF header")
    np.testing.assert_array_equal(load_image(data), PIXELS)


# ---- bad input -----------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = encoded(Image.fromarray(np.repeat(np.repeat(PIXELS, 16, 0), 16, 1)), "JPEG")
PNG = encoded(Image.fromarray(np.repeat(np.repeat(PIXELS, 16, 0), 16, 1)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "no image in a known format"),
        (b"hello, this is text", "no image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "no image in a known format"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated or damaged"),
        (PNG[:20], "truncated|no image"),
        (png_header(60000, 60000), "too many pixels|more than the limit"),
        (png_header(12000, 9000), "more than the limit"),
        (png_header(0, 5), "no pixels|no image|damaged"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 2), np.uint8), "an image array is"),
        (np.zeros((4,), np.uint8), "an image array is"),
        (np.full((2, 2), 255.0), "between|0 .. 1"),
        (np.full((2, 2), np.nan), "0 .. 1"),
        (np.full((2, 2), -1), "0 .. 65535"),
        (np.full((2, 2), "x"), "holds numbers"),
        (io.StringIO("text"), "binary mode"),
        (17, "not int"),
        ("there is no such file.png", "cannot open"),
        (".", "cannot open"),
        ("a\0b", "cannot open"),
    ],
)
def test_bad_input(source, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_image(source)


def test_flipped_bytes_never_crash() -> None:
    """Damaged files give an image or an InputError, nothing else."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(PIXELS)
    seeds = [encoded(small, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "TGA")]
    for turn in range(300):
        data = bytearray(seeds[turn % len(seeds)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            image = load_image(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]))
        except InputError:
            continue
        assert image.ndim == 3 and image.dtype == np.uint8


# ---- preparing -----------------------------------------------------------------------------------------------------


def test_crop_is_centred_and_of_the_trained_share() -> None:
    """300 x 451 -> a square of int(300 * 224 / 256) = 262 pixels from the middle."""
    marked = np.zeros((300, 451, 3), np.uint8)
    marked[19 : 19 + 262, 95 : 95 + 262] = 255
    assert (Preprocessing().crop_and_resize(marked) == 255).all()
    marked[19 + 131, 95] = 0
    assert not (Preprocessing().crop_and_resize(marked) == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (224, 224), (256, 256)])
def test_crop_of_odd_shapes(shape: tuple[int, int]) -> None:
    assert Preprocessing().crop_and_resize(np.zeros((*shape, 3), np.uint8)).shape == (224, 224, 3)


def test_no_resize_where_the_crop_fits() -> None:
    pixels = RNG.integers(0, 256, (256, 256, 3), np.uint8)
    np.testing.assert_array_equal(Preprocessing().crop_and_resize(pixels), pixels[16:240, 16:240])


def test_normalise() -> None:
    got = Preprocessing().normalise(np.array([[[127, 255, 0]]], np.uint8))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([[[0, 1, -127 / 128]]], np.float32))
    white = PREPROCESSINGS["imagenet"].normalise(np.full((1, 1, 3), 255, np.uint8))
    want = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(white[0, 0], want, rtol=1e-6)


def test_softmax() -> None:
    scores = RNG.normal(0, 300, (3, 7)).astype(np.float32)
    got = softmax_of_scores(scores)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(got.argmax(-1), scores.argmax(-1))
    assert softmax_of_scores(got) is got
    with pytest.raises(InputError, match="not finite"):
        softmax_of_scores(np.array([[np.nan, 0]], np.float32))


# ---- classifying ---------------------------------------------------------------------------------------------------


def tiny_classifier(shape: list, axes: list[int], classes: int = 3, dtype: int = TensorProto.FLOAT, **metadata: str):
    """Mean over all but the colour channels, cast to float32: three classes, red, green and blue."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=axes, keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], classes])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


COLOURS = ["red", "green", "blue"]
GREEN = np.full((30, 40, 3), (10, 200, 190), np.uint8)


def test_layouts_and_dtypes() -> None:
    """Channels first or last, float, half and byte inputs, fixed and free batch."""
    for shape, axes in (
        (["N", 3, 32, 32], [2, 3]), ([1, 3, 32, 32], [2, 3]), (["N", 32, 32, 3], [1, 2]), (["N", 3, "H", "W"], [2, 3]),
    ):  # fmt: skip
        for dtype in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8):
            classifier = ImageClassifier(tiny_classifier(shape, axes, dtype=dtype), COLOURS, "inception")
            assert classifier.preprocessing.size == (32 if 32 in shape else 224)
            found = classifier.classify([GREEN, GREEN[:, :, ::-1]], top=2)
            assert [[p.label for p in row] for row in found] == [["green", "blue"], ["green", "red"]]
            assert all(isinstance(p, Prediction) and 0 <= p.probability <= 1 for row in found for p in row)


def test_preprocessing_comes_from_the_metadata() -> None:
    data = tiny_classifier(["N", 3, 32, 32], [2, 3], preprocessing="inception")
    assert ImageClassifier(data).preprocessing == replace(PREPROCESSINGS["inception"], size=32)
    assert ImageClassifier(data, preprocessing="imagenet").preprocessing.mean == PREPROCESSINGS["imagenet"].mean
    assert ImageClassifier(data)(GREEN, top=1)[0].label == "class 1"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: ImageClassifier(tiny_classifier(["N", 3, 32, 48], [2, 3])), "32 x 48"),
        (lambda: ImageClassifier(tiny_classifier(["N", 1, 32, 32], [2, 3])), "one input"),
        (lambda: ImageClassifier(tiny_classifier(["N", 3, 32, 32], [2, 3], preprocessing="odd")), "'odd'"),
        (lambda: ImageClassifier(tiny_classifier([2, 3, 32, 32], [2, 3]), COLOURS)(GREEN), "2 images at a time"),
        (lambda: ImageClassifier(tiny_classifier(["N", 3, 32, 32], [2, 3]), ["a"])(GREEN), "1 labels"),
        (lambda: ImageClassifier(tiny_classifier(["N", 3, 32, 32], [2, 3]), COLOURS)(GREEN, 0), "at least 1"),
        (lambda: ImageClassifier(tiny_classifier(["N", 3, 32, 32], [2, 3]), COLOURS).classify([]), "no image"),
    ],
)
def test_bad_models_and_arguments(act, words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def test_labels_file(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text("a\nb c\n", encoding="utf-8")
    assert read_labels(path) == ["a", "b c"]
    path.write_text(json.dumps(["ä", "b"]), encoding="utf-8")
    assert read_labels(path) == ["ä", "b"]
    path.write_text('{"0": "a"}', encoding="utf-8")
    with pytest.raises(InputError, match="JSON list"):
        read_labels(path)
    with pytest.raises(InputError, match="cannot read"):
        read_labels(tmp_path / "nothing")


# ---- the carried model ---------------------------------------------------------------------------------------------


def test_known_answers() -> None:
    """What every runtime says of the two samples."""
    cat = classify(models.path("chelsea.png"))
    assert [p.label for p in cat[:3]] == ["a cat having a striped coat", "Egyptian Mau", "tabby cat"]
    np.testing.assert_allclose([p.probability for p in cat[:3]], [0.407, 0.341, 0.167], atol=0.005)
    coffee = classify(models.path("coffee.png"))
    assert coffee[0].label == "espresso" and coffee[0].index == 967
    assert coffee[0].probability == pytest.approx(0.951, abs=0.005)
    assert len(coffee) == 5


def test_batch_equals_single() -> None:
    classifier = ImageClassifier()
    paths = [models.path(name) for name in models.SAMPLES]
    both = classifier.probabilities(classifier.prepare(paths))
    alone = np.concatenate([classifier.probabilities(classifier.prepare([p])) for p in paths])
    np.testing.assert_allclose(both, alone, atol=1e-5)


def test_carried_model_is_half_precision() -> None:
    path = models.path(models.EFFICIENTNET_LITE0)
    assert path.stat().st_size < 10_000_000
    session = load(path)
    assert session.model.metadata["preprocessing"] in PREPROCESSINGS
    assert len(models.imagenet_labels()) == session.outputs[0].shape[1] == 1000
    onnx.checker.check_model(str(path), full_check=True)


def test_carried_files() -> None:
    with pytest.raises(FileNotFoundError, match=r"chelsea\.png"):
        models.path("dog.png")
    with pytest.raises(FileNotFoundError):
        models.path("../pyproject.toml")
    for entry in models.manifest()["models"]:
        assert entry["package"] and entry["path"].endswith(".onnx") and len(entry["sha256"]) == 64
