"""Strings: StringConcat, StringNormalizer, StringSplit, RegexFullMatch and TfIdfVectorizer.

String tensors are object arrays of `str`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import InputError, ModelError
from minifer.ir import Dim, TensorType, Type
from minifer.ops import regex
from minifer.ops.registry import Call, Op, register
from minifer.ops.shapes import broadcast


def strings(values: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """A string tensor of `shape` from a flat list. (Plain np.array would look inside the values.)"""
    out = np.empty(len(values), object)
    out[:] = values
    return out.reshape(tuple(shape))


def _need_strings(call: Call, i: int) -> TensorType:
    kind = call.tensor(i)
    if kind.dtype != "string":
        raise call.fail(f"input {i} must hold strings")
    return kind


# ---------------------------------------------------------------------------------------------- join, split, match


def _concat(x, y):
    return np.asarray(x + y, object)


def _infer_concat(call: Call) -> Type:
    return TensorType("string", broadcast(call, _need_strings(call, 0).shape, _need_strings(call, 1).shape))


def _split(x, *, delimiter="", maxsplit=-1):
    """Substrings along a new last axis, short rows filled with empty strings, and how many each element has.

    Without a delimiter, runs of white space separate, and none is left at either end of the text. A negative
    `maxsplit` sets no limit.
    """
    if delimiter:
        parts = [text.split(delimiter, maxsplit) for text in x.reshape(-1).tolist()]
    else:
        parts = [text.strip().split(None, maxsplit) for text in x.reshape(-1).tolist()]
    counts = np.array([len(p) for p in parts], np.int64)
    width = int(counts.max(initial=0))
    flat = [text for p in parts for text in p + [""] * (width - len(p))]
    return strings(flat, (*x.shape, width)), counts.reshape(x.shape)


def _infer_split(call: Call) -> list[Type]:
    shape = _need_strings(call, 0).shape
    return [TensorType("string", None if shape is None else (*shape, None)), TensorType("int64", shape)]


def _full_match(x, *, pattern):
    matches = regex.compiled(pattern).matches
    return np.array([matches(text) for text in x.reshape(-1).tolist()], np.bool_).reshape(x.shape)


def _infer_full_match(call: Call) -> Type:
    return TensorType("bool", _need_strings(call, 0).shape)


register(Op("StringConcat", since=20, infer=_infer_concat, reference=_concat))
register(Op("StringSplit", since=20, infer=_infer_split, reference=_split))
register(Op("RegexFullMatch", since=20, infer=_infer_full_match, reference=_full_match))


# ------------------------------------------------------------------------------------------------------- normalise

_CASE = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}


def _case_change(action: str) -> Any:
    if action not in _CASE:
        raise ModelError(f"case_change_action must be one of {', '.join(_CASE)}, not {action!r}")
    return _CASE[action]


def _normalize(x, *, case_change_action="NONE", is_case_sensitive=0, stopwords=(), locale="en_US"):
    """Drop stop words, then change the case, by Unicode's full mapping whatever the locale.

    Where nothing is left, one empty string is.
    """
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise InputError(f"the input must have shape [C] or [1, C], not {list(x.shape)}")
    change = _case_change(case_change_action)
    fold = str if is_case_sensitive else str.lower
    dropped = {fold(word) for word in stopwords}
    kept = [change(text) for text in x.reshape(-1).tolist() if fold(text) not in dropped] or [""]
    return strings(kept, (len(kept),) if x.ndim == 1 else (1, len(kept)))


def _infer_normalize(call: Call) -> Type:
    shape = _need_strings(call, 0).shape
    if shape is None:
        return TensorType("string", None)
    if len(shape) not in (1, 2) or (len(shape) == 2 and isinstance(shape[0], int) and shape[0] != 1):
        raise call.fail("the input must have shape [C] or [1, C]")
    count: Dim = None if call.attr("stopwords") or not isinstance(shape[-1], int) else max(shape[-1], 1)
    return TensorType("string", (count,) if len(shape) == 1 else (1, count))


register(Op("StringNormalizer", since=10, infer=_infer_normalize, reference=_normalize))


# --------------------------------------------------------------------------------------------------------- n-grams


def _token_ids(x: np.ndarray, pool: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, int]:
    """(ids of x, -1 where not in the pool; ids of the pool; number of ids)."""
    if x.dtype == object:
        table = {word: i for i, word in enumerate(dict.fromkeys(pool))}
        ids = np.array([table.get(word, -1) for word in x.reshape(-1).tolist()], np.int64)
        return ids.reshape(x.shape), np.array([table[word] for word in pool], np.int64), len(table)
    unique, pool_ids = np.unique(np.array(pool, np.int64), return_inverse=True)
    return _find(unique, x.astype(np.int64)), pool_ids.reshape(-1), len(unique)


def _find(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Positions of `keys` in a sorted table, -1 where they are not in it."""
    if not len(table):
        return np.full(keys.shape, -1, np.int64)
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, at, -1)


def _gram_counts(ids: np.ndarray, grams: np.ndarray, tokens: int, skips: range) -> np.ndarray:
    """How often each n-gram occurs in each row.

    `ids` (rows, length) of token ids, `grams` (count, n) of token ids; `skips` lists how many tokens may lie
    between neighbours. n-grams get numbers one token at a time: number of the prefix and the next token give
    the number of the longer prefix. Returns (rows, count).
    """
    n, length = grams.shape[1], ids.shape[1]
    prefix, key = np.unique(grams[:, 0], return_inverse=True)
    tables = [prefix]
    for j in range(1, n):
        table, key = np.unique(key * tokens + grams[:, j], return_inverse=True)
        tables.append(table)
    total = np.zeros((len(ids), len(tables[-1])), np.int64)
    for skip in skips:
        windows = length - (n - 1) * (skip + 1)
        if windows <= 0:
            break
        found = _find(tables[0], ids[:, :windows])
        for j in range(1, n):
            token = ids[:, j * (skip + 1) :][:, :windows]
            longer = _find(tables[j], found * tokens + token)
            found = np.where((found >= 0) & (token >= 0), longer, -1)
        rows, columns = np.nonzero(found >= 0)
        flat = rows * total.shape[1] + found[rows, columns]
        total += np.bincount(flat, minlength=total.size).reshape(total.shape)
    return total[:, key.reshape(-1)]


def _levels(counts: Sequence[int], pool: int) -> list[tuple[int, int]]:
    """(start, end) in the pool of the 1-grams, the 2-grams, ..."""
    ends = [*counts[1:], pool]
    for n, (start, end) in enumerate(zip(counts, ends), 1):
        if not 0 <= start <= end <= pool or (end - start) % n:
            raise ModelError(
                f"ngram_counts {list(counts)} do not divide a pool of {pool} tokens: the {n}-grams would take "
                f"tokens {start} to {end}"
            )
    return list(zip(counts, ends))


def _tf_idf(
    x,
    *,
    mode,
    ngram_indexes,
    ngram_counts,
    max_skip_count,
    min_gram_length,
    max_gram_length,
    pool_strings=(),
    pool_int64s=(),
    weights=(),
):
    """Counts of n-grams, (C,) -> (size,) or (rows, C) -> (rows, size), float32.

    An n-gram that the pool lists twice counts at both of its output positions.
    """
    pool = _tf_idf_pool(x, pool_strings, pool_int64s)
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ModelError(f"mode must be TF, IDF or TFIDF, not {mode!r}")
    if not 1 <= min_gram_length <= max_gram_length or max_skip_count < 0:
        raise ModelError(
            f"gram lengths from {min_gram_length} to {max_gram_length} with {max_skip_count} skips make no sense"
        )
    if x.ndim not in (1, 2):
        raise InputError(f"the input must have shape [C] or [N, C], not {list(x.shape)}")
    places = np.array(ngram_indexes, np.int64)
    if len(places) == 0 or places.min() < 0 or (weights and len(weights) != len(places)):
        raise ModelError("ngram_indexes needs an index >= 0 for each n-gram, and weights as many entries")
    levels = _levels(ngram_counts, len(pool))
    if sum((end - start) // n for n, (start, end) in enumerate(levels, 1)) != len(places):
        raise ModelError(f"the pool does not hold the {len(places)} n-grams that ngram_indexes lists")
    ids, pool_ids, tokens = _token_ids(x.reshape(1, -1) if x.ndim == 1 else x, pool)
    out = np.zeros((len(ids), int(places.max()) + 1), np.float32)
    scale = np.array(weights or [1.0] * len(places), np.float32)
    first = 0
    for n, (start, end) in enumerate(levels, 1):
        count = (end - start) // n
        if count and min_gram_length <= n <= max_gram_length:
            skips = range(max_skip_count + 1 if n > 1 else 1)
            found = _gram_counts(ids, pool_ids[start:end].reshape(count, n), tokens, skips).astype(np.float32)
            if mode == "IDF":
                found = np.minimum(found, 1)
            if mode != "TF":
                found = found * scale[first : first + count]
            np.add.at(out.T, places[first : first + count], found.T)
        first += count
    return out[0] if x.ndim == 1 else out


def _tf_idf_pool(x: np.ndarray, pool_strings: Sequence[str], pool_int64s: Sequence[int]) -> Sequence[Any]:
    if bool(pool_strings) == bool(pool_int64s):
        raise ModelError("one of pool_strings and pool_int64s must be given, and only one")
    if (x.dtype == object) != bool(pool_strings):
        raise InputError("the input holds strings and the pool integers, or the other way round")
    return pool_strings or pool_int64s


def _infer_tf_idf(call: Call) -> Type:
    shape, places = call.shape(0), call.attr("ngram_indexes", ())
    if not places:
        raise call.fail("needs ngram_indexes")
    if shape is None:
        return TensorType("float32", None)
    if len(shape) not in (1, 2):
        raise call.fail("the input must have shape [C] or [N, C]")
    return TensorType("float32", (*shape[:-1], max(places) + 1))


register(Op("TfIdfVectorizer", since=9, infer=_infer_tf_idf, reference=_tf_idf))
