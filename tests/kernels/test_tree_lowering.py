"""Tree ensembles through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(31)
ML = "ai.onnx.ml"
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
SPLITS = [-1.0, -0.25, 0.0, 0.1, 0.5, 2.0, np.inf, -np.inf, np.nan]


def rows(count, features, dtype=np.float32):
    """Values that often equal a split."""
    x = RNG.choice([*SPLITS, 0.3, -0.0, 1e30], (count, features))
    return np.where(RNG.random(x.shape) < 0.4, RNG.standard_normal(x.shape), x).astype(dtype)


def trees(count, depth, features, modes=MODES, plain=False):
    """Attributes of the nodes of random trees, and the (tree, node) pairs of their leaves."""
    found: dict[str, list] = {k: [] for k in ("tree", "node", "feature", "mode", "value", "true", "false", "missing")}
    leaves = []

    def grow(tree, level, ids):
        me = next(ids)
        leaf = level == depth or (level and RNG.random() < 0.2)
        children = (0, 0) if leaf else (grow(tree, level + 1, ids), grow(tree, level + 1, ids))
        value = RNG.choice([-1.0, -0.25, 0.0, 0.1, 0.5] if plain else SPLITS)
        mode = "LEAF" if leaf else str(RNG.choice(modes))
        entry = (
            tree,
            me,
            int(RNG.integers(0, features)),
            mode,
            float(np.float32(value)),
            *children,
            int(RNG.integers(0, 2)),
        )
        for k, v in zip(found, entry):
            found[k].append(v)
        if leaf:
            leaves.append((tree, me))
        return me

    for tree in range(count):
        at = len(found["tree"])
        grow(tree, 0, iter(range(10**6)))
        for k in found:  # the root is listed first
            found[k] = found[k][:at] + found[k][at:][::-1]
    names = (
        "treeids",
        "nodeids",
        "featureids",
        "modes",
        "values",
        "truenodeids",
        "falsenodeids",
        "missing_value_tracks_true",
    )
    return {f"nodes_{n}": v for n, v in zip(names, found.values())}, leaves


def votes(leaves, kind, targets, weights=None):
    """Attributes of the votes: some leaves have several, some none."""
    many = [leaf for leaf in leaves for _ in range(RNG.integers(0, 3))] or leaves[:1]
    weights = RNG.standard_normal(len(many)) if weights is None else weights(len(many))
    return {
        f"{kind}_treeids": [t for t, _ in many], f"{kind}_nodeids": [n for _, n in many],
        f"{kind}_ids": [int(i) for i in RNG.integers(0, targets, len(many))],
        f"{kind}_weights": [float(np.float32(w)) for w in weights],
    }  # fmt: skip


def run(nodes, x, outputs=("y",), native=True):
    return check_native(model(nodes, {"x": x}, {}, list(outputs)), {"x": x}, native=native, tolerance=1e-6)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("count, depth", [(1, 0), (1, 4), (17, 3), (80, 5)])
def test_regressor(aggregate, targets, count, depth):
    attrs, leaves = trees(count, depth, 6)
    attrs |= votes(leaves, "target", targets) | {"n_targets": targets, "aggregate_function": aggregate}
    if targets == 3:
        attrs["base_values"] = [0.5, -1.0, 2.0]
    for batch in (1, 3, 130):
        run([node("TreeEnsembleRegressor", ["x"], ["y"], 3, ML, **attrs)], rows(batch, 6))


@pytest.mark.parametrize("mode", MODES)
def test_each_mode(mode):
    attrs, leaves = trees(9, 2, 2, (mode,))
    attrs |= votes(leaves, "target", 1) | {"n_targets": 1}
    every = np.array([(a, b) for a in (*SPLITS, 0.05, -0.0, 3) for b in (*SPLITS, 0.3)], np.float32)
    run([node("TreeEnsembleRegressor", ["x"], ["y"], 3, ML, **attrs)], every)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_classifier(transform, classes):
    attrs, leaves = trees(20, 4, 5, ("BRANCH_LEQ",), plain=True)
    attrs |= votes(leaves, "class", classes) | {"post_transform": transform}
    attrs["classlabels_int64s"] = [7, -3, 12, 5][:classes]
    run([node("TreeEnsembleClassifier", ["x"], ["l", "y"], 3, ML, **attrs)], rows(40, 5), ("l", "y"))
    run([node("TreeEnsembleClassifier", ["x"], ["l"], 3, ML, **attrs)], rows(2, 5), ("l",))


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("base", [(), (0.25,), (0.5, 0.125)])
def test_two_classes_of_which_one_is_scored(transform, positive, base):
    attrs, leaves = trees(20, 4, 5, ("BRANCH_LT",))
    draw = (lambda n: RNG.random(n) / 20) if positive else None
    attrs |= votes(leaves, "class", 1, draw) | {"post_transform": transform, "classlabels_int64s": [4, 9]}
    if base:
        attrs["base_values"] = list(base)
    run([node("TreeEnsembleClassifier", ["x"], ["l", "y"], 3, ML, **attrs)], rows(40, 5), ("l", "y"))


def test_one_row_without_a_batch_axis():
    attrs, leaves = trees(5, 3, 4)
    attrs |= votes(leaves, "target", 2) | {"n_targets": 2}
    run([node("TreeEnsembleRegressor", ["x"], ["y"], 3, ML, **attrs)], rows(1, 4)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ensemble_with_sets(dtype):
    """Version 5: nodes and leaves by position, membership in sets."""
    modes = np.array([6, 0, 6, 4, 6], np.uint8)
    attrs = {
        "n_targets": 2, "nodes_featureids": [0, 1, 2, 1, 0], "nodes_modes": modes, "tree_roots": [0, 3],
        "nodes_splits": np.array([0, 0.3, 0, 0.5, 0], dtype),
        "nodes_truenodeids": [1, 0, 2, 4, 5], "nodes_trueleafs": [0, 1, 1, 0, 1],
        "nodes_falsenodeids": [2, 1, 3, 4, 6], "nodes_falseleafs": [0, 1, 1, 1, 1],
        "nodes_missing_value_tracks_true": [1, 0, 1, 1, 0], "leaf_targetids": [0, 1, 0, 1, 1, 0, 1],
        "leaf_weights": RNG.standard_normal(7).astype(dtype),
        "membership_values": np.array([0.5, 2, 0.1, np.nan, -1, np.nan, 0.3, 0.5], dtype),
    }  # fmt: skip
    for aggregate in range(4):
        made = node("TreeEnsemble", ["x"], ["y"], 5, ML, aggregate_function=aggregate, **attrs)
        run([made], rows(200, 3, dtype))


def test_doubles_as_thresholds():
    """A threshold between two float32 numbers."""
    attrs, leaves = trees(9, 3, 2, plain=True)
    values = np.array(attrs.pop("nodes_values"))
    attrs["nodes_values_as_tensor"] = values + RNG.choice([-1e-12, 0, 1e-12], values.shape)
    attrs |= votes(leaves, "target", 1) | {"n_targets": 1}
    run([node("TreeEnsembleRegressor", ["x"], ["y"], 3, ML, **attrs)], rows(100, 2))
    run([node("TreeEnsembleRegressor", ["x"], ["y"], 3, ML, **attrs)], rows(100, 2, np.float64))


def test_what_kernels_decline_runs_by_reference():
    attrs, leaves = trees(3, 2, 2)
    attrs |= votes(leaves, "target", 1, lambda n: np.full(n, 0.4)) | {"n_targets": 1, "post_transform": "PROBIT"}
    run([node("TreeEnsembleRegressor", ["x"], ["y"], 3, ML, **attrs)], rows(5, 2), native=False)
