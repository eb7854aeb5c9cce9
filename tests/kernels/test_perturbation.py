"""perturbation: x + p, its clamp, its power and its derivative."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels.backend import forced_kernels
from fastgat.kernels.perturbation import (
    Perturbation,
    perturbation,
    perturbation_gradient,
    perturbation_gradient_reference,
    perturbation_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, dtypes, laid_out, layouts, shapes

tanhs = pytest.mark.parametrize("tanh", [True, False])
clamps = pytest.mark.parametrize("clamp", [False, True])


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(shape).to(DEVICE, dtype), (0.5 * torch.randn(shape)).to(DEVICE, dtype)


@tanhs
@clamps
def test_reference_is_its_formula(clamp: bool, tanh: bool) -> None:
    x, z = torch.rand(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    result = perturbation(x, z, tanh=tanh, clamp=clamp)
    p = torch.tanh(z) if tanh else z
    torch.testing.assert_close(result.perturbed, (x + p).clamp(0, 1) if clamp else x + p)
    torch.testing.assert_close(result.power, torch.stack([(sample**2).sum() for sample in p]))


def compare(x: Tensor, z: Tensor, tanh: bool = True, clamp: bool = False) -> None:
    result = perturbation(x, z, tanh=tanh, clamp=clamp)
    torchs = perturbation_reference(x, z, tanh, clamp)
    exact = perturbation_reference(x.double(), z.double(), tanh, clamp)
    for name in Perturbation._fields:
        assert_as_good_as_torch(getattr(result, name), getattr(torchs, name), getattr(exact, name))


@pytest.mark.usefixtures("kernels")
@tanhs
@dtypes
@shapes
def test_kernel_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, tanh: bool) -> None:
    compare(*problem(shape, dtype), tanh)


@pytest.mark.usefixtures("kernels")
@clamps
@layouts
def test_kernel_layouts_and_clamp(layout: str, clamp: bool) -> None:
    x, z = problem((3, 4, 6, 5))
    compare(laid_out(x, layout), z.contiguous(memory_format=torch.channels_last), clamp=clamp)
    compare(x, laid_out(z, layout), clamp=clamp)


@pytest.mark.usefixtures("kernels")
def test_float32_images_and_a_bfloat16_generator() -> None:
    x, z = problem((2, 3, 8, 8))
    compare(x, z.bfloat16())


@pytest.mark.usefixtures("kernels")
def test_tanh_is_exact_for_small_and_large_arguments() -> None:
    size = torch.logspace(-30, 3, 500, dtype=torch.float64, device=DEVICE)
    z = torch.cat([-size, size]).view(1, 1, 10, 100)
    p = perturbation(torch.zeros_like(z).float(), z.float()).perturbed
    torch.testing.assert_close(p.double(), z.float().double().tanh(), rtol=1e-6, atol=0)


def by_autograd(x: Tensor, z: Tensor, d_perturbed: Tensor, d_power: Tensor, tanh: bool, clamp: bool) -> Tensor:
    """dL/dz by autograd through the reference."""
    z = z.detach().requires_grad_()
    perturbed, power = perturbation_reference(x, z, tanh, clamp)
    total = (perturbed * d_perturbed.to(perturbed.dtype)).sum() + (power * d_power.to(power.dtype)).sum()
    return torch.autograd.grad(total, z)[0]


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("of_loss", [True, False])
@tanhs
@clamps
@dtypes
def test_the_gradient_taken_by_hand(dtype: torch.dtype, clamp: bool, tanh: bool, of_loss: bool) -> None:
    """Against autograd through the formula, in float64; of F_y where the gradient given is that of a loss."""
    x, z = problem((3, 3, 6, 5), dtype)
    d_perturbed, d_power = torch.randn(x.shape, device=DEVICE).to(dtype), torch.rand(3, device=DEVICE)
    loss = torch.tensor([0.0, 0.7, 5.0], device=DEVICE) if of_loss else None
    ours = perturbation_gradient(x, z, d_perturbed, d_power, loss=loss, tanh=tanh, clamp=clamp)
    factor = -loss.double().neg().exp().view(3, 1, 1, 1) if loss is not None else 1.0
    exact, torchs = (
        by_autograd(x.to(accum), z.to(accum), d_perturbed * factor, d_power, tanh, clamp)
        for accum in (torch.float64, dtype)
    )
    # Where rounding decides on which side of a bound x + p lies, either derivative is right.
    total = x.double() + (z.double().tanh() if tanh else z.double())
    far = torch.minimum(total.abs(), (total - 1).abs()) > 4 * torch.finfo(dtype).eps
    assert ours.dtype == dtype
    if clamp:
        assert ((total < 0) | (total > 1)).any()
    assert_as_good_as_torch(ours[far], torchs[far], exact[far])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 1, 1, 1), (2, 3, 40, 36)])
@layouts
def test_gradient_shapes_and_layouts(layout: str, shape: tuple[int, ...]) -> None:
    x, z = (laid_out(tensor, layout) for tensor in problem(shape))
    d_perturbed, d_power = laid_out(torch.randn(shape), layout).to(DEVICE), torch.rand(shape[0]).to(DEVICE)
    ours = perturbation_gradient(x, z, d_perturbed, d_power, clamp=True)
    torch.testing.assert_close(ours, perturbation_gradient_reference(x, z, d_perturbed, d_power, None, True, True))


@pytest.mark.usefixtures("kernels")
def test_the_stride_of_a_size_of_1_means_nothing() -> None:
    x, z = problem((2, 3, 4, 1))
    last = x.contiguous(memory_format=torch.channels_last)
    odd = z.permute(0, 2, 3, 1).contiguous().squeeze(2).transpose(1, 2)[..., None]
    assert odd.equal(z)
    assert odd.stride() == (12, 1, 3, 1), "torch takes it as channels-last"
    for images, other in ((last, odd), (x, odd), (odd.abs(), z)):
        compare(images, other, clamp=True)
        d_perturbed, d_power = torch.randn(x.shape).to(DEVICE), torch.rand(2).to(DEVICE)
        ours = perturbation_gradient(images, other, d_perturbed, d_power, clamp=True)
        expected = perturbation_gradient_reference(images, other, d_perturbed, d_power, None, True, True)
        torch.testing.assert_close(ours, expected)


@settings(deadline=None, max_examples=25)
@given(forced=st.booleans(), tanh=st.booleans(), seed=st.integers(0, 99))
def test_the_clamp_holds_and_power_is_the_sum_of_squares_before_it(forced: bool, tanh: bool, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    x, z = torch.rand(2, 3, 4, 4, generator=source).to(DEVICE), torch.randn(2, 3, 4, 4, generator=source).to(DEVICE)
    if forced:
        with forced_kernels():
            result = perturbation(x, z, tanh=tanh, clamp=True)
    else:
        result = perturbation(x, z, tanh=tanh, clamp=True)
    assert result.perturbed.min() >= 0
    assert result.perturbed.max() <= 1
    torch.testing.assert_close(result.power, (z.tanh() if tanh else z).square().flatten(1).sum(1))


@pytest.mark.usefixtures("reference_and_kernels")
@clamps
def test_a_nan_is_not_hidden(clamp: bool) -> None:
    x, p = problem((2, 3, 4, 4))
    p[0, 0, 0, 0] = torch.nan
    result = perturbation(x, p, tanh=False, clamp=clamp)
    assert result.perturbed[0, 0, 0, 0].isnan()
    assert result.power[0].isnan()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(1, 3, 4, 4\), but a perturbation of \(1, 3, 4, 5\)"):
        perturbation(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))
