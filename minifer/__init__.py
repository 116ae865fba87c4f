"""minifer: an ONNX inference engine written in Python, with kernels compiled by Numba.

    import minifer
    model = minifer.load("model.onnx")      # a path, bytes, a file object or an onnx.ModelProto
    outputs = model.run({"x": x})           # dict of output name -> array; or model(x)

Each public name is imported when it is first used: `import minifer` itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minifer.embed.compiling import Compiled, compile
    from minifer.errors import (
        InputError,
        KernelError,
        LimitError,
        MiniferError,
        ModelError,
        ShapeError,
        UnsupportedError,
    )
    from minifer.ops.registry import Op, register
    from minifer.pipelines.image import ImageClassifier, Prediction, classify, load_image
    from minifer.pipelines.text import Sentiment, SentimentClassifier, sentiment
    from minifer.session import Session, load

__version__ = "0.1.0"

__all__ = [
    "Compiled", "ImageClassifier", "InputError", "KernelError", "LimitError", "MiniferError", "ModelError", "Op",
    "Prediction", "Sentiment", "SentimentClassifier", "Session", "ShapeError", "UnsupportedError", "classify",
    "compile", "load", "load_image", "register", "sentiment",
]  # fmt: skip

_HOME = {
    **dict.fromkeys(("load", "Session"), "minifer.session"),
    **dict.fromkeys(("classify", "load_image", "ImageClassifier", "Prediction"), "minifer.pipelines.image"),
    **dict.fromkeys(("compile", "Compiled"), "minifer.embed.compiling"),
    **dict.fromkeys(("sentiment", "Sentiment", "SentimentClassifier"), "minifer.pipelines.text"),
    **dict.fromkeys(("register", "Op"), "minifer.ops.registry"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "minifer.errors"),
}
_MODULES = ("backend", "dtypes", "ir", "models", "onnxruntime")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"minifer.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'minifer' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
