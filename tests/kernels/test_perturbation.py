"""perturbation: x + p, its bounds and its power."""

from __future__ import annotations

import torch
from fastgat.kernels.perturbation import perturb, power
from hypothesis import given
from hypothesis import strategies as st


def test_without_bounds_nothing_is_clamped() -> None:
    x, p = torch.rand(2, 3, 4, 4), 3 * torch.randn(2, 3, 4, 4)
    assert perturb(x, p).equal(x + p)


@given(st.floats(-1, 0.4), st.floats(0.6, 2))
def test_bounds_hold(low: float, high: float) -> None:
    x, p = torch.rand(2, 3, 4, 4), 3 * torch.randn(2, 3, 4, 4)
    clamped = perturb(x, p, low, high)
    inside = (x + p > low) & (x + p < high)
    assert clamped.min() >= torch.tensor(low)
    assert clamped.max() <= torch.tensor(high)
    assert clamped[inside].equal((x + p)[inside])


def test_power_is_the_sum_of_squares_of_each_sample() -> None:
    p = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(power(p), torch.stack([(sample**2).sum() for sample in p]))
    assert power(p[:0]).shape == (0,)
