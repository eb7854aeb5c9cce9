"""Baseline: the mean cross entropy of clean images, J(x, y) (8); and the same with dropout."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.methods.base import OnePlayer, dropout_masks, dropout_option, label_smoothing_option, smoothed_loss
from fastgat.methods.players import Draws, Metrics, Network, Tensors, classify, mean


@dataclass(frozen=True)
class Baseline(OnePlayer):
    name: ClassVar[str] = "baseline"
    clean_and_perturbed: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    label_smoothing: float = label_smoothing_option()

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        z, vjp, buffers = classify(classifier, minibatch.images, draws.clean)
        clean = smoothed_loss(z, minibatch.labels, self.label_smoothing)
        (gradients,) = vjp(clean.gradient)
        metrics = {"loss": clean.loss.mean(), "accuracy": clean.correct.float().mean()}
        return mean(gradients, len(z)), metrics, buffers


@dataclass(frozen=True)
class Dropout(Baseline):
    """The baseline on a classifier with dropout, its masks drawn from the step's seeded stream."""

    name: ClassVar[str] = "dropout"

    dropout: float = dropout_option()

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(clean=dropout_masks(classifier, images, source))
