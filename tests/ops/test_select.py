"""Compress, NonZero, TopK, Unique, NonMaxSuppression: order of ties, odd types, empty tensors, errors."""

import numpy as np
import pytest

from minifer.dtypes import to_numpy
from minifer.errors import InputError, MiniferError, ShapeError
from minifer.ir import TensorType
from tests.ops.helpers import infer_op, infer_value, run_op


def ints(*values):
    return np.array(values, np.int64)


def test_compress():
    x = np.arange(6).reshape(2, 3)
    keep = np.array([False, True])
    assert run_op("Compress", 9, x, keep, axis=1)[0].tolist() == [[1], [4]]
    assert run_op("Compress", 11, x, keep, axis=-2)[0].tolist() == [[3, 4, 5]]
    assert run_op("Compress", 11, x, keep)[0].tolist() == [1]
    assert run_op("Compress", 11, np.array(["a", "b"], object), keep, axis=0)[0].tolist() == ["b"]
    assert infer_value("Compress", 11, x, keep, axis=1)[0].shape == (2, 1)
    assert infer_op("Compress", 11, TensorType("int8", ("n", 3)), TensorType("bool", (3,)), axis=1)[0].shape == (
        "n",
        None,
    )
    for condition in (np.ones(3, bool), np.ones((1, 1), bool)):
        with pytest.raises(ShapeError, match="condition"):
            run_op("Compress", 11, x, condition, axis=0)


def test_non_zero():
    assert run_op("NonZero", 9, np.array([[0, 2], [3, 0]], np.uint8))[0].tolist() == [[0, 1], [1, 0]]
    assert run_op("NonZero", 13, np.array(["", "a"], object))[0].tolist() == [[1]]
    assert run_op("NonZero", 13, np.array([0, 1]).astype(to_numpy("bfloat16")))[0].tolist() == [[1]]
    for value, count in ((0, 0), (5, 1)):  # the spec: no axes, so no rows
        (y,) = run_op("NonZero", 13, np.array(value))
        assert y.shape == (0, count) and y.dtype == np.int64
        assert infer_value("NonZero", 13, np.array(value))[0].shape == (0, count)
    assert run_op("NonZero", 13, np.zeros((0, 3)))[0].shape == (2, 0)
    assert infer_op("NonZero", 13, TensorType("int8", ("n", 3))) == [TensorType("int64", (2, None))]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "uint64"])
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_prefers_the_lower_index(dtype, largest):
    rng = np.random.default_rng(4)
    x = rng.integers(0, 4, (3, 9)).astype(to_numpy(dtype))
    values, index = run_op("TopK", 11, x, ints(5), outputs=2, largest=largest)
    sign = -1 if largest else 1
    for row, (v, i) in enumerate(zip(values, index)):
        plain = [int(e) for e in x[row]]
        assert i.tolist() == sorted(range(9), key=lambda j: (sign * plain[j], j))[:5]
        assert [int(e) for e in v] == [plain[j] for j in i]
    assert values.dtype == x.dtype and index.dtype == np.int64


def test_top_k_versions_and_extremes():
    x = np.array([[3.0, np.nan], [1.0, 2.0]])
    assert run_op("TopK", 1, x, outputs=2, k=1, axis=0)[1].tolist() == [[0, 0]]
    assert run_op("TopK", 10, x, ints(1), outputs=2, axis=0)[0][0, 0] == 3.0
    low = np.iinfo(np.int64).min
    assert run_op("TopK", 11, ints(low, 0, low), ints(3), outputs=2)[1].tolist() == [1, 0, 2]
    assert run_op("TopK", 11, np.zeros((2, 0)), ints(0), outputs=2)[0].shape == (2, 0)
    kinds = TensorType("float32", ("n", 4)), TensorType("int64", (1,))
    assert [t.shape for t in infer_op("TopK", 11, *kinds, outputs=2)] == [("n", None)] * 2
    assert [t.shape for t in infer_op("TopK", 1, kinds[0], outputs=2, k=3)] == [("n", 3)] * 2
    for k, attrs, message in (
        (ints(3), {}, "only 2"),
        (ints(-1), {}, "negative"),
        (ints(1, 1), {}, "one number"),
        (ints(1), {"axis": 2}, "axis 2"),
    ):
        with pytest.raises(ShapeError, match=message):
            run_op("TopK", 11, x, k, outputs=2, **attrs)
        with pytest.raises(ShapeError, match=message):
            infer_value("TopK", 11, x, k, outputs=2, **attrs)


def test_unique():
    words = np.array([["b", "a"], ["b", "a"], ["a", "z"]], object)
    y, first, inverse, counts = run_op("Unique", 11, words, outputs=4, axis=0)
    assert y.tolist() == [["a", "z"], ["b", "a"]] and first.tolist() == [2, 0]
    assert inverse.tolist() == [1, 1, 0] and counts.tolist() == [1, 2]
    y, first, inverse, counts = run_op("Unique", 11, words, outputs=4, sorted=0)
    assert y.tolist() == ["b", "a", "z"] and first.tolist() == [0, 1, 5]
    assert inverse.tolist() == [0, 1, 0, 1, 1, 2] and counts.tolist() == [2, 3, 1]
    brief = np.array([2, 1, 2]).astype(to_numpy("bfloat16"))
    assert run_op("Unique", 28, brief, outputs=4)[0].astype(int).tolist() == [1, 2]
    assert [v.shape for v in run_op("Unique", 11, np.zeros((0, 3)), outputs=4)] == [(0,)] * 4
    assert [v.shape for v in run_op("Unique", 11, np.zeros((2, 0)), outputs=4, axis=0)] == [(1, 0), (1,), (2,), (1,)]
    kinds = infer_op("Unique", 11, TensorType("int8", ("n", 3)), outputs=4, axis=0)
    assert [k.shape for k in kinds] == [(None, 3), (None,), ("n",), (None,)]
    with pytest.raises(ShapeError, match="axis 2"):
        run_op("Unique", 11, words, outputs=4, axis=2)


def plain_suppression(boxes, scores, most, iou, least):
    """Box by box, in the order of scores."""

    def area(b):
        return max(b[2] - b[0], 0) * max(b[3] - b[1], 0)

    def overlap(a, b):
        common = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
        return common / (area(a) + area(b) - common)

    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if len(kept) < most and scores[i] > least and all(overlap(boxes[i], boxes[j]) <= iou for j in kept):
            kept.append(i)
    return kept


def test_non_max_suppression():
    rng = np.random.default_rng(5)
    for _ in range(20):
        corner = rng.uniform(0, 1, (12, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.8, (12, 2))], 1).astype(np.float32)
        scores = rng.choice([0.1, 0.4, 0.7, 0.9], (2, 12)).astype(np.float32)
        limits = ints(4), np.array([0.3], np.float32), np.array([0.2], np.float32)
        (y,) = run_op("NonMaxSuppression", 10, boxes[None], scores[None], *limits)
        assert y.tolist() == [[0, c, i] for c in (0, 1) for i in plain_suppression(boxes, scores[c], 4, 0.3, 0.2)]
        flipped = boxes[:, [2, 1, 0, 3]]  # any two opposite corners
        centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        assert np.array_equal(run_op("NonMaxSuppression", 11, flipped[None], scores[None], *limits)[0], y)
        again = run_op("NonMaxSuppression", 11, centred[None], scores[None], *limits, center_point_box=1)[0]
        assert len(again) == len(y)


def test_non_max_suppression_limits():
    boxes, scores = np.zeros((1, 3, 4), np.float32), np.ones((1, 1, 3), np.float32)
    assert run_op("NonMaxSuppression", 11, boxes, scores)[0].shape == (0, 3)
    assert run_op("NonMaxSuppression", 11, boxes[:, :0], scores[..., :0], ints(2))[0].shape == (0, 3)
    assert infer_value("NonMaxSuppression", 11, boxes, scores) == [TensorType("int64", (None, 3))]
    with pytest.raises(InputError, match="iou_threshold"):
        run_op("NonMaxSuppression", 11, boxes, scores, ints(1), np.array([1.5], np.float32))
    for bad in (boxes[0], boxes[..., :3], boxes[:, :2]):
        with pytest.raises(MiniferError, match="boxes"):
            run_op("NonMaxSuppression", 11, bad, scores, ints(1))
