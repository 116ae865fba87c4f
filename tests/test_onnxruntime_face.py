"""The drop-in behaves as ONNX Runtime does: most tests run one body on both and compare.

The patterns are those of real client programs: options set one by one, providers as (name, options) pairs, metadata
read for a character set, lists in place of arrays, state carried from run to run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as real
import pytest
from onnx import TensorProto, helper, numpy_helper

import minifer
import minifer.onnxruntime as ours
from minifer.errors import InputError, MiniferError, ModelError, UnsupportedError

RNG = np.random.default_rng(3)


def model_bytes(nodes, inputs, outputs, consts=(), opset: int = 17, **metadata: str) -> bytes:
    graph = helper.make_graph(nodes, "graph name", inputs, outputs, list(consts), doc_string="about the graph")
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="a producer",
        domain="a.domain", model_version=7, doc_string="about the model",
    )  # fmt: skip
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


def tensor(name: str, dtype: int = TensorProto.FLOAT, shape=("N", 3)):
    return helper.make_tensor_value_info(name, dtype, shape)


#: y = x + b with a default for b, z = int32 input doubled
MODEL = model_bytes(
    [helper.make_node("Add", ["x", "b"], ["y"]), helper.make_node("Add", ["i", "i"], ["z"])],
    [tensor("x"), tensor("i", TensorProto.INT32, (None, 2)), tensor("b", shape=(3,))],
    [tensor("y"), tensor("z", TensorProto.INT32, (None, 2))],
    [numpy_helper.from_array(np.array([1, 2, 3], np.float32), "b")],
    character="a\nb\nc",
)
X, I = RNG.normal(size=(2, 3)).astype(np.float32), np.array([[1, 2]], np.int32)
FEED = {"x": X, "i": I}
BOTH = pytest.mark.parametrize("ort", [real, ours], ids=["onnxruntime", "minifer"])


def session(ort: ModuleType, data: bytes = MODEL, **options):
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"], **options)


# ---- the same on both ----------------------------------------------------------------------------------------------


@BOTH
def test_arguments(ort: ModuleType) -> None:
    s = session(ort)
    assert [(a.name, a.type, a.shape) for a in s.get_inputs()] == [
        ("x", "tensor(float)", ["N", 3]), ("i", "tensor(int32)", [None, 2]),
    ]  # fmt: skip
    assert [(a.name, a.type, a.shape) for a in s.get_outputs()] == [
        ("y", "tensor(float)", ["N", 3]), ("z", "tensor(int32)", [None, 2]),
    ]  # fmt: skip
    assert [(a.name, a.type, a.shape) for a in s.get_overridable_initializers()] == [("b", "tensor(float)", [3])]


@BOTH
def test_metadata(ort: ModuleType) -> None:
    meta = session(ort).get_modelmeta()
    assert meta.producer_name == "a producer"
    assert meta.graph_name == "graph name"
    assert meta.domain == "a.domain"
    assert meta.description == "about the model"
    assert meta.version == 7
    assert meta.custom_metadata_map["character"].splitlines() == ["a", "b", "c"]


@BOTH
def test_run(ort: ModuleType) -> None:
    s = session(ort)
    for names in (None, [], ["y", "z"]):
        y, z = s.run(names, FEED)
        np.testing.assert_array_equal(y, X + np.array([1, 2, 3], np.float32))
        np.testing.assert_array_equal(z, 2 * I)
        assert y.dtype == np.float32 and z.dtype == np.int32
    z, y = s.run(["z", "y"], {**FEED, "b": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(y, X)
    (z,) = s.run(["z"], {"x": X.tolist(), "i": I.tolist()})
    np.testing.assert_array_equal(z, 2 * I)
    assert s.run(["z"], FEED, ort.RunOptions())[0].shape == (1, 2)


@BOTH
def test_session_options(ort: ModuleType) -> None:
    options = ort.SessionOptions()
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.intra_op_num_threads == options.inter_op_num_threads == 0
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("not there")
    with pytest.raises(AttributeError):
        options.no_such_option = 1
    with pytest.raises(TypeError):
        options.intra_op_num_threads = "two"
    s = ort.InferenceSession(
        MODEL, sess_options=options, providers=[("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
    )
    assert s.get_session_options().intra_op_num_threads == 1
    np.testing.assert_array_equal(s.run(["z"], FEED)[0], 2 * I)


@BOTH
def test_free_dimension_override(ort: ModuleType) -> None:
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name("N", 5)
    assert session(ort, sess_options=options).get_inputs()[0].shape == [5, 3]


@BOTH
def test_run_options(ort: ModuleType) -> None:
    options = ort.RunOptions()
    options.log_severity_level = 3
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    assert options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"
    session(ort).run(None, FEED, run_options=options)
    options.terminate = True
    with pytest.raises(Exception, match="terminate"):
        session(ort).run(None, FEED, options)


@BOTH
def test_optimized_model(ort: ModuleType, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session(ort, sess_options=options)
    np.testing.assert_array_equal(real.InferenceSession(options.optimized_model_filepath).run(["z"], FEED)[0], 2 * I)


@BOTH
def test_providers(ort: ModuleType, recwarn: pytest.WarningsRecorder) -> None:
    assert "CPUExecutionProvider" in ort.get_available_providers()
    assert ort.get_device() == "CPU"
    s = ort.InferenceSession(MODEL)
    assert s.get_providers() == ["CPUExecutionProvider"]
    assert list(s.get_provider_options()) == ["CPUExecutionProvider"]
    s.set_providers(["CPUExecutionProvider"])
    ort.set_default_logger_severity(3)
    ort.disable_telemetry_events()
    assert isinstance(ort.__version__, str)


@BOTH
@pytest.mark.parametrize("path_type", [str, Path])
def test_path(ort: ModuleType, tmp_path: Path, path_type: type) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    np.testing.assert_array_equal(ort.InferenceSession(path_type(path)).run(["z"], FEED)[0], 2 * I)


def error_of(act) -> str:
    with pytest.raises(Exception) as caught:
        act()
    return type(caught.value).__name__


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda ort: session(ort).run(None, {**FEED, "q": X}), InputError),
        (lambda ort: session(ort).run(["q"], FEED), InputError),
        (lambda ort: session(ort).run(None, {**FEED, "x": X.astype(np.float64)}), InputError),
        (lambda ort: session(ort).run(None, {**FEED, "x": X[0]}), InputError),
        (lambda ort: session(ort).run(None, {**FEED, "x": X[:, :2]}), InputError),
        (lambda ort: ort.InferenceSession("no such file.onnx"), InputError),
    ],
)
def test_errors_have_the_same_names(act, kind: type) -> None:
    assert error_of(lambda: act(ours)) == error_of(lambda: act(real))
    with pytest.raises(kind):
        act(ours)


@BOTH
def test_missing_input_is_a_value_error(ort: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"\['i'\]"):
        session(ort).run(None, {"x": X})


@BOTH
def test_model_of_a_wrong_type(ort: ModuleType) -> None:
    with pytest.raises(TypeError):
        ort.InferenceSession(17)


@BOTH
def test_sequences_and_strings(ort: ModuleType) -> None:
    """Sequences are lists, strings object arrays, in and out."""
    data = model_bytes(
        [
            helper.make_node("SequenceInsert", ["s", "x"], ["t"]),
            helper.make_node("Identity", ["w"], ["v"]),
        ],
        [
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None), tensor("x"),
            tensor("w", TensorProto.STRING, (2,)),
        ],
        [
            helper.make_tensor_sequence_value_info("t", TensorProto.FLOAT, None),
            tensor("v", TensorProto.STRING, (2,)),
        ],
    )  # fmt: skip
    s = session(ort, data)
    assert [a.type for a in s.get_inputs()] == ["seq(tensor(float))", "tensor(float)", "tensor(string)"]
    t, v = s.run(None, {"s": [X, X], "x": X, "w": np.array(["a", "bä"], object)})
    assert isinstance(t, list) and len(t) == 3
    np.testing.assert_array_equal(t[2], X)
    assert v.tolist() == ["a", "bä"]
    assert s.run(["v"], {"s": [], "x": X, "w": np.array(["a", "b"])})[0].tolist() == ["a", "b"]


@BOTH
def test_state_is_carried(ort: ModuleType) -> None:
    """A streaming program feeds an output back as the next input."""
    data = model_bytes(
        [helper.make_node("Add", ["x", "state"], ["y"]), helper.make_node("Identity", ["y"], ["stateN"])],
        [tensor("x"), tensor("state")], [tensor("y"), tensor("stateN")],
    )  # fmt: skip
    s = session(ort, data)
    state = np.zeros((2, 3), np.float32)
    for i in range(10):
        y, state = s.run(["y", "stateN"], {"x": X, "state": state})
        np.testing.assert_allclose(y, X * (i + 1), rtol=1e-6)


# ---- ours alone ----------------------------------------------------------------------------------------------------


def test_errors_are_minifers_too() -> None:
    with pytest.raises(ModelError):
        ours.InferenceSession(b"no model")
    unknown = model_bytes([helper.make_node("NoSuchOperator", ["x"], ["y"])], [tensor("x")], [tensor("y")])
    with pytest.raises(UnsupportedError, match="NoSuchOperator") as caught:
        ours.InferenceSession(unknown)
    assert isinstance(caught.value, ours.NotSupported)
    with pytest.raises(ours.InvalidArgument) as wrong:
        session(ours).run(None, {**FEED, "i": [["one", "two"]]})
    assert "'i'" in str(wrong.value) and isinstance(wrong.value, MiniferError)
    with pytest.raises(FileNotFoundError):
        ours.InferenceSession("no such file.onnx")


def test_other_providers_are_passed_over() -> None:
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        s = ours.InferenceSession(MODEL, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert s.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(ValueError, match="providers"):
        ours.InferenceSession(MODEL, providers=[3])


def test_what_minifer_lacks_says_so() -> None:
    options = ours.SessionOptions()
    with pytest.raises(UnsupportedError, match="register"):
        options.register_custom_ops_library("ops.so")
    options.enable_profiling = True
    with pytest.raises(UnsupportedError, match="enable_profiling"):
        ours.InferenceSession(MODEL, options)
    with pytest.raises(RuntimeError):
        ours.set_default_logger_severity(9)


def test_options_reach_the_session() -> None:
    options = ours.SessionOptions()
    options.intra_op_num_threads = 2
    assert session(ours, sess_options=options).minifer.settings.threads == 2
    options.intra_op_num_threads = -1
    with pytest.raises(InputError, match="-1"):
        session(ours, sess_options=options)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (minifer.ir.TensorType("float32", (1,)), "tensor(float)"),
        (minifer.ir.TensorType("float64", (1,)), "tensor(double)"),
        (minifer.ir.TensorType("bool"), "tensor(bool)"),
        (minifer.ir.TensorType("bfloat16"), "tensor(bfloat16)"),
        (minifer.ir.SequenceType(minifer.ir.TensorType("int64")), "seq(tensor(int64))"),
        (minifer.ir.OptionalType(minifer.ir.TensorType("string")), "optional(tensor(string))"),
        (minifer.ir.MapType("int64", minifer.ir.TensorType("float32")), "map(int64,tensor(float))"),
        (minifer.ir.SparseTensorType("float32"), "sparse_tensor(float)"),
        (None, ""),
    ],
)
def test_type_names(kind, name: str) -> None:
    assert ours.type_name(kind) == name


# ---- unmodified programs -------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import onnxruntime
import onnxruntime as ort
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions, get_available_providers, get_device
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, NoSuchFile
import onnxruntime.capi.onnxruntime_pybind11_state as state
import importlib.util
import helper_module

assert importlib.util.find_spec("onnxruntime") is not None
session = InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
try:
    session.run(None, {"x": [[1, 2, 3]], "i": [[1, 2, 3]]})
except state.InvalidArgument as error:
    print("caught", type(error) is InvalidArgument)
print(__name__, session.run(["z"], {"x": [[1, 2, 3]], "i": [[1, 2]]})[0].tolist(), sys.argv[2:], ort.InferenceSession.__module__)
print(isinstance(session, helper_module.Session))
"""  # noqa: E501


def run_module(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minifer.onnxruntime", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


@pytest.mark.parametrize("as_module", [False, True])
def test_unmodified_program(tmp_path: Path, as_module: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper_module.py").write_text("from onnxruntime import InferenceSession as Session\n")
    (tmp_path / "model.onnx").write_bytes(MODEL)
    done = run_module([*(["-m", "program"] if as_module else ["program.py"]), "model.onnx", "--flag", "v"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "caught True", "__main__ [[2, 4]] ['--flag', 'v'] minifer.onnxruntime", "True",
    ]  # fmt: skip


def test_exit_status_and_usage(tmp_path: Path) -> None:
    (tmp_path / "leave.py").write_text("import sys; sys.exit(5)")
    assert run_module(["leave.py"], tmp_path).returncode == 5
    for arguments, status in (([], 2), (["-m"], 2), (["no such program.py"], 2), (["--help"], 0)):
        done = run_module(arguments, tmp_path)
        assert done.returncode == status
        assert "Traceback" not in done.stderr and done.stdout + done.stderr
