"""Room: arrays of middle size cut from blocks, all others as NumPy makes them."""

from __future__ import annotations

import numpy as np

from minifer.room import ALIGNMENT, BLOCK, FIRST, LEAST, MOST, Room


def test_arrays_of_middle_size_come_from_blocks_once_there_are_many():
    room = Room()
    arrays = [room.empty((LEAST // 4 + 3,), np.float32) for _ in range(2 * BLOCK // LEAST)]
    early, late = arrays[: FIRST // LEAST - 1], arrays[FIRST // LEAST + 1 :]
    assert all(a.flags.owndata for a in early) and not any(a.flags.owndata for a in late)
    assert all(a.ctypes.data % ALIGNMENT == 0 for a in late)
    for i, array in enumerate(arrays):
        array[:] = i
    assert all((array == i).all() for i, array in enumerate(arrays))  # none lies over another


def test_other_sizes_and_objects_have_memory_of_their_own():
    room = Room()
    room.empty((MOST - 64,), np.uint8)
    for shape, dtype in (((LEAST - 1,), np.uint8), ((MOST,), np.uint8), ((LEAST,), object), ((), np.float64)):
        assert room.empty(shape, dtype).flags.owndata and room.empty(shape, dtype).shape == shape


def test_contiguous_and_adopted_arrays_keep_their_values():
    room = Room()
    x = np.arange(LEAST, dtype=np.float64).reshape(256, -1)
    for _ in range(2 * FIRST // x.nbytes):
        lies, turned = room.contiguous(x), room.contiguous(x.T)
        assert lies is x and turned.flags.c_contiguous and np.array_equal(turned, x.T)
        moved = room.adopt(x.copy())
        assert np.array_equal(moved, x)
    assert not moved.flags.owndata and not turned.flags.owndata
    view = x[1:]
    assert room.adopt(view) is view
