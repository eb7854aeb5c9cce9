"""projected_step: reads x, delta and dJ/dx, writes the next delta."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.projected_step import projected_step, projected_step_reference

from bench.conftest import DEVICE, INPUT_SETS, SIDES, compiled


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", [128, 1024])
def bench_projected_step(measure: Callable[..., None], batch: int, side: str) -> None:
    def reference(x: torch.Tensor, delta: torch.Tensor, gradient: torch.Tensor) -> object:
        return projected_step_reference(x, delta, gradient, 2 / 255, 8 / 255, False)

    def kernel(x: torch.Tensor, delta: torch.Tensor, gradient: torch.Tensor) -> object:
        return projected_step(x, delta, gradient, size=2 / 255, epsilon=8 / 255)

    operation = {"eager": reference, "compiled": compiled(reference), "kernel": kernel}[side]
    inputs = [
        (
            torch.rand(batch, 3, 32, 32, device=DEVICE),
            (2 * torch.rand(batch, 3, 32, 32, device=DEVICE) - 1) * 8 / 255,
            torch.randn(batch, 3, 32, 32, device=DEVICE),
        )
        for _ in range(INPUT_SETS)
    ]
    measure(operation, reference, inputs, moved=4 * inputs[0][0].nbytes)
