"""Spreads, verdicts and intervals, held against scipy's own tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastgat.experiments.paper import Accuracy
from fastgat.experiments.spread import Spread, interval, verdict


def test_a_spread() -> None:
    assert Spread.of([0.5, 0.6, 0.7]) == pytest.approx((0.6, 0.1, 3))
    assert Spread.of([0.5]) == (0.5, None, 1)


@pytest.mark.parametrize(
    ("mean", "sd", "expected"),
    [
        (0.81, 0.003, "agrees"),  # 1 point, within sqrt(0.3² + 1²)
        (0.79, 0.003, "agrees"),
        (0.811, 0.003, "better"),
        (0.789, 0.003, "worse"),
        (0.811, 0.02, "agrees"),
        (0.813, None, "agrees"),  # a single run: sqrt(2) points
        (0.815, None, "better"),
    ],
)
def test_a_verdict(mean: float, sd: float | None, expected: str) -> None:
    assert verdict(Spread(mean, sd, 3), Accuracy(0.80, 0.01)) == expected


def test_an_interval_is_students() -> None:
    differences = np.random.default_rng(0).normal(1, 2, 7).tolist()
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert interval(differences) == pytest.approx((high - low) / 2)
    assert interval([1.0]) is None
