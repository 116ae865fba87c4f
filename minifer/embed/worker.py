"""One compilation, in a process of its own that plans for the target's machine: `python -m minifer.embed.worker`.

It reads a job from standard input (pickled, from the process that started it) and writes a result to standard output:
the interface with code and weights, or the error.
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to compile; `source` is a path or the content of a model file."""

    source: str | bytes
    name: str
    shapes: dict[str, tuple[int, ...]]
    dims: dict[str, int]
    values: dict[str, Any]
    separate: bool


def compile_here(job: Job) -> Any:
    """The code of a job, for the machine that this process plans for."""
    from minifer.embed.module import compile_program
    from minifer.embed.program import make_program
    from minifer.kernels.target import host
    from minifer.onnx_io import read_model

    model = read_model(job.source)
    program = make_program(model, job.name, job.shapes, job.values, separate=job.separate, dims=job.dims)
    return replace(compile_program(program, host()), metadata=dict(model.metadata))


def main() -> None:
    """Do the job on standard input."""
    from minifer.errors import MiniferError

    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not disturb the result
    job = pickle.load(sys.stdin.buffer)
    try:
        answer: Any = compile_here(job)
    except (MiniferError, OSError) as error:
        answer = error
    pickle.dump(answer, results, protocol=5)
    results.close()


if __name__ == "__main__":
    # the classes that are pickled belong to the module by its own name, not to __main__
    from minifer.embed import worker

    worker.main()
