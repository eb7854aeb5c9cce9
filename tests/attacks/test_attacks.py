"""What holds of every attack: its bounds, its seed, its independence of the batch, and a model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import APGD, FAB, PGD, FastGradient, Noise
from fastgat.errors import ConfigError
from tests.attacks.every import ATTACKS, EPSILON, Make, attacks, norms
from tests.attacks.victim import Victim, accuracy

DRAW_NOTHING = ("fast gradient", "fab-t", "generator")


def least(make: Make, epsilon: float) -> float:
    """What the largest perturbation exceeds: FAB goes no further than it must, the others use their epsilon."""
    return 0 if getattr(make, "func", None) is FAB else 0.5 * epsilon


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
        assert sizes(moved - x, norm).max() > least(make, epsilon)


@attacks
@norms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bounds_hold_exactly_in_every_dtype(make: Make, norm: str, dtype: torch.dtype) -> None:
    """Whatever a format rounds to: the perturbation, taken in float64, is no larger than epsilon."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(192, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(4, 192, generator=generator))
    x = torch.rand(6, 3, 8, 8, generator=generator).to(dtype)
    epsilon = {"linf": 8 / 255, "l2": 0.5}[norm]
    moved = make(nn.Sequential(nn.Flatten(), linear).to(dtype), epsilon=epsilon, norm=norm)(x, torch.arange(6) % 4)
    assert moved.dtype == dtype
    assert moved.min() >= 0
    assert moved.max() <= 1
    size = sizes(moved.double() - x.double(), norm).max()
    assert least(make, epsilon) < size <= epsilon * (1 + 1e-12)


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
    later = make(victim.model, **settings)(x[20:], y[20:], numbers=range(20, 30))
    # Rounding differs with the batch, and a sign may turn where the gradient is zero but for it.
    for other, own in ((small, whole), (later, whole[20:])):
        assert ((other - own).abs() > 1e-5).float().mean() < 1e-3


@pytest.mark.parametrize("name", ATTACKS)
def test_seeds(victim: Victim, name: str) -> None:
    x, y = victim.images[:10], victim.labels[:10]
    one, again, other = (ATTACKS[name](victim.model, seed=seed)(x, y) for seed in (0, 0, 1))
    assert one.equal(again)
    assert one.equal(other) == (name in DRAW_NOTHING)


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


@attacks
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_any_integer_type(victim: Victim, make: Make, dtype: torch.dtype) -> None:
    x, y = victim.images[:4], victim.labels[:4]
    assert make(victim.model)(x, y.to(dtype)).equal(make(victim.model)(x, y))


@attacks
def test_pixels_that_rounding_left_outside_are_clamped(victim: Victim, make: Make) -> None:
    x, y = victim.images[:4], victim.labels[:4]
    off = torch.where(x == x.max(), x + 1.2e-7, x - 3e-8)
    assert off.min() < 0
    given = off.clone()
    assert make(victim.model)(off, y).equal(make(victim.model)(off.clamp(0, 1), y))
    assert off.equal(given)


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


def test_images_that_require_gradients_give_images_that_do_not(victim: Victim) -> None:
    x = victim.images[:2].clone().requires_grad_()
    moved = PGD(victim.model, steps=2)(x, victim.labels[:2])
    assert not moved.requires_grad
    assert x.grad is None
    with pytest.raises(ConfigError, match=r"an integer, for each of 2 images, got \(3,\) of int64"):
        PGD(victim.model)(x, victim.labels[:2], range(3))


def test_no_images(victim: Victim) -> None:
    assert PGD(victim.model)(victim.images[:0], victim.labels[:0]).shape == (0, 3, 32, 32)
