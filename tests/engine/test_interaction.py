"""Samples that influence each other are found by what they do, not by the name of a layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgat.engine.trial import samples_interact
from fastgat.models import Classifier
from tests.support import BatchNormNet


class Centred(nn.Module):
    """Subtracts the mean of the batch, by hand, with dropout before it."""

    def __init__(self, over: int, *, zeros: bool = False) -> None:
        super().__init__()
        self.over = over
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(3, 4)
        if zeros:
            nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.drop(images).mean((2, 3))
        return self.head(x - x.mean(self.over, keepdim=True))


class Parts(Centred):
    """Subtracts the mean of each half of a batch, as batch norm on several GPUs does."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([super(Parts, self).forward(part) for part in images.chunk(2)])


class First(nn.Module):
    """Subtracts what the first image has from all: nothing acts on that one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean((2, 3))
        return self.head(x - x[:1])


def faint(classifier: Centred) -> Centred:
    """With a head of very small weights."""
    nn.init.normal_(classifier.head.weight, std=1e-8)
    return classifier


@pytest.mark.parametrize(
    ("classifier", "expected"),
    [
        (Classifier(dropout=0.5), False),
        (BatchNormNet(), True),
        (BatchNormNet().eval(), False),
        (Centred(over=0), True),
        (Centred(over=0, zeros=True), True),
        (faint(Centred(over=0)), True),
        (Parts(over=0), True),
        (First(), True),
        (Centred(over=1), False),
        (faint(Centred(over=1)), False),
        (Centred(over=1, zeros=True), False),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), False),
    ],
    ids=[
        "dropout",
        "batch norm",
        "batch norm at rest",
        *("by hand", "and hidden", "and faint", "within halves", "by the first"),
        *("by hand, within a sample", "and faint, too", "and hidden, too"),
        "instance norm",
    ],
)
def test_it_is_found(classifier: nn.Module, expected: bool) -> None:
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    images, random = torch.rand(4, 3, 8, 8), torch.get_rng_state()
    assert samples_interact(classifier, images) is expected
    assert torch.get_rng_state().equal(random)
    for name, tensor in classifier.state_dict().items():
        assert tensor.equal(before[name]), name
