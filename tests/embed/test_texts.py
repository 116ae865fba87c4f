"""`predict_sentiment` in C, Rust and JavaScript, from the compiled model: what Python says of the same texts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import minifer
from minifer import models
from minifer.kernels.target import host
from minifer.pipelines.text import sentiment
from tests.embed.native import RUN_V3

pytestmark = pytest.mark.embed

TEXTS = [
    "What a lovely day!", "This is the worst film that I have ever seen.", "", "It is a table.",
    "Na\u00efve caf\u00e9 \u2014 I don\u2019t like it \U0001f600", "not bad at all", "word " * 900,
]  # fmt: skip
MODEL = Path(models.__file__).parent / "sentiment.onnx"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    if host().name not in RUN_V3:
        pytest.skip("this processor lacks AVX2")
    folder = tmp_path_factory.mktemp("native")
    minifer.compile(MODEL, "x86_64-linux", folder, name="mood")
    return folder


def check(lines: list[str]) -> None:
    """Each line: label, score, rating."""
    assert len(lines) == len(TEXTS)
    for text, line in zip(TEXTS, lines):
        label, score, rating = line.split()
        expected = sentiment(text)
        assert label == expected.label, text
        np.testing.assert_allclose([float(score), float(rating)], [expected.score, expected.rating], atol=2e-5)


def records(folder: Path) -> Path:
    """The texts as a file: a length of four bytes, then UTF-8, one after another."""
    path = folder / "texts"
    path.write_bytes(b"".join(len(t.encode()).to_bytes(4, "little") + t.encode() for t in TEXTS))
    return path


def said(command: list, folder: Path) -> list[str]:
    with open(records(folder), "rb") as texts:
        done = subprocess.run(command, stdin=texts, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_in_c(native):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (native / "main.c").write_text(
        """
        #include <stdio.h>
        #include <stdlib.h>
        #include "mood_text.h"
        static char text[10000];
        int main(void) {
            void *workspace = aligned_alloc(64, (MOOD_WORKSPACE_BYTES + 63) / 64 * 64);
            uint32_t size;
            while (fread(&size, 4, 1, stdin) == 1) {
                if (fread(text, 1, size, stdin) != size) return 9;
                sentiment_prediction p;
                int32_t status = predict_sentiment(text, size, workspace, &p);
                if (status != 0) return status;
                printf("%s %.7f %.7f\\n", sentiment_label(p.label), p.score, p.rating);
            }
            return 0;
        }
        """
    )
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "main.c", "libmood.a", "-o", "main"]
    subprocess.run(command, cwd=native, check=True)
    check(said([native / "main"], native))


def test_in_rust(native):
    if shutil.which("rustc") is None:
        pytest.skip("rustc is not installed")
    (native / "main.rs").write_text(
        """
        #![deny(warnings)]
        mod mood;
        #[allow(dead_code)]
        mod mood_text;
        use std::io::Read;
        fn main() -> Result<(), Box<dyn std::error::Error>> {
            let mut all = Vec::new();
            std::io::stdin().read_to_end(&mut all)?;
            let (mut model, mut rest) = (mood::Model::new(), &all[..]);
            while let Some((size, behind)) = rest.split_first_chunk::<4>() {
                let (text, next) = behind.split_at(u32::from_le_bytes(*size) as usize);
                let p = mood_text::predict_sentiment(&mut model, text)?;
                println!("{} {:.7} {:.7}", p.label, p.score, p.rating);
                rest = next;
            }
            Ok(())
        }
        """
    )
    command = ["rustc", "--edition", "2021", "-O", "main.rs", "-L", ".", "-l", "static=mood", "-o", "main_rs"]
    subprocess.run(command, cwd=native, check=True)
    check(said([native / "main_rs"], native))


def test_in_javascript(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    minifer.compile(MODEL, "wasm32", tmp_path, name="mood")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    (tmp_path / "main.js").write_text(
        """
        import fs from "node:fs";
        import { predict_sentiment } from "./mood_text.js";
        for (const text of JSON.parse(fs.readFileSync(new URL("texts.json", import.meta.url)))) {
          const { label, score, rating } = await predict_sentiment(text);
          console.log(label, score, rating);
        }
        """
    )
    check(said([node, tmp_path / "main.js"], tmp_path))
    if tsc := shutil.which("tsc"):
        subprocess.run([tsc, "--noEmit", "--strict", tmp_path / "mood_text.d.ts"], check=True)
