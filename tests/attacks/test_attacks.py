"""What holds of every attack: its bounds, its seed, its independence of the batch, and a model left as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import APGD, FAB, PGD, Attack, AutoAttack, FastGradient, GeneratorAttack, Noise, Square
from fastgat.attacks.apgd import _checkpoints, _loss
from fastgat.attacks.base import correct
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.models import Generator
from tests.attacks.victim import Victim, accuracy

Make = Callable[..., Attack]


def some_generator() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Generator(width=4)


ATTACKS: dict[str, Make] = {
    "fast gradient": FastGradient,
    "pgd": partial(PGD, steps=4),
    "pgd, restarts": partial(PGD, steps=3, restarts=3),
    "apgd-ce": partial(APGD, steps=6),
    "apgd-t": partial(APGD, steps=5, loss="dlr-t", targets=3),
    "fab-t": partial(FAB, steps=5, targets=3),
    "square": partial(Square, queries=30),
    "autoattack": partial(AutoAttack, steps=4, targets=2, queries=10),
    "generator": lambda model, **settings: GeneratorAttack(model, generator=some_generator(), **settings),
    "noise": Noise,
    "uniform noise": partial(Noise, distribution="uniform"),
}
DRAW_NOTHING = ("fast gradient", "fab-t", "generator")
EPSILON = {"linf": 0.05, "l2": 1.0}
attacks = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


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


def test_float16_under_mixed_precision() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).half(), torch.rand(3, 3, 4, 4).half()
    with torch.autocast("cpu", torch.bfloat16):
        perturbed = PGD(model, epsilon=0.1, steps=2)(images, torch.arange(3))
    assert perturbed.dtype == torch.float16
    assert not perturbed.equal(images)


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


def test_starts_can_be_gone_on_with(victim: Victim) -> None:
    settings: dict[str, Any] = {"epsilon": 0.03, "steps": 3}
    x, y = victim.images, victim.labels
    four = PGD(victim.model, restarts=4, **settings)(x, y)
    first = PGD(victim.model, restarts=1, **settings)(x, y)
    with torch.no_grad():
        left = (victim.model(first).argmax(1) == y).nonzero().flatten()
    rest = PGD(victim.model, restarts=3, first_start=1, **settings)(x[left], y[left], left.tolist())
    with torch.no_grad():
        stand = (victim.model(rest).argmax(1) == y[left]).sum()
    assert 0 < int(stand) < len(left) < len(y)
    assert int(stand) == round(accuracy(victim, four) * len(y))


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


class Tied(nn.Module):
    """Two classes that are alike until an image is bright enough for the second."""

    def forward(self, images: Tensor) -> Tensor:
        second = (images.mean((1, 2, 3)) - 0.51).clamp(min=0)
        return torch.stack([torch.zeros_like(second), second], 1)


def test_square_goes_on_where_two_classes_are_alike() -> None:
    """The answer is the first of them, and it is right."""
    labels = torch.zeros(4, dtype=torch.int64)
    moved = Square(Tied(), epsilon=0.1, queries=200)(GREY, labels)
    assert not correct(Tied()(moved), labels).any()


def test_a_row_that_rules_out_every_class_is_not_right() -> None:
    logits = torch.tensor([[-torch.inf, -torch.inf], [-torch.inf, 0.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    assert correct(logits, torch.tensor([0, 1, 0, 0])).tolist() == [False, True, False, False]


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
            r"labels from 500 to 503, but the classifier has classes 0\.\.191",
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
    [
        ({"epsilon": -0.1}, "epsilon must be at least 0"),
        ({"epsilon": 8}, "epsilon must be at most 1 in linf"),
        ({"norm": "l1"}, "norm: unknown value 'l1'"),
        ({"model": torch.flatten}, r"the model must be a torch\.nn\.Module, got builtin_function"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PGD(**{"model": nn.Flatten(), **wrong})


def test_samples_are_numbered_from_0_and_images_have_the_models_dtype() -> None:
    with pytest.raises(ConfigError, match="numbered from 0, got -1"):
        FastGradient(nn.Flatten())(GREY, LABELS, [0, 1, -1, 3])
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(ConfigError, match="do not take images of shape"):
        FastGradient(network)(GREY.double(), LABELS)


def test_the_schedules_are_the_papers() -> None:
    """When APGD judges its headway, for 100 steps; and of what share of the image Square's windows are, of 10,000."""
    assert _checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    halved = {10: 0, 11: 1, 50: 1, 51: 2, 200: 2, 201: 3, 500: 3, 501: 4, 1000: 4, 1001: 5, 2000: 5, 2001: 6}
    halved |= {4000: 6, 4001: 7, 6000: 7, 6001: 8, 8000: 8, 8001: 9}
    for queries in (10_000, 20_000):
        attack = Square(nn.Flatten(), queries=queries)
        for query, times in halved.items():
            assert attack._share(query * queries // 10_000) == 0.8 / 2**times, query


def test_images_that_require_gradients_give_images_that_do_not(victim: Victim) -> None:
    x = victim.images[:2].clone().requires_grad_()
    moved = PGD(victim.model, steps=2)(x, victim.labels[:2])
    assert not moved.requires_grad
    assert x.grad is None
    with pytest.raises(ConfigError, match="a number for each of 2 images, got 3"):
        PGD(victim.model)(x, victim.labels[:2], range(3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inference_mode_and_torchscript_attack_alike(victim: Victim) -> None:
    x, y = victim.images[:4], victim.labels[:4]
    expected = PGD(victim.model, steps=2)(x, y)
    with torch.inference_mode():
        assert PGD(victim.model, steps=2)(x.clone(), y.clone()).equal(expected)
    frozen = torch.jit.freeze(torch.jit.script(victim.model))
    assert ((PGD(frozen, steps=2)(x, y) - expected).abs() > 1e-5).float().mean() < 1e-3


def test_no_images(victim: Victim) -> None:
    assert PGD(victim.model)(victim.images[:0], victim.labels[:0]).shape == (0, 3, 32, 32)
