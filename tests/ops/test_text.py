"""String operators: shapes, Unicode, bad input; n-grams against counting by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from minifer.errors import InputError, ModelError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, run_op


def words(*values):
    out = np.empty(len(values), object)
    out[:] = values
    return out


STRING = lambda *d: TensorType("string", d)  # noqa: E731


def test_concat_scalars_and_nothing():
    (got,) = run_op("StringConcat", 20, np.array("a", object), np.array("ü", object))
    assert got.shape == () and got.dtype == object and got[()] == "aü"
    assert run_op("StringConcat", 20, np.empty((0, 2), object), words("x"))[0].shape == (0, 2)
    assert infer_op("StringConcat", 20, STRING(2, 1), STRING("n")) == [STRING(2, "n")]
    with pytest.raises(ShapeError, match="must hold strings"):
        infer_op("StringConcat", 20, TensorType("float32", (1,)), STRING(1))


def test_split_on_white_space_leaves_none_at_the_ends():
    got, counts = run_op("StringSplit", 20, words("  a b  c ", "", "\u2003x"), outputs=2, maxsplit=1)
    assert got.tolist() == [["a", "b  c"], ["", ""], ["x", ""]] and counts.tolist() == [2, 0, 1]


def test_split_on_a_delimiter():
    got, counts = run_op("StringSplit", 20, words("a--b", ""), outputs=2, delimiter="-")
    assert got.tolist() == [["a", "", "b"], ["", "", ""]] and counts.tolist() == [3, 1]
    got, counts = run_op("StringSplit", 20, np.array("a,b", object), outputs=2, delimiter=",")
    assert got.tolist() == ["a", "b"] and counts == 2 and counts.shape == ()
    got, counts = run_op("StringSplit", 20, np.empty((3, 0), object), outputs=2)
    assert got.shape == (3, 0, 0) and counts.shape == (3, 0) and counts.dtype == np.int64
    assert infer_op("StringSplit", 20, STRING(2, "n"), outputs=2) == [
        STRING(2, "n", None),
        TensorType("int64", (2, "n")),
    ]


def test_normalizer():
    x = words("Monday", "tuesday", "Straße", "monday")
    run = lambda x, **attrs: run_op("StringNormalizer", 10, x, **attrs)[0]  # noqa: E731
    assert run(x, stopwords=("MONDAY",), case_change_action="UPPER").tolist() == ["TUESDAY", "STRASSE"]
    assert run(x, stopwords=("monday",), is_case_sensitive=1).tolist() == ["Monday", "tuesday", "Straße"]
    assert run(x[None], stopwords=("monday",)).shape == (1, 2)
    assert run(words("a"), stopwords=("a",)).tolist() == [""]
    assert run(words("a")[None], stopwords=("A",)).tolist() == [[""]]
    assert run(words("a"), is_case_sensitive=1, stopwords=("A",), locale="tr_TR").tolist() == ["a"]
    with pytest.raises(InputError, match="must have shape"):
        run(words("a", "b")[:, None])
    with pytest.raises(ModelError, match="case_change_action"):
        run(x, case_change_action="TITLE")
    assert infer_op("StringNormalizer", 10, STRING(3)) == [STRING(3)]
    assert infer_op("StringNormalizer", 10, STRING(1, 3), stopwords=("a",)) == [STRING(1, None)]
    with pytest.raises(ShapeError, match="must have shape"):
        infer_op("StringNormalizer", 10, STRING(2, 3))


def test_full_match_shapes():
    assert run_op("RegexFullMatch", 20, np.array("ab", object), pattern="a.")[0].shape == ()
    (got,) = run_op("RegexFullMatch", 20, words("ab", "abc").reshape(2, 1), pattern="a.")
    assert got.tolist() == [[True], [False]] and got.dtype == np.bool_
    with pytest.raises(ModelError, match="not valid RE2"):
        run_op("RegexFullMatch", 20, words("a"), pattern="(a")
    assert infer_op("RegexFullMatch", 20, STRING(2, None), pattern="a") == [TensorType("bool", (2, None))]


# --------------------------------------------------------------------------------------------------------- n-grams


def count_grams(row, grams, skips):
    """How often each gram occurs, counted one position at a time."""
    found = [0] * len(grams)
    for k, gram in enumerate(grams):
        for skip in range(skips + 1 if len(gram) > 1 else 1):
            places = [[start + j * (skip + 1) for j in range(len(gram))] for start in range(len(row))]
            found[k] += sum(p[-1] < len(row) and tuple(row[i] for i in p) == gram for p in places)
    return found


@pytest.mark.parametrize(("mode", "dtype"), [*product(("TF", "IDF", "TFIDF"), (np.int32, np.int64, object))])
def test_tf_idf_against_counting(mode, dtype):
    rng = np.random.default_rng(1)
    grams = [(1,), (3,), (0, 1), (1, 1), (2, 0), (0, 1, 2)]
    rows = rng.integers(0, 5, (4, 12))
    name = (lambda v: f"w{v}") if dtype is object else int
    pool = tuple(name(v) for gram in grams for v in gram)
    places, weights = (5, 0, 3, 1, 2, 4), tuple(float(w) for w in rng.random(6))
    x = words(*map(name, rows.reshape(-1))).reshape(4, 12) if dtype is object else rows.astype(dtype)
    attrs = dict(mode=mode, ngram_counts=(0, 2, 8), ngram_indexes=places, max_skip_count=2, weights=weights)
    attrs |= dict(min_gram_length=1, max_gram_length=3)
    attrs |= {"pool_strings" if dtype is object else "pool_int64s": pool}
    (got,) = run_op("TfIdfVectorizer", 9, x, **attrs)
    expected = np.zeros((4, 6), np.float32)
    for i, row in enumerate(rows.tolist()):
        for k, count in enumerate(count_grams(row, grams, 2)):
            if mode == "IDF":
                count = min(count, 1)
            expected[i, places[k]] = count * (1 if mode == "TF" else np.float32(weights[k]))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(run_op("TfIdfVectorizer", 9, x[2], **attrs)[0], expected[2], rtol=1e-6)


TF = dict(
    mode="TF", ngram_counts=(0, 2), ngram_indexes=(0, 1, 2), max_skip_count=0, min_gram_length=1, max_gram_length=2
)


def test_tf_idf_edges():
    run = lambda x, **more: run_op("TfIdfVectorizer", 9, x, **{**TF, "pool_int64s": (1, 2, 1, 2), **more})[0]  # noqa: E731
    assert run(np.zeros(0, np.int64)).tolist() == [0, 0, 0]
    assert run(np.zeros((0, 4), np.int64)).shape == (0, 3)
    assert run(np.array([1, 2, 9, 2])).tolist() == [1, 2, 1]
    with pytest.raises(ModelError, match="mode must be"):
        run(np.array([1]), mode="X")
    with pytest.raises(ModelError, match="only one"):
        run(np.array([1]), pool_strings=("a",))
    with pytest.raises(InputError, match="other way round"):
        run(words("a"))
    with pytest.raises(ModelError, match="do not divide a pool"):
        run(np.array([1]), ngram_counts=(0, 3))
    with pytest.raises(ModelError, match="does not hold the 2 n-grams"):
        run(np.array([1]), ngram_indexes=(0, 1))
    with pytest.raises(InputError, match=r"\[C\] or \[N, C\]"):
        run(np.zeros((1, 1, 1), np.int64))
    assert infer_op("TfIdfVectorizer", 9, TensorType("int64", ("n", 4)), **TF) == [TensorType("float32", ("n", 3))]
