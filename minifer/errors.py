"""The error classes. Every error that a user can cause is one of these."""

from __future__ import annotations


class MiniferError(Exception):
    """Base of all errors that minifer raises on purpose."""


class ModelError(MiniferError):
    """The file or graph is no valid ONNX model: truncated, cyclic, missing a value, broken attribute."""


class UnsupportedError(MiniferError):
    """The model is valid but uses operators or features that minifer lacks; lists all of them at once."""


class ShapeError(MiniferError):
    """Shapes or dtypes of a node's inputs do not fit its operator."""


class InputError(MiniferError):
    """What the caller passed does not fit: missing or unknown name, wrong dtype or shape, out-of-range data."""


class LimitError(MiniferError):
    """A limit set by the caller (memory, FLOPs, time) would be exceeded."""


class KernelError(MiniferError):
    """A kernel could not be built or loaded on this machine."""
