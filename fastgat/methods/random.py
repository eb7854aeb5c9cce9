"""Random perturbation: Gaussian noise scaled to L2 norm eps per sample, trained on the loss (4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgat.methods.base import epsilon_option
from fastgat.methods.joints import input_gradient
from fastgat.methods.perturbed import Perturbed
from fastgat.methods.players import Draws


@dataclass(frozen=True)
class RandomPerturbation(Perturbed):
    name: ClassVar[str] = "random"
    needs_input_gradient: ClassVar[bool] = False

    epsilon: float = epsilon_option(0.5)

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(noise=torch.empty_like(images).normal_(generator=source))

    def perturbation(self, loss_gradient: Tensor | None, draws: Draws) -> Tensor:
        assert draws.noise is not None
        return input_gradient(draws.noise, "l2", epsilon=self.epsilon).value
