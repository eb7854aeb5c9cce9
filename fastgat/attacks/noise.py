"""Noise: what a perturbation of the same size does that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastgat.attacks.base import Attack, length


@dataclass(frozen=True)
class Noise(Attack):
    """x' = x + eta: uniform in [-eps, eps] (linf), or Gaussian, scaled to the L2 norm eps (l2)."""

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        noise = self.drawn(images, numbers)
        if self.norm == "l2":
            noise = noise * (self.epsilon / length(noise).clamp(min=1e-30))
        return self.moved(images, noise)
