"""A bar chart of a benchmark: how long minifer takes by each other engine's time, model by model.

What the chart shows is worked out first, as plain values; matplotlib (the extra `bench`) then draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minifer.errors import InputError
from minifer.tools.bench import Report
from minifer.tools.bench_result import Result
from minifer.tools.bench_summary import TITLES, in_order, means, milliseconds, ratio_of, threads_list, time_of

SUFFIXES = (".png", ".svg", ".pdf")
MEAN = "geometric mean"
WIDTH, BAR_HEIGHT, MARGIN = 5.5, 0.26, 1.3  # inches: of a panel, of a bar, above and below
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # told apart by colour-blind eyes too


@dataclass(frozen=True)
class Bar:
    """The first engine's time by another's, and that one's time; both None where it gave no result."""

    engine: str
    ratio: float | None
    milliseconds: float | None


@dataclass(frozen=True)
class Group:
    """The bars of a model, or of the mean of all."""

    name: str
    milliseconds: float | None  # of the first engine
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Panel:
    """All models at one thread count."""

    threads: int
    groups: tuple[Group, ...]


def panels(results: Sequence[Result], statistic: str = "median") -> list[Panel]:
    """What is to be drawn: a panel for each thread count. Engines that are missing everywhere have no bars."""
    ratio, time = ratio_of(statistic), time_of(statistic)
    first, *others = in_order(r.engine for r in results)
    others = [e for e in others if any(r.engine == e and ratio(r) is not None for r in results)]
    averages = {(m.threads, m.engine): m.ratio if statistic == "median" else m.ratio_min for m in means(results)}
    out = []
    for threads in in_order(r.threads for r in results):
        groups = []
        for name, model in in_order((r.name, r.model) for r in results):
            here = {r.engine: r for r in results if (r.name, r.model, r.threads) == (name, model, threads)}
            bars = [Bar(e, ratio(here[e]), time(here[e])) if e in here else Bar(e, None, None) for e in others]
            groups.append(Group(name, time(here[first]) if first in here else None, tuple(bars)))
        if len(groups) > 1:
            bars = [Bar(e, averages.get((threads, e)), None) for e in others]
            groups.append(Group(MEAN, None, tuple(bars)))
        out.append(Panel(threads, tuple(groups)))
    return out


def write_chart(report: Report, path: str | Path, statistic: str = "median") -> None:
    """Draw the report into a .png, .svg or .pdf file. Raises InputError where that cannot be done."""
    figure = draw(report, statistic, check_suffix(path))
    figure.savefig(path, dpi=120, bbox_inches="tight")


def check_suffix(path: str | Path) -> str:
    """The suffix of a chart's file, and matplotlib is there. Raises InputError otherwise."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"a chart is a file that ends in {', '.join(SUFFIXES)}, not '{path}'")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("a chart needs matplotlib: pip install 'minifer[bench]'") from error
    return suffix


def draw(report: Report, statistic: str = "median", suffix: str = ".png") -> Any:
    """The matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(report.results, statistic)
    engines = [bar.engine for bar in shown[0].groups[0].bars] if shown and shown[0].groups else []
    if not engines:
        raise InputError("there is nothing to draw: no other engine gave a result")
    rows = len(shown[0].groups) * (len(engines) + 0.8)
    figure = Figure(figsize=(WIDTH * len(shown) + 1, BAR_HEIGHT * rows + MARGIN), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (axes, panel) in enumerate(zip(figure.subplots(1, len(shown), squeeze=False)[0], shown)):
        _draw_panel(axes, panel, engines, named=i == 0)
    first = report.results[0].engine
    figure.suptitle(f"Time of {first} by that of other engines: left of the line, {first} is quicker")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(engines), frameon=False)
    return figure


def _draw_panel(axes: Any, panel: Panel, engines: Sequence[str], named: bool) -> None:
    step = len(engines) + 0.8
    widest = max((bar.ratio for group in panel.groups for bar in group.bars if bar.ratio), default=1.0)
    axes.set_xlim(0, max(widest, 1.0) * 1.35)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for k, engine in enumerate(engines):
        at = [i * step + k for i in range(len(panel.groups))]
        bars = [group.bars[k] for group in panel.groups]
        colour = COLOURS[k % len(COLOURS)]
        axes.barh(at, [bar.ratio or 0 for bar in bars], 0.9, label=TITLES.get(engine, engine), color=colour)
        for y, bar in zip(at, bars):
            text = bar_text(bar)
            axes.text((bar.ratio or 0) + 0.015 * axes.get_xlim()[1], y, text, va="center", fontsize=7, bbox=paper)
    middle = [i * step + (len(engines) - 1) / 2 for i in range(len(panel.groups))]
    axes.set_yticks(middle, [group_text(group, named) for group in panel.groups], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(threads_list([panel.threads]), fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def bar_text(bar: Bar) -> str:
    """What stands at the end of a bar: the ratio, and the other engine's time."""
    time = f"  ({milliseconds(bar.milliseconds)} ms)" if bar.milliseconds is not None else ""
    return "no result" if bar.ratio is None else f"{bar.ratio:.2f}{time}"


def group_text(group: Group, named: bool) -> str:
    """What stands before the bars of a model: its name (in the first panel), the first engine's time."""
    name = [group.name] if named or group.milliseconds is None else []
    time = [f"{milliseconds(group.milliseconds)} ms"] if group.milliseconds is not None else []
    return "\n".join(name + time)
