"""projected_step: reads x, p and dJ/dx, writes the next p."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from fastgat.kernels.projected_step import projected_step, projected_step_reference

from bench.conftest import DEVICE, INPUT_SETS


@pytest.mark.parametrize("batch", [128, 1024])
def bench_projected_step(measure: Callable[..., None], batch: int) -> None:
    reference = partial(projected_step_reference, size=2 / 255, epsilon=8 / 255, through_clamp=False)
    kernel = partial(projected_step, size=2 / 255, epsilon=8 / 255)
    inputs = [
        (
            torch.rand(batch, 3, 32, 32, device=DEVICE),
            (2 * torch.rand(batch, 3, 32, 32, device=DEVICE) - 1) * 8 / 255,
            torch.randn(batch, 3, 32, 32, device=DEVICE),
        )
        for _ in range(INPUT_SETS)
    ]
    measure(reference, kernel, inputs, moved=4 * inputs[0][0].nbytes)
