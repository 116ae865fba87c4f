"""The page beside a WebAssembly module: its files, its arithmetic in Node, and the page itself in Chromium."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import minifer
from minifer import models
from minifer.embed import javascript
from minifer.embed.abi import Interface, Tensor
from minifer.embed.demo import pages
from minifer.errors import InputError
from minifer.pipelines.image import PREPROCESSINGS, load_image, softmax_of_scores
from tests.embed import toy
from tests.embed.browser import Browser, find_browser

CHELSEA = models.path("chelsea.png")
TOOLS = pytest.mark.embed


def interface(image=(1, 3, 224, 224), scores=(1, 1000), dtype="float32", **others) -> Interface:
    """Of a classifier, unless it is told otherwise."""
    whole = Interface("net", (Tensor("x", "x", dtype, image),), (Tensor("y", "y", "float32", scores),), 0, 0, False)
    return replace(whole, **others)


def settings(files) -> dict:
    """What demo-model.js says."""
    return json.loads(files["demo-model.js"].partition("settings = ")[2].rstrip(";\n"))


# ---------------------------------------------------------------- the files


def test_a_classifier_gets_the_page_for_photographs():
    files = pages(interface(), "net", metadata={"preprocessing": "efficientnet-lite"})
    assert json.loads(files["labels.json"]) == models.imagenet_labels()
    assert files["chelsea.png"] == CHELSEA.read_bytes()
    assert settings(files)["preprocessing"] == {
        "size": 224, "padding": 32, "mean": [127.0], "scale": [128.0], "interpolation": "bicubic", "channelsFirst": True
    }  # fmt: skip
    assert files == pages(interface(), "net", metadata={"preprocessing": "efficientnet-lite"})


def test_preparation_is_that_of_the_python_classifier():
    prepared = settings(pages(interface((1, 96, 96, 3), dtype="uint8"), "net"))["preprocessing"]
    assert prepared["mean"] == list(PREPROCESSINGS["imagenet"].mean)
    assert (prepared["size"], prepared["channelsFirst"]) == (96, False)
    with pytest.raises(InputError, match="no preprocessing is called 'mirror'; there is efficientnet-lite"):
        pages(interface(), "net", metadata={"preprocessing": "mirror"})


def test_labels_of_the_caller():
    files = pages(interface(scores=(1, 2)), "net", ["cat", "naïve dog"])
    assert json.loads(files["labels.json"]) == ["cat", "naïve dog"]
    with pytest.raises(InputError, match="3 labels for a model of 2 classes"):
        pages(interface(scores=(1, 2)), "net", ["cat", "dog", "cow"])


@pytest.mark.parametrize(
    "other",
    [
        interface(scores=(1, 10)),
        interface((2, 3, 8, 8)),
        interface((1, 3, 8, 9)),
        interface((1, 3, 64)),
        interface(dtype="int64"),
        interface(inputs=(Tensor("x", "x", "float32", (1, 3, 8, 8)), Tensor("k", "k", "int64", ()))),
        interface(outputs=()),
        interface(scores=()),
        toy.interface(),
    ],
)
def test_other_models_get_the_page_for_tensors(other):
    files = pages(other, "net")
    assert "demo-values.js" in files and "labels.json" not in files


@pytest.mark.parametrize(
    "made", [interface(), interface(separate=True), toy.interface()], ids=["image", "apart", "toy"]
)
def test_the_page_needs_nothing_but_its_files(made):
    """All that the files name is there, nothing is of another site, and nothing can clash with NAME.js."""
    files = {name: text for name, text in pages(made, "net").items() if isinstance(text, str)}
    named = {
        found for text in files.values() for found in re.findall(r'"(?:\./)?([\w.-]+\.(?:js|css|wasm|weights))"', text)
    }
    weights = {"net.weights"} if made.separate else set()
    assert (
        named
        == {f for f in files if f.endswith((".js", ".css"))} | {"net.js", "net.wasm", "net.relaxed.wasm"} | weights
    )
    assert set(re.findall(r"https?://[\w.]+", "".join(files.values()))) == {"http://localhost"}
    assert all("-" in name or name in ("index.html", "labels.json") for name in files)
    assert "default-src 'none'" in files["index.html"]


# ---------------------------------------------------------------- arithmetic, in Node


def in_node(folder: Path, files, script: str, given: bytes = b"") -> bytes:
    """What a script beside the files writes."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "main.js").write_text(script)
    done = subprocess.run([node, "main.js"], cwd=folder, input=given, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


PREPARE = """
import { readFileSync } from "node:fs";
import { cropOf, normalise, resize } from "./demo-prepare.js";
const { width, height, ...preparation } = JSON.parse(readFileSync("case.json"));
const pixels = readFileSync(0);
const crop = cropOf(width, height, preparation);
const read = (row, rows) => {
  const found = new Uint8ClampedArray(crop.side * rows * 4);
  for (let y = 0; y < rows; y++) {
    const start = ((crop.top + row + y) * width + crop.left) * 4;
    found.set(pixels.subarray(start, start + crop.side * 4), y * crop.side * 4);
  }
  return found;
};
const small = resize(crop.side, preparation.size, preparation.interpolation, read);
process.stdout.write(small);
process.stdout.write(new Uint8Array(normalise(small, preparation, Float32Array).buffer));
"""


@TOOLS
@pytest.mark.parametrize("name", PREPROCESSINGS)
@pytest.mark.parametrize("height, width", [(300, 451), (97, 43), (224, 256), (1, 5), (1700, 1801)])
def test_photographs_are_prepared_as_in_python(height, width, name, tmp_path):
    """Byte for byte; noise shows what a photograph hides, and its extremes clip. The largest is read in strips."""
    side = 80 if height < 1000 else 224
    preprocessing = replace(PREPROCESSINGS[name], size=side)
    pixels = np.random.default_rng(3).choice(np.array([0, 255, 31, 128], np.uint8), (height, width, 3))
    files = pages(interface((1, 3, side, side)), "net", metadata={"preprocessing": name})
    case = {"width": width, "height": height, **settings(files)["preprocessing"]}
    files["case.json"] = json.dumps(case)
    alpha = np.full((height, width, 1), 255, np.uint8)
    got = in_node(tmp_path, files, PREPARE, np.concatenate([pixels, alpha], 2).tobytes())
    count = side * side * 3
    small = np.frombuffer(got[:count], np.uint8).reshape(side, side, 3)
    expected = preprocessing.crop_and_resize(pixels)
    np.testing.assert_array_equal(small, expected)
    values = np.frombuffer(got[count:], np.float32).reshape(3, side, side)
    np.testing.assert_allclose(values, preprocessing.normalise(expected).transpose(2, 0, 1), rtol=1e-6, atol=1e-6)


SCORES = """
import { best, probabilities } from "./demo-prepare.js";
const rows = [[1, 3, -800, 3], [0.25, 0.25, 0.5, 0], [900, 0, 899, 898]];
const done = rows.map((row) => Array.from(probabilities(Float32Array.from(row))));
let refused = "";
try { probabilities(Float32Array.of(1, NaN)); } catch (error) { refused = error.message; }
console.log(JSON.stringify({ rows, done, best: done.map((row) => best(row, 3).map((c) => c.index)), refused }));
"""


@TOOLS
def test_scores_become_probabilities_as_in_python(tmp_path):
    said = json.loads(in_node(tmp_path, pages(interface(), "net"), SCORES))
    np.testing.assert_allclose(said["done"], [softmax_of_scores(np.array([r]))[0] for r in said["rows"]], rtol=1e-12)
    assert said["best"] == [[1, 3, 0], [2, 0, 1], [0, 2, 3]]
    assert "not finite" in said["refused"]


VALUES = """
import { rangeOf, randomValues, statisticsOf } from "./demo-values.js";
const array = { int64: BigInt64Array, uint8: Uint8Array, float32: Float32Array };
const said = { decoded: {}, random: {}, ranges: {} };
for (const dtype of ["float16", "bfloat16", "int64", "uint8", "float32"]) {
  const tensor = { dtype, size: 4000, array: array[dtype] ?? Uint16Array };
  said.random[dtype] = { ...statisticsOf(tensor, randomValues(tensor)), range: rangeOf(tensor) };
  if (tensor.array !== Uint16Array) continue;
  said.decoded[dtype] = Array.from({ length: 65536 }, (_, i) =>
    String(statisticsOf(tensor, Uint16Array.of(i)).first[0]));
}
said.odd = statisticsOf({ dtype: "float32" }, Float32Array.of(1, NaN, 5, Infinity));
console.log(JSON.stringify(said));
"""


@TOOLS
def test_random_values_and_statistics(tmp_path):
    said = json.loads(in_node(tmp_path, pages(toy.interface(), "net"), VALUES))
    bits = np.arange(65536, dtype=np.uint16)
    expected = {"float16": bits.view(np.float16), "bfloat16": (bits.astype(np.uint32) << 16).view(np.float32)}
    for dtype, values in expected.items():
        got = np.array([float(v.replace("Infinity", "inf")) for v in said["decoded"][dtype]])
        np.testing.assert_array_equal(got, values)
    for dtype, found in said["random"].items():
        real = "float" in dtype
        low, high, mean, spread = (-1, 1, 0, 3**-0.5) if real else (0, 1, 0.5, 0.5)
        assert low <= found["least"] <= low + 0.01 and high - 0.01 <= found["greatest"] <= high, dtype
        assert abs(found["mean"] - mean) < 0.06 and abs(found["deviation"] - spread) < 0.05, dtype
        assert found["strange"] == 0 and len(found["first"]) == 6
        assert found["range"] == ("between -1 and 1" if real else "0 or 1")
    odd = said["odd"]
    assert [odd[k] for k in ("least", "mean", "greatest", "deviation", "strange")] == [1, 3, 5, 2, 2]


# ---------------------------------------------------------------- the page, in Chromium


class Files(http.server.SimpleHTTPRequestHandler):
    """A static server, silent, that knows what the page is made of."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map} | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *arguments) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder and the address under which it is served."""
    folder = tmp_path_factory.mktemp("served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("needs chromium")
    found = Browser(program, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def photograph_page(served, browser):
    """The address of the page of the carried classifier, in a folder of its own."""
    folder, address = served
    model = models.path(models.EFFICIENTNET_LITE0)
    minifer.compile(model, "wasm32", folder / "deep" / "image", name="lite0", demo=True)
    return f"{address}/deep/image/"


def write_toy(folder: Path, separate: bool) -> None:
    """The toy model and its page."""
    folder.mkdir()
    made = toy.interface(separate)
    toy.write_wasm(folder, separate)
    shutil.copy(folder / "toy.wasm", folder / "toy.relaxed.wasm")
    weights = "toy.weights" if separate else None
    script = javascript.module(made, wasm_file="toy.wasm", relaxed_file="toy.relaxed.wasm", weights_file=weights)
    for name, content in {**pages(made, "toy"), "toy.js": script}.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


LABELS = "[...document.querySelectorAll('#classes .label')].map((e) => e.textContent)"
PROBABILITIES = "[...document.querySelectorAll('#classes li')].map((e) => Number(e.dataset.probability))"
ERROR = "document.querySelector('#error:not([hidden])')?.textContent"
ANSWERS = "Number(document.body.dataset.answers ?? 0)"


def colours(png: bytes) -> dict[tuple[int, int, int], int]:
    """How often each colour is in an image."""
    pixels, counts = np.unique(load_image(png).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, p)): int(c) for p, c in zip(pixels, counts)}


def colour_of(browser: Browser, selector: str) -> tuple[int, ...]:
    text = browser.value(f"getComputedStyle(document.querySelector({json.dumps(selector)})).backgroundColor")
    return tuple(map(int, re.findall(r"\d+", text)))


@TOOLS
def test_a_dropped_photograph_is_classified(browser, photograph_page):
    browser.open(photograph_page)
    browser.resize(1100, 800)
    browser.wait("document.body.dataset.state === 'ready'")
    browser.drop(CHELSEA, 300, 400)
    browser.wait(f"{ANSWERS} > 0 || {ERROR}")
    assert browser.value(ERROR) is None
    expected = minifer.classify(CHELSEA)
    labels = browser.value(LABELS)
    assert labels == [p.label for p in expected]
    assert re.search("cat|Egyptian Mau", labels[0])
    np.testing.assert_allclose(browser.value(PROBABILITIES), [p.probability for p in expected], atol=1e-3)
    text = browser.value("document.body.innerText")
    assert f"{100 * expected[0].probability:.1f} %" in text
    assert re.search(r"Classified in\s+\d+(\.\d)? ms", text) and re.search(r"Prepared in\s+\d+(\.\d)? ms", text)
    assert "224 × 224 of 451 × 300" in text
    assert browser.value("document.querySelector('#simd').textContent") in ("relaxed SIMD", "SIMD")
    assert expected[0].label in browser.value("document.querySelector('[aria-live]').textContent")
    for dark in (False, True):
        found = colours(browser.screenshot(dark=dark))
        assert len(found) > 1000  # of the photograph
        bars = [found.get(colour_of(browser, f"li:nth-child({n}) .bar"), 0) for n in (1, 2)]
        assert bars[0] > 800 and bars[1] > 1000  # of the first; of the others together
        assert max(found, key=found.__getitem__) == colour_of(browser, "body")
        assert (sum(colour_of(browser, "body")) < 150) == dark
    assert browser.complaints() == []


@TOOLS
def test_narrow_windows_need_no_scrolling_sideways(browser, photograph_page):
    browser.open(f"{photograph_page}?photo=chelsea.png")
    browser.wait(f"{ANSWERS} > 0")
    for width in (320, 600, 760, 1400):
        browser.resize(width, 800)
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), width


@TOOLS
def test_transparent_and_turned_photographs(browser, photograph_page, tmp_path):
    """Chosen as files. Transparent pixels are white, and a photograph that lies on its side is turned."""
    from PIL import Image

    image = Image.open(models.path("coffee.png")).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "faded.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(CHELSEA).convert("RGB").save(tmp_path / "turned.jpg", quality=95, exif=exif)
    browser.open(photograph_page)
    for answers, name in enumerate(("faded.png", "turned.jpg"), 1):
        browser.choose("#file", tmp_path / name)
        browser.wait(f"{ANSWERS} === {answers} || {ERROR}")
        expected = minifer.classify(tmp_path / name)
        assert browser.value(LABELS)[0] == expected[0].label
        # alpha is blended, and JPEG decoded, with other roundings
        np.testing.assert_allclose(browser.value(PROBABILITIES)[0], expected[0].probability, atol=0.02)
    assert browser.complaints() == []


DROP_BOTH = """(async () => {
  const files = [];
  for (const name of ["chelsea.png", "coffee.png"]) {
    files.push(new File([await (await fetch(name)).blob()], name, { type: "image/png" }));
  }
  for (const file of files) {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(file);
    dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
  }
})()"""


@TOOLS
def test_only_the_last_of_two_photographs_is_answered(browser, photograph_page, served):
    shutil.copy(models.path("coffee.png"), served[0] / "deep" / "image")
    browser.open(photograph_page)
    browser.value(DROP_BOTH)
    browser.wait(f"({ANSWERS} > 0 && !document.querySelector('.busy')) || {ERROR}")
    assert browser.value(ANSWERS) == 1
    assert browser.value(LABELS)[0] == "espresso"


@TOOLS
def test_the_camera(browser, photograph_page):
    browser.open(photograph_page)
    browser.resize(1100, 800)
    browser.click("#camera")
    browser.wait(f"{ANSWERS} > 1 || {ERROR}")
    assert browser.value(ERROR) is None
    assert browser.value("document.querySelector('#video').videoWidth") > 0
    browser.click("#camera")
    browser.wait("document.querySelector('#photo').src.startsWith('blob:') && !document.querySelector('.busy')")
    assert browser.value("document.querySelector('#video').hidden")
    assert "Use the camera" in browser.value("document.body.innerText")
    assert sum(browser.value(PROBABILITIES)) > 0
    before = browser.value(ANSWERS)
    browser.click("#camera")
    browser.wait(f"{ANSWERS} > {before} && !document.querySelector('#video').hidden")
    browser.click("#cancel")
    assert browser.value("document.querySelector('#video').hidden && !document.querySelector('#photo').hidden")
    assert browser.complaints() == []


@TOOLS
def test_problems_are_shown_in_the_page(browser, photograph_page, tmp_path):
    (tmp_path / "note.txt").write_text("no photograph")
    browser.open(f"{photograph_page}?photo=chelsea.png")
    browser.wait(f"{ANSWERS} > 0")
    browser.choose("#file", tmp_path / "note.txt")
    browser.wait(ERROR)
    assert "no photograph that the browser can read (text/plain)" in browser.value(ERROR)
    assert browser.value(LABELS) == ["–"] * 5 and browser.value("document.querySelector('#photo').hidden")
    browser.click("#sample")
    browser.wait(f"{ANSWERS} > 1")
    assert browser.value(ERROR) is None
    for photo, said in (
        ("none.png", "no /deep/image/none.png: status 404"),
        ("https://a.example/b.png", "of this site"),
    ):
        browser.open(f"{photograph_page}?photo={photo}")
        browser.wait(ERROR)
        assert said in browser.value(ERROR)


@TOOLS
@pytest.mark.parametrize("separate", [False, True], ids=["inside", "separate"])
def test_any_model_runs_on_random_values(browser, served, separate):
    folder, address = served
    write_toy(folder / f"toy{separate}", separate)
    browser.open(f"{address}/toy{separate}/index.html")
    browser.resize(1000, 800)
    browser.wait("!document.querySelector('#run').disabled")
    browser.click("#run")
    browser.wait(f"{ANSWERS} === 1 || {ERROR}")
    browser.click("#run")
    browser.wait(f"{ANSWERS} === 2 || {ERROR}")
    text = browser.value("document.body.innerText")
    assert toy.INPUTS[0].name in text and "2 × 3" in text and "between -1 and 1" in text
    assert re.search(r"\d ms fastest of 2 runs: \d", text)
    rows = "[...document.querySelectorAll('#outputs tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    probs, above = browser.value(rows)
    least, mean, greatest, deviation = map(float, probs[3:7])
    assert -111 <= least <= mean <= greatest <= 111 and deviation >= 0
    assert sorted(map(float, probs[7].split(", "))) == pytest.approx([least, greatest], rel=1e-3)
    assert above[7] == ", ".join("1" if float(v) > 0 else "0" for v in probs[7].split(", "))
    assert len(colours(browser.screenshot())) > 20
    assert browser.complaints() == []


@TOOLS
def test_a_missing_module_is_shown_in_the_page(browser, served):
    folder, address = served
    write_toy(folder / "broken", False)
    for file in ("toy.wasm", "toy.relaxed.wasm"):
        (folder / "broken" / file).unlink()
    browser.open(f"{address}/broken/")
    browser.wait(ERROR)
    assert re.search(
        r"model could not be loaded: toy.(relaxed.)?wasm cannot be fetched: status 404", browser.value(ERROR)
    )
    assert browser.value("document.querySelector('#run').disabled")
