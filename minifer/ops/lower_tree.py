"""Tree ensembles of ai.onnx.ml as kernel calls.

Kernels know one kind of node: left if x <= threshold, else right, and a side for NaN. All modes become that: x < t is
x <= the next number below t, x >= t swaps the sides of x < t, x == t is x <= t and then not x < t, and membership is a
chain of such equalities. Thresholds are rounded down to the element type of the rows, which changes no comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minifer.errors import MiniferError
from minifer.kernels import tree
from minifer.ops.ml_forest import Forest
from minifer.ops.registry import Declined
from minifer.record import Record

LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(8)
#: how ml_forest.AGGREGATES stand in the kernels
CODES = {"SUM": tree.SUM, "AVERAGE": tree.AVERAGE, "MIN": tree.MIN, "MAX": tree.MAX}
TRANSFORMS = {
    "NONE": tree.NONE, "SOFTMAX": tree.SOFTMAX, "LOGISTIC": tree.LOGISTIC, "SOFTMAX_ZERO": tree.SOFTMAX_ZERO,
}  # fmt: skip
#: values that the sets of BRANCH_MEMBER nodes may hold together: each becomes two nodes of a chain
MOST_MEMBERS = 4096
#: nodes of an ensemble: they are counted in 32 bits
MOST_NODES = 1 << 28


class Tables(Record, eq=False):
    """A forest as kernels/tree.py takes it."""

    threshold: np.ndarray
    node: np.ndarray  # (nodes, WORDS) int32
    roots: np.ndarray
    vote_start: np.ndarray
    vote_target: np.ndarray
    vote_weight: np.ndarray
    levels: int
    features: int  # that the nodes ask for


class _Nodes:
    """Nodes of the one kind: columns of those that the forest has, and a list of further ones."""

    def __init__(self, threshold, feature, left, right, nan_left):
        self.threshold, self.feature, self.left, self.right, self.nan_left = threshold, feature, left, right, nan_left
        self.more: list[tuple[Any, int, int, int, bool]] = []  # in the order of the columns

    def append(self, threshold: Any, feature: int, left: int, right: int, nan_left: bool) -> int:
        """A further node; its index."""
        self.more.append((threshold, feature, left, right, nan_left))
        return len(self.threshold) + len(self.more) - 1

    def set(self, i: int, threshold: Any, left: int, right: int, nan_left: bool) -> None:
        """Node i, which has its feature already."""
        self.threshold[i], self.left[i], self.right[i], self.nan_left[i] = threshold, left, right, nan_left

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """(threshold, words)."""
        columns = [self.threshold, self.feature, self.left, self.right, self.nan_left]
        if self.more:
            columns = [np.concatenate([c, np.array(m, c.dtype)]) for c, m in zip(columns, zip(*self.more))]
        threshold, feature, left, right, nan_left = columns
        return threshold, np.stack([2 * feature + nan_left, left, right], 1).astype(np.int32)


def _at_most(t: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The largest number of a float type that is not above t."""
    with np.errstate(over="ignore"):
        rounded = t.astype(dtype)
    return np.where(rounded > t, np.nextafter(rounded, dtype.type(-np.inf)), rounded).astype(dtype)


def _below(t: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The largest number of a float type that is below t; NaN (nothing is at most NaN) where there is none."""
    rounded = _at_most(t, dtype)
    under = np.where(rounded == t, np.nextafter(rounded, dtype.type(-np.inf)), rounded)
    return np.where(t == -np.inf, np.nan, under).astype(dtype)


def _normal(forest: Forest, dtype: np.dtype) -> _Nodes:
    """The nodes of a forest in the kernels' one form."""
    mode, t, here = forest.mode, forest.threshold, np.arange(len(forest.mode))
    simple = mode <= GT
    swapped = ((mode == GTE) | (mode == GT)) & ~np.isnan(t)  # NaN as threshold: the test is never true
    threshold = np.where((mode == LT) | (mode == GTE), _below(t, dtype), _at_most(t, dtype))
    nodes = _Nodes(
        np.where(simple, threshold, dtype.type(np.nan)),
        np.where(mode == LEAF, 0, forest.feature),
        np.where(simple, np.where(swapped, forest.false, forest.true), here),
        np.where(simple, np.where(swapped, forest.true, forest.false), here),
        simple & (forest.missing != swapped),
    )
    for i in np.flatnonzero((mode >= EQ) & (mode < LEAF)):
        values = t[i : i + 1] if mode[i] != MEMBER else _members(forest, int(i))
        yes, no, missing = int(forest.true[i]), int(forest.false[i]), bool(forest.missing[i])
        if mode[i] == NEQ:
            yes, no, missing = no, yes, not missing
        _chain(nodes, int(i), values, yes, no, missing)
    return nodes


def _members(forest: Forest, i: int) -> np.ndarray:
    """The set of a BRANCH_MEMBER node."""
    many = len(forest.member_values)
    own = forest.members[forest.members // max(many, 1) == forest.member_set[i]]
    return forest.member_values[own % max(many, 1)]


def _chain(nodes: _Nodes, i: int, values: np.ndarray, yes: int, no: int, missing: bool) -> None:
    """Node i leads to `yes` if its feature is one of the values (or NaN, if missing), else to `no`."""
    feature, dtype = int(nodes.feature[i]), nodes.threshold.dtype
    most, under = _at_most(values, dtype), _below(values, dtype)
    following = no
    for k in range(len(values) - 1, -1, -1):
        equal = nodes.append(under[k], feature, following, yes, False)
        if k == 0:
            nodes.set(i, most[k], equal, following, missing)
        else:
            following = nodes.append(most[k], feature, equal, following, False)
    if not len(values):
        nodes.set(i, np.nan, yes, no, missing)


def _levels(words: np.ndarray, roots: np.ndarray) -> int:
    """Steps after which every walk has ended: the longest path (the forest has been checked to have no circle)."""
    at, levels = np.unique(roots), 0
    while True:
        at = at[words[at, 1] != at]
        if not len(at):
            return levels
        at = np.unique(words[at, 1:])
        levels += 1


_PACKED: WeakKeyDictionary[Any, dict[str, Tables]] = WeakKeyDictionary()


def packed(node: Any, forest: Forest, dtype: str) -> Tables:
    """The tables of a node's forest for rows of an element type; made once."""
    kept = _PACKED.setdefault(node, {})
    if dtype not in kept:
        nodes = _normal(forest, np.dtype(dtype))
        threshold, words = nodes.joined()
        starts = np.full(len(words) + 1, len(forest.vote_target), np.int64)
        starts[: len(forest.mode)] = forest.vote_start
        roots = forest.roots.astype(np.int32)
        votes = (forest.vote_target, forest.vote_weight)
        features = int(words[:, 0].max(initial=0)) // 2 + 1
        kept[dtype] = Tables(threshold, words, roots, starts, *votes, _levels(words, roots), features)
    return kept[dtype]


class Ensemble(Record, eq=False):
    """A forest, and what is made of its votes. With one target all votes are for it, whatever they name."""

    forest: Forest
    targets: int
    base: np.ndarray  # (targets,)
    aggregate: str  # of ml_forest.AGGREGATES


def _scores(low: Any, make: Callable[[], Ensemble], result: bool = False) -> Any:
    """The slot of the scores (rows, targets) in float64, output 0 where `result`; or why kernels cannot give them."""
    dtype, shape = low.dtype(0), low.shape(0)
    if dtype not in ("float32", "float64") or len(shape) not in (1, 2):
        return Declined(f"no tree kernel for {dtype}{shape}")
    try:
        ensemble = make()
    except MiniferError as error:  # the reference says it with the node's name
        return Declined(str(error))
    forest, targets = ensemble.forest, ensemble.targets
    if ensemble.aggregate not in CODES or not len(forest.roots) or not np.isfinite(forest.vote_weight).all():
        return Declined("no tree kernel for this aggregate function, for no trees, or for infinite weights")
    if len(forest.mode) + 2 * len(forest.members) + 2 * int((forest.mode == NEQ).sum()) > MOST_NODES:
        return Declined("too many nodes")
    if len(forest.members) > MOST_MEMBERS:
        return Declined(f"the sets of BRANCH_MEMBER hold {len(forest.members)} values")
    tables, features = packed(low.node, forest, dtype), shape[-1]
    if tables.features > features:
        return Declined(f"the trees ask for feature {tables.features - 1}, and rows have {features}")
    rows = shape[0] if len(shape) == 2 else 1
    out = low.output(0) if result else low.scratch(8 * rows * targets, "float64")
    work = low.scratch(8 * low.threads * tree.WALKS, "int64")
    vote_target = tables.vote_target if targets > 1 else np.zeros_like(tables.vote_target)
    listed = (tables.threshold, tables.node, tables.roots, tables.vote_start, vote_target, tables.vote_weight)
    slots = [low.const(v) for v in (*listed, ensemble.base.astype(np.float64))]
    kernel = tree.forest["f32" if dtype == "float32" else "f64"]
    numbers = (rows, features, len(tables.roots), targets, tables.levels, CODES[ensemble.aggregate])
    low.call(kernel, low.input(0), *slots, out, work, *numbers)
    return out


def lower_scores(low: Any, make: Callable[[], Ensemble], transform: str) -> Declined | None:
    """An ensemble whose result is its scores (rows, targets): transformed in float32, or as they are in float64."""
    whole = low.out_type().dtype == "float64" and transform == "NONE"
    if not whole and (transform not in TRANSFORMS or low.out_type().dtype != "float32"):
        return Declined(f"no kernel for {transform} in {low.out_type().dtype}")
    scores = _scores(low, make, whole)
    if isinstance(scores, Declined) or whole:
        return scores if isinstance(scores, Declined) else None
    rows, targets = low.out_shape()
    low.call(tree.transform_scores, scores, low.output(0), rows, targets, TRANSFORMS[transform])
    return None


def lower_classes(low: Any, make: Callable[[], Ensemble], labels: np.ndarray, transform: str) -> Declined | None:
    """An ensemble whose results are the label of the winning class (rows,), int64, and the scores (rows, classes)."""
    if transform not in TRANSFORMS or labels.dtype != np.int64:
        return Declined(f"no kernel for {transform} with labels of {labels.dtype}")
    scores = _scores(low, make)
    if isinstance(scores, Declined):
        return scores
    rows = low.shape(0)[0] if len(low.shape(0)) == 2 else 1
    classes = len(labels)
    label = low.output(0) if low.wants(0) else low.scratch(8 * rows, "int64")
    y = low.output(1) if low.wants(1) else low.scratch(4 * rows * classes, "float32")
    slots = (scores, low.const(labels), label, y)
    if scores.size == rows * classes:
        low.call(tree.classify, *slots, rows, classes, TRANSFORMS[transform])
    else:  # two classes, of which only the second is scored
        positive = float((make().forest.vote_weight >= 0).all())
        low.call(tree.classify_two, *slots, rows, positive / 2, positive, TRANSFORMS[transform])
    return None
