"""Means, spreads, and whether two of them differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from fastgat.experiments.paper import Accuracy


class Spread(NamedTuple):
    """n values: their mean, and their standard deviation (None for a single one)."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there are none."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def verdict(ours: Spread, theirs: Accuracy) -> str:
    """agrees, better or worse: whether the means are within the joint spread, sqrt(sd² + sd'²).

    A single run is given the paper's standard deviation.
    """
    joint = math.hypot(ours.sd if ours.sd is not None else theirs.sd, theirs.sd)
    difference = ours.mean - theirs.mean
    if abs(difference) <= joint:
        return "agrees"
    return "better" if difference > 0 else "worse"


def interval(differences: Sequence[float], confidence: float = 0.95) -> float | None:
    """Half the width of Student's interval of the mean difference of pairs; None for a single pair."""
    from scipy.special import stdtrit  # slow

    n = len(differences)
    if n < 2:
        return None
    return float(stdtrit(n - 1, (1 + confidence) / 2)) * statistics.stdev(differences) / math.sqrt(n)
