"""Ensembles of decision trees: all rows of a block walk down a tree together, one level a step, without branches.

A walk needs no branch where every node has the same form: go left if x[feature] <= threshold, else right; leaves lead
to themselves. All comparisons of ONNX become this form when the trees are packed (minifer/ops/lower_tree.py). The
steps of the rows of a block do not depend on each other, so the processor overlaps their loads; where rows are few,
several trees take the place of rows (compare Asadi, Lin and de Vries, "Runtime Optimizations for Tree-Based Machine
Learning Models", 2014). The number of levels bounds the walk whatever the tables hold.
"""

import numpy as np

from minifer.kernels.mathfn import exp, sigmoid
from minifer.kernels.simd import share
from minifer.kernels.spec import f32, f64, i64, kernel, ptr, ptr_f32, ptr_f64, ptr_i32, ptr_i64

SUM, AVERAGE, MIN, MAX = range(4)
NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO = range(4)

#: walks of one block: rows times trees
WALKS = 64
#: words of a node: feature * 2 + (1 where NaN goes left), left child, right child
WORDS = 3
INFINITY = float("inf")


# ---------------------------------------------------------------- examples


def draw_trees(rng, size, T):
    """Random trees in packed form: (threshold, node, roots, vote_start, vote_target, vote_weight, targets, levels)."""
    features, targets, levels = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(0, 5))
    threshold, node, roots = [], [], []

    def grow(level):
        at = len(node)
        node.append([0, at, at])
        threshold.append(np.nan)
        if level < levels and rng.random() < 0.8:
            threshold[at] = rng.choice([-0.5, 0.0, 0.5, 1.0])
            left = grow(level + 1)
            node[at] = [int(rng.integers(0, features)) * 2 + int(rng.integers(0, 2)), left, grow(level + 1)]
        return at

    for _ in range(int(rng.integers(1, 12 * size))):
        roots.append(grow(0))
    words = np.array(node, np.int32)
    leaf = words[:, 1] == np.arange(len(words))
    votes = rng.integers(0, 3, len(words)) * leaf
    count = int(votes.sum())
    return features, {
        "threshold": np.array(threshold, T.dtype), "node": words, "roots": np.array(roots, np.int32),
        "vote_start": np.concatenate([[0], np.cumsum(votes)]).astype(np.int64),
        "vote_target": rng.integers(0, targets, max(count, 1)).astype(np.int64),
        "vote_weight": rng.standard_normal(max(count, 1)), "targets": targets, "levels": levels,
    }  # fmt: skip


def forest_example(rng, size, T):
    features, trees = draw_trees(rng, size, T)
    rows = int(rng.choice([1, 2, 5, WALKS - 1, WALKS + 7])) if rng.random() < 0.6 else int(rng.integers(1, 9 * size))
    x = rng.choice([-1.0, -0.5, 0.0, 0.3, 0.5, 1.0, 2.0, np.nan, np.inf], (rows, features)).astype(T.dtype)
    targets = trees["targets"]
    tables = {k: trees[k] for k in ("threshold", "node", "roots", "vote_start", "vote_target", "vote_weight")}
    return {
        "x": x, **tables, "base": rng.standard_normal(targets), "scores": np.full((rows, targets), np.nan),
        "work": np.zeros(8 * WALKS, np.int64), "rows": rows, "features": features, "trees": len(trees["roots"]),
        "targets": targets, "levels": trees["levels"], "aggregate": int(rng.integers(0, 4)),
    }  # fmt: skip


def forest_reference(
    x, threshold, node, roots, vote_start, vote_target, vote_weight, base, scores, work, rows, features, trees, targets,
    levels, aggregate,
):  # fmt: skip
    out = np.zeros((rows, targets))
    for r in range(rows):
        found = [[] for _ in range(targets)]
        for root in roots:
            at = root
            for _ in range(levels):
                v, (word, left, right) = x[r, node[at, 0] >> 1], node[at]
                at = left if v <= threshold[at] or (np.isnan(v) and word & 1) else right
            for i in range(vote_start[at], vote_start[at + 1]):
                found[vote_target[i]].append(vote_weight[i])
        for j, weights in enumerate(found):
            if weights:
                total = (np.sum, np.sum, np.min, np.max)[aggregate](weights)
                out[r, j] = total / trees if aggregate == AVERAGE else total
    return {"scores": out + base}


# ---------------------------------------------------------------- walking


@kernel(
    reference=forest_reference, example=forest_example, outputs=("scores", "work"), tolerance=1e-12,
    over={"T": (f32, f64)},
)  # fmt: skip
def forest(
    x: ptr("T"), threshold: ptr("T"), node: ptr_i32, roots: ptr_i32, vote_start: ptr_i64, vote_target: ptr_i64,
    vote_weight: ptr_f64, base: ptr_f64, scores: ptr_f64, work: ptr_i64, rows: i64, features: i64, trees: i64,
    targets: i64, levels: i64, aggregate: i64, slot: i64, pieces: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """scores[r, j] = base[j] + SUM, AVERAGE, MIN or MAX of the votes for j of the leaves where row r ends.

    x: (rows, features); threshold: (nodes,); node: (nodes, WORDS); roots: (trees,); the votes of node i are those from
    vote_start[i] to vote_start[i + 1]; work: WALKS per thread. No vote at all counts as 0. Votes are added in the order
    of the trees, in float64. rows * trees * levels steps at most. Split over blocks of rows.
    """
    own = work + slot * WALKS
    block = min(WALKS, (rows + pieces - 1) // pieces)
    blocks = (rows + block - 1) // block
    start = f64(0)
    if aggregate == MIN:
        start = f64(INFINITY)
    if aggregate == MAX:
        start = f64(-INFINITY)
    for unit in range(share(blocks, tid, nthreads), share(blocks, tid + 1, nthreads)):
        first = unit * block
        count = min(block, rows - first)
        at_once = WALKS // count
        own_x, own_scores = x + first * features, scores + first * targets
        for i in range(count * targets):
            own_scores[i] = start
        for tree in range(0, trees, at_once):
            several = min(at_once, trees - tree)
            walk(own_x, threshold, node, roots + tree, own, count, several, features, levels)
            for i in range(several * count):
                vote(own[i], vote_start, vote_target, vote_weight, own_scores + i % count * targets, aggregate)
        for i in range(count * targets):
            total = own_scores[i]
            if aggregate == AVERAGE:
                total = total / f64(trees)
            if aggregate > AVERAGE and total == start:
                total = f64(0)
            own_scores[i] = total + base[i % targets]


def walk(x, threshold, node, roots, place, count, trees, features, levels):
    """place[t * count + r] = the leaf of tree t where row r ends."""
    for t in range(trees):
        for r in range(count):
            place[t * count + r] = roots[t]
    for _ in range(levels):
        moved = 0
        for t in range(trees):
            own = place + t * count
            for r in range(count):
                at = own[r]
                word = node[WORDS * at]
                v = x[r * features + (word >> 1)]
                right = 0 if v <= threshold[at] else 1
                right = right & (~word if v != v else 1)
                to = node[WORDS * at + 1 + right]
                moved = moved | (to ^ at)
                own[r] = to
        if moved == 0:
            return


def vote(leaf, vote_start, vote_target, vote_weight, scores, aggregate):
    """Count the votes of a leaf."""
    for i in range(vote_start[leaf], vote_start[leaf + 1]):
        j, weight = vote_target[i], vote_weight[i]
        if aggregate == MIN:
            scores[j] = min(scores[j], weight)
        elif aggregate == MAX:
            scores[j] = max(scores[j], weight)
        else:
            scores[j] = scores[j] + weight


# ---------------------------------------------------------------- from scores to results


def transformed(scores, code):
    """The post_transform of scores (rows, classes), in NumPy."""
    if code == LOGISTIC:
        return 1 / (1 + np.exp(-scores))
    if code == NONE:
        return scores
    alive = np.ones(scores.shape) if code == SOFTMAX else np.abs(scores) > 1e-7
    e = np.exp(scores - scores.max(axis=1, keepdims=True)) * alive
    total = e.sum(axis=1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def transform_reference(scores, y, rows, classes, code):
    return {"y": transformed(scores, code)}


def transform_example(rng, size):
    rows, classes = int(rng.integers(1, 9 * size)), int(rng.integers(1, 9))
    scores = rng.choice([1, 30]) * rng.standard_normal((rows, classes))
    scores[rng.random(scores.shape) < 0.2] = 0
    y = np.full((rows, classes), np.nan, "f")
    return {"scores": scores, "y": y, "rows": rows, "classes": classes, "code": int(rng.integers(0, 4))}


@kernel(reference=transform_reference, example=transform_example, tolerance=1e-6, group="scores")
def transform_scores(scores: ptr_f64, y: ptr_f32, rows: i64, classes: i64, code: i64, tid: i64, nthreads: i64):
    """y = post_transform of scores; both (rows, classes). The maximum is taken off in float64, the rest is float32."""
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        transform_row(scores + row * classes, y + row * classes, classes, code)


def transform_row(s, y, classes, code):
    """One row."""
    if code == NONE:
        for j in range(classes):
            y[j] = f32(s[j])
    elif code == LOGISTIC:
        for j in range(classes):
            y[j] = sigmoid(f32(s[j]))
    else:
        most = s[0]
        for j in range(1, classes):
            most = max(most, s[j])
        total = f64(0)
        for j in range(classes):
            e = exp(f32(s[j] - most))
            if code == SOFTMAX_ZERO and abs(s[j]) <= f64(1e-7):
                e = f32(0)
            y[j] = e
            total = total + f64(e)
        if total != 0:
            for j in range(classes):
                y[j] = f32(f64(y[j]) / total)


def classify_reference(scores, labels, label, y, rows, classes, code):
    return {"label": labels[scores.argmax(axis=1)], "y": transformed(scores, code)}


def classify_example(rng, size):
    drawn = transform_example(rng, size)
    rows, classes = drawn["rows"], drawn["classes"]
    return {
        "scores": drawn["scores"], "labels": rng.integers(-9, 9, classes), "label": np.zeros(rows, np.int64),
        "y": drawn["y"], "rows": rows, "classes": classes, "code": drawn["code"],
    }  # fmt: skip


@kernel(
    reference=classify_reference, example=classify_example, outputs=("label", "y"), tolerance=1e-6, group="scores"
)  # fmt: skip
def classify(
    scores: ptr_f64, labels: ptr_i64, label: ptr_i64, y: ptr_f32, rows: i64, classes: i64, code: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """label = labels[the first class of the highest score]; y as in transform_scores."""
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        s = scores + row * classes
        best = 0
        for j in range(1, classes):
            best = j if s[j] > s[best] else best
        label[row] = labels[best]
        transform_row(s, y + row * classes, classes, code)


def classify_two_reference(scores, labels, label, y, rows, limit, total, code):
    s = scores.reshape(rows)
    pair = [1 / (1 + np.exp(s)), 1 / (1 + np.exp(-s))] if code == LOGISTIC else [total - s, s]
    return {"label": labels[(s > limit).astype(np.int64)], "y": np.stack(pair, 1)}


def classify_two_example(rng, size):
    rows = int(rng.integers(1, 30 * size))
    return {
        "scores": rng.standard_normal((rows, 1)), "labels": rng.integers(-9, 9, 2), "label": np.zeros(rows, np.int64),
        "y": np.full((rows, 2), np.nan, "f"), "rows": rows, "limit": float(rng.choice([0.0, 0.5])),
        "total": float(rng.integers(0, 2)), "code": int(rng.choice([NONE, LOGISTIC])),
    }  # fmt: skip


@kernel(
    reference=classify_two_reference, example=classify_two_example, outputs=("label", "y"), tolerance=1e-6,
    group="scores",
)  # fmt: skip
def classify_two(
    scores: ptr_f64, labels: ptr_i64, label: ptr_i64, y: ptr_f32, rows: i64, limit: f64, total: f64, code: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """Two classes of which only the second is scored: scores (rows,); it wins above `limit`.

    y (rows, 2): LOGISTIC of -score and score, else total - score and score.
    """
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        s = scores[row]
        label[row] = labels[1 if s > limit else 0]
        if code == LOGISTIC:
            y[2 * row] = sigmoid(f32(f64(0) - s))
            y[2 * row + 1] = sigmoid(f32(s))
        else:
            y[2 * row] = f32(total - s)
            y[2 * row + 1] = f32(s)
