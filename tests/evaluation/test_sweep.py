"""Sweeps over epsilon: the same as attacking anew at every epsilon, on one network or from another."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastgat.attacks import FastGradient
from fastgat.batch import Batch
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.evaluation.sweep import fast_gradient_sweep
from tests.attacks.victim import Victim, accuracy

EPSILONS = [0.0, 0.05, 0.3, 1.0, 4.0]


@pytest.fixture(scope="module")
def other(victim: Victim) -> nn.Module:
    """A network of the same kind that sees things a little differently."""
    model = copy.deepcopy(victim.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
    return model.eval()


def batches(victim: Victim, size: int = 64) -> list[Batch]:
    parts = zip(victim.images.split(size), victim.labels.split(size), strict=True)
    return [Batch(images, labels) for images, labels in parts]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_sweep_is_the_attack_at_every_epsilon(victim: Victim, norm: str) -> None:
    epsilons = EPSILONS if norm == "l2" else [epsilon / 20 for epsilon in EPSILONS]
    (curve,) = fast_gradient_sweep({"f": victim.model}, batches(victim), epsilons, norm).values()
    for epsilon, found in zip(epsilons, curve, strict=True):
        attack = FastGradient(victim.model, epsilon=epsilon, norm=norm, clamp=False)
        assert found == pytest.approx(accuracy(victim, attack(victim.images, victim.labels)), abs=0.006)
    assert curve[0] == pytest.approx(accuracy(victim, victim.images))
    assert curve[-1] < 0.2 < curve[0]


def test_indirect_perturbations_come_from_the_source(victim: Victim, other: nn.Module) -> None:
    networks, sources = {"f": victim.model, "g": other}, {"h": other}
    curves = fast_gradient_sweep(networks, batches(victim), EPSILONS, sources=sources)
    assert curves.keys() == {("f", "h"), ("g", "h")}
    for epsilon, found in zip(EPSILONS, curves["f", "h"], strict=True):
        attack = FastGradient(other, epsilon=epsilon, norm="l2", clamp=False)
        assert found == pytest.approx(accuracy(victim, attack(victim.images, victim.labels)), abs=0.006)
    direct = fast_gradient_sweep({"f": victim.model}, batches(victim), EPSILONS)["f", "f"]
    assert direct[2] <= curves["f", "h"][2]


def test_the_gradient_is_taken_once_a_batch(victim: Victim) -> None:
    calls = {"forward": 0, "backward": 0}

    class Counted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls["forward"] += 1
            logits: torch.Tensor = victim.model(images)
            if images.requires_grad:
                logits.register_hook(lambda gradient: calls.update(backward=calls["backward"] + 1))
            return logits

    fast_gradient_sweep({"f": Counted()}, batches(victim, 100), EPSILONS)
    # And one forward pass to judge the network, and two of each for its digest.
    assert calls == {"forward": 2 * (1 + len(EPSILONS)) + 3, "backward": 2 + 2}


def test_the_batch_size_does_not_matter(victim: Victim) -> None:
    one, many = (fast_gradient_sweep({"f": victim.model}, batches(victim, size), EPSILONS) for size in (200, 23))
    for a, b in zip(one["f", "f"], many["f", "f"], strict=True):
        assert a == pytest.approx(b, abs=0.006)  # a sample on the border may round to either side


@pytest.mark.parametrize("wrong", [[], [0.1, -0.1]])
def test_bad_epsilons(victim: Victim, wrong: list[float]) -> None:
    with pytest.raises(ConfigError, match="epsilons must be one or more numbers of at least 0"):
        fast_gradient_sweep({"f": victim.model}, batches(victim), wrong)


@pytest.mark.parametrize(
    ("norm", "epsilons", "message"),
    [
        ("Linf", [0.1], "norm: unknown value 'Linf'; did you mean 'linf'"),
        ("linf", [8], "epsilon must be at most 1 in linf"),
        ("l2", [0.1, float("nan")], "epsilon must be finite"),
        ("l2", [1e20], "epsilon must be at most 1e"),
    ],
)
def test_what_no_attack_takes(victim: Victim, norm: str, epsilons: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fast_gradient_sweep({"f": victim.model}, batches(victim), epsilons, norm)


def test_epsilons_may_be_an_array(victim: Victim) -> None:
    epsilons: Any = np.array([0, 0.5])
    (curve,) = fast_gradient_sweep({"f": victim.model}, batches(victim), epsilons).values()
    assert curve == fast_gradient_sweep({"f": victim.model}, batches(victim), [0, 0.5])["f", "f"]


def test_logits_that_are_nan_end_a_sweep(victim: Victim) -> None:
    class Rooted(nn.Module):
        """NaN for a pixel below 0."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = victim.model(images)
            return logits.where((images >= 0).flatten(1).all(1)[:, None], torch.nan)

    with pytest.raises(NonFiniteError, match=r"f returns logits that are NaN .* under fast gradient, epsilon 0\.3"):
        fast_gradient_sweep({"f": Rooted()}, batches(victim), [0, 0.3])
