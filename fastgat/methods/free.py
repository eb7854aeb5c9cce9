"""Free adversarial training (Shafahi et al. 2019): m steps on each minibatch, each with one backward pass, for the
classifier's gradient and for the next perturbation, which is carried from minibatch to minibatch.

    m times:  L_F = J(x + p);  F learns;  p = clamp(p + eps sign(dJ/dx at x + p), -eps, eps)

x + p is kept in [0, 1], and where that cuts, p does not change. A pass over the data makes m updates a minibatch, and
costs m passes of standard training. The authors' code (github.com/ashafahi/free_adv_train) therefore divides the
number of passes by m, as `divide_epochs` does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastgat.batch import Batch
from fastgat.kernels.backend import accumulation_dtype
from fastgat.kernels.dual_loss import sample_loss
from fastgat.kernels.perturbation import perturbation
from fastgat.kernels.projected_step import projected_step
from fastgat.methods.base import Method, epsilon_option
from fastgat.methods.players import Draws, Metrics, Players, Update, classify, mean
from fastgat.options import option


@dataclass(frozen=True)
class Free(Method):
    name: ClassVar[str] = "free"
    clean_and_perturbed: ClassVar[bool] = False
    remembers: ClassVar[bool] = True
    select: ClassVar[str] = "robust"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perturbed_accuracy", "perturbation_norm")

    epsilon: float = epsilon_option(8 / 255)
    replays: int = option(4, "m, steps on each minibatch", at_least=1)
    divide_epochs: bool = option(
        False, "make epochs / m passes over the data, rounded up: then N epochs cost what N of standard training do"
    )

    def passes(self, epochs: int) -> int:
        return math.ceil(epochs / self.replays) if self.divide_epochs else epochs

    def step(
        self, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update, kind: str = "full"
    ) -> tuple[Players, Metrics]:
        ((images, labels),) = minibatches
        p = players.memory
        assert p is not None
        replays: list[Metrics] = []
        for _ in range(self.replays):
            x_perturbed, _ = perturbation(images, p, tanh=False, clamp=True)
            z, vjp, buffers = classify(players.classifier, x_perturbed, wrt="both")
            perturbed = sample_loss(z, labels)
            gradients, loss_gradient = vjp(perturbed.gradient)
            cut = (images.to(accumulation_dtype(images.dtype)) + p).clamp(0, 1) - images
            p = projected_step(images, p, loss_gradient, size=self.epsilon, epsilon=self.epsilon, through_clamp=True)
            players = players._replace(classifier=players.classifier._replace(buffers=buffers))
            players = update(players, classifier=mean(gradients, len(labels)))
            replays.append(
                {
                    "loss": perturbed.loss.mean(),
                    "perturbed_accuracy": perturbed.correct.float().mean(),
                    "perturbation_norm": cut.flatten(1).norm(dim=1).mean(),
                }
            )
        means = {name: torch.stack([one[name] for one in replays]).mean() for name in self.metrics}
        return players._replace(memory=p), means
