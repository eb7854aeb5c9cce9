"""Baseline: the mean cross entropy of clean images, J(x, y) (8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastgat.batch import Batch
from fastgat.methods.base import OnePlayer
from fastgat.methods.joints import sample_loss
from fastgat.methods.players import Draws, Metrics, Network, Tensors, logits, mean, pull_back


@dataclass(frozen=True)
class Baseline(OnePlayer):
    name: ClassVar[str] = "baseline"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        of = logits(classifier, draws.clean)
        z, pull, buffers = pull_back(classifier, lambda p: of(p, minibatch.images), classifier.parameters)
        half = sample_loss(z, minibatch.labels)
        (gradients,) = pull(half.gradient)
        metrics = {"loss": half.loss.mean(), "accuracy": half.correct.float().mean()}
        return mean(gradients, len(z)), metrics, buffers
