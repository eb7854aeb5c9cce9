"""convolution_relu: reads x and the weights, writes y; cuDNN's convolution and Inductor's bias and ReLU besides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from fastgat.kernels.convolution_relu import convolution_relu, convolution_relu_reference

from bench.conftest import DEVICE, INPUT_SETS
from fastgat.engine.device import fastest_convolutions


@pytest.mark.parametrize(("channels", "filters", "pixels"), [(8, 48, 32), (48, 48, 32), (48, 96, 16), (96, 96, 8)])
def bench_convolution_relu(measure: Callable[..., None], channels: int, filters: int, pixels: int) -> None:
    """3 x 3 layers of Table 1 at batch 128, the first one filled up; cuDNN times its algorithms, as in a step."""

    reference = partial(convolution_relu_reference, stride=1, padding=1)
    kernel = partial(convolution_relu, stride=1, padding=1)
    shapes = (128, pixels, pixels, channels), (filters, 3, 3, channels)
    inputs = [
        (
            *(torch.rand(shape, device=DEVICE, dtype=torch.bfloat16).permute(0, 3, 1, 2) / 10 for shape in shapes),
            torch.rand(filters, device=DEVICE, dtype=torch.bfloat16),
        )
        for _ in range(INPUT_SETS)
    ]
    x, weight, _ = inputs[0]
    with fastest_convolutions():
        measure(reference, kernel, inputs, moved=x.nbytes + weight.nbytes + x.nbytes // channels * filters)
