"""Learning-rate schedules: the factor on the base learning rate as a function of the step."""

from __future__ import annotations

import math

WARM_UP, START, END = 0.3, 1 / 25, 1 / 250_000


def learning_rate_factor(schedule: str, step: int, total: int) -> float:
    """The factor for step `step` of `total`.

    constant    1
    cosine      from 1 to 0 (Loshchilov and Hutter 2017, without restarts)
    one-cycle   from 1/25 up to 1 over 30 % of the steps, then down to 1/250000, both along a cosine (Smith 2018)
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return _cosine(1.0, 0.0, step / total)
    assert schedule == "one-cycle"
    peak = WARM_UP * total - 1
    if step <= peak:
        return _cosine(START, 1.0, step / peak)
    return _cosine(1.0, END, (step - peak) / (total - 1 - peak)) if total > 1 else 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
