"""relu_gradient: reads dL/dy and y, writes dL/dz; the sums of its parts are small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.relu_gradient import relu_gradient, relu_gradient_reference
from torch import Tensor

from bench.conftest import DEVICE, INPUT_SETS


@pytest.mark.parametrize(("channels", "pixels"), [(48, 32), (96, 16), (96, 8)])
def bench_relu_gradient(measure: Callable[..., None], channels: int, pixels: int) -> None:
    """The layers of Table 1 at batch 128, with what adds up the parts."""

    def reference(d_y: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        value, sums = relu_gradient_reference(d_y, y)
        return value, sums.sum(0)

    def kernel(d_y: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        value, sums = relu_gradient(d_y, y)
        return value, sums.sum(0)

    shape = 128, pixels, pixels, channels
    inputs = [
        tuple(torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).permute(0, 3, 1, 2) / 100 for _ in range(2))
        for _ in range(INPUT_SETS)
    ]
    measure(reference, kernel, inputs, moved=3 * inputs[0][0].nbytes)
