"""Auto-PGD (Croce and Hein 2020): PGD with momentum that halves its step size where it makes no progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastgat.attacks.base import Attack, ascent, correct, gradient_of
from fastgat.kernels.images import per_sample
from fastgat.options import option

MOMENTUM = 0.75
RISING = 0.75  # the share of steps between two checkpoints that must raise the loss, or the step size is halved

Loss = Callable[[Tensor], Tensor]  # logits (B, K) -> the quantity to maximise, (B,)


class _Point(NamedTuple):
    """Where an ascent stands with the samples that the model still gets right; each tensor has a row for a sample.

    Attributes:
        rows: their numbers among the samples of the start.
        images, labels, aims: x, y, and the class that a targeted loss aims at.
        x, previous: the point, and the one before it.
        size: how far the next step goes.
        value, gradient: the loss at x and its gradient; after `stepped` still those of `previous`, until `_evaluate`.
        best, best_value, best_gradient: the best point so far, with its loss and gradient.
        raised: the steps since the last checkpoint that have raised the loss.
        last_size, last_value: `size` and `best_value` at the last checkpoint.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    aims: Tensor
    x: Tensor
    previous: Tensor
    size: Tensor
    value: Tensor
    gradient: Tensor
    best: Tensor
    best_value: Tensor
    best_gradient: Tensor
    raised: Tensor
    last_size: Tensor
    last_value: Tensor

    @classmethod
    def first(cls, images: Tensor, labels: Tensor, aims: Tensor, x: Tensor, epsilon: float) -> _Point:
        """The start at `x`, which is not evaluated yet."""
        rows, size = torch.arange(len(x), device=x.device), x.new_full((len(x), 1, 1, 1), 2 * epsilon)
        value, nothing = x.new_full((len(x),), torch.inf), torch.zeros_like(x)
        of_best, raised = (x, -value, nothing), x.new_zeros(len(x))
        return cls(rows, images, labels, aims, x, x, size, value, nothing, *of_best, raised, size, -value)

    def take(self, left: Tensor) -> _Point:
        """These rows alone."""
        return _Point(*(tensor[left] for tensor in self))

    def stepped(self, project: Callable[[Tensor], Tensor], direction: Tensor, momentum: float) -> _Point:
        """After a step in `direction`, mixed with the step before it."""
        ahead = project(torch.addcmul(self.x, self.size, direction))
        x = project(self.x.lerp(ahead, momentum).add_(self.x - self.previous, alpha=1 - momentum))
        return self._replace(x=x, previous=self.x)

    def with_best(self) -> _Point:
        """With this point as the best one where it is."""
        better = self.value > self.best_value
        return self._replace(
            best=torch.where(per_sample(better), self.x, self.best),
            best_value=torch.where(better, self.value, self.best_value),
            best_gradient=torch.where(per_sample(better), self.gradient, self.best_gradient),
        )

    def after_checkpoint(self, steps: int) -> _Point:
        """At a checkpoint, `steps` after the last: samples without progress go on from the best, with half the step."""
        idle = (self.last_size == self.size).flatten() & (self.last_value >= self.best_value)
        stuck = (self.raised < RISING * steps) | idle
        each = per_sample(stuck)
        return self._replace(
            x=torch.where(each, self.best, self.x),
            size=torch.where(each, self.size / 2, self.size),
            value=torch.where(stuck, self.best_value, self.value),
            gradient=torch.where(each, self.best_gradient, self.gradient),
            raised=torch.zeros_like(self.raised),
            last_size=self.size,
            last_value=self.best_value,
        )


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
        result, fooled = torch.empty_like(images), torch.zeros_like(labels, dtype=torch.bool)
        project, loss = self.projection(images), _loss(self.loss, labels, aims)
        at = _Point.first(images, labels, aims, project(images + self._start(images, numbers, start)), self.epsilon)
        checkpoints, last_checkpoint = _checkpoints(self.steps), 0
        for step in range(self.steps + 1):
            if step > 0:
                at = at.stepped(project, ascent(at.gradient, self.norm, 1), MOMENTUM if step > 1 else 1.0)
            value, gradient, wrong = self._evaluate(at.x, at.labels, loss)
            at = at._replace(value=value, gradient=gradient, raised=at.raised + (value > at.value))
            if wrong.any():
                result[at.rows[wrong]], fooled[at.rows[wrong]] = at.x[wrong], True
                at = at.take((~wrong).nonzero().flatten())
                if not len(at.rows):
                    break
                project, loss = self.projection(at.images), _loss(self.loss, at.labels, at.aims)
            at = at.with_best()
            if step in checkpoints:
                at, last_checkpoint = at.after_checkpoint(step - last_checkpoint), step
        result[at.rows] = at.best
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
        """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), z_(i) the i-th largest: the same for a z + b.

        A class that is ruled out, with a logit of -inf, is none of the z_(i). Of three classes z_(3) stands for z_(4).
        Of two, z_(1) - z_(2) is |z_y - z_t|, so that the ratio would be constant: it is the numerator alone.
        """
        margin = (logits.gather(1, labels[:, None]) - logits.gather(1, targets[:, None])).flatten()
        ordered, possible = logits.sort(1, descending=True).values, (logits > -torch.inf).sum(1)
        last = (possible - 1).clamp(min=0)
        third, fourth = (ordered.gather(1, last.clamp(max=i)[:, None]).flatten() for i in (2, 3))
        ratio_of = ordered[:, 0] - (third + fourth) / 2 + 1e-12
        return -margin / ratio_of.where(possible > 2, 1)

    return difference_of_logits_ratio
