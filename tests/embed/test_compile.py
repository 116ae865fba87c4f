"""`minifer.compile` on small models: the files, run natively and in Node; what it refuses, and what `run` refuses."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import minifer
from minifer.codegen import native
from minifer.embed.abi import Status
from minifer.errors import InputError, MiniferError, ModelError, ShapeError, UnsupportedError
from minifer.ir import Graph, Model, TensorType
from minifer.kernels.target import host
from minifer.onnx_io import write_model
from tests.embed.native import LEVEL, RUN_V3, Library, aligned
from tests.kernels.models import node

HERE = pytest.mark.skipif(host().name not in RUN_V3, reason="the library made here is for x86-64-v3")
RNG = np.random.default_rng(5)


def made(nodes, inputs, consts, outputs) -> bytes:
    """A model file; `inputs` are TensorTypes by name."""
    graph = Graph(tuple(inputs), tuple(outputs), tuple(nodes), dict(consts), dict(inputs))
    graph.check()
    return write_model(Model(graph, {"": 21}, 10))


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("f")


def small_net() -> bytes:
    """A convolution, a product and a softmax; an open batch, two outputs, one of them in the middle of the net."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], 14),
        node("GlobalAveragePool", ["r"], ["p"], 1),
        node("Flatten", ["p"], ["features"]),
        node("Gemm", ["features", "m"], ["y"], 13),
        node("Softmax", ["y"], ["probabilities"], 13),
    ]
    consts = {"w": normal(9, 3, 3, 3), "b": normal(9), "m": normal(9, 5)}
    return made(nodes, {"x": TensorType("float32", ("N", 3, 17, 15))}, consts, ["probabilities", "features"])


def all_kinds() -> bytes:
    """Outputs of every origin: an input as it is, a constant, the same result twice; and a value that is refused."""
    nodes = [
        node("Gather", ["table", "ids"], ["rows"], 13),
        node("Identity", ["ids"], ["same"], 19),
        node("Add", ["one", "one"], ["two"], 14),
        node("Identity", ["rows"], ["again"], 19),
    ]
    consts = {"table": normal(7, 3), "one": np.array([1.5, -2], "f")}
    return made(nodes, {"ids": TensorType("int64", (4,))}, consts, ["rows", "same", "two", "again"])


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """The small net for this machine: (model file, library, what compile returned)."""
    folder = tmp_path_factory.mktemp("net")
    data = small_net()
    done = minifer.compile(data, "x86_64-linux", folder, name="small_net", cpu=LEVEL)
    return data, folder, done


@HERE
def test_the_library_agrees_with_the_engine_bit_for_bit(net):
    data, folder, done = net
    library = Library(folder / "libsmall_net.so", "small_net")
    assert library.inputs == [("x", np.float32, (1, 3, 17, 15), 3 * 17 * 15 * 4)]
    assert [t[0] for t in library.outputs] == ["probabilities", "features"]
    x = normal(1, 3, 17, 15)
    expected = minifer.load(data, threads=1).run({"x": x})
    got = library.run({"x": x})
    assert all(got[n].tobytes() == expected[n].tobytes() for n in expected)
    assert {f.name for f in done.files} == {
        "small_net.o", "libsmall_net.a", "libsmall_net.so", "small_net.h", "small_net.rs",
    }  # fmt: skip
    assert not native.undefined_symbols((folder / "small_net.o").read_bytes())


@HERE
def test_wrong_arguments_give_a_status(net):
    _, folder, _ = net
    library = Library(folder / "libsmall_net.so", "small_net")
    x, y, z = normal(1, 3, 17, 15), np.zeros((1, 5), "f"), np.zeros((1, 9), "f")
    workspace = aligned(library.workspace_bytes)
    assert library.status([x], [y, z], workspace) == Status.OK
    assert library.status([x[..., :14]], [y, z], workspace) == Status.INPUTS
    assert library.status([None], [y, z], workspace) == Status.INPUTS
    assert library.status([x, x], [y, z], workspace) == Status.INPUTS
    assert library.status([x], [y, z], workspace, counts=(0, 2)) == Status.INPUTS
    assert library.status([x], [y], workspace) == Status.OUTPUTS
    assert library.status([x], [y, y], workspace) == Status.OUTPUTS
    assert library.status([x], [y, z], workspace[:-1]) == Status.WORKSPACE
    assert library.status([x], [y, z], None) == Status.WORKSPACE
    assert library.status([x], [y, z], aligned(library.workspace_bytes, 32)) == Status.WORKSPACE


@HERE
def test_any_sizes_give_a_status(net):
    _, folder, _ = net
    library = Library(folder / "libsmall_net.so", "small_net")
    draw = np.random.default_rng(3)
    for _ in range(300):
        arrays = [aligned(int(draw.choice([0, 1, 20, 36, 3060, 4000]))) for _ in range(3)]
        workspace = aligned(int(draw.choice([0, 64, library.workspace_bytes])))
        counts = tuple(int(c) for c in draw.integers(0, 4, 2))
        status = library.status(arrays[:1], arrays[1:], workspace, counts=counts)
        fits = (
            counts == (1, 2)
            and [a.nbytes for a in arrays] == [3060, 20, 36]
            and workspace.nbytes >= library.workspace_bytes
        )
        assert (status == Status.OK) == fits and 0 <= status <= 5


@HERE
def test_outputs_of_every_origin_and_a_value_that_is_refused(tmp_path):
    data = all_kinds()
    minifer.compile(io.BytesIO(data), "x86_64-linux", tmp_path, name="kinds", weights="separate")
    library = Library(tmp_path / "libkinds.so", "kinds")
    weights = aligned(library.weights_bytes)
    weights[:] = np.fromfile(tmp_path / "kinds.weights", np.uint8)
    ids = np.array([6, 0, -7, 3])
    expected = minifer.load(data).run({"ids": ids})
    got = library.run({"ids": ids}, weights)
    assert all(got[n].tobytes() == expected[n].tobytes() for n in expected)
    outputs, workspace = list(got.values()), aligned(library.workspace_bytes)
    assert library.status([np.array([6, 0, 7, 3])], outputs, workspace, weights) == Status.REFUSED
    assert library.status([ids], outputs, workspace, None) == Status.WEIGHTS
    assert library.status([ids], outputs, workspace, weights[:-1]) == Status.WEIGHTS


def test_the_same_model_gives_the_same_files(net, tmp_path):
    data, _, done = net
    again = minifer.compile(data, "x86_64-linux", tmp_path, name="small_net", cpu=LEVEL)
    for first, second in zip(done.files, again.files):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_the_module_agrees_with_the_engine_in_node(tmp_path):
    node_path = shutil.which("node")
    if node_path is None:
        pytest.skip("node is not installed")
    data = small_net()
    minifer.compile(data, "wasm32", tmp_path, name="small_net")
    x = normal(1, 3, 17, 15)
    (tmp_path / "x.json").write_text(json.dumps(x.ravel().tolist()))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(
        """
        import { load } from "./small_net.js";
        import fs from "node:fs";
        const model = await load();
        const x = Float32Array.from(JSON.parse(fs.readFileSync(new URL("x.json", import.meta.url))));
        const y = model.run({ x });
        console.log(JSON.stringify({ p: [...y.probabilities], f: [...y.features] }));
        """
    )
    said = subprocess.run([node_path, tmp_path / "run.js"], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    got, expected = json.loads(said.stdout), minifer.load(data).run({"x": x})
    np.testing.assert_allclose(got["p"], expected["probabilities"][0], atol=1e-5)
    np.testing.assert_allclose(got["f"], expected["features"][0], rtol=1e-5, atol=1e-5)
    if wasm_validate := shutil.which("wasm-validate"):
        subprocess.run([wasm_validate, tmp_path / "small_net.wasm"], check=True)


CROSS = {
    "aarch64-linux": ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"),
    "riscv64-linux": ("riscv64-linux-gnu-gcc", "qemu-riscv64-static"),
    "x86_64-linux": ("gcc", ""),
}


@pytest.mark.parametrize("target", CROSS)
def test_a_c_program_links_the_archive(target, tmp_path):
    compiler, emulator = CROSS[target]
    for tool in filter(None, (compiler, emulator)):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if target == "x86_64-linux" and host().name not in RUN_V3:
        pytest.skip("this processor lacks AVX2")
    data = small_net()
    minifer.compile(data, target, tmp_path, name="small_net")
    (tmp_path / "main.c").write_text(
        """
        #include <stdio.h>
        #include <stdlib.h>
        #include "small_net.h"
        static float x[3 * 17 * 15], y[5], f[9];
        int main(void) {
            if (fread(x, sizeof x, 1, stdin) != 1) return 9;
            void *workspace = aligned_alloc(64, (small_net_workspace_bytes() + 63) / 64 * 64);
            minifer_buffer in[1] = {{x, sizeof x}}, out[2] = {{y, sizeof y}, {f, sizeof f}};
            int status = small_net_run(in, 1, out, 2, workspace, small_net_workspace_bytes());
            for (int i = 0; i < 5; i++) printf("%.9g ", y[i]);
            return status;
        }
        """
    )
    subprocess.run(
        [compiler, "-static", "-std=c11", "-Wall", "-Werror", "main.c", "libsmall_net.a", "-o", "main"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    x = normal(1, 3, 17, 15)
    command = [*([emulator] if emulator else []), str(tmp_path / "main")]
    said = subprocess.run(command, input=x.tobytes(), capture_output=True, timeout=60)
    assert said.returncode == 0, said.stderr
    got = np.array(said.stdout.split(), "f")
    np.testing.assert_allclose(got, minifer.load(data).run({"x": x})["probabilities"][0], atol=1e-5)


@pytest.mark.parametrize("target", ["x86_64-windows", "aarch64-macos", "thumbv7em"])
def test_objects_for_machines_that_are_not_here(target, tmp_path):
    done = minifer.compile(small_net(), target, tmp_path, name="small_net")
    names = {f.name.rpartition(".")[2]: f for f in done.files}
    assert {"h", "rs", "a" if target == "thumbv7em" else "weights"} < set(names)
    code = next(f for kind, f in names.items() if kind in ("o", "obj")).read_bytes()
    assert code.startswith({"x86_64-windows": b"d\x86", "aarch64-macos": b"\xcf\xfa\xed\xfe"}.get(target, b"\x7fELF"))
    assert b"small_net_run" in code


def test_what_cannot_be_compiled_is_listed_and_nothing_is_written(tmp_path):
    nodes = [node("NonZero", ["x"], ["i"], 13), node("Unique", ["x"], ["u", "", "", ""], 11)]
    data = made(nodes, {"x": TensorType("float32", (4,))}, {}, ["i", "u"])
    with pytest.raises(UnsupportedError, match=r"NonZero.*depends on the values"):
        minifer.compile(data, "x86_64-linux", tmp_path / "out")
    strings = made([node("StringConcat", ["s", "s"], ["t"], 20)], {"s": TensorType("string", (2,))}, {}, ["t"])
    with pytest.raises(UnsupportedError, match="'s' is no tensor of numbers"):
        minifer.compile(strings, "x86_64-linux", tmp_path / "out")
    small = made([node("Identity", ["x"], ["y"], 21)], {"x": TensorType("int4", (3,))}, {}, ["y"])
    with pytest.raises(UnsupportedError, match="'x' holds int4"):
        minifer.compile(small, "x86_64-linux", tmp_path / "out")
    det = made([node("Det", ["x"], ["d"], 22)], {"x": TensorType("float32", (3, 3))}, {}, ["d"])
    with pytest.raises(UnsupportedError, match=r"Det x1 \(first: Det_d\)"):
        minifer.compile(det, "x86_64-linux", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_open_shapes_ask_for_the_option_that_closes_them(tmp_path):
    data = made([node("Relu", ["x"], ["y"], 14)], {"x": TensorType("float32", ("N", "L", 4))}, {}, ["y"])
    with pytest.raises(ShapeError, match="--shape x=1,128,4"):
        minifer.compile(data, "x86_64-linux", tmp_path)
    with pytest.raises(ShapeError, match="does not fit"):
        minifer.compile(data, "x86_64-linux", tmp_path, shapes={"x": (1, 2, 3)})
    with pytest.raises(InputError, match="no input z"):
        minifer.compile(data, "x86_64-linux", tmp_path, shapes={"z": (1,)})
    with pytest.raises(InputError, match="no symbolic dimension"):
        minifer.compile(data, "x86_64-linux", tmp_path, dims={"M": 3})
    same = made([node("Relu", ["x"], ["y"], 14)], {"x": TensorType("float32", ("?", 3, "?", "?"))}, {}, ["y"])
    done = minifer.compile(same, "x86_64-linux", tmp_path, shapes={"x": (1, 3, 4, 8)})  # exporters use one name for all
    assert done.interface.inputs[0].shape == (1, 3, 4, 8)
    done = minifer.compile(data, "x86_64-linux", tmp_path, dims={"L": 6})
    assert done.interface.inputs[0].shape == (1, 6, 4) and done.interface.name == "model"


def test_options_that_do_not_fit(tmp_path):
    data = small_net()
    for options, message in (
        ({"target": "z80"}, "no target 'z80'"),
        ({"cpu": "z80"}, "no CPU level 'z80'"),
        ({"name": "Small Net"}, "cannot be the name"),
        ({"name": "while"}, "cannot be the name"),
        ({"weights": "gone"}, "'embedded' or 'separate'"),
        ({"target": "aarch64-linux", "demo": True}, "demo page needs the target wasm32"),
        ({"values": {"q": 1}}, "no tensor input 'q'"),
    ):
        with pytest.raises(InputError, match=message):
            minifer.compile(data, **{"target": "wasm32", "out": tmp_path / "out", **options})
    with pytest.raises(InputError, match="cannot compile int"):
        minifer.compile(3, out=tmp_path / "out")
    with pytest.raises(ModelError, match="no such file"):
        minifer.compile(Path("no such file.onnx"), out=tmp_path / "out")
    with pytest.raises(ModelError):
        minifer.compile(b"no model", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MiniferError, match="cannot write the compiled model"):
        minifer.compile(data, "x86_64-linux", tmp_path / "file")


@HERE
def test_an_input_that_is_fixed_chooses_the_branch(tmp_path):
    x = {"x": TensorType("float32", (3,)), "double": TensorType("bool", ())}
    branches = {
        "then_branch": Graph((), ("t",), (node("Add", ["x", "x"], ["t"], 14),), {}, {}),
        "else_branch": Graph((), ("e",), (node("Neg", ["x"], ["e"], 13),), {}, {}),
    }
    data = made([node("If", ["double"], ["y"], 21, **branches)], x, {}, ["y"])
    minifer.compile(data, "x86_64-linux", tmp_path, name="chosen", values={"double": 0})
    library = Library(tmp_path / "libchosen.so", "chosen")
    assert [t[0] for t in library.inputs] == ["x"]
    assert library.run({"x": np.array([1, 2, 3], "f")})["y"].tolist() == [-1, -2, -3]
