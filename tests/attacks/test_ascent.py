"""ascent: where a step of an attack goes."""

from __future__ import annotations

import contextlib

import pytest
import torch
from fastgat.kernels.backend import forced_kernels
from fastgat.kernels.input_gradient import input_gradient

from fastgat.attacks.base import ascent


@pytest.mark.interpret
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ascent_is_the_value_alone(norm: str, dtype: torch.dtype) -> None:
    gradient = torch.randn(5, 3, 7, 6, dtype=dtype)
    gradient[1] *= 1e-30 if dtype == torch.float32 else 1e-200
    gradient[2] = 0
    expected = input_gradient(gradient, norm, epsilon=0.3).value
    torch.testing.assert_close(ascent(gradient, norm, 0.3), expected)
    assert ascent(gradient[:0], norm, 0.3).shape == (0, 3, 7, 6)


@pytest.mark.interpret
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kernel", [False, True])
def test_ascent_leaves_what_is_not_finite_out(norm: str, kernel: bool) -> None:
    gradient = torch.randn(3, 3, 7, 6)
    gradient[0], gradient[1, 0, 0, 0], gradient[2, 0, 0, 0] = torch.nan, torch.nan, -torch.inf
    with forced_kernels() if kernel else contextlib.nullcontext():
        step = ascent(gradient, norm, 0.3)
    assert step.isfinite().all()
    assert (step[0] == 0).all()
    assert step[1, 0, 0, 0] == 0
    assert step[1].any()
    assert step[2, 0, 0, 0] == pytest.approx(-0.3)
