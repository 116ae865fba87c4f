"""Sentiment: the tokenizer against its test vectors in Python, C, Rust and JavaScript, the model, and the recipe."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

import minifer
from minifer import models
from minifer.errors import InputError
from minifer.models import train_sentiment as recipe
from minifer.pipelines.text import LENGTH, SentimentClassifier, fnv1a, plain_bytes, sentiment_tokens, words_of

SOURCES = Path(minifer.__file__).parent / "embed" / "text"
VECTORS = json.loads((Path(__file__).parent / "tokens.json").read_text(encoding="utf-8"))
TEXTS = [base64.b64decode(vector["base64"]) for vector in VECTORS]


def expected(vector: dict) -> np.ndarray:
    """The tokens of a vector: those listed, then padding."""
    return np.array(vector["tokens"] + [0] * (LENGTH - len(vector["tokens"])), np.int32)


# ---- the tokenizer -------------------------------------------------------------------------------------------------


def test_vectors_are_what_they_should_be() -> None:
    assert len(VECTORS) >= 20
    assert b"" in TEXTS and any(b"\0" in text for text in TEXTS)
    assert any(all(vector["tokens"]) and len(vector["tokens"]) == LENGTH for vector in VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
def test_python(vector: dict) -> None:
    tokens = sentiment_tokens(base64.b64decode(vector["base64"]))
    assert tokens.dtype == np.int32 and tokens.shape == (LENGTH,)
    np.testing.assert_array_equal(tokens, expected(vector))


def test_specification_step_by_step() -> None:
    """The example worked out by hand from the text of the specification."""
    assert fnv1a(b"") == 0x811C9DC5 and fnv1a(b"a") == 0xE40C292C and fnv1a(b"foobar") == 0xBF9CF968  # published
    assert plain_bytes("I DON’T “Know”É") == b"i don't  know " + "É".encode()
    assert plain_bytes(b"\xe2\x80") == b"\xe2\x80" and plain_bytes(b"\xe2\x80\xe2\x80\x99") == b" \x80\x99"
    assert words_of("Oh no... :-( x2\0y") == [b"oh", b"no", b".", b".", b".", b":", b"-", b"(", b"x2", b"y"]
    assert words_of("a" * 130) == [b"a" * 64, b"a" * 64, b"aa"]
    parts = [b"ab", b" ab", b"#<ab", b"#<ab>", b"#ab>", b"!", b"ab !", b"#<!>"]
    tokens = sentiment_tokens("Ab!")
    assert tokens[: len(parts) + 1].tolist() == [fnv1a(part) % 65535 + 1 for part in parts] + [0]


def test_strings_are_their_utf8() -> None:
    for text in ("naïve café", "😀👍🏽", "plain", "tab\tnull\0end"):
        np.testing.assert_array_equal(sentiment_tokens(text), sentiment_tokens(text.encode()))
    np.testing.assert_array_equal(sentiment_tokens("a\ud800b"), sentiment_tokens("a\ufffdb"))
    for data in (bytearray(b"good"), memoryview(b"good")):
        np.testing.assert_array_equal(sentiment_tokens(data), sentiment_tokens("good"))
    with pytest.raises(InputError, match="not int"):
        sentiment_tokens(5)  # type: ignore[arg-type]


def hostile() -> list[bytes]:
    """The vectors' texts, and texts of the bytes at which the rules change."""
    random = np.random.default_rng(0)
    alphabet = np.frombuffer(b"aZ\xe2\x80\x99\x98' !\0\x7f\x20\x21@[`{/:9\xff", np.uint8)
    sizes = (1, 2, 3, 5, 20, 63, 64, 65, 200, 1500) * 4
    return TEXTS + [random.choice(alphabet, size).tobytes() for size in sizes]


def check_program(command: list[str]) -> None:
    """A program reads texts, each behind its size in 32 bits, and writes the tokens of each."""
    texts = hostile()
    data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    found = np.frombuffer(done.stdout, "<i4").reshape(len(texts), LENGTH)
    for text, row in zip(texts, found, strict=True):
        np.testing.assert_array_equal(row, sentiment_tokens(text), err_msg=repr(text[:80]))


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


C_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "tokenizer.h"
int main(void) {
    static int32_t tokens[SENTIMENT_LENGTH];
    uint32_t size;
    while (fread(&size, 4, 1, stdin) == 1) {
        uint8_t *text = malloc(size ? size : 1); /* exactly as large, so that a sanitizer sees a byte too many */
        if (fread(text, 1, size, stdin) != size) return 1;
        sentiment_tokens(text, size, tokens);
        fwrite(tokens, 4, SENTIMENT_LENGTH, stdout);
        free(text);
    }
    return 0;
}
"""


def test_c(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(C_PROGRAM)
    options = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", f"-I{SOURCES}"]
    command = [tool("gcc"), *options, str(tmp_path / "main.c"), "-o", str(tmp_path / "main")]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if subprocess.run([*command, *sanitize], capture_output=True, timeout=60).returncode:  # no sanitizer's library
        subprocess.run(command, check=True, timeout=60)
    check_program([str(tmp_path / "main")])


RUST_PROGRAM = r"""
use std::io::{Read, Write};
mod tokenizer;
fn main() {
    let mut data = Vec::new();
    std::io::stdin().read_to_end(&mut data).unwrap();
    let (mut rest, mut out) = (&data[..], std::io::stdout().lock());
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let (text, next) = after.split_at(u32::from_le_bytes(*size) as usize);
        for token in tokenizer::sentiment_tokens(text) {
            out.write_all(&token.to_le_bytes()).unwrap();
        }
        rest = next;
    }
}
"""


def test_rust(tmp_path: Path) -> None:
    (tmp_path / "main.rs").write_text(RUST_PROGRAM)
    shutil.copy(SOURCES / "tokenizer.rs", tmp_path)
    options = ["--edition=2021", "-Copt-level=1", "-Cdebug-assertions=on", "-Dwarnings"]
    subprocess.run([tool("rustc"), *options, "main.rs", "-o", "main"], check=True, cwd=tmp_path, timeout=120)
    check_program([str(tmp_path / "main")])


JAVASCRIPT_PROGRAM = r"""
import { readFileSync, writeFileSync } from "node:fs";
import { sentimentTokens } from "./tokenizer.mjs";
const data = readFileSync(0), out = [];
for (let at = 0; at < data.length; ) {
  const size = data.readUInt32LE(at);
  out.push(Buffer.from(sentimentTokens(new Uint8Array(data.subarray(at + 4, at + 4 + size))).buffer));
  at += 4 + size;
}
const same = sentimentTokens("a\ud800b é").join() === sentimentTokens("a\ufffdb é").join();
if (!same) throw new Error("a string is not read as its UTF-8");
writeFileSync(1, Buffer.concat(out));
"""


def test_javascript(tmp_path: Path) -> None:
    (tmp_path / "main.mjs").write_text(JAVASCRIPT_PROGRAM)
    shutil.copy(SOURCES / "tokenizer.js", tmp_path / "tokenizer.mjs")
    check_program([tool("node"), str(tmp_path / "main.mjs")])


# ---- the model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> SentimentClassifier:
    return SentimentClassifier()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("What a wonderful, moving film. I loved every minute of it!", "positive"),
        ("The food was terrible and the waiter was rude.", "negative"),
        ("I love this phone, the battery is great", "positive"),
        ("An awful, boring waste of time.", "negative"),
        ("This is a total disaster :(", "negative"),
        ("Thank you so much, you made my day :)", "positive"),
        ("It’s not good", "negative"),
        ("", "neutral"),
        (b"\0 \t\n", "neutral"),
    ],
)
def test_labels(classifier: SentimentClassifier, text: str | bytes, label: str) -> None:
    found = classifier(text)
    assert found.label == label
    assert found.score == max(found.probabilities) and abs(sum(found.probabilities) - 1) < 1e-5
    assert -4 <= found.rating <= 4
    if label != "neutral":
        assert (found.rating > 0) == (label == "positive")


def test_function_and_batch(classifier: SentimentClassifier) -> None:
    texts = ["great", "horrible", "word " * 5000]
    assert classifier.classify(texts) == [minifer.sentiment(text) for text in texts]
    with pytest.raises(InputError, match="list of texts"):
        classifier.classify("great")


def test_all_steps_are_native(classifier: SentimentClassifier) -> None:
    """With fixed shapes: what the compiler to C, Rust and WebAssembly asks for."""
    plan = classifier.session.plan({"tokens": sentiment_tokens("")[None]})
    assert plan.native_steps() and not plan.python_steps()
    assert models.path(models.SENTIMENT).stat().st_size < 1_500_000


def test_native_equals_reference(classifier: SentimentClassifier) -> None:
    reference = minifer.load(models.path(models.SENTIMENT), executor="reference")
    for text in TEXTS:
        feeds = {"tokens": sentiment_tokens(text)[None]}
        found, wanted = classifier.session.run(feeds), reference.run(feeds)
        for name in ("scores", "rating"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_other_models_are_refused() -> None:
    with pytest.raises(InputError, match=r"tokens: int32\[1, 4096\].*takes image: float32"):
        SentimentClassifier(models.path(models.EFFICIENTNET_LITE0))


# ---- the recipe ----------------------------------------------------------------------------------------------------


def test_split() -> None:
    """Copies of a sentence that differ in case and blanks only are in the same tenth; tenths are about equal."""
    assert recipe.tenth_of("A fine  film!") == recipe.tenth_of("a FINE film !")
    counts = np.bincount([recipe.tenth_of(f"sentence number {i}") for i in range(2000)], minlength=10)
    assert len(counts) == 10 and counts.min() > 140


VADER = """
class SentimentIntensityAnalyzer:
    def polarity_scores(self, text):
        return {"compound": 0.8 if "fine" in text else -0.2}
"""


def package(path: Path) -> str:
    """A source package laid out as VADER's, with few sentences: `fine` ones are good, `poor` ones bad."""

    def tar(files: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return stream.getvalue()

    lines = [f"{i}\t{2.5 if i % 2 else -2.5}\ta {'fine' if i % 2 else 'poor'} thing, number {i}" for i in range(300)]
    data = tar({"x/tweets_GroundTruth.txt": "\r\n".join(lines).encode(), "x/._tweets_GroundTruth.txt": b"\0\xff"})
    lexicon = b"fine\t1.9\t0.5\t[2]\npoor\t-2.1\t0.5\t[2]\n:)\t2.0\t0.5\t[2]\n"
    emoji = "😀\tfine face\n🚗\tcar\n".encode()
    files = {
        "v/additional_resources/hutto_ICWSM_2014.tar.gz": data, "v/vaderSentiment/vaderSentiment.py": VADER.encode(),
        "v/vaderSentiment/vader_lexicon.txt": lexicon, "v/vaderSentiment/emoji_utf8_lexicon.txt": emoji,
    }  # fmt: skip
    path.write_bytes(tar(files))
    return str(path)


def test_recipe_on_a_small_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From package to file: what the training learned is in the file, which the classifier takes."""
    assert recipe.main([package(tmp_path / "v.tar.gz"), str(tmp_path / "s.onnx")]) == 0
    out = capsys.readouterr().out
    assert "300 sentences" in out and "held out: " in out and "held out, tweets: " in out
    classifier = SentimentClassifier(tmp_path / "s.onnx")
    texts = ["a fine thing", "a poor thing", ""]
    assert [classifier(text).label for text in texts] == ["positive", "negative", "neutral"]


def test_recipe_reads_the_package(tmp_path: Path) -> None:
    files = recipe.read_package(package(tmp_path / "v.tar.gz"))
    sentences = recipe.read_sentences(files)
    assert len(sentences) == 300 and sentences[1][:3] == ("a fine thing, number 1", 2.5, "tweets")
    texts = {(s.text, round(s.rating, 3)) for s in recipe.short_texts(files, sentences)}
    assert {("fine", 1.9), (":)", 2.0), ("😀", 1.9), ("not poor", 1.554), ("", 0)} <= texts
    assert "🚗" not in {text for text, _ in texts}
    scores = recipe.vader_scores(files, sentences[:2])
    assert scores.tolist() == [-0.2, 0.8]


def test_the_file_is_the_network() -> None:
    """Beside the rounding of the table to 8 bits, the file computes what was trained."""
    network = recipe.Network()
    network.table *= 5
    texts = ["one short text", "another, and a longer text, with more words in it"]
    found = SentimentClassifier(recipe.build(*network.stored())).classify(texts)
    scores, ratings = network.predict(recipe.tokenize([recipe.Sentence(text, 0, "", 0) for text in texts]))
    np.testing.assert_allclose([f.probabilities for f in found], scores, atol=0.02)
    np.testing.assert_allclose([f.rating for f in found], ratings, atol=0.05)


def test_figures() -> None:
    """Accuracy counts signs; a score of 0 counts as it is told to; sentences rated 0 do not count."""
    scores, ratings = np.array([0.5, -0.1, 0, 0, 0.3]), np.array([2.0, 1.0, 3.0, -1.0, 0.0])
    assert recipe.polarity(scores, ratings) == 0.25
    assert recipe.polarity(scores, ratings, when_zero=1) == 0.5
    assert recipe.classes_of(np.array([-0.5, -0.4, 0, 0.49, 0.5])).tolist() == [0, 1, 1, 1, 2]
