"""What many results say together: geometric means of the ratios, and the tables of a document."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from minifer.tools.bench_result import Result

BEST = "best of them"  # the quickest of the other engines, model by model
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}  # as they write themselves
MEGABYTE = 1e6

Figure = Callable[[Result], "float | None"]


def ratio_of(statistic: str) -> Figure:
    """Which ratio of a result is meant: that of the "median" or of the "min" times."""
    return {"median": lambda r: r.ratio, "min": lambda r: r.ratio_min}[statistic]


def time_of(statistic: str) -> Figure:
    """Which time of a result is meant, in milliseconds."""
    return {"median": lambda r: r.median_ms, "min": lambda r: r.min_ms}[statistic]


@dataclass(frozen=True)
class Mean:
    """Geometric mean of the ratios to an engine at a thread count."""

    threads: int
    engine: str  # or BEST
    models: int  # that have a ratio
    ratio: float  # of medians
    ratio_min: float  # of minima
    worst: float  # the largest ratio of medians
    worst_model: str


def means(results: Sequence[Result]) -> list[Mean]:
    """One for each thread count and other engine, and one for the best of them where there are several."""
    out = []
    for threads in in_order(r.threads for r in results):
        rated = [r for r in results if r.threads == threads and r.ratio is not None and r.ratio_min is not None]
        engines = in_order(r.engine for r in rated)
        for engine in engines:
            out.append(_mean(threads, engine, [r for r in rated if r.engine == engine]))
        if len(engines) > 1:
            out.append(_mean(threads, BEST, best_of(rated)))
    return out


def best_of(rated: Sequence[Result]) -> list[Result]:
    """For each model the result of the engine that is quickest beside the first one."""
    best: dict[tuple[str, str], Result] = {}
    for r in rated:
        held = best.get((r.name, r.model))
        if held is None or (r.ratio or 0) > (held.ratio or 0):
            best[r.name, r.model] = r
    return list(best.values())


def _mean(threads: int, engine: str, rated: Sequence[Result]) -> Mean:
    worst = max(rated, key=lambda r: r.ratio or 0)
    return Mean(
        threads, engine, len(rated), geometric_mean([r.ratio or 0 for r in rated]),
        geometric_mean([r.ratio_min or 0 for r in rated]), worst.ratio or 0, worst.name,
    )  # fmt: skip


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm, for positive values: a ratio and its inverse cancel out."""
    return math.exp(sum(map(math.log, values)) / len(values))


def in_order(values: Iterable) -> list:
    """Each value once, in the order of its first appearance."""
    return list(dict.fromkeys(values))


# ---- a table for a document ----------------------------------------------------------------------------------------


def markdown(results: Sequence[Result], statistic: str = "median") -> list[str]:
    """A table with one row for each model: the first engine's time, then for each other engine the ratios of time at
    all thread counts, then cold start and peak memory beside the first other engine. Means stand at the end."""
    first, *others = in_order(r.engine for r in results)
    others = [e for e in others if any(r.engine == e and r.status != "missing" for r in results)]
    counts = in_order(r.threads for r in results)
    at = threads_list(counts)
    heads = ["model", "input", f"{TITLES.get(first, first)} ms, {at}"]
    heads += [f"/ {TITLES.get(engine, engine)}, {at}" for engine in others]
    for engine in others[:1]:
        title = TITLES.get(engine, engine)
        heads += [f"cold start / {title}", f"peak memory, {TITLES.get(first, first)} / {title}, MB"]
    rows = [heads, ["---"] * len(heads)]
    for name, model in in_order((r.name, r.model) for r in results):
        table = {(r.engine, r.threads): r for r in results if (r.name, r.model) == (name, model)}
        rows.append(_row(name, table, first, others, counts, statistic))
    rows.append(_mean_row(results, others, counts, statistic, len(heads)))
    return ["| " + " | ".join(row) + " |" for row in rows]


def threads_list(counts: Sequence[int]) -> str:
    """[1, 2] -> "1 and 2 threads"."""
    text = " and ".join([", ".join(map(str, counts[:-1])), str(counts[-1])] if len(counts) > 1 else map(str, counts))
    return f"{text} thread{'s' if counts[-1] > 1 else ''}"


def _row(name: str, table: dict, first: str, others: Sequence[str], counts: Sequence[int], statistic: str) -> list[str]:
    ratio, time = ratio_of(statistic), time_of(statistic)
    some = next(iter(table.values()))
    own = table.get((first, counts[0]))

    def joined(engine: str, figure: Figure, form: Callable[[float | None], str]) -> str:
        held = [table.get((engine, n)) for n in counts]
        if not any(r is not None and r.status == "ok" for r in held):
            return "fails" if any(r is not None and r.status == "failed" for r in held) else "-"
        return ", ".join(form(figure(r)) if r is not None else "-" for r in held)

    row = [name, first_shape(some), joined(first, time, milliseconds), *(joined(e, ratio, two_places) for e in others)]
    if others:
        other = table.get((others[0], counts[0]))
        cold, peak = ([figure(r) if r else None for r in (own, other)] for figure in (cold_start, peak_megabytes))
        row.append(two_places(cold[0] / cold[1] if cold[0] and cold[1] else None))
        row.append(" / ".join("-" if size is None else f"{size:.0f}" for size in peak))
    return row


def cold_start(result: Result) -> float | None:
    return result.cold_start_ms


def peak_megabytes(result: Result) -> float | None:
    return None if result.peak_bytes is None else result.peak_bytes / MEGABYTE


def _mean_row(
    results: Sequence[Result], others: Sequence[str], counts: Sequence[int], statistic: str, width: int
) -> list[str]:
    found = {(m.engine, m.threads): m.ratio if statistic == "median" else m.ratio_min for m in means(results)}

    def joined(engine: str) -> str:
        return ", ".join(two_places(found.get((engine, n))) for n in counts)

    best = f"best of them: {joined(BEST)}" if any(engine == BEST for engine, _ in found) else ""
    row = ["**geometric mean**", best, "", *(f"**{joined(engine)}**" for engine in others)]
    return row + [""] * (width - len(row))


def first_shape(result: Result) -> str:
    """The shape of the first input that is no scalar, as 1x3x224x224."""
    for text in result.inputs.values():
        found = re.search(r"\[(.+)\]", text)
        if found:
            return found[1].replace(", ", "x")
    return ""


def milliseconds(value: float | None) -> str:
    """Three figures."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def two_places(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
