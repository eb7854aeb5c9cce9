"""dual_loss, the perturbed half: reads the logits, writes their gradient; five numbers a sample besides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.dual_loss import perturbed_loss, sample_loss_reference

from bench.conftest import DEVICE, INPUT_SETS, SIDES, compiled


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(128, 10), (1024, 10), (128, 1000)], ids=lambda s: "x".join(map(str, s)))
def bench_dual_loss(measure: Callable[..., None], shape: tuple[int, ...], side: str) -> None:
    def reference(logits: torch.Tensor, labels: torch.Tensor, clean: torch.Tensor) -> object:
        perturbed = sample_loss_reference(logits, labels)
        return perturbed, 0.5 * clean + 0.5 * perturbed.loss

    def kernel(logits: torch.Tensor, labels: torch.Tensor, clean: torch.Tensor) -> object:
        return perturbed_loss(logits, labels, clean, 0.5)

    operation = {"eager": reference, "compiled": compiled(reference), "kernel": kernel}[side]
    inputs = [
        (
            torch.randn(shape, device=DEVICE),
            torch.randint(shape[1], shape[:1], device=DEVICE),
            torch.rand(shape[0], device=DEVICE),
        )
        for _ in range(INPUT_SETS)
    ]
    measure(operation, reference, inputs, moved=2 * inputs[0][0].nbytes)
