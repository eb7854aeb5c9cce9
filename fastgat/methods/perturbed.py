"""The loss that four rows of Table 2 share: alpha J(x) + (1 - alpha) J(x + eta), (2) and (4), for a given eta.

One backward pass of J(x) gives F's clean gradient and dJ/dx together, so an eta made from dJ/dx costs no pass of its
own. The seed is the same for every sample, so sharing stays exact under batch norm too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastgat.data.batch import Batch
from fastgat.kernels.perturbation import perturb
from fastgat.methods.base import OnePlayer, alpha_option
from fastgat.methods.players import Draws, Metrics, Network, Tensors, mix, pull_back, sample_losses


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
        losses = sample_losses(classifier, minibatch.labels, draws.clean)
        if self.needs_input_gradient:
            clean, pull, aux = pull_back(losses, classifier.parameters, minibatch.images)
            clean_gradients, loss_gradient = pull(torch.ones_like(clean))
        else:
            clean, pull, aux = pull_back(lambda p: losses(p, minibatch.images), classifier.parameters)
            (clean_gradients,), loss_gradient = pull(torch.ones_like(clean)), None

        moved = perturb(minibatch.images, self.perturbation(loss_gradient, draws))
        classifier = classifier._replace(buffers=aux.buffers)
        losses = sample_losses(classifier, minibatch.labels, draws.perturbed)
        perturbed, pull, aux_perturbed = pull_back(lambda p: losses(p, moved.perturbed), classifier.parameters)
        (perturbed_gradients,) = pull(torch.ones_like(perturbed))

        metrics = {
            "loss": (self.alpha * clean + (1 - self.alpha) * perturbed).mean(),
            "accuracy": aux.accuracy,
            "perturbed_accuracy": aux_perturbed.accuracy,
            "perturbation_norm": moved.power.sqrt().mean(),
        }
        gradients = mix(clean_gradients, perturbed_gradients, self.alpha, len(clean))
        return gradients, metrics, aux_perturbed.buffers
