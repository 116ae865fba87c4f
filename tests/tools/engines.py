"""Engines that behave badly, for the benchmark's tests: named as tests.tools.engines:CLASS."""

from __future__ import annotations

import os
import time

import numpy as np


class Twin:
    """Gives what the tiny model gives: relu(x @ W), W being 0 to 11 as 3 rows of 4."""

    version = "7"

    def __init__(self, path: str, threads: int):
        print("an engine that talks on standard output")
        os.write(1, b"and below Python too\n")

    def run(self, feeds):
        return {"y": np.maximum(feeds["x"] @ np.arange(12, dtype=np.float32).reshape(3, 4), 0)}


class Wrong(Twin):
    """Another answer."""

    def run(self, feeds):
        return {"y": super().run(feeds)["y"] + 1}


class Choosy(Twin):
    """Refuses every model."""

    def __init__(self, path: str, threads: int):
        raise ValueError(f"I do not like {os.path.basename(path)}")


class Mortal(Twin):
    """Dies in its first run."""

    def run(self, feeds):
        os._exit(3)


class Tired(Twin):
    """Works three times, then no more: fails in the middle of a measurement."""

    def __init__(self, path: str, threads: int):
        self.left = 3

    def run(self, feeds):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("enough")
        return super().run(feeds)


class Asleep(Twin):
    """Does not answer."""

    def run(self, feeds):
        time.sleep(60)


class Unsendable(Twin):
    """Outputs that no pipe takes."""

    def run(self, feeds):
        return {"y": lambda: None}
