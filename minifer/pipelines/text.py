"""Text to sentiment: UTF-8 bytes to the numbers that the carried model reads, and its answer.

    from minifer.pipelines.text import sentiment
    label, score, rating, probabilities = sentiment("What a lovely day!")

The tokenizer, specified so that any language gives the same numbers (minifer/embed/text holds it in C, Rust and
JavaScript, tests/pipelines/tokens.json the test vectors). All arithmetic is on bytes and on unsigned 32-bit integers.

1. Bytes. The text is UTF-8. Where the bytes 0xE2 0x80 are followed by a third, the three count as one byte: an
   apostrophe 0x27 if the third is 0x98 or 0x99, else a blank 0x20 (they are typographic quotes, dashes and the like).
   The bytes of A-Z become those of a-z. All others stay as they are; nothing is decoded, so any bytes are a text.
2. Words. The bytes 0x00-0x20 and 0x7F separate. A run of a-z, 0-9, apostrophes and bytes from 0x80 is a word, cut
   after each 64 bytes. Every other byte is a word of its own.
3. Hashes. FNV-1a: begin with 0x811C9DC5; for each byte b, h = (h ^ b) * 0x01000193 modulo 2^32. A hash h stands for
   the token h % 65535 + 1; token 0 is padding.
4. Tokens. For each word in turn:
   - the hash of the word;
   - the hash of the word before (of no bytes at all for the first), a blank, and the word;
   - of the bytes `<`, word, `>`: for each position in turn, the hashes of `#` and the 3, then the 4, then the 5 bytes
     from there, as far as there are so many.
5. Length. The first 4096 tokens, about 1200 characters, are taken; shorter texts are padded with 0.

A text without words, such as the empty one, is all padding, and the model was trained to call it neutral.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

import minifer.models as carried
from minifer.errors import InputError
from minifer.session import Session, load

Text: TypeAlias = "str | bytes | bytearray | memoryview"

LABELS = ("negative", "neutral", "positive")
LENGTH = 4096  # tokens of a text
TOKENS = 65536  # different tokens, padding included
LONGEST_WORD = 64  # bytes

_START, _PRIME, _MASK = 0x811C9DC5, 0x01000193, 0xFFFFFFFF
_SEPARATORS = frozenset((*range(0x21), 0x7F))
_WORD_BYTES = frozenset((*b"abcdefghijklmnopqrstuvwxyz0123456789'", *range(0x80, 0x100)))
_TYPOGRAPHY = re.compile(b"\xe2\x80(.)", re.DOTALL)


# ---- tokens --------------------------------------------------------------------------------------------------------


def fnv1a(data: bytes, start: int = _START) -> int:
    """The FNV-1a hash of bytes, 32 bits, going on from `start`."""
    for byte in data:
        start = ((start ^ byte) * _PRIME) & _MASK
    return start


def plain_bytes(text: Text) -> bytes:
    """Step 1 of the tokenizer: UTF-8 in lower case, typographic punctuation replaced.

    A surrogate that stands alone in a `str` counts as U+FFFD, as JavaScript's TextEncoder has it.
    """
    if isinstance(text, str):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    elif not isinstance(text, bytes | bytearray | memoryview):
        raise InputError(f"a text is a str or its UTF-8 bytes, not {type(text).__name__}")
    return _TYPOGRAPHY.sub(lambda found: b"'" if found[1] in b"\x98\x99" else b" ", bytes(text)).lower()


def words_of(text: Text) -> list[bytes]:
    """Step 2 of the tokenizer."""
    words, word = [], bytearray()
    for byte in (*plain_bytes(text), 0):
        inside = byte in _WORD_BYTES
        if word and (not inside or len(word) == LONGEST_WORD):
            words.append(bytes(word))
            word.clear()
        if inside:
            word.append(byte)
        elif byte not in _SEPARATORS:
            words.append(bytes((byte,)))
    return words


@lru_cache(maxsize=20_000)
def _hashes(word: bytes) -> tuple[int, ...]:
    """The hashes of a word's parts: 3, 4 and 5 bytes from each position of `<word>`."""
    marked = b"<" + word + b">"
    found = []
    for start in range(len(word)):
        h = fnv1a(b"#" + marked[start : start + 2])
        for byte in marked[start + 2 : start + 5]:
            h = ((h ^ byte) * _PRIME) & _MASK
            found.append(h)
    return tuple(found)


def sentiment_tokens(text: Text) -> np.ndarray:
    """The tokens of a text, int32 (4096,), by the specification at the head of this module."""
    hashes: list[int] = []
    before = _START
    for word in words_of(text):
        own = fnv1a(word)
        hashes += (own, fnv1a(b" " + word, before), *_hashes(word))
        before = own
        if len(hashes) >= LENGTH:
            break
    tokens = np.zeros(LENGTH, np.int32)
    taken = np.array(hashes[:LENGTH], np.uint32) % np.uint32(TOKENS - 1) + np.uint32(1)
    tokens[: len(taken)] = taken
    return tokens


# ---- classifying ---------------------------------------------------------------------------------------------------


class Sentiment(NamedTuple):
    """What a text sounds like."""

    label: str  # negative, neutral or positive
    score: float  # probability of the label
    rating: float  # from -4, most negative, to 4, as people would rate it on average
    probabilities: tuple[float, float, float]  # of negative, neutral and positive


class SentimentClassifier:
    """A model with the input `tokens` int32 (1, 4096) and the outputs `scores` float32 (1, 3) and `rating` (1, 1).

    model: a path or the bytes of an .onnx file; by default the carried one.
    threads: how many to use; by default one, which is fastest for so small a model.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes | None = None, threads: int | None = 1):
        self.session: Session = load(carried.path(carried.SENTIMENT) if model is None else model, threads=threads)
        inputs = [(i.name, i.dtype, i.shape) for i in self.session.inputs]
        outputs = {o.name for o in self.session.outputs}
        if inputs != [("tokens", "int32", (1, LENGTH))] or not outputs >= {"scores", "rating"}:
            raise InputError(
                f"a sentiment model has the input tokens: int32[1, {LENGTH}] and the outputs scores and rating, and "
                f"this one takes {', '.join(f'{n}: {d}{list(s or ())}' for n, d, s in inputs)} "
                f"and gives {', '.join(sorted(outputs))}"
            )

    def __call__(self, text: Text) -> Sentiment:
        """The sentiment of one text. InputError where it is no text."""
        found = self.session.run({"tokens": sentiment_tokens(text)[None]}, outputs=["scores", "rating"])
        scores = found["scores"][0]
        best = int(scores.argmax())
        negative, neutral, positive = scores.tolist()
        rating = float(found["rating"][0, 0])
        return Sentiment(LABELS[best], float(scores[best]), rating, (negative, neutral, positive))

    def classify(self, texts: Sequence[Text]) -> list[Sentiment]:
        """The sentiment of each text."""
        if isinstance(texts, str | bytes | bytearray | memoryview):
            raise InputError("classify takes a list of texts; for one text call the classifier itself")
        return [self(text) for text in texts]


@lru_cache(maxsize=1)
def _default_classifier() -> SentimentClassifier:
    return SentimentClassifier()


def sentiment(text: Text) -> Sentiment:
    """Whether an English text sounds negative, neutral or positive: label, probability, and a rating from -4 to 4.

    text: a str, or UTF-8 bytes. Of a long text about the first 1200 characters count. The model is loaded at the first
    call. For another model or several texts at once use `SentimentClassifier`.
    """
    return _default_classifier()(text)
