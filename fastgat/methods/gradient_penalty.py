"""Gradient penalty: J(x) + lambda ||dJ/dx||_2^2, the double backpropagation of Drucker and LeCun (1992).

With v = dJ/dx held fixed, d||dJ/dx||^2 / dtheta = 2 d(v . dJ/dx) / dtheta: the derivative of a slope
(`fastgat.methods.slope`). To first order GAT with its best generator is such a penalty (docs/mathematics.md).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastgat.batch import Batch
from fastgat.kernels.dual_loss import sample_loss
from fastgat.methods.base import OnePlayer
from fastgat.methods.players import Draws, Metrics, Network, Tensors, classify, mean
from fastgat.methods.slope import loss_and_slope
from fastgat.options import option


@dataclass(frozen=True)
class GradientPenalty(OnePlayer):
    name: ClassVar[str] = "gradient-penalty"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "gradient_norm")

    penalty: float = option(0.1, "lambda, the weight of ||dJ/dx||_2^2", at_least=0)

    @property
    def takes_slopes(self) -> bool:
        return True

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        images, labels = minibatch
        z, pull, buffers = classify(classifier, images, draws.clean, by="images")
        clean = sample_loss(z, labels)
        (loss_gradient,) = pull(clean.gradient)
        power = loss_gradient.to(clean.loss.dtype).flatten(1).square().sum(1)

        (loss, slope), pull, _ = loss_and_slope(classifier, minibatch, loss_gradient, draws.clean)
        (gradients,) = pull((torch.ones_like(loss), torch.full_like(slope, 2 * self.penalty)))
        metrics = {
            "loss": (clean.loss + self.penalty * power).mean(),
            "accuracy": clean.correct.float().mean(),
            "gradient_norm": power.sqrt().mean(),
        }
        return mean(gradients, len(loss)), metrics, buffers
