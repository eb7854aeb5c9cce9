"""Free adversarial training (Shafahi et al. 2019): m steps on each minibatch, each with one backward pass, for the
classifier's gradient and for the next perturbation, which is carried from minibatch to minibatch.

    m times:  L_F = J(x + delta);  F learns;  delta = clamp(delta + eps sign(dJ/dx at x + delta), -eps, eps)

x + delta is kept in [0, 1], and where that cuts, delta does not move. An epoch makes m updates a minibatch, so compare
it with m epochs of other methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastgat.batch import Batch
from fastgat.methods.base import Method, epsilon_option
from fastgat.methods.joints import perturbation, projected_step, sample_loss
from fastgat.methods.players import Draws, Metrics, Players, Update, logits, mean, pull_back
from fastgat.options import option


@dataclass(frozen=True)
class Free(Method):
    name: ClassVar[str] = "free"
    remembers: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perturbed_accuracy", "perturbation_norm")

    epsilon: float = epsilon_option(8 / 255)
    replays: int = option(4, "m, steps on each minibatch", at_least=1)

    def step(
        self,
        players: Players,
        minibatches: Sequence[Batch],
        draws: Sequence[Draws],
        update: Update,
        kind: str = "full",
    ) -> tuple[Players, Metrics]:
        ((images, labels),) = minibatches
        delta = players.memory
        assert delta is not None
        wide = torch.promote_types(images.dtype, torch.float32)
        found: list[Metrics] = []
        for _ in range(self.replays):
            classifier, of = players.classifier, logits(players.classifier)
            moved = perturbation(images, delta, tanh=False, clamp=True)
            z, pull, buffers = pull_back(classifier, of, classifier.parameters, moved.perturbed)
            half = sample_loss(z, labels)
            gradients, loss_gradient = pull(half.gradient)
            whole = images.to(wide) + delta
            delta = projected_step(
                images, delta, loss_gradient, size=self.epsilon, epsilon=self.epsilon, through_clamp=True
            )
            players = players._replace(classifier=classifier._replace(buffers=buffers))
            players = update(players, classifier=mean(gradients, len(labels)))
            found.append(
                {
                    "loss": half.loss.mean(),
                    "perturbed_accuracy": half.correct.float().mean(),
                    "perturbation_norm": (whole.clamp(0, 1) - images).flatten(1).norm(dim=1).mean(),
                }
            )
        means = {name: torch.stack([one[name] for one in found]).mean() for name in self.metrics}
        return players._replace(memory=delta), means
