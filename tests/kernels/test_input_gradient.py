"""input_gradient: Delta and the fast-gradient perturbations."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels.input_gradient import l2_perturbation, linf_perturbation, probability_gradient, sample_norm
from hypothesis import given
from hypothesis import strategies as st

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_probability_gradient_is_minus_probability_times_loss_gradient(layout: torch.memory_format) -> None:
    gradient = torch.randn(3, 2, 4, 5, dtype=torch.float64).contiguous(memory_format=layout)
    loss = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)
    delta = probability_gradient(gradient, loss)
    for i in range(3):
        torch.testing.assert_close(delta[i], -torch.exp(-loss[i]) * gradient[i])
    assert delta.is_contiguous(memory_format=layout)


def test_probability_gradient_keeps_the_gradients_dtype() -> None:
    assert probability_gradient(torch.randn(2, 3).bfloat16(), torch.rand(2)).dtype == torch.bfloat16


@given(st.floats(1e-6, 1e3), st.integers(1, 5), st.floats(1e-15, 1e15))
def test_l2_has_the_norm_asked_for(epsilon: float, samples: int, scale: float) -> None:
    eta = l2_perturbation(scale * torch.randn(samples, 3, 4, 4), epsilon)
    torch.testing.assert_close(sample_norm(eta), torch.full((samples,), epsilon), rtol=1e-5, atol=0)


@given(st.floats(0, 1e3))
def test_linf_has_the_size_asked_for(epsilon: float) -> None:
    eta = linf_perturbation(torch.randn(2, 3, 4, 4), epsilon)
    assert eta.abs().max() <= torch.tensor(epsilon)


def test_a_zero_gradient_stays_zero() -> None:
    gradient = torch.randn(3, 1, 2, 2)
    gradient[1] = 0
    for eta in (l2_perturbation(gradient, 0.5), linf_perturbation(gradient, 0.5)):
        assert not eta[1].any()
        assert eta[0].any()
        assert eta.isfinite().all()


def test_no_sample() -> None:
    none = torch.empty(0, 3, 4, 4)
    assert probability_gradient(none, torch.empty(0)).shape == none.shape
    assert l2_perturbation(none, 1.0).shape == none.shape
