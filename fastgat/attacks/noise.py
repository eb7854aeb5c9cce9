"""Noise: the control experiment, a perturbation of the same size that knows nothing of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgat.attacks.base import Attack, l2_norm
from fastgat.options import option


@dataclass(frozen=True)
class Noise(Attack):
    """x' = x + eta, the pixels of eta independent and identically distributed.

    linf: uniform in [-eps, eps], or Gaussian of standard deviation eps / 2, cut off at eps. l2: scaled to the norm eps.
    """

    distribution: str = option("gaussian", "of each pixel", choices=("gaussian", "uniform"))

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        shape = tuple(images.shape[1:])
        sources = (np.random.default_rng((self.seed, int(number))) for number in numbers)
        draw = {"gaussian": lambda s: s.normal(0, 0.5, shape).clip(-1, 1), "uniform": lambda s: s.uniform(-1, 1, shape)}
        noise = torch.from_numpy(np.stack([draw[self.distribution](source) for source in sources]))
        if self.norm == "l2":
            noise = noise / l2_norm(noise)
        return self.add(images, (self.epsilon * noise).to(images.device, images.dtype))
