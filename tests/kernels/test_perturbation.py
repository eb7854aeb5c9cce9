"""perturbation: x + p, its bounds, its power and its derivative."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels.backend import forced_kernels
from fastgat.kernels.perturbation import (
    Perturbation,
    perturb,
    perturbation,
    perturbation_gradient,
    perturbation_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, dtypes, laid_out, layouts, shapes

BOUNDS = [(None, None), (0.0, 1.0), (0.2, None), (None, 0.7)]
bounds = pytest.mark.parametrize(("low", "high"), BOUNDS)


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(shape).to(DEVICE, dtype), (0.5 * torch.randn(shape)).to(DEVICE, dtype)


def test_reference_is_its_formula() -> None:
    x, z = torch.rand(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    result = perturbation(x, z, epsilon=0.3, low=0.0, high=1.0)
    p = 0.3 * torch.tanh(z)
    torch.testing.assert_close(result.perturbation, p)
    torch.testing.assert_close(result.perturbed, (x + p).clamp(0, 1))
    torch.testing.assert_close(result.power, torch.stack([(sample**2).sum() for sample in p]))


def test_without_bounds_nothing_is_clamped() -> None:
    x, p = torch.rand(2, 3, 4, 4), 3 * torch.randn(2, 3, 4, 4)
    assert perturb(x, p).perturbed.equal(x + p)


def compare(x: Tensor, z: Tensor, epsilon: float, low: float | None, high: float | None, bounded: bool = True) -> None:
    result = perturbation(x, z, epsilon=epsilon, low=low, high=high) if bounded else perturb(x, z, low, high)
    settings = epsilon, low, high, bounded
    torchs = perturbation_reference(x, z, *settings)
    exact = perturbation_reference(x.double(), z.double(), *settings)
    for name in Perturbation._fields:
        assert_as_good_as_torch(getattr(result, name), getattr(torchs, name), getattr(exact, name))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bounded", [True, False])
@dtypes
@shapes
def test_kernel_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, bounded: bool) -> None:
    compare(*problem(shape, dtype), epsilon=1.0, low=None, high=None, bounded=bounded)


@pytest.mark.usefixtures("kernels")
@bounds
@layouts
def test_kernel_layouts_and_bounds(layout: str, low: float | None, high: float | None) -> None:
    x, z = problem((3, 4, 6, 5))
    compare(laid_out(x, layout), z.contiguous(memory_format=torch.channels_last), 0.4, low, high)
    compare(x, laid_out(z, layout), 0.4, low, high)


@pytest.mark.usefixtures("kernels")
def test_float32_images_and_a_bfloat16_generator() -> None:
    x, z = problem((2, 3, 8, 8))
    compare(x, z.bfloat16(), 1.0, None, None)


@pytest.mark.usefixtures("kernels")
def test_tanh_is_exact_for_small_and_large_arguments() -> None:
    size = torch.logspace(-30, 3, 500, dtype=torch.float64, device=DEVICE)
    z = torch.cat([-size, size]).view(1, 1, 10, 100)
    p = perturbation(torch.zeros_like(z).float(), z.float()).perturbation
    torch.testing.assert_close(p.double(), z.float().double().tanh(), rtol=1e-6, atol=0)


def gradients(x: Tensor, z: Tensor, weights: list[Tensor | None], function: object) -> list[Tensor]:
    """By x and z, of a weighted sum of the three results; a weight of None leaves its result out."""
    assert callable(function)
    x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
    pairs = [(out, weight) for out, weight in zip(function(x, z), weights, strict=True) if weight is not None]
    total = sum((out * weight.to(out.dtype)).sum() for out, weight in pairs)
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, (x, z), allow_unused=True)
    return [torch.zeros_like(at) if g is None else g for g, at in zip(found, (x, z), strict=True)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("used", ["perturbed", "perturbation", "power", "all", "perturbed power"])
@bounds
@dtypes
def test_kernel_derivative(dtype: torch.dtype, low: float | None, high: float | None, used: str) -> None:
    x, z = problem((3, 3, 6, 5), dtype)
    weights: list[Tensor | None] = [
        torch.randn(x.shape, device=DEVICE) if used == "all" or "perturbed" in used.split() else None,
        torch.randn(x.shape, device=DEVICE) if used in ("all", "perturbation") else None,
        torch.rand(3, device=DEVICE) if used == "all" or "power" in used.split() else None,
    ]
    ours = gradients(x, z, weights, lambda x, z: perturbation(x, z, epsilon=0.6, low=low, high=high))
    exact, torchs = (
        gradients(
            x.to(wide), z.to(wide), weights, lambda x, z: perturbation_reference(x, z, 0.6, low, high, bounded=True)
        )
        for wide in (torch.float64, dtype)
    )
    # Where rounding decides on which side of a bound x + p lies, either derivative is right.
    p = 0.6 * z.double().tanh()
    near = torch.zeros_like(p, dtype=torch.bool)
    for bound in (low, high):
        if bound is not None:
            near |= (x.double() + p - bound).abs() < 4 * torch.finfo(dtype).eps
    for own, theirs, ideal in zip(ours, torchs, exact, strict=True):
        keep = ~near
        assert_as_good_as_torch(own[keep], theirs[keep], ideal[keep])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 1, 1, 1), (2, 3, 40, 36)])
@layouts
def test_kernel_derivative_shapes_and_layouts(layout: str, shape: tuple[int, ...]) -> None:
    x, z = (laid_out(tensor, layout) for tensor in problem(shape))
    weights: list[Tensor | None] = [
        laid_out(torch.randn(shape), layout).to(DEVICE),
        None,
        torch.rand(shape[0]).to(DEVICE),
    ]
    ours = gradients(x, z, weights, lambda x, z: perturb(x, z, 0.1, 0.9))
    reference = gradients(x, z, weights, lambda x, z: perturbation_reference(x, z, 1.0, 0.1, 0.9, bounded=False))
    for own, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(own, theirs)


@pytest.mark.usefixtures("kernels")
def test_the_stride_of_a_size_of_1_means_nothing() -> None:
    x, z = problem((2, 3, 4, 1))
    last = x.contiguous(memory_format=torch.channels_last)
    odd = z.permute(0, 2, 3, 1).contiguous().squeeze(2).transpose(1, 2)[..., None]
    assert odd.equal(z)
    assert odd.stride() == (12, 1, 3, 1), "torch takes it as channels-last"
    weights: list[Tensor | None] = [torch.randn(x.shape).to(DEVICE), None, None]
    ours = gradients(last, odd, weights, lambda x, z: perturb(x, z, 0.1, 0.9))
    reference = gradients(x, z, weights, lambda x, z: perturbation_reference(x, z, 1.0, 0.1, 0.9, bounded=False))
    for own, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(own, theirs)


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("of_loss", [True, False])
@bounds
@dtypes
def test_the_gradient_taken_by_hand(
    dtype: torch.dtype, low: float | None, high: float | None, of_loss: bool, bounded: bool
) -> None:
    """Against autograd through the formula, in float64; of F_y where the gradient given is that of a loss."""
    x, z = problem((3, 3, 6, 5), dtype)
    through, power = torch.randn(x.shape, device=DEVICE).to(dtype), torch.rand(3, device=DEVICE)
    epsilon = 0.6 if bounded else 1.0
    loss = torch.tensor([0.0, 0.7, 5.0], device=DEVICE) if of_loss else None
    ours = perturbation_gradient(x, z, through, power, loss=loss, epsilon=epsilon, low=low, high=high, bounded=bounded)
    factor = -loss.double().neg().exp().view(3, 1, 1, 1) if loss is not None else 1.0
    exact, torchs = (
        gradients(
            x.to(wide),
            z.to(wide),
            [through * factor, None, power],
            lambda x, z: perturbation_reference(x, z, epsilon, low, high, bounded),
        )[1]
        for wide in (torch.float64, dtype)
    )
    p = epsilon * z.double().tanh() if bounded else z.double()
    far = torch.ones_like(p, dtype=torch.bool)
    for bound in (low, high):
        if bound is not None:
            far &= (x.double() + p - bound).abs() > 4 * torch.finfo(dtype).eps
    assert ours.dtype == dtype
    assert_as_good_as_torch(ours[far], torchs[far], exact[far])


@pytest.mark.usefixtures("kernels")
def test_kernel_works_under_torch_func() -> None:
    x, z = problem((2, 3, 5, 4))
    seed = torch.randn_like(x), torch.randn_like(x), torch.rand(2, device=DEVICE)
    pull = torch.func.vjp(lambda x, z: tuple(perturbation(x, z, low=0.0, high=1.0)), x, z)[1]
    expected = torch.func.vjp(lambda x, z: tuple(perturbation_reference(x, z, 1.0, 0.0, 1.0, True)), x, z)[1]
    for own, theirs in zip(pull(seed), expected(seed), strict=True):
        torch.testing.assert_close(own, theirs)


@settings(deadline=None, max_examples=25)
@given(
    low=st.floats(-1, 0.4),
    high=st.floats(0.6, 2),
    epsilon=st.floats(0, 2),
    forced=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bounds_hold_and_power_is_the_sum_of_squares(
    low: float, high: float, epsilon: float, forced: bool, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    x, z = (torch.rand(2, 3, 4, 4, generator=source).to(DEVICE) for _ in range(2))
    if forced:
        with forced_kernels():
            result = perturbation(x, 4 * z, epsilon=epsilon, low=low, high=high)
    else:
        result = perturbation(x, 4 * z, epsilon=epsilon, low=low, high=high)
    assert result.perturbed.min() >= torch.tensor(low, dtype=torch.float32)
    assert result.perturbed.max() <= torch.tensor(high, dtype=torch.float32)
    assert result.perturbation.abs().max() <= torch.tensor(epsilon, dtype=torch.float32)
    torch.testing.assert_close(result.power, result.perturbation.square().flatten(1).sum(1))


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("limits", [(None, None), (0.0, 1.0)])
def test_a_nan_is_not_hidden(limits: tuple[float | None, float | None]) -> None:
    x, p = problem((2, 3, 4, 4))
    p[0, 0, 0, 0] = torch.nan
    result = perturb(x, p, *limits)
    assert result.perturbed[0, 0, 0, 0].isnan()
    assert result.power[0].isnan()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(1, 3, 4, 4\), but a perturbation of \(1, 3, 4, 5\)"):
        perturb(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))
