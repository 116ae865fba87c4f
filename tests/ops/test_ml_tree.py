"""Tree ensembles against walking one row through one tree at a time, and forests that are broken."""

from __future__ import annotations

import itertools
import operator

import numpy as np
import pytest

from minifer.errors import InputError, ModelError
from minifer.ir import TensorType
from tests.ops import helpers

COMPARE = dict(LEQ=operator.le, LT=operator.lt, GTE=operator.ge, GT=operator.gt, EQ=operator.eq, NEQ=operator.ne)
MODES = [f"BRANCH_{name}" for name in COMPARE]


def ml(name, version, *inputs, **attrs):
    return helpers.run_op(name, version, *inputs, domain="ai.onnx.ml", **attrs)


class Grown:
    """Random trees as nested tuples (mode, feature, value, missing, true, false); leaves list (target, weight)."""

    def __init__(self, rng, trees, depth, modes, targets, positive=False):
        self.rng, self.modes, self.targets, self.positive = rng, modes, targets, positive
        self.trees = [self.grow(depth) for _ in range(trees)]

    def grow(self, depth):
        rng = self.rng
        if depth == 0 or rng.random() < 0.2:
            chosen = [t for t in self.targets if rng.random() < 0.7]
            return [
                (t, abs(w) if self.positive else w) for t, w in zip(chosen, rng.normal(size=9).astype("f").tolist())
            ]
        head = (str(rng.choice(self.modes)), int(rng.integers(3)), int(rng.integers(-3, 4)) / 2, int(rng.integers(2)))
        return (*head, self.grow(depth - 1), self.grow(depth - 1))

    def votes(self, row):
        """(target, weight) of every tree, found step by step."""
        for tree in self.trees:
            while isinstance(tree, tuple):
                mode, feature, value, missing, true, false = tree
                x = row[feature]
                if np.isnan(x):
                    taken = missing
                elif mode == "BRANCH_MEMBER":
                    taken = x in (value, value + 1)
                else:
                    taken = COMPARE[mode[7:]](x, value)
                tree = true if taken else false
            yield from tree

    def by_id(self, vote):
        """Attributes of versions 1 and 3; node ids count from 10 within each tree. `vote`: "target" or "class"."""
        nodes = {k: [] for k in ("treeids", "nodeids", "modes", "featureids", "values", "missing_value_tracks_true")}
        nodes |= {"truenodeids": [], "falsenodeids": []}
        votes = {k: [] for k in ("treeids", "nodeids", "ids", "weights")}

        def add(t, tree, count):
            me = next(count)
            place = len(nodes["treeids"])
            for values in nodes.values():
                values.append(0)
            leaf = not isinstance(tree, tuple)
            mode, feature, value, missing = ("LEAF", 0, 0.0, 0) if leaf else tree[:4]
            row = [t, me, mode, feature, value, missing]
            row += [0, 0] if leaf else [add(t, tree[4], count), add(t, tree[5], count)]
            for values, item in zip(nodes.values(), row):
                values[place] = item
            for target, weight in tree if leaf else ():
                for values, item in zip(votes.values(), (t, me, target, weight)):
                    values.append(item)
            return me

        for t, tree in enumerate(self.trees):
            add(t * 7, tree, itertools.count(10))
        out = {f"nodes_{k}": tuple(v) for k, v in nodes.items()} | {f"{vote}_{k}": tuple(v) for k, v in votes.items()}
        return out


ROWS = np.random.default_rng(9).integers(-4, 5, (40, 3)) / 2
ROWS[::7, 1] = np.nan
AGGREGATES = {"SUM": sum, "AVERAGE": lambda w: sum(w) / 5, "MIN": min, "MAX": max}


@pytest.mark.parametrize(("version", "aggregate"), [*itertools.product((1, 3, 5), AGGREGATES)])
def test_regressor(version, aggregate):
    grown = Grown(np.random.default_rng(version), 5, 4, MODES, range(3))
    base = (0.5, 0.25, -1.0)
    attrs = dict(n_targets=3, aggregate_function=aggregate, base_values=base, **grown.by_id("target"))
    for dtype in (np.float32, np.float64):
        (got,) = ml("TreeEnsembleRegressor", version, ROWS.astype(dtype), **attrs)
        expected = np.tile(np.array(base), (len(ROWS), 1))
        for i, row in enumerate(ROWS):
            votes = list(grown.votes(row))
            for t in range(3):
                weights = [w for target, w in votes if target == t]
                expected[i, t] += AGGREGATES[aggregate](weights) if weights else 0
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_integer_rows_and_double_tensors():
    grown = Grown(np.random.default_rng(4), 3, 3, MODES, [0])
    attrs = dict(n_targets=1, **grown.by_id("target"))
    rows = np.arange(-6, 6).reshape(4, 3)
    (expected,) = ml("TreeEnsembleRegressor", 3, rows.astype(np.float64), **attrs)
    for dtype in (np.int32, np.int64):
        assert np.array_equal(ml("TreeEnsembleRegressor", 3, rows.astype(dtype), **attrs)[0], expected)
    tensors = {k: v for k, v in attrs.items() if k not in ("nodes_values", "target_weights")}
    tensors["nodes_values_as_tensor"] = np.array(attrs["nodes_values"])
    tensors["target_weights_as_tensor"] = np.array(attrs["target_weights"])
    tensors["base_values_as_tensor"] = np.array([0.0])
    assert np.array_equal(ml("TreeEnsembleRegressor", 3, rows, **tensors)[0], expected)
    with pytest.raises(ModelError, match="must not both be given"):
        ml("TreeEnsembleRegressor", 3, rows, **attrs, nodes_values_as_tensor=np.zeros(3))


def test_classifier_with_votes_for_each_class():
    grown = Grown(np.random.default_rng(2), 5, 3, MODES, range(3))
    attrs = dict(classlabels_strings=("a", "b", "c"), outputs=2, **grown.by_id("class"))
    labels, scores = ml("TreeEnsembleClassifier", 3, ROWS, post_transform="SOFTMAX", **attrs)
    for row, label, score in zip(ROWS, labels, scores):
        sums = np.zeros(3)
        for target, weight in grown.votes(row):
            sums[target] += weight
        assert label == "abc"[int(sums.argmax())]
        np.testing.assert_allclose(score, np.exp(sums) / np.exp(sums).sum(), rtol=1e-5)
    kinds = helpers.infer_op("TreeEnsembleClassifier", 3, TensorType("float64", ("n", 3)), domain="ai.onnx.ml", **attrs)
    assert kinds == [TensorType("string", ("n",)), TensorType("float32", ("n", 3))]


@pytest.mark.parametrize(("positive", "transform"), [*itertools.product((True, False), ("NONE", "LOGISTIC"))])
def test_classifier_of_two_classes_with_votes_for_one(positive, transform):
    grown = Grown(np.random.default_rng(5), 4, 3, MODES, [0], positive)
    attrs = dict(classlabels_int64s=(3, 8), outputs=2, base_values=(0.25,), **grown.by_id("class"))
    labels, scores = ml("TreeEnsembleClassifier", 1, ROWS, post_transform=transform, **attrs)
    raw = np.array([sum(w for _, w in grown.votes(row)) + 0.25 for row in ROWS])
    assert np.array_equal(labels, np.where(raw > (0.5 if positive else 0), 8, 3))
    second = raw if transform == "NONE" else 1 / (1 + np.exp(-raw))
    np.testing.assert_allclose(scores[:, 1], second, rtol=1e-5)
    first = -raw if transform == "NONE" and not positive else 1 - second
    np.testing.assert_allclose(scores[:, 0], first, rtol=1e-5, atol=1e-6)


def by_position(grown, dtype=np.float32):
    """Attributes of version 5; sets of members are (value, value + 1)."""
    nodes = {k: [] for k in ("modes", "featureids", "splits", "missing_value_tracks_true")}
    nodes |= {k: [] for k in ("truenodeids", "trueleafs", "falsenodeids", "falseleafs")}
    targets, weights, members, roots = [], [], [], []

    def leaf(votes):
        target, weight = votes[0] if votes else (0, 0.0)
        targets.append(target)
        weights.append(weight)
        return [len(targets) - 1, 1]

    def add(tree):
        place = len(nodes["modes"])
        for values in nodes.values():
            values.append(0)
        mode, feature, value, missing, true, false = tree
        row = [[*MODES, "BRANCH_MEMBER"].index(mode), feature, value, missing]
        for child in (true, false):
            row += [add(child), 0] if isinstance(child, tuple) else leaf(child)
        for values, item in zip(nodes.values(), row):
            values[place] = item
        return place

    for tree in grown.trees:
        roots.append(add(tree if isinstance(tree, tuple) else ("BRANCH_EQ", 0, 0.0, 0, tree, tree)))
    for mode, value in zip(nodes["modes"], nodes["splits"]):
        members += [value, value + 1, np.nan] if mode == 6 else []
    out = {f"nodes_{k}": tuple(v) for k, v in nodes.items()}
    out |= dict(nodes_modes=np.array(nodes["modes"], np.uint8), nodes_splits=np.array(nodes["splits"], dtype))
    out |= dict(leaf_targetids=tuple(targets), leaf_weights=np.array(weights, dtype), tree_roots=tuple(roots))
    return out | (dict(membership_values=np.array(members, dtype)) if members else {})


@pytest.mark.parametrize(("dtype", "aggregate"), [*itertools.product((np.float16, np.float32, np.float64), range(4))])
def test_tree_ensemble_5(dtype, aggregate):
    grown = Grown(np.random.default_rng(6), 5, 4, [*MODES, "BRANCH_MEMBER"], [0])
    grown.targets = [0]
    attrs = dict(n_targets=2, aggregate_function=aggregate, **by_position(grown, dtype))
    (got,) = ml("TreeEnsemble", 5, ROWS.astype(dtype), **attrs)
    combine = list(AGGREGATES.values())[(1, 0, 2, 3)[aggregate]]
    expected = [combine([dtype(w) for w in one]) for one in ([w for _, w in _first_votes(grown, row)] for row in ROWS)]
    assert got.dtype == dtype and got.shape == (40, 2)
    np.testing.assert_allclose(got[:, 0], np.array(expected, np.float64), rtol=2e-3 if dtype == np.float16 else 1e-5)
    assert not got[:, 1].any()


def _first_votes(grown, row):
    """As version 5 holds it: one vote from each tree, 0 where a leaf has none."""
    for tree in grown.trees:
        alone = Grown(np.random.default_rng(0), 0, 0, MODES, [0])
        alone.trees = [tree]
        yield next(alone.votes(row), (0, 0.0))


STUMP = dict(
    nodes_treeids=(0, 0, 0), nodes_nodeids=(0, 1, 2), nodes_modes=("BRANCH_LEQ", "LEAF", "LEAF"),
    nodes_featureids=(0, 0, 0), nodes_values=(1.0, 0.0, 0.0), nodes_truenodeids=(1, 0, 0), nodes_falsenodeids=(2, 0, 0),
    target_treeids=(0, 0), target_nodeids=(1, 2), target_ids=(0, 0), target_weights=(5.0, 6.0), n_targets=1,
)  # fmt: skip


def test_stump_and_empty_inputs():
    run = lambda x, **more: ml("TreeEnsembleRegressor", 1, x, **{**STUMP, **more})[0]  # noqa: E731
    assert run(np.array([[1.0], [2.0]])).tolist() == [[5], [6]]
    assert run(np.array([2.0])).tolist() == [[6]]
    assert run(np.zeros((0, 1))).shape == (0, 1)
    both = dict(nodes_falsenodeids=(1, 0, 0))  # two branches may share a child
    assert run(np.array([[2.0]]), **both).tolist() == [[5]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(nodes_modes=("BRANCH_LEQ", "BRANCH_LEQ", "LEAF")), "in a circle"),
        (dict(nodes_truenodeids=(0, 0, 0)), "in a circle"),
        (dict(nodes_truenodeids=(9, 0, 0)), "nodes_truenodeids names node 9 of tree 0, which does not exist"),
        (dict(nodes_nodeids=(0, 1, 1)), "node 1 of tree 0 is listed twice"),
        (dict(nodes_modes=("BRANCH_LEQ", "LEAF", "TWIG")), "TWIG, which is no mode"),
        (dict(nodes_values=(1.0,)), "nodes_values has 1 entries for 3 nodes"),
        (dict(nodes_featureids=(-1, 0, 0)), "negative feature"),
        (dict(target_ids=(0, 1)), r"outside \[0, 1\)"),
        (dict(target_nodeids=(1, 7)), "a vote names node 7 of tree 0"),
        (dict(target_weights=(1.0,)), "differ in length"),
        (dict(base_values=(1.0, 2.0)), "2 base values for 1 targets"),
        (dict(aggregate_function="MEDIAN"), "aggregate_function must be"),
        (dict(post_transform="TANH"), "post_transform must be"),
    ],
)
def test_broken_forests(change, why):
    with pytest.raises(ModelError, match=why):
        ml("TreeEnsembleRegressor", 1, np.zeros((2, 1)), **{**STUMP, **change})


def test_rows_without_the_feature():
    with pytest.raises(InputError, match="ask for feature 3, and rows have 2"):
        ml("TreeEnsembleRegressor", 1, np.zeros((2, 2)), **{**STUMP, "nodes_featureids": (3, 0, 0)})


FIVE = dict(
    n_targets=1, tree_roots=(0,), leaf_targetids=(0, 0), leaf_weights=np.ones(2), nodes_featureids=(0,),
    nodes_modes=np.zeros(1, np.uint8), nodes_splits=np.zeros(1), nodes_truenodeids=(0,), nodes_trueleafs=(1,),
    nodes_falsenodeids=(1,), nodes_falseleafs=(1,),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(tree_roots=(1,)), "tree_roots names a node outside"),
        (dict(nodes_truenodeids=(2,)), "nodes_truenodeids names a child that does not exist"),
        (dict(nodes_falseleafs=(0,)), "nodes_falsenodeids names a child"),
        (dict(nodes_trueleafs=(0,)), "in a circle"),
        (dict(nodes_modes=np.full(1, 7, np.uint8)), "code outside"),
        (dict(nodes_modes=np.full(1, 6, np.uint8)), "0 sets for 1 nodes"),
        (dict(leaf_targetids=(0, 1)), r"outside \[0, 1\)"),
        (dict(leaf_weights=np.ones(3)), "leaf_weights has 3 entries"),
        (dict(post_transform=5), "not known"),
    ],
)
def test_broken_forests_of_version_5(change, why):
    assert ml("TreeEnsemble", 5, np.zeros((1, 1)), **FIVE)[0].tolist() == [[1]]
    with pytest.raises(ModelError, match=why):
        ml("TreeEnsemble", 5, np.zeros((1, 1)), **{**FIVE, **change})
