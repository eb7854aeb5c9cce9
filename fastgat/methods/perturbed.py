"""The loss that four rows of Table 2 share: alpha J(x) + (1 - alpha) J(x + eta), (2) and (4), for a given eta.

One backward pass of J(x) gives F's clean gradient and dJ/dx together, so an eta made from dJ/dx costs no pass of its
own. The seed is the same for every sample, so sharing stays exact under batch norm too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastgat.batch import Batch
from fastgat.methods.base import OnePlayer, alpha_option
from fastgat.methods.joints import perturbation, perturbed_loss, sample_loss
from fastgat.methods.players import Draws, Metrics, Network, Players, Tensors, logits, mix, pull_back


@dataclass(frozen=True)
class Perturbed(OnePlayer):
    """Base of the methods whose perturbation is a formula; `perturbation` is all that they add."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "perturbed_accuracy", "perturbation_norm")
    needs_input_gradient: ClassVar[bool] = True

    alpha: float = alpha_option()

    def perturbation(self, loss_gradient: Tensor | None, draws: Draws) -> Tensor:
        """eta, (B, C, H, W), from dJ/dx (None unless `needs_input_gradient`) and the draws."""
        raise NotImplementedError

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        images, labels = minibatch
        of = logits(classifier, draws.clean)
        if self.needs_input_gradient:
            z, pull, buffers = pull_back(classifier, of, classifier.parameters, images)
        else:
            z, pull, buffers = pull_back(classifier, lambda p: of(p, images), classifier.parameters)
        clean = sample_loss(z, labels)
        clean_gradients, *loss_gradient = pull(clean.gradient)
        moved = perturbation(images, self.perturbation(loss_gradient[0] if loss_gradient else None, draws), tanh=False)

        players = Players(classifier).after_classifier("clean", buffers)
        classifier = players.classifier
        of = logits(classifier, draws.perturbed)
        z, pull, buffers = pull_back(classifier, lambda p: of(p, moved.perturbed), classifier.parameters)
        half, loss = perturbed_loss(z, labels, clean.loss, self.alpha)
        (gradients,) = pull(half.gradient)

        metrics = {
            "loss": loss.mean(),
            "accuracy": clean.correct.float().mean(),
            "perturbed_accuracy": half.correct.float().mean(),
            "perturbation_norm": moved.power.sqrt().mean(),
        }
        buffers = players.after_classifier("perturbed", buffers).classifier.buffers
        return mix(clean_gradients, gradients, self.alpha, len(loss)), metrics, buffers
