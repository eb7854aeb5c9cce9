"""dual_loss: J per sample and the dual loss."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels.dual_loss import cross_entropy, dual_loss
from hypothesis import given
from hypothesis import strategies as st


def test_is_minus_the_log_of_the_true_class() -> None:
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.randint(7, (5,))
    expected = -logits.softmax(1)[torch.arange(5), labels].log()
    torch.testing.assert_close(cross_entropy(logits, labels), expected)


@given(st.floats(-1e4, 1e4))
def test_a_shift_of_all_logits_changes_nothing(shift: float) -> None:
    logits, labels = torch.randn(4, 6, dtype=torch.float64), torch.randint(6, (4,))
    torch.testing.assert_close(cross_entropy(logits + shift, labels), cross_entropy(logits, labels), rtol=0, atol=1e-9)


def test_probabilities_of_all_classes_sum_to_one() -> None:
    logits = torch.randn(9, dtype=torch.float64).repeat(9, 1)
    torch.testing.assert_close(
        (-cross_entropy(logits, torch.arange(9))).exp().sum(), torch.tensor(1.0, dtype=torch.float64)
    )


def test_large_logits_stay_finite() -> None:
    loss = cross_entropy(torch.tensor([[1e4, -1e4], [1e4, -1e4]]), torch.tensor([0, 1]))
    assert loss.tolist() == [0.0, 2e4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(4, 1000).to(dtype), torch.randint(1000, (4,))
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), cross_entropy(logits.double(), labels), rtol=1e-6, atol=1e-6)


def test_dual_loss_weighs_clean_and_perturbed() -> None:
    torch.testing.assert_close(dual_loss(torch.tensor([1.0]), torch.tensor([3.0]), 0.25), torch.tensor([2.5]))
