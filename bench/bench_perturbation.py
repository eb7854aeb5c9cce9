"""perturbation: reads x and z, writes x'; its gradient reads dJ/dx' and z, and x where it clamps, and writes dL/dz."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.perturbation import (
    perturbation,
    perturbation_gradient,
    perturbation_gradient_reference,
    perturbation_reference,
)

from bench.conftest import DEVICE, INPUT_SETS


@pytest.mark.parametrize("batch", [128, 1024])
@pytest.mark.parametrize("clamp", [False, True], ids=["free", "clamped"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def bench_perturbation(measure: Callable[..., None], direction: str, clamp: bool, batch: int) -> None:
    """As a step calls them: the tanh is G's, and dJ/dx' comes with J."""

    def reference(x: torch.Tensor, z: torch.Tensor, d: torch.Tensor, each: torch.Tensor) -> object:
        if direction == "forward":
            return perturbation_reference(x, z, True, clamp)
        return perturbation_gradient_reference(x, z, d, each, each, True, clamp)

    def kernel(x: torch.Tensor, z: torch.Tensor, d: torch.Tensor, each: torch.Tensor) -> object:
        if direction == "forward":
            return perturbation(x, z, clamp=clamp)
        return perturbation_gradient(x, z, d, each, loss=each, clamp=clamp)

    inputs = [
        (*(torch.rand(batch, 3, 32, 32, device=DEVICE) for _ in range(3)), torch.rand(batch, device=DEVICE))
        for _ in range(INPUT_SETS)
    ]
    passes = 4 if direction == "backward" and clamp else 3
    measure(reference, kernel, inputs, moved=passes * inputs[0][0].nbytes)
