"""projected_step: from dJ/dx to the next perturbation in the L-inf ball."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastgat.kernels.projected_step import projected_step, projected_step_reference
from torch import Tensor

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, dtypes, laid_out, layouts, shapes

RULES: dict[str, dict[str, Any]] = {
    "ball": {"epsilon": 0.1},
    "box": {"epsilon": None},
    "through clamp": {"epsilon": 0.1, "through_clamp": True},
}
rules = pytest.mark.parametrize("rule", RULES)


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Images, perturbations of which some leave the box, and gradients of which some are zero."""
    gradient = torch.randn(shape) * torch.randint(0, 4, shape).clamp(max=1)
    tensors = torch.rand(shape), 0.3 * (torch.rand(shape) - 0.5), gradient
    return tuple(tensor.to(DEVICE, dtype) for tensor in tensors)  # type: ignore[return-value]  # three of them


def by_pixel(x: float, p: float, gradient: float, *, epsilon: float | None, through_clamp: bool) -> float:
    """The rules for one pixel, in plain Python."""
    moves = 0 <= x + p <= 1 or not through_clamp
    p += 0.07 * ((gradient > 0) - (gradient < 0)) if moves else 0.0
    if epsilon is not None:
        p = max(-epsilon, min(epsilon, p))
    return p if through_clamp else max(-x, min(1 - x, p))


@rules
def test_reference_is_the_rule_of_each_pixel(rule: str) -> None:
    x, p, gradient = (tensor.double() for tensor in problem((2, 3, 6, 5)))
    options = {"through_clamp": False, **RULES[rule]}
    result = projected_step(x, p, gradient, size=0.07, **options)
    pixels = zip(*(tensor.flatten().tolist() for tensor in (x, p, gradient)), strict=True)
    expected = [by_pixel(*pixel, **options) for pixel in pixels]
    assert result.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def check(images: Tensor, p: Tensor, gradient: Tensor, rule: str) -> Tensor:
    options = {"size": 0.07, "through_clamp": False, **RULES[rule]}
    result = projected_step(images, p, gradient, **options)
    torchs = projected_step_reference(images, p, gradient, **options)
    exact = projected_step_reference(images.double(), p.double(), gradient.double(), **options)
    # Where rounding decides whether x + p is in the box, either step is right.
    total = images.double() + p.double()
    far = torch.minimum(total.abs(), (total - 1).abs()) > 1e-6
    assert_as_good_as_torch(result[far], torchs[far], exact[far])
    return result


@pytest.mark.usefixtures("kernels")
@rules
@dtypes
@shapes
def test_kernel_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, rule: str) -> None:
    assert check(*problem(shape, dtype), rule).dtype == dtype


@pytest.mark.usefixtures("kernels")
@layouts
def test_kernel_layouts_and_mixed_dtypes(layout: str) -> None:
    images, p, gradient = problem((3, 4, 6, 5))
    for tensors in ((laid_out(images, layout), p, gradient), (images, p, laid_out(gradient, layout))):
        result = check(*tensors, "ball")
        assert result.is_contiguous(
            memory_format=torch.channels_last if tensors[0].stride(1) == 1 else torch.contiguous_format
        )
    assert check(images.bfloat16(), p, gradient.bfloat16(), "through clamp").dtype == torch.float32


@pytest.mark.usefixtures("reference_and_kernels")
@rules
def test_a_nan_is_not_hidden(rule: str) -> None:
    images, p, gradient = problem((2, 3, 4, 4))
    images[0, 0, 0, 0], p[0, 0, 0, 0], gradient[0, 0, 0, 0] = 0.5, 0.0, torch.nan
    result = projected_step(images, p, gradient, size=0.07, **RULES[rule])
    assert result.isnan().nonzero().tolist() == [[0, 0, 0, 0]]


def test_shapes_must_agree() -> None:
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 4, 4\), \(1, 3, 4, 4\) and \(1, 3, 4, 3\)"):
        projected_step(x, x, x[..., :3], size=0.1, epsilon=0.1)
