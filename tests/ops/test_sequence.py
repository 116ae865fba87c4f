"""Sequences and optionals: positions, types, joining and splitting, empty ones, bad input."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.errors import InputError, ModelError, ShapeError, UnsupportedError
from minifer.ir import OptionalType, SequenceType, TensorType
from tests.ops.helpers import EMPTY, infer_op, run_op


def tensors(*sizes, dtype=np.float32):
    return [np.full(n, i, dtype) for i, n in enumerate(sizes)]


def at(i, dtype=np.int64):
    return np.array(i, dtype)


F32 = lambda *d: TensorType("float32", d)  # noqa: E731
POSITION = TensorType("int64", ())


def test_construct_keeps_order_and_shared_dimensions():
    got = run_op("SequenceConstruct", 11, *tensors(1, 2))[0]
    assert [v.shape for v in got] == [(1,), (2,)]
    assert infer_op("SequenceConstruct", 11, F32(2, 3), F32(4, 3)) == [SequenceType(F32(None, 3))]
    with pytest.raises(InputError, match="must have one type"):
        run_op("SequenceConstruct", 11, np.zeros(1), np.zeros(1, np.float32))
    with pytest.raises(ShapeError, match="must have one type"):
        infer_op("SequenceConstruct", 11, F32(), TensorType("int64", ()))


def test_empty():
    assert run_op("SequenceEmpty", 11) == [[]]
    assert infer_op("SequenceEmpty", 11, dtype=7) == [SequenceType(TensorType("int64"))]
    with pytest.raises(UnsupportedError, match="99"):
        run_op("SequenceEmpty", 11, dtype=99)


@pytest.mark.parametrize(("position", "place"), [(None, 2), (0, 0), (2, 2), (-1, 1), (-2, 0)])
def test_insert(position, place):
    before = tensors(1, 1)
    (got,) = run_op("SequenceInsert", 11, before, np.full(1, 9, np.float32), None if position is None else at(position))
    assert [int(v[0]) for v in got].index(9) == place and len(got) == 3
    assert len(before) == 2  # the input is not changed


@pytest.mark.parametrize("position", [3, -3])
def test_insert_outside(position):
    with pytest.raises(InputError, match=rf"position {position} is outside \[-2, 2\]"):
        run_op("SequenceInsert", 11, tensors(1, 1), np.zeros(1, np.float32), at(position))


def test_insert_checks_types():
    with pytest.raises(InputError, match="must have one type"):
        run_op("SequenceInsert", 11, tensors(1), np.zeros(1))
    with pytest.raises(ShapeError, match="float64 cannot go into a sequence of float32"):
        infer_op("SequenceInsert", 11, SequenceType(F32(1)), TensorType("float64", (1,)))
    assert infer_op("SequenceInsert", 11, SequenceType(F32(1)), F32(2)) == [SequenceType(F32(None))]


def test_erase_and_at():
    values = tensors(1, 2, 3)
    assert [len(v) for v in run_op("SequenceErase", 11, values)[0]] == [1, 2]
    assert [len(v) for v in run_op("SequenceErase", 11, values, at(-3, np.int32))[0]] == [2, 3]
    assert len(run_op("SequenceAt", 11, values, at(-1))[0]) == 3
    for op in ("SequenceErase", "SequenceAt"):
        with pytest.raises(InputError, match="position 3 is outside"):
            run_op(op, 11, values, at(3))
        with pytest.raises(InputError, match="empty sequence"):
            run_op(op, 11, [], at(0))
        with pytest.raises(InputError, match="a sequence is needed"):
            run_op(op, 11, values[0], at(0))
        with pytest.raises(InputError, match="position must be a tensor of one element"):
            run_op(op, 11, values, np.array([0, 1]))
    assert infer_op("SequenceAt", 11, SequenceType(F32(2)), POSITION) == [F32(2)]
    assert infer_op("SequenceErase", 11, SequenceType(F32(2)), POSITION) == [SequenceType(F32(2))]


def test_length():
    (count,) = run_op("SequenceLength", 11, tensors(1, 2))
    assert count == 2 and count.shape == () and count.dtype == np.int64
    with pytest.raises(InputError, match="an empty optional"):
        run_op("SequenceLength", 11, EMPTY)
    with pytest.raises(ShapeError, match="must be a sequence"):
        infer_op("SequenceLength", 11, F32(2))


def test_concat_from_sequence():
    values = [np.zeros((2, 3)), np.ones((2, 1))]
    assert run_op("ConcatFromSequence", 11, values, axis=-1)[0].shape == (2, 4)
    assert run_op("ConcatFromSequence", 11, values[:1] * 3, axis=-1, new_axis=1)[0].shape == (2, 3, 3)
    words = [np.array(["a"], object), np.array(["b", "c"], object)]
    assert run_op("ConcatFromSequence", 11, words, axis=0)[0].tolist() == ["a", "b", "c"]
    sequence = SequenceType(F32(2, 3))
    assert infer_op("ConcatFromSequence", 11, sequence, axis=0) == [F32(None, 3)]
    assert infer_op("ConcatFromSequence", 11, sequence, axis=-1, new_axis=1) == [F32(2, 3, None)]
    with pytest.raises(InputError, match="do not fit together"):
        run_op("ConcatFromSequence", 11, values, axis=0)
    with pytest.raises(InputError, match="empty sequence"):
        run_op("ConcatFromSequence", 11, [], axis=0)
    with pytest.raises(InputError, match="axis 2 is outside"):
        run_op("ConcatFromSequence", 11, values, axis=2)
    with pytest.raises(ModelError, match="new_axis"):
        run_op("ConcatFromSequence", 11, values, axis=0, new_axis=2)


def test_split_to_sequence():
    x = np.arange(10).reshape(2, 5)
    shapes = lambda *split, **attrs: [v.shape for v in run_op("SplitToSequence", 11, x, *split, **attrs)[0]]  # noqa: E731
    assert shapes(axis=1) == [(2, 1)] * 5
    assert shapes(axis=1, keepdims=0) == [(2,)] * 5
    assert shapes(at(2), axis=-1) == [(2, 2), (2, 2), (2, 1)]
    assert shapes(np.array([0, 4, 1]), axis=1, keepdims=0) == [(2, 0), (2, 4), (2, 1)]
    assert run_op("SplitToSequence", 24, np.zeros((0, 3)))[0] == []
    with pytest.raises(InputError, match="add up to 5"):
        shapes(np.array([2, 2]), axis=1)
    with pytest.raises(InputError, match="add up to 5"):
        shapes(np.array([6, -1]), axis=1)
    with pytest.raises(InputError, match="must be positive"):
        shapes(at(0))
    with pytest.raises(InputError, match="axis 2 is outside"):
        shapes(axis=2)
    with pytest.raises(InputError, match="scalar or a list"):
        shapes(np.array([[1, 1]]))


def test_split_to_sequence_type_rule():
    def infer(*types, values=None, **attrs):
        return infer_op("SplitToSequence", 11, *types, values=values, **attrs)[0].element

    split = TensorType("int64", ())
    assert infer(F32(2, 6), axis=1) == F32(2, 1)
    assert infer(F32(2, 6), axis=1, keepdims=0) == F32(2)
    assert infer(F32(2, 6), split, values=[None, at(3)], axis=1) == F32(2, 3)
    assert infer(F32(2, 6), split, values=[None, at(4)], axis=1) == F32(2, None)
    assert infer(F32(2, 6), split, axis=1) == F32(2, None)
    with pytest.raises(ShapeError, match="add up to 6"):
        infer(F32(2, 6), split, values=[None, np.array([1, 2])], axis=1)


def test_optionals():
    x = np.ones(2, np.float32)
    assert np.shares_memory(run_op("Optional", 15, x)[0], x)
    assert run_op("Optional", 15, type=F32(2)) == [None]
    assert np.shares_memory(run_op("OptionalGetElement", 15, x)[0], x)
    with pytest.raises(InputError, match="the optional is empty"):
        run_op("OptionalGetElement", 18, EMPTY)
    for version in (15, 18, 28):
        got = run_op("OptionalHasElement", version, x)[0]
        assert got == np.array(True) and got.dtype == np.bool_ and got.shape == ()
        assert not run_op("OptionalHasElement", version, EMPTY)[0]
    assert not run_op("OptionalHasElement", 18)[0]
    assert infer_op("Optional", 15, F32(2)) == [OptionalType(F32(2))]
    assert infer_op("Optional", 15, type=F32(3)) == [OptionalType(F32(3))]
    assert infer_op("OptionalGetElement", 15, OptionalType(F32(2))) == [F32(2)]
    assert infer_op("OptionalGetElement", 18, F32(2)) == [F32(2)]
    assert infer_op("OptionalHasElement", 18, None) == [TensorType("bool", ())]
    with pytest.raises(ShapeError, match="attribute type"):
        infer_op("Optional", 15)
