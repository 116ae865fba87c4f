"""The recipe of the carried classifier still makes the carried file, and its checkpoint reader trusts nothing."""

from __future__ import annotations

import collections
import io
import os
import pickle
import sys
import types

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from minifer import models
from minifer.models import make_efficientnet as recipe


def test_recipe_makes_the_carried_model() -> None:
    """Half precision survives float32 and back, so the file's own weights give the file again."""
    carried = onnx.load(models.path(models.EFFICIENTNET_LITE0))
    weights = {
        tensor.name.removesuffix(".half"): numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in carried.graph.initializer
    }
    assert recipe.build(weights) == carried


class Storage:
    """Stands for a storage in a checkpoint; written as a persistent id, as PyTorch does."""

    def __init__(self, key: str, values: np.ndarray):
        self.key, self.values = key, values


class Call:
    """A call in a pickle."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def old_checkpoint(tensors: dict, storages: list[Storage]) -> bytes:
    """A checkpoint as PyTorch wrote it before version 1.6."""
    stream = io.BytesIO()
    for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(item, stream, protocol=2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                return ("storage", FloatStorage, item.key, "cpu", item.values.size, None)
            return None

    Pickler(stream, protocol=2).dump(tensors)
    pickle.dump([storage.key for storage in storages], stream, protocol=2)
    for storage in storages:
        stream.write(storage.values.size.to_bytes(8, "little") + storage.values.tobytes())
    return stream.getvalue()


FloatStorage = type("FloatStorage", (), {"__module__": "torch"})


def rebuild(*arguments):
    raise AssertionError("only named in the pickle, never called")


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch):
    """The two names that pickle looks up while writing."""
    utils = types.ModuleType("torch._utils")
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    sys.modules["torch"].FloatStorage = FloatStorage  # type: ignore[attr-defined]
    monkeypatch.setattr(rebuild, "__module__", "torch._utils")
    monkeypatch.setattr(rebuild, "__qualname__", "_rebuild_tensor_v2")
    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]


def test_checkpoint_reader(torch_names) -> None:
    """Offsets, strides and shared storages are honoured."""
    storage = Storage("7", np.arange(12, dtype=np.float32))
    tensors = collections.OrderedDict(
        plain=Call(rebuild, storage, 0, (3, 4), (4, 1), False, None),
        turned=Call(rebuild, storage, 2, (2, 3), (1, 2), False, None),
    )
    read = recipe.read_checkpoint(old_checkpoint(tensors, [storage]))
    np.testing.assert_array_equal(read["plain"], storage.values.reshape(3, 4))
    np.testing.assert_array_equal(read["turned"], [[2, 4, 6], [3, 5, 7]])


def test_checkpoint_reader_runs_no_code() -> None:
    data = pickle.dumps(1) * 3 + pickle.dumps(Call(os.getcwd))
    with pytest.raises(pickle.UnpicklingError, match="no plain tensor"):
        recipe.read_checkpoint(data)
