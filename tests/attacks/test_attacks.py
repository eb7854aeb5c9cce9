"""What holds of every attack: its bounds, its seed, its independence of the batch, and a model left as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import APGD, PGD, Attack, FastGradient, Noise
from fastgat.errors import ConfigError, NonFiniteError
from tests.attacks.victim import Victim, accuracy

Make = Callable[..., Attack]
ATTACKS: dict[str, Make] = {
    "fast gradient": FastGradient,
    "pgd": partial(PGD, steps=4),
    "pgd, restarts": partial(PGD, steps=3, restarts=3),
    "apgd-ce": partial(APGD, steps=6),
    "apgd-t": partial(APGD, steps=5, loss="dlr-t", targets=3),
    "noise": Noise,
}
EPSILON = {"linf": 0.05, "l2": 1.0}
attacks = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def sizes(perturbation: Tensor, norm: str) -> Tensor:
    flat = perturbation.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@attacks
@norms
def test_the_result_is_an_image_within_the_bound(victim: Victim, make: Make, norm: str) -> None:
    x = victim.images[:40]
    for epsilon in (EPSILON[norm], 5 * EPSILON[norm]):
        moved = make(victim.model, epsilon=epsilon, norm=norm)(x, victim.labels[:40])
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert sizes(moved - x, norm).max() <= epsilon * (1 + 1e-5)
        assert sizes(moved - x, norm).max() > 0.5 * epsilon


@attacks
@norms
def test_nothing_moves_without_an_epsilon(victim: Victim, make: Make, norm: str) -> None:
    moved = make(victim.model, epsilon=0, norm=norm)(victim.images[:10], victim.labels[:10])
    torch.testing.assert_close(moved, victim.images[:10], rtol=0, atol=0)


@attacks
@norms
def test_the_samples_beside_a_sample_do_not_matter(victim: Victim, make: Make, norm: str) -> None:
    x, y = victim.images[:30], victim.labels[:30]
    settings: dict[str, Any] = {"epsilon": EPSILON[norm], "norm": norm}
    whole = make(victim.model, **settings)(x, y)
    small = make(victim.model, batch_size=7, **settings)(x, y)
    later = make(victim.model, **settings)(x[20:], y[20:], first=20)
    # Rounding differs with the batch, and a sign may turn where the gradient is zero but for it.
    for other, own in ((small, whole), (later, whole[20:])):
        assert ((other - own).abs() > 1e-5).float().mean() < 1e-3


@attacks
def test_seeds(victim: Victim, make: Make) -> None:
    x, y = victim.images[:10], victim.labels[:10]
    one, again, other = (make(victim.model, seed=seed)(x, y) for seed in (0, 0, 1))
    assert one.equal(again)
    random = make is not FastGradient
    assert one.equal(other) != random


@attacks
def test_the_model_comes_back_as_it_was(victim: Victim, make: Make) -> None:
    assert isinstance(victim.model, nn.Sequential)
    model = nn.Sequential(*victim.model).train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[7].bias.grad = torch.ones(10)
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with torch.no_grad():
            make(model)(victim.images[:10], victim.labels[:10])
        assert [module.training for module in model] == [True, True, True, True, False, True, True, True]
        assert not model[0].weight.requires_grad
        assert model[7].weight.requires_grad
        assert model[7].bias.grad.equal(torch.ones(10))
        assert model[7].weight.grad is None
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())
        assert torch.get_rng_state().equal(state)
    finally:
        model[0].weight.requires_grad_(True)
        model[7].bias.grad = None
        model.eval()


def test_the_paper_does_not_clamp(victim: Victim) -> None:
    moved = FastGradient(victim.model, epsilon=0.3, clamp=False)(victim.images, victim.labels)
    assert moved.min() < -0.2
    assert moved.max() > 1.2


@norms
def test_stronger_attacks_are_stronger(victim: Victim, norm: str) -> None:
    epsilon = EPSILON[norm]
    made = [
        Noise(victim.model, epsilon=epsilon, norm=norm),
        FastGradient(victim.model, epsilon=epsilon, norm=norm),
        PGD(victim.model, epsilon=epsilon, norm=norm, steps=10, random_start=False),
        APGD(victim.model, epsilon=epsilon, norm=norm, steps=30),
    ]
    clean = accuracy(victim, victim.images)
    noisy, single, many, auto = (accuracy(victim, attack(victim.images, victim.labels)) for attack in made)
    assert clean > 0.9
    assert noisy > clean - 0.1
    assert noisy > single + 0.1
    assert single >= many
    assert many + 0.01 >= auto


def test_restarts_keep_what_fools(victim: Victim) -> None:
    one, five = (
        accuracy(victim, PGD(victim.model, epsilon=0.04, steps=3, restarts=n)(victim.images, victim.labels))
        for n in (1, 5)
    )
    assert five <= one


class Probabilities(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5].softmax(1)


class NaN(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5] * torch.nan


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


GREY, LABELS = torch.full((4, 3, 8, 8), 0.5), torch.arange(4)


@pytest.mark.parametrize(
    ("model", "images", "labels", "error", "message"),
    [
        (nn.Flatten(), GREY + 1, LABELS, ConfigError, r"pixels from 1\.5 to 1\.5"),
        (nn.Flatten(), GREY * torch.nan, LABELS, ConfigError, "pixels from nan to nan"),
        (nn.Flatten(), GREY[0], LABELS, ConfigError, "expected images"),
        (nn.Flatten(), GREY, LABELS[:2], ConfigError, "expected 4 integer labels"),
        (
            nn.Flatten(),
            GREY,
            LABELS + 500,
            ConfigError,
            "labels from 500 to 503, but the model tells 192 classes apart",
        ),
        (Probabilities(), GREY, LABELS, ConfigError, "returns probabilities"),
        (Maps(), GREY, LABELS, ConfigError, r"must return logits \(B, K\)"),
        (NaN(), GREY, LABELS, NonFiniteError, "NaN or infinite"),
    ],
)
def test_what_is_wrong_is_said(
    model: nn.Module, images: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FastGradient(model)(images, labels)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"epsilon": -0.1}, "epsilon must be at least 0"), ({"norm": "l1"}, "norm: unknown value 'l1'")],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PGD(nn.Flatten(), **wrong)


def test_no_images(victim: Victim) -> None:
    assert PGD(victim.model)(victim.images[:0], victim.labels[:0]).shape == (0, 3, 32, 32)
