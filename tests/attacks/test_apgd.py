"""APGD: the published schedule and loss, and what it saves."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import APGD
from fastgat.attacks.apgd import _checkpoints, _loss
from tests.attacks.every import EPSILON, norms
from tests.attacks.victim import Victim, accuracy


@norms
def test_a_sample_that_apgd_has_fooled_takes_no_further_steps(victim: Victim, norm: str) -> None:
    class Counted(nn.Module):
        seen: ClassVar[list[int]] = []

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(len(images))
            logits: Tensor = victim.model(images)
            return logits

    model, count = Counted(), len(victim.labels)
    moved = APGD(model, epsilon=EPSILON[norm], norm=norm, steps=20, batch_size=count)(victim.images, victim.labels)
    _, *steps = model.seen  # first the network is tried
    assert steps == sorted(steps, reverse=True)
    assert round(accuracy(victim, moved) * count) <= steps[-1] < steps[1] < steps[0] == count


class Kept(nn.Module):
    """The first `count` of a network's classes: alone, or beside the others, which it rules out."""

    def __init__(self, model: nn.Module, count: int, alone: bool) -> None:
        super().__init__()
        self.model, self.count, self.alone = model, count, alone

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        if self.alone:
            return logits[:, : self.count]
        return logits.masked_fill(torch.arange(10) >= self.count, -torch.inf)


@norms
@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_only_classes_that_are_possible_count_in_the_ratio(victim: Victim, norm: str, count: int) -> None:
    rows = (victim.labels < count).nonzero().flatten()[:20]
    x, y = victim.images[rows], victim.labels[rows]
    alone, ruled_out = (
        APGD(Kept(victim.model, count, alone), loss="dlr-t", steps=8, targets=count - 1, norm=norm, epsilon=0.5)(x, y)
        for alone in (True, False)
    )
    assert ((alone - x).flatten(1).abs().amax(1) > 0).float().mean() > 0.8  # the others are wrong as they are
    assert ((alone - ruled_out).abs() > 1e-5).float().mean() < 1e-3


def test_the_ratio_is_the_published_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    labels, targets = torch.zeros(50, dtype=torch.int64), torch.ones(50, dtype=torch.int64)
    ordered = logits.sort(1).values
    published = (logits[:, 1] - logits[:, 0]) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)
    assert _loss("dlr-t", labels, targets)(logits).equal(published)
    ruled_out = torch.cat([logits, torch.full((50, 3), -torch.inf)], 1)
    assert _loss("dlr-t", labels, targets)(ruled_out).equal(published)


def test_headway_is_judged_at_the_published_steps() -> None:
    assert _checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
