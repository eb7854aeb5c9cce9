"""Random perturbation: Gaussian noise scaled to L2 norm eps per sample, trained on the loss (4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastgat.kernels.input_gradient import input_gradient
from fastgat.methods.perturbed import Perturbed
from fastgat.methods.players import Draws, Network
from fastgat.options import option


@dataclass(frozen=True)
class RandomPerturbation(Perturbed):
    name: ClassVar[str] = "random"

    epsilon: float = option(0.5, "size of the perturbation in its norm, pixels in [0, 1]", at_least=0)

    def draw(self, classifier: Network, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(noise=torch.empty_like(images).normal_(generator=source))

    def perturbation(self, loss_gradient: Tensor, draws: Draws) -> Tensor:
        assert draws.noise is not None
        return input_gradient(draws.noise, "l2", epsilon=self.epsilon).value
