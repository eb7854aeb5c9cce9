"""Adversarial training with the fast gradient in L2: eta = eps dJ/dx / ||dJ/dx||_2 (3), loss (4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastgat.methods.base import epsilon_option
from fastgat.methods.joints import input_gradient
from fastgat.methods.perturbed import Perturbed
from fastgat.methods.players import Draws


@dataclass(frozen=True)
class FastGradientL2(Perturbed):
    name: ClassVar[str] = "fg-l2"

    epsilon: float = epsilon_option(0.5)

    def perturbation(self, loss_gradient: Tensor | None, draws: Draws) -> Tensor:
        assert loss_gradient is not None
        return input_gradient(loss_gradient, "l2", epsilon=self.epsilon).value
