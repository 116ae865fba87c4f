"""The command line: what each command prints, and that a mistake is one message and status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from minifer import models
from minifer.cli import command_names, main
from minifer.cli._feeds import random_value, savable
from minifer.cli._text import bytes_text, count_text, table, time_text
from minifer.errors import ModelError
from minifer.ir import TensorType
from minifer.session import Value

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def save(path: Path, nodes, inputs, outputs, consts=(), opset: int = 17, **metadata: str) -> str:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, list(consts))
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="maker"
    )
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return str(path)


def tensor(name: str, dtype: int = TensorProto.FLOAT, shape=("N", 3)):
    return helper.make_tensor_value_info(name, dtype, shape)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """y = relu(x @ W) for x (N, 3), and z = i + i."""
    return save(
        tmp_path / "model.onnx",
        [
            helper.make_node("MatMul", ["x", "W"], ["m"]), helper.make_node("Relu", ["m"], ["y"]),
            helper.make_node("Add", ["i", "i"], ["z"]),
        ],
        [tensor("x"), tensor("i", TensorProto.INT64, ("N",))],
        [tensor("y", shape=("N", 4)), tensor("z", TensorProto.INT64, ("N",))],
        [numpy_helper.from_array(WEIGHT, "W")],
        author="somebody", long="word " * 100,
    )  # fmt: skip


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"classify", "info", "kernels", "run"} <= set(command_names())
    for arguments in (["--help"], ["--version"], *([name, "--help"] for name in command_names())):
        with pytest.raises(SystemExit) as leave:
            main(arguments)
        assert leave.value.code == 0
        assert capsys.readouterr().out


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "minifer", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("minifer ")


# ---- run -----------------------------------------------------------------------------------------------------------


def test_run_files(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, i = np.ones((2, 3), np.float32), np.array([5, 6])
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "both.npz", i=i, x=x)
    (tmp_path / "i.pb").write_bytes(numpy_helper.from_array(i, "stored name").SerializeToString())
    out = tmp_path / "out.npz"
    for files in (["x.npy", "i.pb"], ["i=i.pb", "x=x.npy"], ["both.npz"], ["i=i.pb", "x.npy"]):
        out.unlink(missing_ok=True)
        paths = [f"{n}={tmp_path / f}" if n else str(tmp_path / f) for n, _, f in (t.rpartition("=") for t in files)]
        assert main(["run", model, *paths, "--output", str(out), "--threads", "1"]) == 0
        with np.load(out) as results:
            np.testing.assert_array_equal(results["y"], np.maximum(x @ WEIGHT, 0))
            np.testing.assert_array_equal(results["z"], 2 * i)
    text = capsys.readouterr().out
    assert "z: int64[2] = [10, 12]" in text and "y: float32[2, 4] = [12.0" in text and "1 run, best" in text


def test_run_random(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def outputs(*options: str) -> dict[str, np.ndarray]:
        path = tmp_path / "out.npz"
        assert main(["run", model, "--random", "--output", str(path), *options]) == 0
        with np.load(path) as results:
            return dict(results)

    assert outputs()["y"].shape == (1, 4)
    first, again = outputs("--dim", "N=3"), outputs("--dim", "N=3")
    assert first["y"].shape == (3, 4)
    np.testing.assert_array_equal(first["y"], again["y"])
    assert not np.array_equal(first["y"], outputs("--dim", "N=3", "--seed", "1")["y"])
    assert outputs("--shape", "x=5,3", "--shape", "i=5", "--repeat", "3")["y"].shape == (5, 4)
    np.testing.assert_array_equal(outputs("--set", "i=21", "--dim", "N=2")["z"], [42, 42])
    assert "3 runs, best" in capsys.readouterr().out


def test_run_on_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(models.path("coffee.png"))
    assert main(["run", str(models.path(models.EFFICIENTNET_LITE0)), path]) == 0
    assert "logits: float32[1, 1000], from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no such.onnx"], "no such.onnx"),
        (["run", "MODEL"], "missing input x, i"),
        (["run", "MODEL", "no such.npy"], "no file"),
        (["run", "MODEL", "BAD.npy"], "cannot be read"),
        (["run", "MODEL", "BAD.npz"], "cannot be read"),
        (["run", "MODEL", "BAD.pb"], "byte"),
        (["run", "MODEL", "BAD.png"], "one input"),
        (["run", "MODEL", "X.npy", "X.npy", "X.npy"], "one file too many"),
        (["run", "MODEL", "OTHER.npz"], "'other', which is no input"),
        (["run", "MODEL", "X.npy", "X.npy"], "input 'i' has dtype float32"),
        (["run", "MODEL", "--random", "--shape", "q=1"], "'q', which is no input"),
        (["run", "MODEL", "--random", "--shape", "x"], "NAME=SIZE"),
        (["run", "MODEL", "--random", "--shape", "x=1,a"], "list of sizes"),
        (["run", "MODEL", "--random", "--shape", "x=1,4"], "input 'x' has shape"),
        (["run", "MODEL", "--random", "--dim", "Q=1"], "no symbolic dimension"),
        (["run", "MODEL", "--random", "--repeat", "0"], "at least 1"),
        (["run", "MODEL", "--random", "--threads", "0"], "a number from 1"),
        (["run", "MODEL", "--random", "--output", "FOLDER"], "FOLDER"),
        (["run", "MODEL", "X.npy", "--dim", "N=2"], "--random"),
        (["run", "MODEL", "--random", "--set", "i=1.5"], "no value of type int64"),
        (["run", "MODEL", "--random", "--set", "q=1"], "no tensor input"),
        (["info", "no such.onnx"], "no such.onnx"),
        (["info", "BAD.png"], "not an ONNX file"),
        (["classify", "no such.png"], "cannot open"),
        (["classify", "--labels", "no such", "X.npy"], "cannot read the labels"),
        (["classify", "--preprocessing", "odd"], "'odd'"),
        (["classify", "--model", "MODEL", "X.npy"], "one input"),
        (["classify", "--top", "0"], "at least 1"),
        (["kernels", "build", "no_such_family"], "no kernel family"),
        (["kernels", "clear", "gemm"], "takes no family"),
    ],
)
def test_mistakes(
    arguments: list[str], words: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One message on stderr, status 2, no traceback; MINIFER_DEBUG shows the exception."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIFER_DEBUG", raising=False)
    np.save("X.npy", np.ones((2, 3), np.float32))
    np.savez("OTHER.npz", other=np.ones(2))
    Path("FOLDER").mkdir()
    Path("FOLDER.npz").mkdir()
    for name in ("BAD.npy", "BAD.npz", "BAD.pb", "BAD.png"):
        Path(name).write_bytes(b"PK\x03\x04\xff not what it should be")
    arguments = [model if a == "MODEL" else a for a in arguments]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("minifer: ") and words in shown and "Traceback" not in shown
    monkeypatch.setenv("MINIFER_DEBUG", "1")
    with pytest.raises(Exception):  # noqa: B017
        main(arguments)


# ---- info ----------------------------------------------------------------------------------------------------------


def test_info(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model, "--dim", "N=2"]) == 0
    text = capsys.readouterr().out
    for part in (
        "producer    maker", "opsets ai.onnx 17", "x: float32[N, 3]", "z: int64[N]", "12 numbers in 1 constants",
        "author: somebody", "(500 characters", "1  MatMul-17", "plan for    x 2x3, i 2", "arithmetic  48 FLOP",
    ):  # fmt: skip
        assert part in text, f"{part!r} is not in\n{text}"
    assert main(["info", model, "--metadata"]) == 0
    assert "word word " * 40 in capsys.readouterr().out


def test_info_of_unsupported_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the file holds is told all the same, and every operator that is missing."""
    nodes = [helper.make_node("Nope", ["x"], ["m"]), helper.make_node("NeverHeard", ["m"], ["y"])]
    path = save(tmp_path / "odd.onnx", nodes, [tensor("x")], [tensor("y")])
    assert main(["info", path]) == 2
    text = capsys.readouterr().out
    assert "x: float32[N, 3]" in text and "Nope" in text and "NeverHeard" in text


def test_info_where_shapes_depend_on_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Neg", ["n"], ["y"])]
    path = save(tmp_path / "nonzero.onnx", nodes, [tensor("x")], [tensor("y", TensorProto.INT64, (2, None))])
    assert main(["info", path]) == 0
    assert "depend on data" in capsys.readouterr().out
    assert main(["info", path, "--run"]) == 0
    assert "Neg-17" in capsys.readouterr().out.partition("steps")[2]


# ---- classify ------------------------------------------------------------------------------------------------------


def test_classify_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--top", "2"]) == 0
    text = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in text.splitlines() if "%" in line]
    assert [name for _, name in lines] == [
        "a cat having a striped coat", "Egyptian Mau", "espresso", "tea cup",
    ]  # fmt: skip
    assert "classified in" in text and "model loaded in" in text


def test_classify_json_goes_on_after_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    assert main(["classify", "--json", str(bad), str(models.path("coffee.png"))]) == 2
    shown = capsys.readouterr()
    (found,) = json.loads(shown.out)
    assert found["file"].endswith("coffee.png") and len(found["predictions"]) == 5
    assert found["predictions"][0]["label"] == "espresso" and found["run_seconds"] > 0
    assert "bad.png" in shown.err


# ---- kernels -------------------------------------------------------------------------------------------------------


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Build one small family into a cache of its own, see it listed, delete it; other files stay."""
    monkeypatch.setenv("MINIFER_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["kernels", "list"]) == 0
    assert "not built" in capsys.readouterr().out
    assert main(["kernels", "build", "runner"]) == 0
    assert "0 were ready" in capsys.readouterr().out
    assert main(["kernels", "build", "runner"]) == 0
    assert "0 built" in capsys.readouterr().out
    assert main(["kernels", "list", "runner"]) == 0
    shown = capsys.readouterr().out
    assert "runner" in shown and "built, " in shown and "not built" not in shown
    keep = tmp_path / "cache" / "notes.txt"
    keep.write_text("mine")
    assert main(["kernels", "clear"]) == 0
    assert "deleted" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == [keep]


# ---- small parts ---------------------------------------------------------------------------------------------------


def test_texts() -> None:
    assert [bytes_text(n) for n in (0, 999, 1500, 2_000_000, 3e12)] == ["0 bytes", "999 bytes", "1.5 kB", "2.0 MB", "3000.0 GB"]  # noqa: E501  # fmt: skip
    assert [count_text(n) for n in (7, 1234, 5e6, 8e13)] == ["7 ", "1.2 k", "5.0 M", "80.0 T"]
    assert [time_text(s) for s in (0.00123, 0.25, 61.5)] == ["1.23 ms", "250 ms", "61.50 s"]
    assert table([("a", 1), ("bc", 22)], right=(1,)) == ["a    1", "bc  22"]
    assert table([]) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint4", "bool", "string", "complex64", "float8e5m2"])
def test_random_values_and_saving(dtype: str, tmp_path: Path) -> None:
    value = random_value(Value("v", TensorType(dtype, (2, 3))), (2, 3), np.random.default_rng(0))
    assert value.shape == (2, 3)
    plain = savable({"v": value, "s": [value]})
    np.savez(tmp_path / "v.npz", **plain)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as loaded:
        assert sorted(loaded.files) == ["s.0", "v"]
        np.testing.assert_array_equal(loaded["v"], value.astype(loaded["v"].dtype))


def test_broken_pipe(model: str) -> None:
    """`minifer info model | head -1` ends without a complaint."""
    command = f"{sys.executable} -m minifer info {model} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("graph") and "Traceback" not in done.stderr and "Error" not in done.stderr


def test_debug_raises_the_error_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIFER_DEBUG", "2")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        main(["info", str(tmp_path / "x.onnx")])
