"""Tables and figures as Markdown has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastgat.experiments.spread import Spread


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a | in a cell stands for itself."""
    lines = []
    for cells in (header, ["---"] * len(header), *rows):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def percent(spread: Spread | None, places: int = 2) -> str:
    """80.33 ± 0.44, in percent; a single value has no spread."""
    if spread is None:
        return "-"
    shown = f"{100 * spread.mean:.{places}f}"
    return shown if spread.sd is None else f"{shown} ± {100 * spread.sd:.{places}f}"


def points(difference: float, half_width: float | None = None) -> str:
    """+2.85 ± 0.30, in percentage points."""
    shown = f"{100 * difference:+.2f}"
    return shown if half_width is None else f"{shown} ± {100 * half_width:.2f}"
