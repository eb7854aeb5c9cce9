"""Variants of a generator compared: which are on the Pareto front, and which can be told from the paper's."""

import statistics
from collections.abc import Iterable, Sequence
from typing import TypedDict

from fastgat.experiments.spread import BySeed, interval, paired

MEASURES = {
    "validation": "validation accuracy",
    "test": "test accuracy",
    "fast_gradient": "accuracy under fast gradient L2 of 0.5",
    "worst_case": "worst-case accuracy at L2 norm 0.5",
}
"""Accuracies of a variant, and what they are called."""
CHEAP = 1.5  # the cost, over fast gradient L2, that a generator is wanted to keep to
MARGIN = 0.01  # a loss of accuracy that has to be ruled out before two variants count as the same


class Cost(TypedDict):
    """A step's milliseconds, and its time over that of fast gradient L2 in the same round: median, 20 % and 80 %."""

    step_ms: float
    ratio: float
    ratio_p20: float
    ratio_p80: float


class Variant(TypedDict):
    """A generator: accuracies by MEASURES and the perturbation's norm, by seed, and the costs of a step by machine."""

    name: str
    accuracies: dict[str, BySeed]
    norm: BySeed
    costs: dict[str, Cost]


def named(variants: Iterable[Variant], name: str) -> Variant | None:
    return next((each for each in variants if each["name"] == name), None)


def devices(variants: Iterable[Variant]) -> list[str]:
    """The machines that steps were timed on."""
    return list(dict.fromkeys(device for each in variants for device in each["costs"]))


def within(variants: Iterable[Variant], device: str, ratio: float) -> list[str]:
    """The names of those whose step takes at most `ratio` times fast gradient's."""
    return [each["name"] for each in variants if device in each["costs"] and each["costs"][device]["ratio"] <= ratio]


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, accuracy) that no cheaper point reaches, by cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def points(variants: Sequence[Variant], device: str, measure: str) -> dict[tuple[float, float], Variant]:
    """The variants by (cost on `device`, mean of `measure`), over the seeds of the variant that has most of them.

    Variants without a cost, or without all of these seeds, are left out.
    """
    placed = [each for each in variants if device in each["costs"] and each["accuracies"][measure]]
    seeds: set[str] = max((set(each["accuracies"][measure]) for each in placed), key=len, default=set())
    placed = [each for each in placed if each["accuracies"][measure].keys() >= seeds]

    def mean(variant: Variant) -> float:
        return statistics.mean(variant["accuracies"][measure][seed] for seed in seeds)

    return {(each["costs"][device]["ratio"], mean(each)): each for each in placed}


def on_front(variants: Sequence[Variant], device: str, measure: str) -> list[str]:
    """The names of those on the front of mean accuracy over cost, by cost."""
    at = points(variants, device, measure)
    return [at[point]["name"] for point in pareto(at)]


def differences(variant: Variant, reference: Variant, measure: str) -> list[float]:
    """How far `variant` is over `reference`, one for each seed that both have."""
    return list(paired(variant["accuracies"][measure], reference["accuracies"][measure]).values())


def told_apart(differences: Sequence[float]) -> str:
    """What paired differences say: "better" or "worse" where their 95 % interval leaves out 0; "no" where it holds 0
    and its lower end is above -MARGIN; "open" where it is wider, or a single seed has none."""
    half_width = interval(differences) if differences else None
    if half_width is None:
        return "open"
    middle = statistics.mean(differences)
    if abs(middle) > half_width:
        return "better" if middle > 0 else "worse"
    return "no" if middle - half_width > -MARGIN else "open"


def cheapest(variants: Sequence[Variant], reference: Variant, device: str) -> Variant | None:
    """The cheapest variant that costs less than `reference`, and is as good or better on validation images."""
    as_good = [
        each
        for each in variants
        if device in each["costs"]
        and device in reference["costs"]
        and each["costs"][device]["ratio"] < reference["costs"][device]["ratio"]
        and told_apart(differences(each, reference, "validation")) in ("no", "better")
    ]
    return min(as_good, key=lambda each: each["costs"][device]["ratio"], default=None)
