"""ONNX files: `read_model` makes an ir.Model of one, `write_model` and `save_model` make one of an ir.Model."""

from minifer.onnx_io.read import read_model

__all__ = ["read_model"]
