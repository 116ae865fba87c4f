"""minifer behind the interface that ONNX defines for backends (`onnx.backend.base.Backend`).

    import minifer.backend
    outputs = minifer.backend.prepare(model).run([x, y])     # a tuple; inputs by position or {"name": x}

The official test suite (`onnx.backend.test.BackendTest`) speaks to an engine through this interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from minifer import dtypes
from minifer.errors import InputError, UnsupportedError
from minifer.session import Session, load

_OPTIONS = ("threads", "optimize", "limits", "executor")


class MiniferBackendRep(BackendRep):
    """A model made ready to run; `session` is the `minifer.Session` behind it."""

    def __init__(self, session: Session):
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run on inputs given as a dict by name, a list or tuple by position, or one array; returns all outputs.

        Positions are those of the inputs without a default value; where more inputs are given, those of all
        inputs of the graph. Values may also be protobuf messages (TensorProto, SequenceProto, OptionalProto).
        """
        results = self.session.run({name: _value(value) for name, value in self._named(inputs).items()})
        return tuple(results.values())

    def _named(self, inputs: Any) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            return inputs
        values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        names = [v.name for v in self.session.inputs]
        if len(values) > len(names):
            names = list(self.session.model.graph.inputs)
        if len(values) > len(names):
            raise InputError(f"{len(values)} inputs were given, and the model takes {len(names)}: {', '.join(names)}")
        return dict(zip(names, values))


def _value(value: Any) -> Any:
    """A run-time value of what callers pass: messages become arrays and lists, NumPy text becomes object arrays."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return [_value(item) for item in numpy_helper.to_list(value)]
    if isinstance(value, onnx.OptionalProto):
        return _value(numpy_helper.to_optional(value))
    return [_value(item) for item in value] if isinstance(value, list | tuple) else value


class MiniferBackend(Backend):
    """The backend's class methods; the module has functions of the same names."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for the CPU ("CPU", "CPU:0")."""
        try:
            return Device(device).type == DeviceType.CPU
        except (AttributeError, ValueError):
            return False

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """False where the device or an operator of the model is not supported."""
        try:
            cls.prepare(model, device, **kwargs)
        except UnsupportedError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> MiniferBackendRep:
        """Make a model (a ModelProto, or anything that `minifer.load` takes) ready to run.

        The options of `minifer.load` may be given; other keywords are meant for other backends and ignored.
        Raises ModelError or UnsupportedError as `minifer.load` does.
        """
        if not cls.supports_device(device):
            raise UnsupportedError(f"device {device!r} is not supported; minifer runs on the CPU")
        return MiniferBackendRep(load(model, **{k: v for k, v in kwargs.items() if k in _OPTIONS}))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """`prepare(model).run(inputs)`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one operator. `inputs`: its present inputs by position, or a dict by name.

        `outputs_info` (dtype and shape of each output) may declare the outputs. `opset_version` (a keyword) is the
        version of the node's domain; without it the newest that the installed onnx knows.
        """
        present = [name for name in node.input if name]
        given = inputs if isinstance(inputs, Mapping) else dict(zip(present, _as_list(inputs)))
        few = any(name not in given for name in present)
        if few or (not isinstance(inputs, Mapping) and len(_as_list(inputs)) > len(present)):
            raise InputError(
                f"{node.op_type} takes the inputs {', '.join(present) or '(none)'}: all of them, no others"
            )
        values = {name: _value(given[name]) for name in present}
        outputs = [name for name in node.output if name]
        declared = outputs_info if outputs_info is not None else [None] * len(outputs)
        graph = helper.make_graph(
            [node],
            node.name or node.op_type,
            [onnx.ValueInfoProto(name=name, type=_type_proto(value)) for name, value in values.items()],
            [_output(name, info) for name, info in zip(outputs, declared)],
        )
        version = kwargs.get("opset_version") or _newest(node)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, version)])
        return cls.run_model(model, values, device, **kwargs)


def _as_list(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def _newest(node: onnx.NodeProto) -> int:
    """The newest opset version of the node's domain; 1 for a domain that onnx does not know."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return max((s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain), default=1)


def _type_proto(value: Any) -> onnx.TypeProto:
    """The declared type of an input value."""
    if value is None:
        return helper.make_optional_type_proto(onnx.TypeProto())
    if isinstance(value, list):
        return helper.make_sequence_type_proto(_type_proto(value[0]) if value else onnx.TypeProto())
    array = np.asarray(value)
    return helper.make_tensor_type_proto(dtypes.code_of_name(dtypes.from_numpy(array.dtype)), None)


def _output(name: str, info: tuple[Any, tuple[int, ...]] | None) -> onnx.ValueInfoProto:
    if info is None:
        return onnx.ValueInfoProto(name=name)
    dtype, shape = info
    code = dtype if isinstance(dtype, int) else dtypes.code_of_name(dtypes.from_numpy(dtype))
    return helper.make_tensor_value_info(name, code, shape)


prepare = MiniferBackend.prepare
run_model = MiniferBackend.run_model
run_node = MiniferBackend.run_node
supports_device = MiniferBackend.supports_device
is_compatible = MiniferBackend.is_compatible
