"""Baseline: the mean cross entropy of clean images, J(x, y) (8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastgat.data.batch import Batch
from fastgat.methods.base import OnePlayer
from fastgat.methods.players import Draws, Metrics, Network, Tensors, pull_back, sample_losses


@dataclass(frozen=True)
class Baseline(OnePlayer):
    name: ClassVar[str] = "baseline"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        losses = sample_losses(classifier, minibatch.labels, draws.clean)
        loss, pull, aux = pull_back(lambda p: losses(p, minibatch.images), classifier.parameters)
        (gradients,) = pull(torch.full_like(loss, 1 / len(loss)))
        return gradients, {"loss": loss.mean(), "accuracy": aux.accuracy}, aux.buffers
