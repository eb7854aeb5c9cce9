"""Auto-PGD (Croce and Hein 2020): PGD with momentum that halves its step by itself where it makes no headway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastgat.attacks.base import Attack, gradient_of, length, right, wide
from fastgat.kernels.input_gradient import ascent
from fastgat.options import option

MOMENTUM = 0.75
ENOUGH = 0.75
"""The share of steps between two checkpoints that must have raised the loss, or the step is halved."""

Loss = Callable[[Tensor], Tensor]
"""Logits (B, K) -> what each sample wants to be large, (B,)."""


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
        result, standing = images.clone(), right(logits, labels)
        others = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
        aims = range(min(self.targets, logits.shape[1] - 1)) if self.loss == "dlr-t" else range(1)
        rounds = [(aim, restart) for restart in range(self.restarts) for aim in aims]
        for start, (aim, _) in enumerate(rounds):
            left = standing.nonzero().flatten()
            if not len(left):
                break
            x, y = images[left], labels[left]
            loss = _loss(self.loss, y, others[left, aim])
            found, fooled = self._ascended(x, y, numbers[left.cpu().numpy()], start, loss)
            result[left] = found
            standing[left[fooled]] = False
        return result

    def _ascended(
        self, images: Tensor, labels: Tensor, numbers: np.ndarray, start: int, loss: Loss
    ) -> tuple[Tensor, Tensor]:
        """Of each sample the best point of one start (one that fools the model, if any does), and whether it does."""
        checkpoints, inside = _checkpoints(self.steps), self.around(images)
        size = images.new_full((len(images), 1, 1, 1), 2 * self.epsilon)
        x = before = inside(images + self._start(images, numbers, start))
        value, gradient, wrong = self._look(x, labels, loss)
        best, best_value, best_gradient = x.clone(), value, gradient
        kept, fooled = x.clone(), wrong
        since, since_value, since_size, raised = 0, best_value, size.clone(), torch.zeros_like(value)
        for step in range(self.steps):
            ahead = inside(x + size * ascent(gradient, self.norm, 1))
            momentum = MOMENTUM if step else 1.0
            x, before = inside(x + momentum * (ahead - x) + (1 - momentum) * (x - before)), x
            last = value
            value, gradient, wrong = self._look(x, labels, loss)
            raised += (value > last).to(raised.dtype)
            kept = torch.where(wide(wrong & ~fooled), x, kept)
            fooled = fooled | wrong
            better = value > best_value
            best, best_gradient = (
                torch.where(wide(better), x, best),
                torch.where(wide(better), gradient, best_gradient),
            )
            best_value = torch.where(better, value, best_value)
            if step + 1 in checkpoints:
                stuck = raised < ENOUGH * (step + 1 - since)
                stuck |= (since_size == size).flatten() & (since_value >= best_value)
                since, since_value, since_size = step + 1, best_value, size.clone()
                raised = torch.zeros_like(raised)
                size = torch.where(wide(stuck), size / 2, size)
                x = torch.where(wide(stuck), best, x)
                gradient, value = (
                    torch.where(wide(stuck), best_gradient, gradient),
                    torch.where(stuck, best_value, value),
                )
        return torch.where(wide(fooled), kept, best), fooled

    def _start(self, images: Tensor, numbers: np.ndarray, start: int) -> Tensor:
        """A point on the border of the ball, as the authors' code starts."""
        noise = self.drawn(images, numbers, start)
        if self.norm == "linf":
            return self.epsilon * noise / noise.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
        return self.epsilon * noise / length(noise).clamp(min=1e-30)

    def _look(self, x: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each sample, its gradient, and whether the model errs."""
        x = x.detach().requires_grad_()
        logits = self.model(x)
        value = loss(logits)
        return value.detach(), gradient_of(value.sum(), x), ~right(logits.detach(), labels)


def _checkpoints(steps: int) -> set[int]:
    """After how many steps headway is judged: at first 22 % of them, then ever shorter, 6 % at least."""
    interval, least, less = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found, at = set(), 0
    while at + interval <= steps:
        at += interval
        found.add(at)
        interval = max(interval - less, least)
    return found


def _loss(name: str, labels: Tensor, targets: Tensor) -> Loss:
    if name == "ce":
        return lambda logits: functional.cross_entropy(logits, labels, reduction="none")

    def difference_of_logits_ratio(logits: Tensor) -> Tensor:
        """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), z_(i) the i-th largest: the same for a z + b."""
        aimed = (logits.gather(1, labels[:, None]) - logits.gather(1, targets[:, None])).flatten()
        if logits.shape[1] == 2:  # z_(1) - z_(2) is the difference itself, and its quotient says nothing
            return -aimed
        ordered = logits.sort(1, descending=True).values
        third, fourth = (ordered[:, min(i, logits.shape[1] - 1)] for i in (2, 3))
        return -aimed / (ordered[:, 0] - (third + fourth) / 2 + 1e-12)

    return difference_of_logits_ratio
