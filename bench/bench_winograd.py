"""winograd: reads x and the weights, writes y, or reads dy and x and writes the weights' gradient; on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels import winograd

from bench.conftest import INPUT_SETS

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="it is for CPUs"),
    pytest.mark.parametrize("measure", ["eager", "compiled", "kernel"], indirect=True),
    pytest.mark.parametrize(
        ("channels", "filters", "pixels"), [(48, 48, 32), (48, 96, 16), (96, 96, 8), (160, 160, 32), (192, 192, 8)]
    ),
]


def images(batch: int, channels: int, pixels: int) -> torch.Tensor:
    return torch.rand(batch, pixels, pixels, channels).permute(0, 3, 1, 2) / 10


def bench_convolution(measure: Callable[..., None], channels: int, filters: int, pixels: int) -> None:
    """The layers of Table 1 and of wide residual networks, at batch 32."""
    inputs = [
        (images(32, channels, pixels), images(filters, channels, 3), torch.rand(filters)) for _ in range(INPUT_SETS)
    ]
    moved = sum(4 * 32 * pixels**2 * each for each in (channels, filters))
    measure(winograd.convolution_reference, winograd.convolution, inputs, moved)


def bench_parameter_gradients(measure: Callable[..., None], channels: int, filters: int, pixels: int) -> None:
    inputs = [
        (images(32, filters, pixels), images(32, channels, pixels), images(filters, channels, 3))
        for _ in range(INPUT_SETS)
    ]
    moved = sum(4 * 32 * pixels**2 * each for each in (channels, filters))
    measure(winograd.parameter_gradients_reference, winograd.parameter_gradients, inputs, moved)
