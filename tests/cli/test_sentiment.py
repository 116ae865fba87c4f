"""`minifer sentiment`: texts as arguments and on the standard input, for people and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minifer.cli import command_names, main
from minifer.pipelines.text import LABELS

GOOD, BAD = "What a wonderful film, I loved it!", "An awful, boring waste of time."


def command(*arguments: str, data: bytes = b"") -> bytes:
    """What a process of its own prints."""
    line = [sys.executable, "-m", "minifer", "sentiment", *arguments]
    done = subprocess.run(line, input=data, capture_output=True, timeout=120, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert "sentiment" in command_names()
    assert main(["sentiment", GOOD, BAD, ""]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["positive", "negative", "neutral"]
    assert lines[0].endswith(GOOD) and "%" in lines[0] and "+" in lines[0]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sentiment", "--json", GOOD, BAD]) == 0
    good, bad = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (good["text"], good["label"], bad["label"]) == (GOOD, "positive", "negative")
    assert list(good["probabilities"]) == list(LABELS) and good["score"] == good["probabilities"]["positive"]
    assert -4 <= bad["rating"] < 0 < good["rating"] <= 4


def test_standard_input() -> None:
    """Lines end in any way, and need not be UTF-8; `-` stands among other texts."""
    lines = command("-", BAD, "--json", data=f"{GOOD}\r\n\n".encode() + b"gr\xffeat").decode().splitlines()
    found = [json.loads(line) for line in lines]
    assert [f["text"] for f in found] == [GOOD, "", "gr\ufffdeat", BAD]
    assert [found[i]["label"] for i in (0, 1, 3)] == ["positive", "neutral", "negative"]


def test_wrong_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sentiment", "--model", str(tmp_path / "none.onnx"), GOOD]) == 2
    assert "none.onnx" in capsys.readouterr().err
