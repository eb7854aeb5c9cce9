"""Means, spreads, whether two of them differ, and how they are written."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, NamedTuple, Self

from fastgat.experiments.paper import Accuracy

BySeed = dict[str, float]


class Spread(NamedTuple):
    """n values: their mean, and their standard deviation (None for a single one)."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Raises ValueError where there are none."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: BySeed, theirs: BySeed) -> BySeed:
    """How far `ours` are over `theirs`, for the seeds that both have."""
    return {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}


def verdict(ours: Spread, theirs: Accuracy) -> str:
    """agrees, better or worse: whether the means are within the joint spread, sqrt(sd² + sd'²).

    A single run is given the paper's standard deviation.
    """
    joint = math.hypot(ours.sd if ours.sd is not None else theirs.sd, theirs.sd)
    difference = ours.mean - theirs.mean
    if abs(difference) <= joint:
        return "agrees"
    return "better" if difference > 0 else "worse"


def interval(values: Sequence[float]) -> float | None:
    """Half the width of Student's 95 % interval of the mean; None for a single value."""
    from scipy.special import stdtrit  # slow

    n = len(values)
    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else None


def escaped(cell: str) -> str:
    """A cell of a Markdown table, in which a | stands for itself."""
    return cell.replace("|", "\\|")


def percent(values: Iterable[float] | None, places: int = 2) -> str:
    """The mean in percent, ± the standard deviation of several values: 80.33 ± 0.44."""
    if not (values := list(values or ())):
        return "-"
    spread = Spread.of(values)
    text = f"{100 * spread.mean:.{places}f}"
    return text if spread.sd is None else f"{text} ± {100 * spread.sd:.{places}f}"


def accuracy(values: Iterable[float] | None, sign: str = "") -> str:
    """The mean in percent, ± its 95 % interval where there are several values."""
    if not (values := list(values or ())):
        return "-"
    half_width = interval(values)
    text = f"{100 * statistics.mean(values):{sign}.2f}"
    return text if half_width is None else f"{text} ± {100 * half_width:.2f}"


def points(values: float | Iterable[float] | None) -> str:
    """A difference in percentage points, or the mean of several, ± its 95 % interval: +2.85 ± 0.30."""
    return accuracy([values] if isinstance(values, float) else values, "+")


def counted(text: str, values: Sized, n: int) -> str:
    """`text`, made of these values, and how many they are where that is another number than the row's n."""
    return text if len(values) in (0, n) else f"{text} (n = {len(values)})"


FILTERS: dict[str, Callable[..., Any]] = {
    "percent": percent,
    "accuracy": accuracy,
    "points": points,
    "counted": counted,
    "cell": escaped,
    "mean": statistics.mean,
}
"""What the templates of sections write numbers with."""
