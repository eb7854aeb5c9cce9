"""Auto-PGD (Croce and Hein 2020): PGD with momentum that halves its step size where it makes no progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastgat.attacks.base import Attack, ascent, correct, gradient_of
from fastgat.kernels.images import per_sample
from fastgat.options import option

MOMENTUM = 0.75
RISING = 0.75
"""The share of steps between two checkpoints that must raise the loss, or the step size is halved."""

Loss = Callable[[Tensor], Tensor]
"""Logits (B, K) -> the quantity to maximise, (B,)."""


@dataclass(frozen=True)
class APGD(Attack):
    """Algorithm 1 of Croce and Hein.

    `loss` is the cross entropy ("ce"), or the targeted difference of logits ratio ("dlr-t"): towards each of the
    `targets` likeliest wrong classes in turn. A sample that the model gets wrong is left alone from then on.
    """

    loss: str = option("ce", "ce, or dlr-t: targeted", choices=("ce", "dlr-t"))
    steps: int = option(100, "gradient steps of each start", at_least=1)
    restarts: int = option(1, "starts, with dlr-t for each target", at_least=1)
    targets: int = option(9, "classes to aim at with dlr-t", at_least=1)

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        with torch.no_grad():
            logits = self.model(images)
        result, resists = images.clone(), correct(logits, labels)
        wrong_classes = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
        targets = range(min(self.targets, logits.shape[1] - 1)) if self.loss == "dlr-t" else range(1)
        rounds = [target for _ in range(self.restarts) for target in targets]
        for start, target in enumerate(rounds):
            left = resists.nonzero().flatten()
            if not len(left):
                break
            aims = wrong_classes[left, target]
            result[left], fooled = self._ascend(images[left], labels[left], aims, numbers[left.cpu().numpy()], start)
            resists[left[fooled]] = False
        return result

    def _ascend(
        self, images: Tensor, labels: Tensor, aims: Tensor, numbers: np.ndarray, start: int
    ) -> tuple[Tensor, Tensor]:
        """For each sample the first point of one start at which the model errs, or else the best; and whether it errs.

        A sample that the model gets wrong takes no further steps.
        """
        rows, result = torch.arange(len(images), device=images.device), torch.empty_like(images)
        fooled = torch.zeros_like(labels, dtype=torch.bool)
        project, loss = self.projection(images), _loss(self.loss, labels, aims)
        x = previous = project(images + self._start(images, numbers, start))
        size = last_size = images.new_full((len(images), 1, 1, 1), 2 * self.epsilon)
        gradient, best, best_gradient = torch.zeros_like(x), x.clone(), torch.zeros_like(x)
        value, raised = images.new_full((len(images),), torch.inf), images.new_zeros(len(images))
        best_value = last_value = -value
        checkpoints, last_checkpoint = _checkpoints(self.steps), 0
        for step in range(self.steps + 1):
            if step > 0:
                ahead = project(torch.addcmul(x, size, ascent(gradient, self.norm, 1)))
                momentum = MOMENTUM if step > 1 else 1.0
                x, previous = project(x.lerp(ahead, momentum).add_(x - previous, alpha=1 - momentum)), x
            last, (value, gradient, wrong) = value, self._evaluate(x, labels, loss)
            if wrong.any():
                result[rows[wrong]], fooled[rows[wrong]] = x[wrong], True
                left = (~wrong).nonzero().flatten()
                rows, images, labels, aims = rows[left], images[left], labels[left], aims[left]
                x, previous, size, last_size = x[left], previous[left], size[left], last_size[left]
                gradient, best, best_gradient = gradient[left], best[left], best_gradient[left]
                value, last, raised = value[left], last[left], raised[left]
                best_value, last_value = best_value[left], last_value[left]
                if not len(left):
                    break
                project, loss = self.projection(images), _loss(self.loss, labels, aims)
            raised += (value > last).to(raised.dtype)
            better = value > best_value
            best[better], best_gradient[better] = x[better], gradient[better]
            best_value = torch.where(better, value, best_value)
            if step in checkpoints:
                stuck = raised < RISING * (step - last_checkpoint)
                stuck |= (last_size == size).flatten() & (last_value >= best_value)
                last_checkpoint, last_value, last_size, raised = step, best_value, size, torch.zeros_like(raised)
                size = torch.where(per_sample(stuck), size / 2, size)
                x = torch.where(per_sample(stuck), best, x)
                gradient = torch.where(per_sample(stuck), best_gradient, gradient)
                value = torch.where(stuck, best_value, value)
        result[rows] = best
        return result, fooled

    def _start(self, images: Tensor, numbers: np.ndarray, start: int) -> Tensor:
        """A point on the border of the ball, as the authors' code starts."""
        noise = self.random_perturbation(images, numbers, start)
        return self.epsilon * noise / per_sample(self.length(noise).clamp(min=1e-30))

    def _evaluate(self, x: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each sample, its gradient, and whether the model errs."""
        x = x.detach().requires_grad_()
        logits = self.model(x)
        value = loss(logits)
        return value.detach(), gradient_of(value.sum(), x), ~correct(logits.detach(), labels)


def _checkpoints(steps: int) -> set[int]:
    """The steps after which progress is judged: at first 22 % of all apart, then ever closer, down to 6 %."""
    interval, least, decrement = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    checkpoints, step = set(), interval
    while step <= steps:
        checkpoints.add(step)
        interval = max(interval - decrement, least)
        step += interval
    return checkpoints


def _loss(name: str, labels: Tensor, targets: Tensor) -> Loss:
    if name == "ce":
        return lambda logits: functional.cross_entropy(logits, labels, reduction="none")

    def difference_of_logits_ratio(logits: Tensor) -> Tensor:
        """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), z_(i) the i-th largest: the same for a z + b."""
        margin = (logits.gather(1, labels[:, None]) - logits.gather(1, targets[:, None])).flatten()
        if logits.shape[1] == 2:  # z_(1) - z_(2) is |z_y - z_t|: the ratio would be constant
            return -margin
        ordered = logits.sort(1, descending=True).values
        third, fourth = (ordered[:, min(i, logits.shape[1] - 1)] for i in (2, 3))
        return -margin / (ordered[:, 0] - (third + fourth) / 2 + 1e-12)

    return difference_of_logits_ratio
