"""perturbation: reads x and z, writes x' and p; backward reads dL/dx' and z, writes dL/dx and dL/dz."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.perturbation import perturbation, perturbation_reference

from bench.conftest import DEVICE, INPUT_SETS, SIDES, compiled


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", [128, 1024])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def bench_perturbation(measure: Callable[..., None], direction: str, batch: int, side: str) -> None:
    def reference_forward(x: torch.Tensor, z: torch.Tensor, d: torch.Tensor) -> object:
        return tuple(perturbation_reference(x, z, 1.0, None, None, bounded=True))

    def kernel_forward(x: torch.Tensor, z: torch.Tensor, d: torch.Tensor) -> object:
        return tuple(perturbation(x, z))

    def with_backward(forward: Callable[..., object]) -> Callable[..., object]:
        def both(x: torch.Tensor, z: torch.Tensor, d: torch.Tensor) -> object:
            results, pull = torch.func.vjp(lambda z: forward(x, z, d), z)[:2]
            return results, pull((d, torch.zeros_like(d), d[:, 0, 0, 0]))

        return both

    reference, kernel = reference_forward, kernel_forward
    if direction == "backward":
        # Compiled, as in a step: uncompiled, autograd's own kernels would take longer than the one that is measured.
        reference, kernel = with_backward(reference_forward), compiled(with_backward(kernel_forward))
    operation = {"eager": reference, "compiled": compiled(reference), "kernel": kernel}[side]
    inputs = [tuple(torch.rand(batch, 3, 32, 32, device=DEVICE) for _ in range(3)) for _ in range(INPUT_SETS)]
    passes = 4 if direction == "forward" else 4 + 4
    measure(operation, reference, inputs, moved=passes * inputs[0][0].nbytes)
