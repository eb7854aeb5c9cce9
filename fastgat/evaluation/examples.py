"""Some images beside what attacks make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgat.attacks.base import Attack, frozen
from fastgat.batch import Batch


class Moved(NamedTuple):
    """A perturbed image (C, H, W), and the class that the network sees in it."""

    image: Tensor
    answer: int


class Example(NamedTuple):
    """An image (C, H, W) in [0, 1], its class, the network's answer, and its perturbed forms by attack."""

    image: Tensor
    label: int
    answer: int
    moved: dict[str, Moved]


def examples(model: nn.Module, batch: Batch, attacks: Mapping[str, Attack], count: int = 6) -> list[Example]:
    """The first images that the network gets right (or, where it gets none right, the first)."""
    with frozen(model), torch.no_grad():
        answers = model(batch.images).argmax(1)
    right = (answers == batch.labels).nonzero().flatten()
    rows = (right if len(right) else torch.arange(len(batch.labels), device=answers.device))[:count]
    images, labels = batch.images[rows], batch.labels[rows]
    moved: dict[str, list[Moved]] = {}
    for name, attack in attacks.items():
        found = attack(images, labels, rows.cpu().numpy())
        with frozen(model), torch.no_grad():
            seen = model(found).argmax(1).tolist()
        moved[name] = [Moved(image, answer) for image, answer in zip(found.cpu(), seen, strict=True)]
    return [
        Example(image, int(label), int(answer), {name: each[i] for name, each in moved.items()})
        for i, (image, label, answer) in enumerate(zip(images.cpu(), labels, answers[rows], strict=True))
    ]
