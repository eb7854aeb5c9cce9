"""Projected gradient descent (Madry et al. 2018): repeated small fast-gradient steps within the ball."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastgat.attacks.base import Attack, loss_gradient
from fastgat.kernels.input_gradient import input_gradient
from fastgat.options import option


@dataclass(frozen=True)
class PGD(Attack):
    """x_{t+1} = clamp(x + project(x_t + step d - x)), d = sign(dJ/dx) or dJ/dx / ||dJ/dx|| at x_t.

    Of several restarts a sample keeps the one that fools the model, or else that with the largest loss.
    """

    steps: int = option(50, "gradient steps", at_least=1)
    step_size: float | None = option(None, "of each step  [default: 2.5 epsilon / steps]", at_least=0)
    restarts: int = option(1, "how often to start", at_least=1)
    random_start: bool = option(True, "start at random within the ball, not at x")

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        kept = self._descended(images, labels, self._start(images, numbers, 0))
        if self.restarts == 1:
            return kept
        score = self._score(kept, labels)
        for start in range(1, self.restarts):
            found = self._descended(images, labels, self._start(images, numbers, start))
            better = (fresh := self._score(found, labels)) > score
            kept = torch.where(better[:, None, None, None], found, kept)
            score = torch.where(better, fresh, score)
        return kept

    def _start(self, images: Tensor, numbers: np.ndarray, start: int) -> Tensor:
        if not self.random_start:
            return images
        return self.moved(images, self.drawn(images, numbers, start))

    def _descended(self, images: Tensor, labels: Tensor, x: Tensor) -> Tensor:
        size = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
        for _ in range(self.steps):
            gradient = loss_gradient(self.model, x, labels)[1]
            step = input_gradient(gradient, self.norm, epsilon=size).value
            x = self.moved(images, self.projected(x + step - images))
        return x

    @torch.no_grad()
    def _score(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss, and past every loss where the model errs."""
        logits = self.model(x)
        loss = functional.cross_entropy(logits, labels, reduction="none")
        return torch.where(logits.argmax(1) != labels, torch.inf, loss)
