"""A small network that has learnt the digits, and images that it gets right."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.data import create_loader
from fastgat.data.digits import DIGITS
from fastgat.data.registry import silent


class Victim(NamedTuple):
    """A classifier in eval mode, and test images (N, 3, 32, 32) with their labels."""

    model: nn.Module
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="session")
def victim() -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, 10),
        )
        data = DIGITS.load(None, 0, silent)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for images, labels in islice(create_loader("resident", data.train, 64).stream(0), 150):
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        optimizer.zero_grad()
    images, labels = next(create_loader("resident", data.test, 200).once())
    return Victim(model.eval(), images, labels)


def accuracy(victim: Victim, images: Tensor) -> float:
    with torch.no_grad():
        return float((victim.model(images).argmax(1) == victim.labels[: len(images)]).float().mean())
