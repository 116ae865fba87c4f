"""What a benchmark finds out about one engine."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Result:
    """One engine on one model at one thread count. Times in milliseconds; None where not measured."""

    name: str
    model: str
    threads: int
    engine: str
    inputs: dict[str, str] = field(default_factory=dict)  # name -> type
    status: str = "ok"  # or "missing", "failed"
    message: str = ""
    version: str = ""
    median_ms: float | None = None
    min_ms: float | None = None
    rounds_ms: list[float] = field(default_factory=list)  # the median of each burst
    runs: int = 0  # timed, in each burst
    ratio: float | None = None  # the first engine's time by this one's: below 1 the first one is quicker
    ratio_min: float | None = None  # the same of the minima
    cold_start_ms: float | None = None  # median: from the start of the process to the first result
    cold_start_min_ms: float | None = None
    load_ms: float | None = None  # median: the model alone, the engine being imported
    first_run_ms: float | None = None  # median: the first run after that
    peak_bytes: int | None = None
    error: float | None = None  # largest difference from the first engine's outputs, by the output's largest magnitude
