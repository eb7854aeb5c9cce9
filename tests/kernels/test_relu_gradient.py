"""relu_gradient: the mask of a ReLU and the gradient of the bias before it."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels import relu_gradient as module
from fastgat.kernels.relu_gradient import MOST_PARTS, parts, relu_gradient, relu_gradient_reference
from torch import Tensor

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, dtypes, laid_out, layouts, shapes


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(shape).to(DEVICE, dtype), torch.randn(shape).relu().to(DEVICE, dtype)


def compare(d_y: Tensor, y: Tensor) -> None:
    value, sums = relu_gradient(d_y, y)
    torchs, exact = relu_gradient_reference(d_y, y), relu_gradient_reference(d_y.double(), y.double())
    torch.testing.assert_close(value, torchs.value, rtol=0, atol=0)
    assert sums.shape == (parts(d_y), d_y.shape[1])
    assert_as_good_as_torch(sums.sum(0), torchs.sums.sum(0), exact.sums.sum(0))


def test_reference_is_the_derivative_by_autograd() -> None:
    z, bias = torch.randn(3, 5, 4, 6, dtype=torch.float64), torch.randn(5, 1, 1, dtype=torch.float64).requires_grad_()
    z.requires_grad_()
    d_y = torch.randn(z.shape, dtype=torch.float64)
    y = (z + bias).relu()
    d_z, d_bias = torch.autograd.grad(y, (z, bias), d_y)
    value, sums = relu_gradient(d_y, y.detach())
    torch.testing.assert_close(value, d_z)
    torch.testing.assert_close(sums.sum(0), d_bias.flatten())


@pytest.mark.usefixtures("kernels")
@dtypes
@shapes
def test_kernel_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(*problem(shape, dtype))


@pytest.mark.usefixtures("kernels")
@layouts
def test_kernel_layouts(layout: str) -> None:
    d_y, y = problem((3, 4, 6, 5))
    compare(laid_out(d_y, layout), y.contiguous(memory_format=torch.channels_last))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(2, 48, 9, 11), (1, 200, 6, 7), (40, 130, 1, 3)])
def test_channels_that_are_no_power_of_two(shape: tuple[int, ...]) -> None:
    compare(*problem(shape, torch.bfloat16))


@pytest.mark.usefixtures("kernels")
def test_a_part_of_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PARTS", 2)
    monkeypatch.setattr(module, "ELEMENTS", 256)
    d_y, y = problem((3, 20, 7, 5))
    assert parts(d_y) == 2
    compare(d_y, y)


@pytest.mark.usefixtures("kernels")
def test_the_sums_are_the_same_every_time() -> None:
    d_y, y = problem((8, 48, 16, 16), torch.bfloat16)
    assert relu_gradient(d_y, y).sums.equal(relu_gradient(d_y, y).sums)
    assert 1 < parts(d_y) <= MOST_PARTS


@pytest.mark.usefixtures("reference_and_kernels")
def test_a_nan_is_not_hidden() -> None:
    d_y, y = problem((2, 3, 4, 4))
    d_y[0, 0, 0, 0], y[0, 0, 0, 0] = torch.nan, 1.0
    y[1, 1, 0, 0] = torch.nan  # torch's mask lets the gradient through there
    value, sums = relu_gradient(d_y, y)
    assert value[0, 0, 0, 0].isnan()
    assert sums.sum(0).isnan().tolist() == [True, False, False]
    assert value[1, 1, 0, 0] == d_y[1, 1, 0, 0]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"a gradient of shape \(1, 3, 4, 4\), but an output of \(1, 3, 4, 5\)"):
        relu_gradient(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))
