"""Tree ensembles of ai.onnx.ml: TreeEnsemble and the older TreeEnsembleClassifier and TreeEnsembleRegressor.

How trees are held and walked is in ml_forest.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import ModelError
from minifer.ir import TensorType, Type
from minifer.ops.ml_forest import AGGREGATES, Forest, forest_by_id, forest_by_position, kept_forest
from minifer.ops.ml_scores import (
    ML,
    TRANSFORMS,
    class_labels,
    feature_rows,
    label_type,
    row_count,
    transform_scores,
    two_scores,
)
from minifer.ops.registry import Call, Declined, Op, deferred, register

Ensemble, lower_classes, lower_scores = deferred("lower_tree", "Ensemble", "lower_classes", "lower_scores")


def _either(floats: Sequence[float], tensor: np.ndarray | None, name: str) -> np.ndarray:
    """A list of floats, or the tensor that may stand for it, as float64."""
    if tensor is None:
        return np.array(floats, np.float64)
    if len(floats):
        raise ModelError(f"{name} and {name}_as_tensor must not both be given")
    return tensor.reshape(-1).astype(np.float64)


def _base(values: np.ndarray, targets: int) -> np.ndarray:
    """Base values to add to the scores: one for each target, or one for all, or none."""
    if len(values) not in (0, 1, targets):
        raise ModelError(f"there are {len(values)} base values for {targets} targets")
    return values if len(values) else np.zeros(1)


#: attributes of the nodes that versions 1 and 3 share, read from the node where its forest is made
_NODES = (
    "nodes_falsenodeids", "nodes_featureids", "nodes_missing_value_tracks_true", "nodes_modes", "nodes_nodeids",
    "nodes_treeids", "nodes_truenodeids",
)  # fmt: skip


def _voting_forest(attrs: Mapping[str, Any], kind: str, targets: int) -> Forest:
    """The forest of a version whose leaves vote by id; `kind` is "target" or "class"."""

    def floats(name: str) -> np.ndarray:
        return _either(attrs.get(name, ()), attrs.get(f"{name}_as_tensor"), name)

    return forest_by_id(
        thresholds=floats("nodes_values"),
        vote_trees=attrs.get(f"{kind}_treeids", ()),
        vote_nodes=attrs.get(f"{kind}_nodeids", ()),
        vote_targets=attrs.get(f"{kind}_ids", ()),
        vote_weights=floats(f"{kind}_weights"),
        targets=targets,
        **{name: attrs.get(name, ()) for name in _NODES},
    )


def _base_of(attrs: Mapping[str, Any]) -> np.ndarray:
    return _either(attrs.get("base_values", ()), attrs.get("base_values_as_tensor"), "base_values")


def _regressor(
    x,
    *,
    aggregate_function="SUM",
    base_values=(),
    base_values_as_tensor=None,
    n_targets,
    nodes_falsenodeids=(),
    nodes_featureids=(),
    nodes_hitrates=(),
    nodes_hitrates_as_tensor=None,
    nodes_missing_value_tracks_true=(),
    nodes_modes=(),
    nodes_nodeids=(),
    nodes_treeids=(),
    nodes_truenodeids=(),
    nodes_values=(),
    nodes_values_as_tensor=None,
    post_transform="NONE",
    target_ids=(),
    target_nodeids=(),
    target_treeids=(),
    target_weights=(),
    target_weights_as_tensor=None,
    ctx,
):
    """(rows, features) -> (rows, n_targets) float32."""
    if aggregate_function not in AGGREGATES:
        raise ModelError(f"aggregate_function must be one of {', '.join(AGGREGATES)}, not {aggregate_function!r}")
    forest = kept_forest(ctx, lambda: _voting_forest(ctx.node.attrs, "target", n_targets))
    scores = forest.scores(forest.leaves(feature_rows(x)), n_targets, aggregate_function)
    scores = scores + _base(_base_of(ctx.node.attrs), n_targets)
    return transform_scores(scores, post_transform).astype(np.float32)


def _infer_regressor(call: Call) -> Type:
    targets = call.attr("n_targets")
    if targets is None:
        raise call.fail("needs n_targets")
    return TensorType("float32", (row_count(call), targets))


def _classifier(
    x,
    *,
    base_values=(),
    base_values_as_tensor=None,
    class_ids=(),
    class_nodeids=(),
    class_treeids=(),
    class_weights=(),
    class_weights_as_tensor=None,
    classlabels_int64s=(),
    classlabels_strings=(),
    nodes_falsenodeids=(),
    nodes_featureids=(),
    nodes_hitrates=(),
    nodes_hitrates_as_tensor=None,
    nodes_missing_value_tracks_true=(),
    nodes_modes=(),
    nodes_nodeids=(),
    nodes_treeids=(),
    nodes_truenodeids=(),
    nodes_values=(),
    nodes_values_as_tensor=None,
    post_transform="NONE",
    ctx,
):
    """Returns labels (rows,) and scores (rows, classes).

    Where there are two classes and the leaves vote for one only, that vote scores the second class: it wins
    above 0.5 if no weight is negative (then the first class scores 1 - score), else above 0.
    """
    labels = class_labels(classlabels_strings, classlabels_int64s)
    classes = len(labels)
    forest = kept_forest(ctx, lambda: _voting_forest(ctx.node.attrs, "class", classes))
    scores = forest.scores(forest.leaves(feature_rows(x)), classes, "SUM")
    base = _base_of(ctx.node.attrs)
    if _scores_second_class_only(forest, classes):
        score = scores[:, forest.vote_target[0]] + (base[-1] if len(base) else 0)
        positive = bool((forest.vote_weight >= 0).all())
        winners = (score > (0.5 if positive else 0)).astype(np.int64)
        scores = two_scores(score, post_transform, complement=positive)
    else:
        scores = scores + _base(base, classes)
        winners = scores.argmax(1)
        scores = transform_scores(scores, post_transform)
    return labels[winners], scores.astype(np.float32)


def _scores_second_class_only(forest: Forest, classes: int) -> bool:
    return classes == 2 and len(np.unique(forest.vote_target)) == 1


def _lower_regressor(low: Any) -> Declined | None:
    targets, attrs = low.attr("n_targets"), low.node.attrs

    def ensemble() -> Any:
        forest = kept_forest(low, lambda: _voting_forest(attrs, "target", targets))
        base = np.broadcast_to(_base(_base_of(attrs), targets), (targets,))
        return Ensemble(forest, targets, base, low.attr("aggregate_function", "SUM"))

    return lower_scores(low, ensemble, low.attr("post_transform", "NONE"))


def _lower_classifier(low: Any) -> Declined | None:
    labels = class_labels(low.attr("classlabels_strings", ()), low.attr("classlabels_int64s", ()))
    classes = len(labels)

    def ensemble() -> Any:
        forest = kept_forest(low, lambda: _voting_forest(low.node.attrs, "class", classes))
        base = _base_of(low.node.attrs)
        if _scores_second_class_only(forest, classes):
            return Ensemble(forest, 1, base[-1:] if len(base) else np.zeros(1), "SUM")
        return Ensemble(forest, classes, np.broadcast_to(_base(base, classes), (classes,)), "SUM")

    return lower_classes(low, ensemble, labels, low.attr("post_transform", "NONE"))


def _infer_classifier(call: Call) -> list[Type]:
    rows = row_count(call)
    dtype, classes = label_type(call, "classlabels_strings", "classlabels_int64s")
    return [TensorType(dtype, (rows,)), TensorType("float32", (rows, classes))]


for _since in (1, 3, 5):
    register(Op("TreeEnsembleRegressor", _since, _regressor, _infer_regressor, _lower_regressor, domain=ML))
    register(Op("TreeEnsembleClassifier", _since, _classifier, _infer_classifier, _lower_classifier, domain=ML))


def _leaf_forest(attrs: Mapping[str, Any]) -> Forest:
    """The forest of version 5, whose leaves stand apart."""
    return forest_by_position(
        leaf_targetids=attrs["leaf_targetids"],
        leaf_weights=attrs["leaf_weights"],
        membership_values=attrs.get("membership_values"),
        missing=attrs.get("nodes_missing_value_tracks_true", ()),
        nodes_featureids=attrs["nodes_featureids"],
        nodes_modes=attrs["nodes_modes"],
        nodes_splits=attrs["nodes_splits"],
        branches=(
            (attrs["nodes_truenodeids"], attrs["nodes_trueleafs"], "nodes_truenodeids"),
            (attrs["nodes_falsenodeids"], attrs["nodes_falseleafs"], "nodes_falsenodeids"),
        ),
        tree_roots=attrs["tree_roots"],
        targets=attrs["n_targets"],
    )


def _ensemble(
    x,
    *,
    aggregate_function=1,
    leaf_targetids,
    leaf_weights,
    membership_values=None,
    n_targets,
    nodes_falseleafs,
    nodes_falsenodeids,
    nodes_featureids,
    nodes_hitrates=None,
    nodes_missing_value_tracks_true=(),
    nodes_modes,
    nodes_splits,
    nodes_trueleafs,
    nodes_truenodeids,
    post_transform=0,
    tree_roots,
    ctx,
):
    """(rows, features) -> (rows, n_targets), of the type of the input."""
    if not 0 <= aggregate_function < len(AGGREGATES) or not 0 <= post_transform < len(TRANSFORMS):
        raise ModelError(f"aggregate_function {aggregate_function} or post_transform {post_transform} is not known")
    forest = kept_forest(ctx, lambda: _leaf_forest(ctx.node.attrs))
    scores = forest.scores(forest.leaves(feature_rows(x)), n_targets, AGGREGATES[aggregate_function])
    return transform_scores(scores, TRANSFORMS[post_transform]).astype(x.dtype)


def _infer_ensemble(call: Call) -> Type:
    targets = call.attr("n_targets")
    if targets is None:
        raise call.fail("needs n_targets")
    if call.dtype(0) not in dtypes.FLOATS:
        raise call.fail("the input must hold floats")
    return TensorType(call.dtype(0), (row_count(call), targets))


def _lower_ensemble(low: Any) -> Declined | None:
    targets, aggregate = low.attr("n_targets"), low.attr("aggregate_function", 1)
    transform = low.attr("post_transform", 0)
    if not 0 <= aggregate < len(AGGREGATES) or not 0 <= transform < len(TRANSFORMS):
        return Declined("an attribute is out of range")

    def ensemble() -> Any:
        forest = kept_forest(low, lambda: _leaf_forest(low.node.attrs))
        return Ensemble(forest, targets, np.zeros(targets), AGGREGATES[aggregate])

    return lower_scores(low, ensemble, TRANSFORMS[transform])


register(Op("TreeEnsemble", since=5, infer=_infer_ensemble, reference=_ensemble, lower=_lower_ensemble, domain=ML))
