"""How the commands write numbers and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def bytes_text(count: float) -> str:
    """1536 -> "1.5 kB"; decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def count_text(count: float) -> str:
    """770000000 -> "770.0 M", to stand before a unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 1000 or prefix == "T":
            return f"{count:.0f} " if prefix == "" else f"{count:.1f} {prefix}"
        count /= 1000
    raise AssertionError


def time_text(seconds: float) -> str:
    """0.0123 -> "12.3 ms"."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def table(rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> list[str]:
    """Lines with columns as wide as their widest cell; `right` are the columns set flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in cells
    ]
