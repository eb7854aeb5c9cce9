"""Accuracy and loss of a classifier on every sample of a loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.engine.ranks import ALONE, Ranks
from fastgat.functional import call, in_eval_mode, mixed_precision, tensor_paths
from fastgat.kernels.dual_loss import sample_loss


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
    ranks: Ranks = ALONE,
) -> Score:
    """The classifier's score in eval mode, with `parameters` in place of its own if given.

    Each of several ranks brings batches of its own; the score is that of all of them.
    """
    right, loss, seen = ranks.agree(lambda: _sums(classifier, batches, parameters, autocast))
    right, loss, seen = map(sum, zip(*ranks.gather((right, loss, seen)), strict=True))
    return Score(right / max(seen, 1), loss / max(seen, 1), seen)


def _sums(
    classifier: nn.Module, batches: Iterable[Batch], parameters: dict[str, Tensor] | None, autocast: torch.dtype | None
) -> tuple[float, float, int]:
    """Right answers, summed cross entropy, and samples."""
    where = tensor_paths(classifier)
    with in_eval_mode(classifier):
        correct: Tensor | float = 0.0
        total: Tensor | float = 0.0
        samples = 0
        for images, labels in batches:
            with mixed_precision(images.device, autocast):
                logits, _ = call(classifier, parameters or {}, (images,), where)
            correct = correct + (logits.argmax(1) == labels).sum()
            total = total + sample_loss(logits, labels).loss.sum(dtype=torch.float64)
            samples += len(labels)
    return float(correct), float(total), samples
