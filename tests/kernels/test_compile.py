"""The public functions inside torch.compile(fullgraph=True), as the step will use them, against themselves outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.convolution_relu import convolution_relu
from fastgat.kernels.dual_loss import perturbed_loss, sample_loss
from fastgat.kernels.input_gradient import MODES, input_gradient
from fastgat.kernels.perturbation import perturbation, perturbation_gradient
from fastgat.kernels.projected_step import projected_step
from fastgat.kernels.relu_gradient import relu_gradient
from torch import Tensor

from tests.kernels.oracle import DEVICE

Function = Callable[[Tensor, Tensor, Tensor], object]


def _input_gradient(mode: str) -> Function:
    return lambda x, z, y: input_gradient(x, mode, loss=x.sum((1, 2, 3)), epsilon=0.3)


FUNCTIONS: dict[str, Function] = {
    **{mode: _input_gradient(mode) for mode in MODES},
    "perturbation": lambda x, z, y: perturbation(x, z, clamp=True),
    "perturbation_gradient": lambda x, z, y: perturbation_gradient(x, z, z, x[:, 0, 0, 0], loss=z[:, 0, 0, 0]),
    "projected_step": lambda x, z, y: projected_step(x, z, z - 0.5, size=0.1, epsilon=0.2),
    "relu_gradient": lambda x, z, y: relu_gradient(x, z - 0.5),
    "convolution_relu": lambda x, z, y: convolution_relu(x, z[:, :, :3, :3], z[:, 0, 0, 0], 2, 1),
    "sample_loss": lambda x, z, y: sample_loss(z.flatten(1), y),
    "perturbed_loss": lambda x, z, y: perturbed_loss(z.flatten(1), y, x.sum((1, 2, 3)), 0.3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_graph_and_the_same_result(name: str) -> None:
    function = FUNCTIONS[name]
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    x, z = (torch.rand(4, 3, 6, 5, device=DEVICE) for _ in range(2))
    y = torch.randint(90, (4,), device=DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)(x, z, y)
    torch.testing.assert_close(compiled, function(x, z, y), equal_nan=True)
