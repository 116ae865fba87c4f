"""ONNX files: `read_model` makes an ir.Model of one, `write_model` and `save_model` make one of an ir.Model."""

from minifer.onnx_io.read import read_data, read_model
from minifer.onnx_io.write import save_model, write_model

__all__ = ["read_data", "read_model", "save_model", "write_model"]
