"""Projected gradient descent (Madry et al. 2018): repeated small fast-gradient steps within the ball."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastgat.attacks.base import Attack, ascent, correct, loss_gradient
from fastgat.kernels.images import per_sample
from fastgat.options import check_unit, option


@dataclass(frozen=True)
class PGD(Attack):
    """x_{t+1} = clamp(x + project(x_t + step d - x)), d = sign(dJ/dx) or dJ/dx / ||dJ/dx|| at x_t.

    Of several starts a sample keeps the first that fools the model, and is left alone from then on, or else that with
    the largest loss.
    """

    steps: int = option(50, "gradient steps", at_least=1)
    step_size: float | None = option(None, "of each step  [default: 2.5 epsilon / steps]", at_least=0)
    restarts: int = option(1, "how often to start", at_least=1)
    first_start: int = option(0, "number of the first start, to go on from where another has stopped", at_least=0)
    random_start: bool = option(True, "start at random within the ball, not at x")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("step_size", self.step_size or 0, self.norm)

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        result = self._ascend(images, labels, numbers, self.first_start)
        if self.restarts == 1:
            return result
        loss, resists = self._outcome(result, labels)
        for start in range(self.first_start + 1, self.first_start + self.restarts):
            left = resists.nonzero().flatten()
            if not len(left):
                break
            x, y = images[left], labels[left]
            perturbed = self._ascend(x, y, numbers[left.cpu().numpy()], start)
            new_loss, still_resists = self._outcome(perturbed, y)
            better = ~still_resists | (new_loss > loss[left])
            result[left] = torch.where(per_sample(better), perturbed, result[left])
            loss[left] = torch.where(better, new_loss, loss[left])
            resists[left] = still_resists
        return result

    def _ascend(self, images: Tensor, labels: Tensor, numbers: np.ndarray, start: int) -> Tensor:
        """The last point of one start."""
        project = self.projection(images)
        x = project(images + self.random_perturbation(images, numbers, start)) if self.random_start else images.clone()
        size = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
        for _ in range(self.steps):
            gradient = loss_gradient(self.model, x, labels)[1]
            x = project(ascent(gradient, self.norm, size).add_(x))
        return x

    @torch.no_grad()
    def _outcome(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each sample, and whether the model still gets it right."""
        logits = self.model(x)
        return functional.cross_entropy(logits, labels, reduction="none"), correct(logits, labels)
