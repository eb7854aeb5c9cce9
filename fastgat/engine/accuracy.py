"""Accuracy and loss of a classifier on every sample of a loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastgat.data.batch import Batch
from fastgat.kernels.dual_loss import cross_entropy


class Score(NamedTuple):
    """Share of right answers, mean cross entropy, and over how many samples."""

    accuracy: float
    loss: float
    samples: int


@torch.no_grad()
def score(
    classifier: nn.Module,
    batches: Iterable[Batch],
    parameters: dict[str, Tensor] | None = None,
    autocast: torch.dtype | None = None,
) -> Score:
    """The classifier's score in eval mode, with `parameters` in place of its own if given; its mode is put back."""
    was_training = classifier.training
    classifier.eval()
    try:
        correct: Tensor | float = 0.0
        total: Tensor | float = 0.0
        samples = 0
        for images, labels in batches:
            with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
                logits = functional_call(classifier, parameters or {}, (images,))
            correct = correct + (logits.argmax(1) == labels).sum()
            total = total + cross_entropy(logits, labels).sum(dtype=torch.float64)
            samples += len(labels)
    finally:
        classifier.train(was_training)
    return Score(float(correct) / max(samples, 1), float(total) / max(samples, 1), samples)
