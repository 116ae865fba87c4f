"""ONNX files: `read_model` makes an ir.Model of one, `write_model` and `save_model` make one of an ir.Model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minifer.onnx_io.read import read_data, read_model

if TYPE_CHECKING:
    from minifer.onnx_io.write import save_model, write_model

__all__ = ["read_data", "read_model", "save_model", "write_model"]


def __getattr__(name: str) -> Any:
    """What writes is imported when it is first used: most programs only read."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from minifer.onnx_io import write

    return getattr(write, name)
