"""Gradient penalty: J(x) + lambda ||dJ/dx||_2^2, the double backpropagation of Drucker and LeCun (1992).

With v = dJ/dx held fixed, d||dJ/dx||^2 / dtheta = 2 d(v . dJ/dx) / dtheta, by a double backward pass
(`fastgat.methods.double_backward`). To first order GAT with its best generator is such a penalty (docs/mathematics.md).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastgat.batch import Batch
from fastgat.kernels.dual_loss import sample_loss
from fastgat.methods.base import OnePlayer
from fastgat.methods.double_backward import loss_and_gradient
from fastgat.methods.players import Draws, Metrics, Network, Tensors, mean
from fastgat.options import option


@dataclass(frozen=True)
class GradientPenalty(OnePlayer):
    name: ClassVar[str] = "gradient-penalty"
    clean_and_perturbed: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "gradient_norm")

    penalty: float = option(0.1, "lambda, the weight of ||dJ/dx||_2^2", at_least=0)

    @property
    def differentiates_twice(self) -> bool:
        return True

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        (_, v), vjp, (z, buffers) = loss_and_gradient(classifier, minibatch, draws.clean)
        clean = sample_loss(z, minibatch.labels)
        (gradients,) = vjp((torch.ones_like(clean.loss), 2 * self.penalty * v))
        power = v.to(clean.loss.dtype).flatten(1).square().sum(1)
        metrics = {
            "loss": (clean.loss + self.penalty * power).mean(),
            "accuracy": clean.correct.float().mean(),
            "gradient_norm": power.sqrt().mean(),
        }
        return mean(gradients, len(power)), metrics, buffers
