"""Attacks on networks that count their calls, work in place, rule classes out, or have no gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import APGD, FAB, PGD, Attack, FastGradient
from fastgat.attacks.base import correct
from tests.attacks.every import EPSILON, Make, attacks, norms
from tests.attacks.victim import Victim


class Observed(nn.Module):
    """Keeps the largest logit that it has returned in a buffer, in eval mode too, as a quantised network does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("sparse", torch.eye(2).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        self.calls = self.get_buffer("calls") + 1
        self.get_buffer("largest").copy_(torch.maximum(self.get_buffer("largest"), logits.detach().max()))
        return logits


def test_buffers_come_back_as_they_were(victim: Victim) -> None:
    model = Observed(victim.model)
    PGD(model, epsilon=0.5, steps=2)(victim.images, victim.labels)
    assert model.get_buffer("largest") == model.get_buffer("calls") == 0


class Counting(nn.Module):
    """Its logits grow with the number of its passes, which it counts in a buffer, in eval mode too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return self.network(x + 0.1 * self.get_buffer("calls").clone().sin())


def test_a_batch_begins_with_the_network_s_own_buffers(victim: Victim) -> None:
    images, labels = victim.images[:4], victim.labels[:4]
    whole, parts = (PGD(Counting(victim.model), epsilon=0.5, steps=3, batch_size=n)(images, labels) for n in (4, 2))
    assert whole.equal(parts)


class Broken(nn.Module):
    """Of an image whose first pixel is `lost` the gradient is NaN, the logits are not."""

    def __init__(self, model: nn.Module, lost: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.lost = model, lost

    def forward(self, images: Tensor) -> Tensor:
        lost = self.lost(images[:, :1, :1, :1]).to(images.dtype)
        root = (lost * (images - images.detach()) + (1 - lost)).square().sum((1, 2, 3)).sqrt()
        logits: Tensor = self.model(images)
        return logits + root[:, None]


@norms
@pytest.mark.parametrize("make", [FastGradient, partial(PGD, steps=3, random_start=False), partial(APGD, steps=3)])
def test_a_sample_whose_gradient_is_nan_stays(victim: Victim, make: Make, norm: str) -> None:
    x = victim.images[:8].clone()
    x[:4, :, 0, 0], x[4:, :, 0, 0] = 0.0, 1.0
    moved = make(Broken(victim.model, lambda first: first < 0.5), norm=norm, epsilon=EPSILON[norm], clamp=False)(
        x, victim.labels[:8]
    )
    assert moved.isfinite().all()
    assert (moved[4:] != x[4:]).flatten(1).any(1).all()


@norms
@pytest.mark.parametrize(
    "make", [partial(PGD, steps=3), partial(APGD, steps=3), partial(APGD, steps=3, loss="dlr-t", targets=2)]
)
def test_a_start_without_gradients_does_not_stand_for_the_others(victim: Victim, make: Make, norm: str) -> None:
    """Several starts find what any of them finds alone."""
    model, found = Broken(victim.model, lambda first: (first * 1000) % 1 < 0.5), []
    settings: dict[str, Any] = {"norm": norm, "epsilon": EPSILON[norm] * 0.6}

    def standing(attack: Attack) -> Tensor:
        moved = attack(victim.images, victim.labels)
        assert moved.isfinite().all()
        with torch.no_grad():
            answers: Tensor = model(moved).argmax(1) == victim.labels
        return answers

    if make.func is PGD:  # type: ignore[attr-defined]  # of a partial
        found = [standing(make(model, restarts=1, first_start=start, **settings)) for start in range(4)]
    else:
        found = [standing(make(model, restarts=count, **settings)) for count in (1, 2, 3)]
    together = standing(make(model, restarts=4, **settings))
    assert 0 < int(together.sum()) < len(together)
    assert int((together & ~torch.stack(found).all(0)).sum()) <= 1  # rounding, in other batches


@pytest.mark.parametrize("make", [FastGradient, partial(PGD, steps=2), partial(APGD, steps=2), partial(FAB, steps=2)])
def test_a_model_without_a_derivative(make: Make) -> None:
    class Threshold(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images > 0.5).to(images.dtype).flatten(1)[:, :10]

    moved = make(Threshold())(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert moved.isfinite().all()


@pytest.mark.parametrize("make", [partial(APGD, loss="dlr-t"), FAB])
def test_targeted_attacks_work_on_two_classes(victim: Victim, make: Make) -> None:
    class Even(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = victim.model(images)
            return torch.stack([logits[:, ::2].amax(1), logits[:, 1::2].amax(1)], 1)

    labels = victim.labels % 2
    moved = make(Even(), epsilon=0.06, steps=20)(victim.images, labels)
    with torch.no_grad():
        assert (Even()(moved).argmax(1) == labels).float().mean() < 0.3


class Normalised(nn.Module):
    """A network that normalises its images, in place or not."""

    def __init__(self, model: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.model, self.in_place = model, in_place

    def forward(self, images: Tensor) -> Tensor:
        images = images.sub_(0.5).div_(0.25) if self.in_place else (images - 0.5) / 0.25
        logits: Tensor = self.model(images)
        return logits


@attacks
@norms
def test_a_network_that_works_in_place_changes_nothing(victim: Victim, make: Make, norm: str) -> None:
    x, y = victim.images[:10].clone(), victim.labels[:10]
    attack, other = (make(Normalised(victim.model, in_place), norm=norm) for in_place in (True, False))
    assert attack(x, y).equal(other(x, y))
    assert x.equal(victim.images[:10])


class Masked(nn.Module):
    """A network with one more class, which it rules out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1)


@attacks
@norms
def test_a_class_that_is_ruled_out_changes_nothing(victim: Victim, make: Make, norm: str) -> None:
    x, y = victim.images[:20], victim.labels[:20]
    attack, other = (make(model, norm=norm, epsilon=EPSILON[norm]) for model in (Masked(victim.model), victim.model))
    assert ((attack(x, y) - other(x, y)).abs() > 1e-5).float().mean() < 1e-3  # a sign may turn where a gradient is 0


def test_a_row_that_rules_out_every_class_is_not_right() -> None:
    logits = torch.tensor([[-torch.inf, -torch.inf], [-torch.inf, 0.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    assert correct(logits, torch.tensor([0, 1, 0, 0])).tolist() == [False, True, False, False]
