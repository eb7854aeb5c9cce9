"""Against torchattacks and foolbox, on the same weights and images."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgat.attacks import APGD, PGD, FastGradient
from tests.attacks.victim import Victim, accuracy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchattacks: Any = pytest.importorskip("torchattacks")
    foolbox: Any = pytest.importorskip("foolbox")

EPSILON = {"linf": 0.03, "l2": 0.5}
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@pytest.fixture(scope="module")
def exact(victim: Victim) -> Victim:
    """In float64: where the network is sure, float32 knows two digits of a gradient."""
    return Victim(copy.deepcopy(victim.model).double(), victim.images.double(), victim.labels)


def same(own: Tensor, other: Tensor) -> None:
    """To rounding; a sign may turn where a gradient is zero but for it."""
    assert ((own - other).abs() > 1e-5).float().mean() < 1e-4


def torchattack(kind: Any, victim: Victim, **settings: Any) -> Tensor:
    found: Tensor = kind(victim.model, **settings)(victim.images, victim.labels)
    return found


@norms
def test_fast_gradient_is_foolboxs(exact: Victim, norm: str) -> None:
    attack = {"linf": foolbox.attacks.FGSM, "l2": foolbox.attacks.FGM}[norm]()
    model = foolbox.PyTorchModel(exact.model, bounds=(0, 1))
    _, clipped, _ = attack(model, exact.images, exact.labels, epsilons=EPSILON[norm])
    same(FastGradient(exact.model, epsilon=EPSILON[norm], norm=norm)(exact.images, exact.labels), clipped)


def test_fast_gradient_is_torchattackss(exact: Victim) -> None:
    other = torchattack(torchattacks.FGSM, exact, eps=0.03)
    same(FastGradient(exact.model, epsilon=0.03)(exact.images, exact.labels), other)


@norms
def test_pgd_is_torchattackss(exact: Victim, norm: str) -> None:
    epsilon, kind = EPSILON[norm], {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    # It divides by the norm plus this, by default 1e-10, which shows where the network is sure.
    exactly = {"eps_for_division": 1e-30} if norm == "l2" else {}
    settings = {"eps": epsilon, "alpha": epsilon / 4, "steps": 8, "random_start": False, **exactly}
    other = torchattack(kind, exact, **settings)
    own = PGD(exact.model, epsilon=epsilon, norm=norm, steps=8, step_size=epsilon / 4, random_start=False)
    same(own(exact.images, exact.labels), other)


@norms
def test_pgd_is_foolboxs(exact: Victim, norm: str) -> None:
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    epsilon = EPSILON[norm]
    attack = kind(abs_stepsize=epsilon / 4, steps=8, random_start=False)
    model = foolbox.PyTorchModel(exact.model, bounds=(0, 1))
    _, clipped, _ = attack(model, exact.images, exact.labels, epsilons=epsilon)
    own = PGD(exact.model, epsilon=epsilon, norm=norm, steps=8, step_size=epsilon / 4, random_start=False)
    same(own(exact.images, exact.labels), clipped)


@pytest.mark.slow
@norms
@pytest.mark.parametrize("loss", ["ce", "dlr-t"])
def test_apgd_is_as_strong_as_torchattackss(victim: Victim, norm: str, loss: str) -> None:
    epsilon, name = EPSILON[norm], {"linf": "Linf", "l2": "L2"}[norm]
    if loss == "ce":
        other = torchattack(torchattacks.APGD, victim, norm=name, eps=epsilon, steps=30)
        own = APGD(victim.model, epsilon=epsilon, norm=norm, steps=30)
    else:
        other = torchattack(torchattacks.APGDT, victim, norm=name, eps=epsilon, steps=20, n_classes=10)
        own = APGD(victim.model, epsilon=epsilon, norm=norm, steps=20, loss=loss)
    assert accuracy(victim, own(victim.images, victim.labels)) <= accuracy(victim, other) + 0.01
    assert torch.isfinite(other).all()
