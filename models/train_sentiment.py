"""Recipe of sentiment.onnx: rated sentences from the source package of VADER -> a small model, judged beside VADER.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python -m minifer.models.train_sentiment vaderSentiment-3.3.2.tar.gz models/sentiment.onnx

The package (MIT licence) holds 23,703 English sentences of film and product reviews, editorials and tweets, each with
the mean of at least twenty people's ratings from -4 to 4 (Hutto & Gilbert, 2014), and the VADER lexicon: 7,520 words
and emoticons with ratings of their own, and names for emoji.

Sentences are split by a hash of their words, so that copies of a sentence fall on one side. One tenth is held out, and
nothing was chosen by it; the constants below were chosen by tenths of the other nine, each in turn left out of the
training. The first of these is judged here again, then the model is trained on all nine. A sentence is neutral where
its mean rating lies between -0.5 and 0.5.

Short texts of known rating join the training: each word of the lexicon; the emoji whose names hold such words; the
words that training sentences use often behind "not" and its like, with the rating times -0.74, the factor that VADER
found for negations; and the empty text, which is neutral. The negations cost a little on the sentences (0.763 became
0.756 on three tenths for validation), but without them the model calls "I am not happy" positive.

The model: a table of one small vector per token (see minifer/pipelines/text.py for the tokens), the sum over a text's
tokens divided by the root of their number, a hidden layer, and from it three classes and the rating. Adam, with tokens
left out at random. The table is stored as int8 with a scale per column, which the hidden layer's weights absorb.

VADER itself is loaded from the package for comparison. The same package gives the same numbers on the same machine;
another machine may round otherwise.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minifer.ir import Graph, Model, Node, TensorType
from minifer.onnx_io import write_model
from minifer.pipelines.text import LENGTH, TOKENS, fnv1a, sentiment_tokens, words_of

OPSET, FLOAT = 13, 1
COLUMNS, HIDDEN = 8, 8
BATCH, EPOCHS, RATE, LEFT_OUT = 64, 8, 3e-3, 0.6
NEUTRAL = 0.5  # mean ratings nearer to 0 are neutral
EMPTY_TEXTS, EMOJI_COPIES = 400, 4
NEGATIONS, NEGATED, OFTEN = ("not", "isn't", "don't", "never", "wasn't", "no"), -0.74, 3  # often: in so many sentences
SEED = 1


class Sentence(NamedTuple):
    """A rated text; `tenth` is the part of the data it belongs to, -1 for the short texts."""

    text: str
    rating: float
    source: str
    tenth: int


# ---- data ----------------------------------------------------------------------------------------------------------


def read_package(path: str) -> dict[str, bytes]:
    """The files of the source package and of the data archive in it, by their last names."""
    files = {}
    with tarfile.open(path) as package:
        for member in package.getmembers():
            if member.isfile():
                files[Path(member.name).name] = package.extractfile(member).read()  # type: ignore[union-attr]
    with tarfile.open(fileobj=io.BytesIO(files["hutto_ICWSM_2014.tar.gz"])) as data:
        for member in data.getmembers():
            if member.isfile() and member.name.endswith("_GroundTruth.txt"):
                files[Path(member.name).name] = data.extractfile(member).read()  # type: ignore[union-attr]
    return files


def read_sentences(files: dict[str, bytes]) -> list[Sentence]:
    """The rated sentences, in the order of the files."""
    found = []
    for name in sorted(n for n in files if n.endswith("_GroundTruth.txt") and not n.startswith(".")):
        for line in files[name].decode().split("\n"):
            if line.strip():
                _, rating, text = line.rstrip("\r").split("\t")
                found.append(Sentence(text, float(rating), name.partition("_")[0], tenth_of(text)))
    return found


def tenth_of(text: str) -> int:
    """0 to 9, the same for texts of the same words: 0 is held out, 1 is for validation."""
    return fnv1a(b" ".join(words_of(text))) % 10


def read_lexicon(files: dict[str, bytes]) -> dict[str, float]:
    """The lexicon's words and emoticons, and their ratings."""
    lines = (line.split("\t") for line in files["vader_lexicon.txt"].decode().splitlines() if line.strip())
    return {word: float(rating) for word, rating, *_ in lines}


def short_texts(files: dict[str, bytes], training: list[Sentence]) -> list[Sentence]:
    """Words, emoji, negations and empty texts to train on beside the sentences."""
    ratings = read_lexicon(files)
    found = [Sentence(word, rating, "lexicon", -1) for word, rating in ratings.items()]
    for line in files["emoji_utf8_lexicon.txt"].decode().splitlines():
        emoji, _, name = line.partition("\t")
        known = [ratings[word] for word in name.replace("-", " ").split() if word in ratings]
        if known:
            found += [Sentence(emoji, float(np.clip(sum(known), -4, 4)), "emoji", -1)] * EMOJI_COPIES
    uses = Counter(word for sentence in training for word in set(words_of(sentence.text)))
    often = [word for word in ratings if word.isalpha() and uses[word.encode()] >= OFTEN]
    found += [Sentence(f"{no} {word}", ratings[word] * NEGATED, "negation", -1) for no in NEGATIONS for word in often]
    return found + [Sentence("", 0, "empty", -1)] * EMPTY_TEXTS


def vader_scores(files: dict[str, bytes], sentences: list[Sentence]) -> np.ndarray:
    """VADER's compound score of each sentence, by its own code."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vaderSentiment.py", "vader_lexicon.txt", "emoji_utf8_lexicon.txt"):
            (Path(folder) / name).write_bytes(files[name])
        spec = importlib.util.spec_from_file_location("vader", Path(folder) / "vaderSentiment.py")
        vader: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(vader)  # type: ignore[union-attr]
        analyzer = vader.SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(s.text)["compound"] for s in sentences])


class Texts(NamedTuple):
    """Tokens of many texts, one after another: text i has `tokens[starts[i] : starts[i + 1]]`."""

    tokens: np.ndarray
    starts: np.ndarray
    ratings: np.ndarray


def tokenize(sentences: list[Sentence]) -> Texts:
    rows = []
    for sentence in sentences:
        tokens = sentiment_tokens(sentence.text)
        rows.append(tokens[tokens > 0])
    starts = np.cumsum([0, *(len(row) for row in rows)])
    return Texts(np.concatenate([*rows, np.zeros(0, np.int32)]), starts, np.float32([s.rating for s in sentences]))


def classes_of(ratings: np.ndarray, neutral: float = NEUTRAL) -> np.ndarray:
    """0 negative, 1 neutral, 2 positive."""
    return np.where(ratings >= neutral, 2, np.where(ratings <= -neutral, 0, 1))


# ---- training ------------------------------------------------------------------------------------------------------


def compiled() -> tuple[Any, Any]:
    """The two loops over single tokens, compiled."""
    from numba import njit

    @njit
    def pool(tokens: Any, starts: Any, kept: Any, chosen: Any, table: Any) -> Any:
        """Sum of the vectors of each chosen text's kept tokens, and the factor 1 / sqrt(number)."""
        sums = np.zeros((len(chosen), table.shape[1]), np.float32)
        factors = np.ones((len(chosen), 1), np.float32)
        for row, text in enumerate(chosen):
            count = 0
            for at in range(starts[text], starts[text + 1]):
                if kept[at]:
                    count += 1
                    for column in range(table.shape[1]):
                        sums[row, column] += table[tokens[at], column]
            factors[row, 0] = 1 / np.sqrt(max(count, 1))
        return sums, factors

    @njit
    def update(
        tokens: Any, starts: Any, kept: Any, chosen: Any, slopes: Any, table: Any, first: Any, second: Any,
        gradient: Any, rate: float, step: int,
    ) -> None:  # fmt: skip
        """Adam on the vectors of the kept tokens; `gradient` is a table of zeros and is left as one."""
        touched = set()
        for row, text in enumerate(chosen):
            for at in range(starts[text], starts[text + 1]):
                if kept[at]:
                    touched.add(tokens[at])
                    for column in range(table.shape[1]):
                        gradient[tokens[at], column] += slopes[row, column]
        one, two = 1 - 0.9**step, 1 - 0.999**step
        for token in touched:
            for column in range(table.shape[1]):
                g = gradient[token, column]
                gradient[token, column] = 0
                m = first[token, column] = 0.9 * first[token, column] + 0.1 * g
                s = second[token, column] = 0.999 * second[token, column] + 0.001 * g * g
                table[token, column] -= rate * (m / one) / (np.sqrt(s / two) + 1e-8)

    return pool, update


class Network:
    """The model as arrays: the table, a hidden layer, three classes and (in the last column) the rating."""

    def __init__(self, columns: int = COLUMNS, hidden: int = HIDDEN, seed: int = SEED):
        self.random = np.random.default_rng(seed)
        self.table = self.normal((TOKENS, columns), 0.1)
        self.layers = {
            "w1": self.normal((columns, hidden), np.sqrt(2 / columns)), "b1": np.zeros(hidden, np.float32),
            "w2": self.normal((hidden, 4), np.sqrt(1 / hidden)), "b2": np.zeros(4, np.float32),
        }  # fmt: skip
        self.pool, self.update = compiled()

    def normal(self, shape: tuple[int, ...], deviation: float) -> np.ndarray:
        return (self.random.standard_normal(shape) * deviation).astype(np.float32)

    def head(self, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The active hidden units, the probabilities of the classes, and the ratings."""
        active = np.maximum(pooled @ self.layers["w1"] + self.layers["b1"], 0)
        out = active @ self.layers["w2"] + self.layers["b2"]
        powers = np.exp(out[:, :3] - out[:, :3].max(1, keepdims=True))
        return active, powers / powers.sum(1, keepdims=True), out[:, 3]

    def predict(self, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (texts, 3) and ratings."""
        kept = np.ones(len(texts.tokens), bool)
        sums, factors = self.pool(texts.tokens, texts.starts, kept, np.arange(len(texts.ratings)), self.table)
        return self.head(sums * factors)[1:]

    def train(self, texts: Texts, epochs: int = EPOCHS) -> None:
        """Adam over shuffled batches, the rate falling to a tenth."""
        layers = self.layers
        wanted = np.eye(3, dtype=np.float32)[classes_of(texts.ratings)]
        moments = [{k: np.zeros_like(v) for k, v in layers.items()} for _ in range(2)]
        tables = [np.zeros_like(self.table) for _ in range(3)]
        step = 0
        for epoch in range(epochs):
            order = self.random.permutation(len(texts.ratings))
            kept = self.random.random(len(texts.tokens)) >= LEFT_OUT
            now = RATE * (1 - 0.9 * epoch / epochs)
            for chosen in np.array_split(order, -(-len(order) // BATCH)):
                step += 1
                sums, factors = self.pool(texts.tokens, texts.starts, kept, chosen, self.table)
                pooled = sums * factors
                active, probabilities, ratings = self.head(pooled)
                errors = np.column_stack((probabilities - wanted[chosen], ratings - texts.ratings[chosen]))
                errors /= np.float32(len(chosen))
                back = errors @ layers["w2"].T * (active > 0)
                slopes = {"w1": pooled.T @ back, "b1": back.sum(0), "w2": active.T @ errors, "b2": errors.sum(0)}
                behind = back @ layers["w1"].T * factors
                self.update(texts.tokens, texts.starts, kept, chosen, behind, self.table, *tables, now, step)
                for name, slope in slopes.items():
                    first, second = moments[0][name], moments[1][name]
                    first += 0.1 * (slope - first)
                    second += 0.001 * (slope * slope - second)
                    mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
                    layers[name] -= np.float32(now) * mean / (np.sqrt(square) + np.float32(1e-8))

    def stored(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The table as int8 (token 0 all zeros), and the layers; the first absorbs the scale of each column."""
        scales = np.abs(self.table).max(0) / np.float32(127)
        table = np.rint(self.table / scales).astype(np.int8)
        table[0] = 0
        return table, {**self.layers, "w1": self.layers["w1"] * scales[:, None]}


# ---- the file ------------------------------------------------------------------------------------------------------


def build(table: np.ndarray, layers: dict[str, np.ndarray]) -> bytes:
    """The .onnx file: `tokens` int32 (1, 4096) -> `scores` float32 (1, 3), `rating` float32 (1, 1) within -4 to 4.

    table: int8 (65536, columns), row 0 zeros. layers: w1 (columns, hidden), b1, w2 (hidden, 4), b2; the fourth column
    is the rating's.
    """
    constants = {
        "table": table, "axis": np.array([1]), "one": np.float32(1), "low": np.float32(-4), "high": np.float32(4),
        "w1": layers["w1"], "b1": layers["b1"], "w2": np.ascontiguousarray(layers["w2"][:, :3]), "b2": layers["b2"][:3],
        "w3": np.ascontiguousarray(layers["w2"][:, 3:]), "b3": layers["b2"][3:],
    }  # fmt: skip
    nodes = [
        ("Gather", "table tokens", "vectors", {}),
        ("Cast", "vectors", "vectors32", {"to": FLOAT}),
        ("ReduceSum", "vectors32 axis", "sum", {"keepdims": 0}),
        ("Sign", "tokens", "present", {}),
        ("Cast", "present", "present32", {"to": FLOAT}),
        ("ReduceSum", "present32 axis", "number", {"keepdims": 1}),
        ("Max", "number one", "number1", {}),
        ("Sqrt", "number1", "root", {}),
        ("Div", "sum root", "pooled", {}),
        ("Gemm", "pooled w1 b1", "hidden", {}),
        ("Relu", "hidden", "active", {}),
        ("Gemm", "active w2 b2", "logits", {}),
        ("Softmax", "logits", "scores", {"axis": -1}),
        ("Gemm", "active w3 b3", "rating_any", {}),
        ("Clip", "rating_any low high", "rating", {}),
    ]
    graph = Graph(
        ("tokens",), ("scores", "rating"),
        tuple(Node(op, tuple(reads.split()), (to,), attrs, to, "", OPSET) for op, reads, to, attrs in nodes),
        {name: np.asarray(value) for name, value in constants.items()},
        {
            "tokens": TensorType("int32", (1, LENGTH)), "scores": TensorType("float32", (1, 3)),
            "rating": TensorType("float32", (1, 1)),
        },
        "sentiment",
    )  # fmt: skip
    about = "Sentiment of English texts, trained on the rated sentences of Hutto & Gilbert (2014, MIT). Apache-2.0."
    metadata = {"labels": "negative,neutral,positive", "tokenizer": "minifer.pipelines.text"}
    return write_model(Model(graph, {"": OPSET}, 8, producer="minifer", doc=about, metadata=metadata))


# ---- judging -------------------------------------------------------------------------------------------------------


def polarity(scores: np.ndarray, ratings: np.ndarray, when_zero: float = 0) -> float:
    """Share of the sentences rated other than 0 whose score has the rating's sign; a score of 0 counts as given."""
    rated = ratings != 0
    return float((np.sign(np.where(scores == 0, when_zero, scores)) == np.sign(ratings))[rated].mean())


def report(name: str, ratings: np.ndarray, vader: np.ndarray, scores: np.ndarray, rating: np.ndarray) -> None:
    """Print what VADER and the model get right of some sentences. `scores`: probabilities of the three classes."""
    classes = classes_of(ratings)
    ours = scores[:, 2] - scores[:, 0]
    print(f"{name}: {len(ratings)} sentences, {(ratings != 0).sum()} rated other than 0")
    rows = [
        ("positive or negative", polarity(vader, ratings, 1), polarity(ours, ratings)),
        ("the same, VADER's 0 as wrong", polarity(vader, ratings), polarity(ours, ratings)),
        ("three classes", (classes_of(vader, 0.05) == classes).mean(), (scores.argmax(1) == classes).mean()),
        ("correlation with the rating", np.corrcoef(vader, ratings)[0, 1], np.corrcoef(rating, ratings)[0, 1]),
    ]
    for text, theirs, own in rows:
        print(f"  {text:30} VADER {theirs:.4f}   model {own:.4f}")


def run_file(data: bytes, sentences: list[Sentence]) -> tuple[np.ndarray, np.ndarray]:
    """What the finished file gives for sentences: probabilities (n, 3) and ratings (n,)."""
    from minifer.pipelines.text import SentimentClassifier

    found = SentimentClassifier(data).classify([s.text for s in sentences])
    return np.array([f.probabilities for f in found]), np.array([f.rating for f in found])


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    source, target = arguments
    began = time.perf_counter()
    files = read_package(source)
    sentences = read_sentences(files)
    held_out = [s for s in sentences if s.tenth == 0]
    validation = [s for s in sentences if s.tenth == 1]
    print(f"{len(sentences)} sentences, {len(held_out)} of them held out")

    network = trained(files, [s for s in sentences if s.tenth > 1])
    judge("validation", validation, files, *network.predict(tokenize(validation)))
    final = trained(files, [s for s in sentences if s.tenth > 0])
    data = build(*final.stored())
    Path(target).write_bytes(data)
    print(f"{target}: {len(data) / 1e6:.2f} MB, made in {time.perf_counter() - began:.0f} s")

    scores, ratings = run_file(data, held_out)
    judge("held out", held_out, files, scores, ratings)
    for name in sorted({s.source for s in sentences}):
        own = [i for i, s in enumerate(held_out) if s.source == name]
        judge(f"held out, {name}", [held_out[i] for i in own], files, scores[own], ratings[own])
    return 0


def trained(files: dict[str, bytes], sentences: list[Sentence]) -> Network:
    network = Network()
    network.train(tokenize(sentences + short_texts(files, sentences)))
    return network


def judge(name: str, sentences: list[Sentence], files: dict[str, bytes], scores: np.ndarray, rating: Any) -> None:
    report(name, np.array([s.rating for s in sentences]), vader_scores(files, sentences), scores, rating)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
