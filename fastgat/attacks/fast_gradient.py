"""Fast gradient (Goodfellow, Shlens, Szegedy 2015): one step along dJ/dx, equations (1) and (3) of the paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastgat.attacks.base import Attack, ascent, loss_gradient


@dataclass(frozen=True)
class FastGradient(Attack):
    """x' = x + eps sign(dJ/dx), or with the L2 norm x + eps dJ/dx / ||dJ/dx||."""

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        gradient = loss_gradient(self.model, images, labels)[1]
        return self.add(images, ascent(gradient, self.norm, self.epsilon))
