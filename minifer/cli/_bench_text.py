"""The figures of a benchmark as text tables."""

from __future__ import annotations

from minifer.cli._text import bytes_text, table
from minifer.tools.bench import TOLERANCE, Report
from minifer.tools.bench_result import Result
from minifer.tools.bench_summary import in_order, means

HEADINGS = ("threads", "engine", "median ms", "min ms", "minifer/it", "of min", "load ms", "first run ms",
            "cold start ms", "peak memory", "difference")  # fmt: skip
MEAN_HEADINGS = ("threads", "engine", "models", "minifer/it", "of min", "worst", "")
MESSAGE = 200  # characters that are shown


def report_lines(report: Report) -> list[str]:
    """The tables, one for each model, the means over all, then what a reader must know to trust them."""
    about = report.machine
    lines = [f"{about['processor'] or about['system']}, {about['cpus']} CPUs, Python {about['python']}"]
    for name, model in in_order((r.name, r.model) for r in report.results):
        rows = [r for r in report.results if (r.name, r.model) == (name, model)]
        inputs = list(rows[0].inputs.items())
        more = f", and {len(inputs) - 4} more" if len(inputs) > 4 else ""
        lines += ["", f"{name}  {', '.join(f'{n} {kind}' for n, kind in inputs[:4])}{more}"]
        measured = [r for r in rows if r.status == "ok"]
        lines += table([HEADINGS, *map(row, measured)], right=(0, *range(2, len(HEADINGS)))) if measured else []
        lines += [f"{threads_text(r.threads)}, {r.engine}: {one_line(r.message)}" for r in rows if r.message]
        lines += [
            f"{threads_text(r.threads)}: the outputs of {r.engine} DIFFER from minifer's" for r in rows if disagrees(r)
        ]
    return lines + mean_lines(report) + notes(report)


def mean_lines(report: Report) -> list[str]:
    """Geometric means over the models; nothing where there is one model only."""
    found = means(report.results)
    if all(mean.models < 2 for mean in found):
        return []
    rows = [
        (str(m.threads), m.engine, str(m.models), f"{m.ratio:.3f}",
         f"{m.ratio_min:.3f}", f"{m.worst:.3f}", m.worst_model)
        for m in found
    ]  # fmt: skip
    return ["", "geometric means", *table([MEAN_HEADINGS, *rows], right=(0, 2, 3, 4, 5))]


def notes(report: Report) -> list[str]:
    """What disturbed the figures."""
    about, lines = report.machine, []
    if about["load"] is not None and about["load"] > 0.5:
        lines += ["", f"note: the load was {about['load']} on {about['cpus']} CPUs when this began. Other work disturbs"
                  " the figures."]  # fmt: skip
    if not about["bytecode"]:
        lines += ["", "note: Python keeps no compiled modules of minifer here (PYTHONDONTWRITEBYTECODE, or a read-only"
                  " folder):", "each process compiles them anew, so load and cold start take far longer than they"
                  " should."]  # fmt: skip
    return lines


def disagrees(result: Result) -> bool:
    """True where the outputs differ by more than rounding explains."""
    return result.error is not None and not result.error <= TOLERANCE


def threads_text(count: int) -> str:
    """1 -> "1 thread"."""
    return f"{count} thread{'s' if count > 1 else ''}"


def one_line(message: str) -> str:
    """A message that another engine gave, which may be long. The JSON form has it whole."""
    words = " ".join(message.split())
    return words if len(words) <= MESSAGE else words[:MESSAGE] + " ..."


def row(result: Result) -> tuple[str, ...]:
    """An engine's line."""

    def number(value: float | None, places: int) -> str:
        return "-" if value is None else f"{value:.{places}f}"

    return (
        str(result.threads), f"{result.engine} {result.version}", number(result.median_ms, 3),
        number(result.min_ms, 3), number(result.ratio, 3), number(result.ratio_min, 3), number(result.load_ms, 1),
        number(result.first_run_ms, 1), number(result.cold_start_ms, 1),
        "-" if result.peak_bytes is None else bytes_text(result.peak_bytes),
        "-" if result.error is None else f"{result.error:.1e}",
    )  # fmt: skip
