"""Trees as arrays, for the tree ensembles of ai.onnx.ml.

All forms of the operators become one `Forest`: parallel arrays of nodes, with the leaves among them. All rows walk
through all trees at once, one level a step. A forest is checked when it is made (every child exists, no path runs
in a circle), so that a walk always ends; the one of a node is kept as long as the node lives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minifer.errors import InputError, ModelError
from minifer.record import Record

#: Node modes; the first seven are the codes of TreeEnsemble's nodes_modes.
_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
_MEMBER, _LEAF = 6, 7
_COMPARE = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_WALK = 1 << 20  # (row, tree) pairs that walk together


class Forest(Record, eq=False):
    """Trees as arrays over all nodes; leaves have mode LEAF, and their votes are a slice of the vote arrays."""

    mode: np.ndarray  # (nodes,) uint8
    feature: np.ndarray  # (nodes,) int64
    threshold: np.ndarray  # (nodes,) float64
    missing: np.ndarray  # (nodes,) bool: whether NaN takes the true branch
    true: np.ndarray  # (nodes,) int64 index of the child
    false: np.ndarray
    roots: np.ndarray  # (trees,) int64
    vote_start: np.ndarray  # (nodes,) int64
    vote_count: np.ndarray  # (nodes,) int64
    vote_target: np.ndarray  # (votes,) int64
    vote_weight: np.ndarray  # (votes,) float64
    members: np.ndarray  # (k,) int64, sorted: number of the set * number of values + number of the value
    member_values: np.ndarray  # (values,) float64, sorted
    member_set: np.ndarray  # (nodes,) int64 number of the set of a BRANCH_MEMBER node

    def check(self) -> None:
        """ModelError where a feature is negative or a path runs in a circle. Nodes may share a child."""
        inner = np.flatnonzero(self.mode != _LEAF)
        if len(inner) and self.feature[inner].min() < 0:
            raise ModelError("a tree node has a negative feature id")
        waiting = np.bincount(np.concatenate([self.true[inner], self.false[inner]]), minlength=len(self.mode))
        ready, done = np.flatnonzero(waiting == 0), 0
        while len(ready):
            done += len(ready)
            ready = ready[self.mode[ready] != _LEAF]
            reached, times = np.unique(np.concatenate([self.true[ready], self.false[ready]]), return_counts=True)
            waiting[reached] -= times
            ready = reached[waiting[reached] == 0]
        if done < len(self.mode):
            raise ModelError("the branches of a tree lead in a circle")

    def leaves(self, x: np.ndarray) -> np.ndarray:
        """The node where each row ends in each tree: (rows, features) -> (rows, trees)."""
        inner = self.mode != _LEAF
        if inner.any() and self.feature[inner].max() >= x.shape[1]:
            raise InputError(f"the trees ask for feature {self.feature[inner].max()}, and rows have {x.shape[1]}")
        out = np.empty((len(x), len(self.roots)), np.int64)
        block = max(_WALK // max(len(self.roots), 1), 1)
        for start in range(0, len(x), block):
            out[start : start + block] = self._walk(x[start : start + block])
        return out

    def _walk(self, x: np.ndarray) -> np.ndarray:
        at = np.tile(self.roots, len(x))
        row = np.repeat(np.arange(len(x)), len(self.roots))
        walking = np.flatnonzero(self.mode[at] != _LEAF)
        while len(walking):
            node = at[walking]
            taken = self._test(node, x[row[walking], self.feature[node]])
            node = np.where(taken, self.true[node], self.false[node])
            at[walking] = node
            walking = walking[self.mode[node] != _LEAF]
        return at.reshape(len(x), -1)

    def _test(self, node: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Whether each value takes the true branch of its node."""
        mode = self.mode[node]
        out = np.zeros(len(node), np.bool_)
        for kind in np.unique(mode):
            pick = slice(None) if mode[0] == kind and (mode == kind).all() else mode == kind
            if kind == _MEMBER:
                out[pick] = self._is_member(self.member_set[node[pick]], value[pick])
            else:
                out[pick] = _COMPARE[kind](value[pick], self.threshold[node[pick]])
        return np.where(np.isnan(value), self.missing[node], out)

    def _is_member(self, numbers: np.ndarray, value: np.ndarray) -> np.ndarray:
        at = _positions(self.member_values, value)
        return (at >= 0) & (_positions(self.members, numbers * len(self.member_values) + at) >= 0)

    def scores(self, leaves: np.ndarray, targets: int, aggregate: str) -> np.ndarray:
        """Votes of the leaves put together: (rows, trees) -> (rows, targets) float64. No vote at all gives 0."""
        flat = leaves.reshape(-1)
        count = self.vote_count[flat]
        voter = np.repeat(np.arange(len(flat)), count)
        vote = np.arange(len(voter)) - np.repeat(np.cumsum(count) - count, count) + self.vote_start[flat][voter]
        place = voter // max(leaves.shape[1], 1) * targets + self.vote_target[vote]
        weight = self.vote_weight[vote]
        size = len(leaves) * targets
        if aggregate in ("SUM", "AVERAGE"):
            total = np.bincount(place, weight, size) / (max(len(self.roots), 1) if aggregate == "AVERAGE" else 1)
            return total.reshape(len(leaves), targets)
        best = np.full(size, np.inf if aggregate == "MIN" else -np.inf)
        (np.minimum if aggregate == "MIN" else np.maximum).at(best, place, weight)
        voted = np.bincount(place, minlength=size) > 0
        return np.where(voted, best, 0).reshape(len(leaves), targets)


def _positions(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Positions of `values` in a sorted table, -1 where they are not in it."""
    if not len(table):
        return np.full(values.shape, -1, np.int64)
    at = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return np.where(table[at] == values, at, -1)


_KEPT: WeakKeyDictionary[Any, Forest] = WeakKeyDictionary()


def kept_forest(ctx: Any, make: Callable[[], Forest]) -> Forest:
    """The forest of a node, made and checked on its first run."""
    forest = _KEPT.get(ctx.node)
    if forest is None:
        forest = make()
        forest.check()
        _KEPT[ctx.node] = forest
    return forest


def _numbers(values: Any, count: int, name: str, default: float | None = None) -> np.ndarray:
    """A list attribute with one entry for each of `count` nodes."""
    if default is not None and len(values) == 0:
        return np.full(count, default)
    if len(values) != count:
        raise ModelError(f"{name} has {len(values)} entries for {count} nodes")
    return np.asarray(values)


# ------------------------------------------------------------------------------------- versions 1 and 3: by node id


class _NodeIds:
    """Finds nodes by (tree id, node id)."""

    def __init__(self, tree: np.ndarray, node: np.ndarray):
        self._trees, first, rank = np.unique(tree, return_index=True, return_inverse=True)
        self._nodes, node_rank = np.unique(node, return_inverse=True)
        self.roots = np.sort(first)  # the node of each tree that is listed first
        key = rank.reshape(-1) * len(self._nodes) + node_rank.reshape(-1)
        self._order = np.argsort(key, kind="stable")
        self._keys = key[self._order]
        again = np.flatnonzero(np.diff(self._keys) == 0)
        if len(again):
            i = self._order[again[0]]
            raise ModelError(f"node {node[i]} of tree {tree[i]} is listed twice")

    def find(self, trees: np.ndarray, nodes: np.ndarray, what: str) -> np.ndarray:
        """Indices of nodes; ModelError where one does not exist."""
        tree, node = _positions(self._trees, trees), _positions(self._nodes, nodes)
        at = _positions(self._keys, tree * len(self._nodes) + node)
        missing = np.flatnonzero((tree < 0) | (node < 0) | (at < 0))
        if len(missing):
            i = missing[0]
            raise ModelError(f"{what} names node {nodes[i]} of tree {trees[i]}, which does not exist")
        return self._order[at]


def _mode_codes(names: Sequence[str]) -> np.ndarray:
    codes = {name: code for code, name in enumerate(_MODES) if code != _MEMBER}
    unknown = sorted({str(n) for n in names} - set(codes))
    if unknown:
        raise ModelError(f"nodes_modes holds {', '.join(unknown)}, which is no mode; known are {', '.join(codes)}")
    return np.array([codes[name] for name in names], np.uint8)


def forest_by_id(
    *,
    nodes_featureids: Sequence[int] = (),
    nodes_modes: Sequence[str] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_falsenodeids: Sequence[int] = (),
    nodes_missing_value_tracks_true: Sequence[int] = (),
    thresholds: np.ndarray,
    vote_trees: Sequence[int],
    vote_nodes: Sequence[int],
    vote_targets: Sequence[int],
    vote_weights: np.ndarray,
    targets: int,
) -> Forest:
    """The forest of a version whose nodes name their children by id and whose votes name their leaf by id."""
    count, votes = len(nodes_modes), len(vote_targets)
    trees = _numbers(nodes_treeids, count, "nodes_treeids").astype(np.int64)
    ids = _NodeIds(trees, _numbers(nodes_nodeids, count, "nodes_nodeids").astype(np.int64))
    mode = _mode_codes(nodes_modes)
    inner = np.flatnonzero(mode != _LEAF)
    children = []
    for values, name in ((nodes_truenodeids, "nodes_truenodeids"), (nodes_falsenodeids, "nodes_falsenodeids")):
        child = np.zeros(count, np.int64)
        named = _numbers(values, count, name).astype(np.int64)
        child[inner] = ids.find(trees[inner], named[inner], name)
        children.append(child)
    if len(vote_trees) != votes or len(vote_nodes) != votes or len(vote_weights) != votes:
        raise ModelError("the attributes of the votes at the leaves (ids, nodeids, treeids, weights) differ in length")
    target = np.array(vote_targets, np.int64)
    if votes and not 0 <= target.min() <= target.max() < targets:
        raise ModelError(f"a leaf votes for target {target.min()} or {target.max()}, outside [0, {targets})")
    voter = ids.find(np.array(vote_trees, np.int64), np.array(vote_nodes, np.int64), "a vote")
    order = np.argsort(voter, kind="stable")
    vote_count = np.bincount(voter, minlength=count)
    empty = np.zeros(0, np.int64)
    return Forest(
        mode=mode,
        feature=_numbers(nodes_featureids, count, "nodes_featureids").astype(np.int64),
        threshold=_numbers(thresholds, count, "nodes_values"),
        missing=_numbers(nodes_missing_value_tracks_true, count, "nodes_missing_value_tracks_true", 0) != 0,
        true=children[0],
        false=children[1],
        roots=ids.roots,
        vote_start=np.cumsum(vote_count) - vote_count,
        vote_count=vote_count,
        vote_target=target[order],
        vote_weight=vote_weights[order],
        members=empty,
        member_values=empty.astype(np.float64),
        member_set=np.zeros(count, np.int64),
    )


# ------------------------------------------------------------------------------------ version 5: nodes and leaves


def _member_sets(values: np.ndarray | None, mode: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(members, member_values, member_set) of a Forest from sets that NaN divides, in the order of their nodes."""
    asking = np.flatnonzero(mode == _MEMBER)
    flat = np.zeros(0) if values is None else values.reshape(-1).astype(np.float64)
    ends = np.isnan(flat)
    given = int(ends.sum()) + (0 if not len(flat) or ends[-1] else 1)
    if given != len(asking):
        raise ModelError(f"membership_values holds {given} sets for {len(asking)} nodes of mode BRANCH_MEMBER")
    number = np.cumsum(ends)[~ends]
    member_values, rank = np.unique(flat[~ends], return_inverse=True)
    member_set = np.zeros(len(mode), np.int64)
    member_set[asking] = np.arange(len(asking))
    return np.unique(number * len(member_values) + rank.reshape(-1)), member_values, member_set


def forest_by_position(
    *,
    leaf_targetids: Sequence[int],
    leaf_weights: np.ndarray,
    membership_values: np.ndarray | None,
    missing: Sequence[int],
    nodes_featureids: Sequence[int],
    nodes_modes: np.ndarray,
    nodes_splits: np.ndarray,
    branches: Sequence[tuple[Sequence[int], Sequence[int], str]],
    tree_roots: Sequence[int],
    targets: int,
) -> Forest:
    """The forest of version 5, whose leaves stand apart: leaf i becomes node (number of nodes + i)."""
    inner, leaves = nodes_modes.size, len(leaf_targetids)
    codes = nodes_modes.reshape(-1)
    if inner and not 0 <= codes.min() <= codes.max() <= _MEMBER:
        raise ModelError(f"nodes_modes holds a code outside [0, {_MEMBER}]")
    if leaf_weights.size != leaves:
        raise ModelError(f"leaf_weights has {leaf_weights.size} entries, and leaf_targetids {leaves}")
    target, roots = np.array(leaf_targetids, np.int64), np.array(tree_roots, np.int64)
    if leaves and not 0 <= target.min() <= target.max() < targets:
        raise ModelError(f"a leaf votes for target {target.min()} or {target.max()}, outside [0, {targets})")
    if len(roots) and not 0 <= roots.min() <= roots.max() < inner:
        raise ModelError(f"tree_roots names a node outside [0, {inner})")
    children = []
    for ids, are_leaves, name in branches:
        child = _numbers(ids, inner, name).astype(np.int64)
        to_leaf = _numbers(are_leaves, inner, name.replace("nodeids", "leafs")) != 0
        if inner and ((child < 0) | (child >= np.where(to_leaf, leaves, inner))).any():
            raise ModelError(f"{name} names a child that does not exist")
        children.append(np.concatenate([np.where(to_leaf, child + inner, child), np.zeros(leaves, np.int64)]))
    members, member_values, member_set = _member_sets(membership_values, codes)
    padding = np.zeros(leaves)
    features = _numbers(nodes_featureids, inner, "nodes_featureids")
    missing_true = _numbers(missing, inner, "nodes_missing_value_tracks_true", 0)
    splits = _numbers(nodes_splits.reshape(-1), inner, "nodes_splits")
    return Forest(
        mode=np.concatenate([codes, np.full(leaves, _LEAF)]).astype(np.uint8),
        feature=np.concatenate([features, padding]).astype(np.int64),
        threshold=np.concatenate([splits, padding]).astype(np.float64),
        missing=np.concatenate([missing_true, padding]) != 0,
        true=children[0],
        false=children[1],
        roots=roots,
        vote_start=np.concatenate([np.zeros(inner, np.int64), np.arange(leaves)]),
        vote_count=np.concatenate([np.zeros(inner, np.int64), np.ones(leaves, np.int64)]),
        vote_target=target,
        vote_weight=leaf_weights.reshape(-1).astype(np.float64),
        members=members,
        member_values=member_values,
        member_set=np.concatenate([member_set, np.zeros(leaves, np.int64)]),
    )
