"""Some images beside their perturbed forms."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastgat.attacks.base import Attack
from fastgat.batch import Batch
from fastgat.evaluation.results import Example, PerturbedImage
from fastgat.evaluation.subject import Subject

COUNT = 6


def examples(subject: Subject, batch: Batch, attacks: Mapping[str, Attack]) -> list[Example]:
    """The first images that the network gets right (or, where it gets none right, the first)."""
    answers = subject.logits(batch.images).argmax(1)
    right = (answers == batch.labels).nonzero().flatten()
    rows = (right if len(right) else torch.arange(len(batch.labels), device=answers.device))[:COUNT]
    images, labels = batch.images[rows], batch.labels[rows]
    shown = [Example(*each, {}) for each in zip(images.cpu(), labels.tolist(), answers[rows].tolist(), strict=True)]
    for name, attack in attacks.items():
        perturbed = attack(images, labels, rows.cpu().numpy())
        for example, image, answer in zip(shown, perturbed.cpu(), subject.logits(perturbed).argmax(1), strict=True):
            example.perturbed[name] = PerturbedImage(image, int(answer))
    return shown
