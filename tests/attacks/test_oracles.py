"""Against torchattacks and foolbox, on the same weights and images."""

from __future__ import annotations

import copy
import warnings
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastgat.attacks import APGD, FAB, PGD, AutoAttack, FastGradient, Square
from fastgat.data import create_loader
from fastgat.data.digits import DIGITS
from fastgat.data.registry import silent
from tests.attacks.victim import Victim, accuracy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchattacks: Any = pytest.importorskip("torchattacks")
    foolbox: Any = pytest.importorskip("foolbox")

EPSILON = {"linf": 0.03, "l2": 0.5}
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
one_of_two = pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.long)])


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
@one_of_two
def test_square_is_as_strong_as_torchattackss(victim: Victim, norm: str) -> None:
    settings = {"linf": (0.06, "Linf"), "l2": (1.5, "L2")}
    epsilon, name = settings[norm]
    with torch.random.fork_rng():
        other = accuracy(victim, torchattack(torchattacks.Square, victim, norm=name, eps=epsilon, n_queries=400))
    own = Square(victim.model, epsilon=epsilon, norm=norm, queries=400)(victim.images, victim.labels)
    assert accuracy(victim, own) <= other + 0.01
    assert other < accuracy(victim, victim.images) - 0.05


@one_of_two
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


def left_by(victim: Victim, perturbed: Tensor, epsilon: float, norm: str) -> Tensor:
    """Which samples stay right; torchattacks' bounds hold to rounding."""
    p = (perturbed - victim.images).flatten(1)
    assert (p.abs().amax(1) if norm == "linf" else p.norm(dim=1)).max() <= epsilon * (1 + 1e-4)
    with torch.no_grad():
        answers: Tensor = victim.model(perturbed).argmax(1) == victim.labels
    return answers


def as_strong(victim: Victim, ours: Any, theirs: Any, epsilon: float, norm: str) -> None:
    """Ours leaves at most half a point more, or one sample; neither fools all or none."""
    with torch.random.fork_rng():
        made = [attack(victim.images, victim.labels) for attack in (ours, theirs)]
    left, other = (int(left_by(victim, perturbed, epsilon, norm).sum()) for perturbed in made)
    count = len(victim.labels)
    assert 0.1 * count < other < 0.9 * count
    assert 0 < left <= other + max(1, 0.005 * count)


@norms
def test_fab_is_as_strong_as_torchattackss(victim: Victim, norm: str) -> None:
    epsilon, name = {"linf": (0.02, "Linf"), "l2": (0.7, "L2")}[norm]
    theirs = torchattacks.FAB(victim.model, norm=name, eps=epsilon, steps=6, multi_targeted=True, n_classes=3)
    as_strong(victim, FAB(victim.model, epsilon=epsilon, norm=norm, steps=6, targets=2), theirs, epsilon, norm)


def parts_of_autoattack(victim: Victim, norm: str, epsilon: float, steps: int, targets: int, queries: int) -> Any:
    """torchattacks' AutoAttack; its own takes 10 steps."""
    common = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "seed": 0}
    targeted = {"steps": steps, "n_classes": targets + 1}
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(victim.model, **common, steps=steps),
            torchattacks.APGDT(victim.model, **common, **targeted),
            torchattacks.FAB(victim.model, **common, **targeted, multi_targeted=True),
            torchattacks.Square(victim.model, **common, n_queries=queries),
        ]
    )


@pytest.mark.slow
@one_of_two
def test_autoattack_is_as_strong_as_torchattackss(victim: Victim, norm: str) -> None:
    effort: dict[str, Any] = {"steps": 6, "targets": 2, "queries": 40}
    epsilon = {"linf": 0.02, "l2": 0.7}[norm]
    ours = AutoAttack(victim.model, epsilon=epsilon, norm=norm, **effort)
    as_strong(victim, ours, parts_of_autoattack(victim, norm, epsilon, **effort), epsilon, norm)


@pytest.mark.slow
@pytest.mark.long
@norms
def test_autoattack_on_a_defended_network_is_as_strong_as_torchattackss(victim: Victim, norm: str) -> None:
    model = copy.deepcopy(victim.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    images = create_loader("resident", DIGITS.load(None, 0, silent).train, 64).stream(0)
    for x, y in islice(images, 100):
        perturbed = PGD(model.eval(), epsilon=0.1, steps=5)(x, y)
        optimizer.zero_grad()
        functional.cross_entropy(model.train()(perturbed), y).backward()
        optimizer.step()
    defended = Victim(model.eval(), victim.images, victim.labels)
    effort: dict[str, Any] = {"steps": 40, "targets": 9, "queries": 500}
    epsilon = {"linf": 0.12, "l2": 2.2}[norm]
    ours = AutoAttack(model, epsilon=epsilon, norm=norm, **effort)
    as_strong(defended, ours, parts_of_autoattack(defended, norm, epsilon, **effort), epsilon, norm)
