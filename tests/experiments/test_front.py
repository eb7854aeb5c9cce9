"""The Pareto front, and what paired differences say: against scipy's paired t test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from fastgat.experiments.front import MARGIN, Variant, cheapest, on_front, pareto, told_apart


def test_the_front_is_what_no_cheaper_point_reaches() -> None:
    points = [(1.0, 70.0), (2.0, 69.0), (3.0, 75.0), (3.0, 74.0), (4.0, 75.0), (5.0, 80.0)]
    assert pareto(points) == [(1.0, 70.0), (3.0, 75.0), (5.0, 80.0)]


def test_no_point_is_better_and_cheaper_than_one_on_the_front() -> None:
    source = np.random.default_rng(0)
    points = [(float(cost), float(accuracy)) for cost, accuracy in source.integers(0, 12, (60, 2))]
    dominated = {
        point
        for point, other in itertools.product(points, points)
        if other != point and other[0] <= point[0] and other[1] >= point[1]
    }
    assert set(pareto(points)) == set(points) - dominated


def test_what_differences_say() -> None:
    """As scipy's paired t test at 5 % has it, and its interval."""
    source, seen = np.random.default_rng(1), set()
    for n, spread, shift in itertools.product((2, 3, 5), (0.0005, 0.003, 0.02), (-0.02, 0.0, 0.02)):
        theirs = source.normal(0.6, 0.02, n)
        ours = theirs + source.normal(shift, spread, n)
        test = stats.ttest_rel(ours, theirs)
        if test.pvalue < 0.05:
            expected = "better" if test.statistic > 0 else "worse"
        else:
            expected = "no" if test.confidence_interval(0.95).low > -MARGIN else "open"
        assert told_apart(list(ours - theirs)) == expected
        seen.add(expected)
    assert seen == {"better", "worse", "no", "open"}
    assert told_apart([0.5]) == told_apart([]) == "open", "a single seed tells nothing"


def variant(name: str, cost: float, accuracies: tuple[float, ...]) -> Variant:
    by_seed = {str(seed): value for seed, value in enumerate(accuracies)}
    measures = {"validation": by_seed, "test": {}, "fast_gradient": {}, "worst_case": {}}
    costs = {"a machine": {"step_ms": 1.0, "ratio": cost, "ratio_p20": cost, "ratio_p80": cost}}
    return Variant(name=name, accuracies=measures, norm={}, costs=costs)  # type: ignore[typeddict-item]  # plain values


@pytest.mark.parametrize(
    ("ratio", "accuracies", "expected"),
    [
        (1.4, (0.60, 0.612, 0.62), "narrow"),
        (1.4, (0.65, 0.66, 0.67), "narrow"),
        (2.6, (0.60, 0.612, 0.62), None),
        (1.4, (0.58, 0.59, 0.60), None),
        (1.4, (0.57, 0.63, 0.63), None),
        (1.4, (0.60,), None),
    ],
)
def test_the_cheapest_that_is_as_good(ratio: float, accuracies: tuple[float, ...], expected: str | None) -> None:
    paper, narrow = variant("paper", 2.5, (0.60, 0.61, 0.62)), variant("narrow", ratio, accuracies)
    found = cheapest([paper, narrow], paper, "a machine")
    assert (found and found["name"]) == expected
    assert cheapest([paper, narrow], paper, "another machine") is None


def test_the_front_by_name() -> None:
    variants = [variant("a", 2.0, (0.6,)), variant("b", 1.0, (0.5,)), variant("c", 1.5, (0.4,)), variant("d", 3.0, ())]
    assert on_front(variants, "a machine", "validation") == ["b", "a"]
    assert on_front(variants, "a machine", "test") == []


def test_the_front_is_of_the_seeds_that_all_have() -> None:
    """By all that each has, the dearer one would be on it."""
    variants = [variant("a", 1.0, (0.5, 0.7)), variant("b", 2.0, (0.65,)), variant("c", 3.0, (0.6, 0.7))]
    assert on_front(variants, "a machine", "validation") == ["a", "c"]
