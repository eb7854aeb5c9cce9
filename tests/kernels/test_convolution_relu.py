"""convolution_relu: a convolution, its bias and a ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fastgat.kernels.convolution_relu import convolution_relu, convolution_relu_reference
from torch import Tensor

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, laid_out, layouts

halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@pytest.fixture
def convolutions(kernels: None) -> Iterator[None]:
    """Kernels, whose interpreter (of Triton 3.6 to 3.9) multiplies the bits of bfloat16 as if they were integers."""
    from triton.runtime import interpreter  # type: ignore[import-untyped, unused-ignore]

    builder: Any = interpreter.InterpreterBuilder
    product = builder.create_dot

    def widened(handle: Any) -> Any:
        if not handle.dtype.is_bf16():
            return handle
        values = (handle.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(values, interpreter.tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *more: Any) -> Any:
        return product(self, widened(a), widened(b), *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_dot", create_dot)
        yield


def problem(shape: tuple[int, ...], filters: int, window: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    tensors = torch.randn(shape), torch.randn(filters, shape[1], *window) / 10, torch.randn(filters)
    return [tensor.to(DEVICE, dtype) for tensor in tensors]


def compare(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> None:
    how = stride, padding
    exact = convolution_relu_reference(x.double(), weight.double(), bias.double(), *how)
    y = convolution_relu(x, weight, bias, *how)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_as_good_as_torch(y, convolution_relu_reference(x, weight, bias, *how), exact)


@pytest.mark.usefixtures("convolutions")
@halves
@pytest.mark.parametrize(
    ("shape", "filters", "window", "stride", "padding"),
    [
        ((2, 48, 6, 7), 48, (3, 3), 1, 1),
        ((1, 48, 9, 8), 96, (3, 3), 2, 1),
        ((3, 8, 5, 5), 17, (1, 1), 1, 0),
        ((1, 3, 7, 4), 130, (5, 2), 1, 2),
        ((2, 70, 3, 3), 5, (3, 3), 3, 0),
        ((0, 4, 5, 5), 6, (3, 3), 1, 1),
    ],
)
def test_kernel_shapes(
    dtype: torch.dtype, shape: tuple[int, ...], filters: int, window: tuple[int, int], stride: int, padding: int
) -> None:
    x, weight, bias = problem(shape, filters, window, dtype)
    compare(x, weight, bias, stride, padding)


@pytest.mark.usefixtures("convolutions")
def test_a_bias_in_float32_is_not_rounded() -> None:
    x, weight, bias = problem((2, 12, 6, 5), 8, (3, 3), torch.bfloat16)
    compare(x, weight, bias.float() + 1e-4)


@pytest.mark.usefixtures("convolutions")
@layouts
def test_kernel_layouts(layout: str) -> None:
    x, weight, bias = problem((2, 12, 6, 5), 8, (3, 3), torch.float16)
    compare(laid_out(x, layout), laid_out(weight, layout), bias, 1, 1)


@pytest.mark.usefixtures("convolutions")
def test_a_nan_is_not_hidden() -> None:
    x, weight, bias = problem((1, 8, 4, 4), 8, (1, 1), torch.float16)
    x[0, 0, 1, 2] = torch.nan
    y = convolution_relu(x, weight, bias)
    assert y[0, :, 1, 2].isnan().all()
    assert int(y.isnan().sum()) == 8


def test_another_dtype_is_the_references() -> None:
    x, weight, bias = (tensor.double() for tensor in problem((2, 3, 5, 5), 4, (3, 3), torch.float32))
    expected = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1).to(x), torch.nn.ReLU())
    expected[0].weight.data, expected[0].bias.data = weight, bias
    torch.testing.assert_close(convolution_relu(x, weight, bias, 1, 1), expected(x).detach())


@pytest.mark.usefixtures("convolutions")
@pytest.mark.parametrize(("weight", "bias"), [((8, 5, 3, 3), 8), ((8, 4, 3, 3), 7), ((8, 4, 7, 7), 8)])
def test_shapes_must_fit(weight: tuple[int, ...], bias: int) -> None:
    x = torch.zeros(1, 4, 5, 5).half().to(DEVICE)
    with pytest.raises(ValueError, match=r"no convolution of images, weights and a bias of the shapes \(1, 4, 5, 5\)"):
        convolution_relu(x, torch.zeros(weight).to(x), torch.zeros(bias).to(x))
