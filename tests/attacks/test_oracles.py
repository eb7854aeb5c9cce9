"""Against torchattacks and foolbox, on the same weights and images."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgat.attacks import APGD, PGD, AutoAttack, FastGradient, Square
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
@pytest.mark.parametrize("loss", ["ce", pytest.param("dlr-t", marks=pytest.mark.long)])
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


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.long)])
def test_square_is_as_strong_as_torchattackss(victim: Victim, norm: str) -> None:
    settings = {"linf": (0.06, "Linf"), "l2": (1.5, "L2")}
    epsilon, name = settings[norm]
    with torch.random.fork_rng():
        other = accuracy(victim, torchattack(torchattacks.Square, victim, norm=name, eps=epsilon, n_queries=400))
    own = Square(victim.model, epsilon=epsilon, norm=norm, queries=400)(victim.images, victim.labels)
    assert accuracy(victim, own) <= other + 0.01
    assert other < accuracy(victim, victim.images) - 0.05


@norms
def test_pgd_with_restarts_is_as_strong_as_torchattackss(victim: Victim, norm: str) -> None:
    epsilon, kind = {"linf": 0.025, "l2": 0.5}[norm], {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    stands = torch.ones(len(victim.labels), dtype=torch.bool)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(4):
            other = torchattack(kind, victim, eps=epsilon, alpha=epsilon / 8, steps=20)
            stands &= victim.model(other).argmax(1) == victim.labels
    attack = PGD(victim.model, epsilon=epsilon, norm=norm, steps=20, step_size=epsilon / 8, restarts=4)
    assert accuracy(victim, attack(victim.images, victim.labels)) <= float(stands.float().mean()) + 0.01


@pytest.mark.slow
@pytest.mark.long
def test_autoattack_is_no_weaker_than_its_parts(victim: Victim) -> None:
    x, y = victim.images[:20], victim.labels[:20]
    state = torch.get_rng_state()
    found = AutoAttack(victim.model, epsilon=0.03)(x, y)
    assert torch.get_rng_state().equal(state)
    assert (found - x).abs().max() <= 0.03 + 1e-5
    assert accuracy(victim, found) <= accuracy(victim, APGD(victim.model, epsilon=0.03)(x, y)) + 0.01
