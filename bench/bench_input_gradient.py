"""input_gradient: one read of dJ/dx, one write of the value; two numbers a sample besides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.input_gradient import input_gradient, input_gradient_reference

from bench.conftest import DEVICE, INPUT_SETS


@pytest.mark.parametrize("batch", [128, 1024])
@pytest.mark.parametrize("mode", ["probability", "l2", "linf"])
def bench_input_gradient(measure: Callable[..., None], mode: str, batch: int) -> None:
    def reference(gradient: torch.Tensor, loss: torch.Tensor) -> object:
        return input_gradient_reference(gradient, mode, loss, 0.5)

    def kernel(gradient: torch.Tensor, loss: torch.Tensor) -> object:
        return input_gradient(gradient, mode, loss=loss, epsilon=0.5)

    inputs = [
        (torch.randn(batch, 3, 32, 32, device=DEVICE), torch.rand(batch, device=DEVICE)) for _ in range(INPUT_SETS)
    ]
    measure(reference, kernel, inputs, moved=2 * inputs[0][0].nbytes)
