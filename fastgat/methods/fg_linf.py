"""Adversarial training with the fast gradient sign: eta = eps sign(dJ/dx) (1), loss (2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastgat.methods.base import epsilon_option
from fastgat.methods.joints import input_gradient
from fastgat.methods.perturbed import Perturbed
from fastgat.methods.players import Draws


@dataclass(frozen=True)
class FastGradientLinf(Perturbed):
    name: ClassVar[str] = "fg-linf"

    epsilon: float = epsilon_option(2 / 255)

    def perturbation(self, loss_gradient: Tensor | None, draws: Draws) -> Tensor:
        assert loss_gradient is not None
        return input_gradient(loss_gradient, "linf", epsilon=self.epsilon).value
