"""input_gradient: Delta and the fast-gradient perturbations; reference against formula, kernel against reference."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels.backend import forced_kernels
from fastgat.kernels.images import block_size
from fastgat.kernels.input_gradient import MODES, InputGradient, input_gradient, input_gradient_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, dtypes, laid_out, layouts, shapes

modes = pytest.mark.parametrize("mode", MODES)


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A gradient with some zeros and a sample of zeros, and losses."""
    gradient = torch.randn(shape) * torch.randint(0, 4, shape).clamp(max=1)
    gradient[1:2] = 0
    return gradient.to(DEVICE, dtype), (3 * torch.rand(shape[0])).to(DEVICE)


def test_reference_probability_is_minus_f_y_times_the_loss_gradient() -> None:
    gradient, loss = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)
    delta = input_gradient(gradient, "probability", loss=loss).value
    for i in range(3):
        torch.testing.assert_close(delta[i], -torch.exp(-loss[i]) * gradient[i])


def test_reference_directions() -> None:
    gradient = torch.tensor([[[[3.0, 0.0], [-4.0, 0.0]]]], dtype=torch.float64)
    l2, linf = (input_gradient(gradient, mode, epsilon=0.5) for mode in ("l2", "linf"))
    assert l2.value.flatten().tolist() == pytest.approx([0.3, 0.0, -0.4, 0.0])
    assert linf.value.flatten().tolist() == [0.5, 0.0, -0.5, 0.0]
    assert l2.zeros.item() == 0.5


def check(gradient: Tensor, mode: str, loss: Tensor) -> InputGradient:
    """The kernel beside the reference in the same dtype and in float64."""
    result = input_gradient(gradient, mode, loss=loss, epsilon=0.7)
    torchs = input_gradient_reference(gradient, mode, loss, 0.7)
    exact = input_gradient_reference(gradient.double(), mode, loss.double(), 0.7)
    assert_as_good_as_torch(result.value, torchs.value, exact.value)
    assert result.zeros.tolist() == pytest.approx((result.value == 0).flatten(1).float().mean(1).nan_to_num().tolist())
    return result


@pytest.mark.usefixtures("kernels")
@modes
@dtypes
@shapes
def test_kernel_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, mode: str) -> None:
    gradient, loss = problem(shape, dtype)
    check(gradient, mode, loss)


@pytest.mark.usefixtures("kernels")
@modes
@layouts
def test_kernel_layouts(layout: str, mode: str) -> None:
    gradient, loss = problem((3, 4, 6, 5))
    result = check(laid_out(gradient, layout), mode, loss)
    last = layout == "channels_last"
    assert result.value.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.usefixtures("kernels")
def test_kernel_takes_a_column_of_losses() -> None:
    gradient, loss = problem((3, 2, 4, 5))
    check(gradient, "probability", torch.stack([loss, loss + 1], 1)[:, 0])


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("elements", [7, 5000])
@pytest.mark.parametrize("size", [1e-37, 1e-25, 1e25, 1e36])
def test_tiny_and_huge_gradients_keep_their_direction(size: float, elements: int) -> None:
    """Squared, they would be zero or infinite."""
    gradient = (size * torch.randn(2, 1, 1, elements, dtype=torch.float64)).float()
    result = input_gradient(gradient.to(DEVICE), "l2", epsilon=0.5)
    gradient = gradient.double()
    expected = 0.5 * gradient / gradient.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    torch.testing.assert_close(result.value.double().cpu(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_is_not_hidden(mode: str) -> None:
    gradient, loss = problem((2, 3, 4, 4))
    gradient[0, 0, 0, 0] = torch.nan
    assert input_gradient(gradient, mode, loss=loss).value[0].isnan().any()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epsilon=st.floats(1e-3, 1e3),
    samples=st.integers(1, 4),
    forced=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_perturbations_have_the_size_asked_for(epsilon: float, samples: int, forced: bool, seed: int) -> None:
    """||eta||_2 = eps, |eta| <= eps, and a sample without gradient gets none."""
    source = torch.Generator().manual_seed(seed)
    gradient = torch.randn(samples, 3, 5, 4, generator=source).to(DEVICE)
    gradient[0] = 0

    def run(mode: str) -> Tensor:
        return input_gradient(gradient, mode, epsilon=epsilon).value

    if forced:
        with forced_kernels():
            l2, linf = run("l2"), run("linf")
    else:
        l2, linf = run("l2"), run("linf")
    torch.testing.assert_close(l2[1:].flatten(1).norm(dim=1), torch.full_like(l2[1:, 0, 0, 0], epsilon))
    assert linf.abs().max() <= torch.tensor(epsilon)
    assert not l2[0].any()
    assert not linf[0].any()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown mode 'l1'; known: probability, l2"):
        input_gradient(torch.rand(1, 3, 2, 2), "l1")
    with pytest.raises(ValueError, match="needs the loss"):
        input_gradient(torch.rand(1, 3, 2, 2), "probability")


def test_launches_cover_the_image() -> None:
    pytest.importorskip("triton")
    for elements in (1, 127, 3072, 4096, 4097, 786_432):
        block = block_size(elements)
        assert block & (block - 1) == 0
        assert min(elements, 4096) <= block <= 4096
