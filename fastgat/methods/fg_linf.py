"""Adversarial training with the fast gradient sign: eta = eps sign(dJ/dx) (1), loss (2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastgat.kernels.input_gradient import input_gradient
from fastgat.methods.perturbed import Perturbed
from fastgat.methods.players import Draws
from fastgat.options import option


@dataclass(frozen=True)
class FastGradientLinf(Perturbed):
    name: ClassVar[str] = "fg-linf"

    epsilon: float = option(2 / 255, "size of the perturbation in its norm, pixels in [0, 1]", at_least=0)

    def perturbation(self, loss_gradient: Tensor, draws: Draws) -> Tensor:
        return input_gradient(loss_gradient, "linf", epsilon=self.epsilon).value
