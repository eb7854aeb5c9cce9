"""dual_loss, the perturbed pass: reads the logits, writes their gradient; five numbers a sample besides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from fastgat.kernels.dual_loss import perturbed_loss, perturbed_loss_reference

from bench.conftest import DEVICE, INPUT_SETS


@pytest.mark.parametrize("shape", [(128, 10), (1024, 10), (128, 1000)], ids=lambda s: "x".join(map(str, s)))
def bench_dual_loss(measure: Callable[..., None], shape: tuple[int, ...]) -> None:
    reference, kernel = partial(perturbed_loss_reference, alpha=0.5), partial(perturbed_loss, alpha=0.5)
    inputs = [
        (
            torch.randn(shape, device=DEVICE),
            torch.randint(shape[1], shape[:1], device=DEVICE),
            torch.rand(shape[0], device=DEVICE),
        )
        for _ in range(INPUT_SETS)
    ]
    measure(reference, kernel, inputs, moved=2 * inputs[0][0].nbytes)
