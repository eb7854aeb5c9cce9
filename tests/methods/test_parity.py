"""Every method against the textbook, step for step in float64, with the same draws."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastgat import textbook
from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.losses import gat_loss
from fastgat.methods import (
    GAT,
    Baseline,
    Dropout,
    DropoutGAT,
    FastGradientL2,
    FastGradientLinf,
    GradientPenalty,
    Method,
    RandomPerturbation,
)
from fastgat.methods.players import Draws
from fastgat.models import Generator
from fastgat.textbook.standard import fast_gradient
from tests.support import BatchNormNet, Engine, compiled_by, largest_difference, minibatch, players

STEPS = 10
EXACT = 1e-10
Step = Callable[[nn.Module, torch.optim.Optimizer, Batch, Draws], Tensor]


def adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def draws_for(engine: Engine, batch: Batch, seed: int) -> Draws:
    source = torch.Generator().manual_seed(seed)
    return engine.method.draw(engine.state.classifier, batch.images, source)


def noise(draws: Draws) -> Tensor:
    assert draws.noise is not None
    return draws.noise


ONE_PLAYER: list[tuple[Method, Step]] = [
    (Baseline(), lambda f, o, b, d: textbook.baseline_step(f, o, b)),
    (Dropout(dropout=0.4), lambda f, o, b, d: textbook.baseline_step(f, o, b, d.clean)),
    (
        RandomPerturbation(epsilon=0.7, alpha=0.3),
        lambda f, o, b, d: textbook.random_perturbation_step(f, o, b, noise(d), 0.7, 0.3),
    ),
    (
        FastGradientLinf(epsilon=0.03, alpha=0.6),
        lambda f, o, b, d: textbook.fast_gradient_step(f, o, b, 0.03, "linf", 0.6),
    ),
    (FastGradientL2(epsilon=0.9), lambda f, o, b, d: textbook.fast_gradient_step(f, o, b, 0.9, "l2")),
    (
        RandomPerturbation(epsilon=5.0, clamp=True),
        lambda f, o, b, d: textbook.random_perturbation_step(f, o, b, noise(d), 5.0, clamp=True),
    ),
    (
        FastGradientLinf(epsilon=0.3, clamp=True),
        lambda f, o, b, d: textbook.fast_gradient_step(f, o, b, 0.3, "linf", clamp=True),
    ),
    (
        FastGradientL2(epsilon=5.0, clamp=True),
        lambda f, o, b, d: textbook.fast_gradient_step(f, o, b, 5.0, "l2", clamp=True),
    ),
    (GradientPenalty(penalty=0.4), lambda f, o, b, d: textbook.gradient_penalty_step(f, o, b, 0.4)),
]


@pytest.mark.parametrize("network", ["table1", "batch norm"])
@pytest.mark.parametrize(("method", "step"), ONE_PLAYER, ids=lambda value: getattr(value, "name", ""))
def test_one_player(method: Method, step: Step, network: str) -> None:
    if network == "table1":
        classifier, _ = players(dropout=method.classifier_dropout)
    elif method.classifier_dropout:
        pytest.skip("the batch-norm network has no dropout")
    else:
        classifier = BatchNormNet().double()
    engine = Engine(method, classifier)
    optimizer = adam(classifier)
    for number in range(STEPS):
        batch = minibatch()
        draws = draws_for(engine, batch, number)
        metrics = engine.step([batch], [draws])
        loss = step(classifier, optimizer, batch, draws)
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)  # metrics are float32
        assert largest_difference(engine.state.classifier, classifier) < EXACT


GAT_CASES = [
    GAT(cg=0.3, schedule="paper", delta="fixed"),
    GAT(cg=0.3, schedule="paper", alpha=0.7, generator_steps=2, delta="fixed"),
    GAT(cg=0.3, schedule="alternating", delta="fixed"),
    DropoutGAT(dropout=0.4, cg=0.3, schedule="paper", delta="fixed"),
    DropoutGAT(dropout=0.4, cg=0.3, schedule="paper", generator_steps=2, delta="fixed"),
    DropoutGAT(dropout=0.4, cg=0.3, schedule="alternating"),
    GAT(cg=0.3, schedule="paper", delta="through"),
    GAT(cg=0.3, schedule="paper", alpha=0.7, generator_steps=2, delta="through"),
    GAT(cg=0.3, schedule="alternating", delta="through"),
    DropoutGAT(dropout=0.4, cg=0.3, schedule="paper", delta="through"),
    GAT(cg=0.03, schedule="paper", clamp=True, delta="fixed"),
    DropoutGAT(dropout=0.4, cg=0.03, schedule="alternating", clamp=True),
    GAT(cg=0.03, schedule="alternating", delta="through", clamp=True),
]


def described(method: object) -> str:
    assert isinstance(method, GAT)
    clamped = "-clamped" if method.clamp else ""
    return f"{method.name}-{method.schedule}-{method.generator_steps}-{method.delta}{clamped}"


@pytest.mark.parametrize("method", GAT_CASES, ids=described)
def test_gat_is_algorithm_1(method: GAT) -> None:
    """`paper` gives each step its own minibatch, `alternating` gives both the same one."""
    check_gat(method, *players(dropout=method.classifier_dropout))


@pytest.mark.parametrize("delta", ["fixed", "through"])
@pytest.mark.parametrize("schedule", ["paper", "alternating"])
def test_gat_is_algorithm_1_under_batch_norm(schedule: str, delta: str) -> None:
    """There the two gradients are not proportional, and a second backward pass is taken."""
    check_gat(GAT(cg=0.3, schedule=schedule, delta=delta), BatchNormNet().double(), players()[1])


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(6), nn.LayerNorm([6, 6, 6]), nn.GroupNorm(2, 6)], ids=str)
def test_gat_through_delta_is_algorithm_1_under_norms_of_single_samples(norm: nn.Module) -> None:
    classifier = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        copy.deepcopy(norm),
        nn.Softplus(),
        nn.AvgPool2d(6),
        nn.Flatten(),
        nn.Linear(6, 10),
    )
    check_gat(GAT(cg=0.3, schedule="alternating", delta="through"), classifier.double(), players()[1])


@torch.no_grad()
def enlarge(generator: nn.Module) -> None:
    """Makes perturbations so large that some pixels leave [0, 1]."""
    generator.body[0].weight.mul_(300)  # type: ignore[index,union-attr]  # a convolution


def check_gat(method: GAT, classifier: nn.Module, generator: nn.Module) -> None:
    if method.clamp:
        enlarge(generator)
    engine = Engine(method, classifier, generator)
    optimizers = adam(classifier), adam(generator)
    start = copy.deepcopy(generator)
    for number in range(STEPS):
        batches = [minibatch() for _ in range(method.minibatches())]
        draws = [draws_for(engine, batch, 100 * number + i) for i, batch in enumerate(batches)]
        metrics = engine.step(batches, draws)
        repeats = 1 if method.schedule == "paper" else 2
        masks = [(draw.clean, draw.perturbed) for draw in draws * repeats]
        generator_losses, loss = textbook.algorithm1_step(
            classifier,
            generator,
            *optimizers,
            batches * repeats,
            method.alpha,
            method.cg,
            masks,
            method.delta == "through",
            method.clamp,
        )
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
        assert metrics["generator_loss"] == pytest.approx(float(generator_losses[-1]), rel=1e-6)
        assert engine.state.generator is not None
        assert largest_difference(engine.state.generator, generator) < EXACT
        assert largest_difference(engine.state.classifier, classifier) < EXACT
    assert largest_difference(generator, start) > 1e-3, "the generator must have moved for this to mean anything"


@pytest.mark.parametrize("delta", ["fixed", "through"])
@pytest.mark.parametrize("network", ["table1", "batch norm"])
def test_simultaneous_steps_both_players_from_the_same_point(network: str, delta: str) -> None:
    """Each player's step is the textbook's, taken before the other has moved."""
    classifier, generator = players()
    if network == "batch norm":
        classifier = BatchNormNet().double()
    method = GAT(cg=0.3, schedule="simultaneous", delta=delta)
    engine = Engine(method, classifier, generator)
    optimizers = adam(classifier), adam(generator)
    for _ in range(3):
        batch = minibatch()
        engine.step([batch])
        frozen_classifier, frozen_generator = copy.deepcopy(classifier), copy.deepcopy(generator)
        textbook.generator_step(frozen_classifier, generator, optimizers[1], batch, method.cg)
        textbook.classifier_step(
            classifier, frozen_generator, optimizers[0], batch, method.alpha, through_delta=delta == "through"
        )
        assert engine.state.generator is not None
        assert largest_difference(engine.state.generator, generator) < EXACT
        assert largest_difference(engine.state.classifier, classifier) < EXACT


@pytest.mark.parametrize("delta", ["fixed", "through"])
def test_simultaneous_with_clamp_is_the_gradient_of_both_losses(delta: str) -> None:
    """Against `gat_loss` by autograd; some of the generator's images leave [0, 1]."""
    classifier, generator = players()
    enlarge(generator)
    batch = minibatch()
    engine = Engine(GAT(cg=0.03, clamp=True, delta=delta), classifier, generator)
    unclamped = Engine(GAT(cg=0.03, delta=delta), classifier, generator)
    optimizers = adam(classifier), adam(generator)
    metrics = engine.step([batch])
    unclamped.step([batch])
    losses = gat_loss(classifier, generator, *batch, cg=0.03, delta=delta, clamp=True)
    (losses.classifier + losses.generator).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert metrics["loss"] == pytest.approx(float(losses.classifier.detach()), rel=1e-6)
    assert engine.state.generator is not None
    assert unclamped.state.generator is not None
    assert largest_difference(engine.state.generator, unclamped.state.generator) > 1e-6, "nothing was clamped"
    assert largest_difference(engine.state.generator, generator) < EXACT
    assert largest_difference(engine.state.classifier, classifier) < EXACT


MASKED = [
    GAT(cg=0.3, schedule="paper", delta="fixed"),
    GAT(cg=0.3, schedule="simultaneous", delta="fixed"),
    GAT(cg=0.3, schedule="simultaneous", delta="through"),
    FastGradientL2(),
    FastGradientLinf(),
    RandomPerturbation(),
]


@pytest.mark.parametrize("method", MASKED, ids=lambda method: f"{method.name} {getattr(method, 'delta', '')}")
def test_a_masked_class_trains(method: Method) -> None:
    """A logit of -inf for a class that does not occur: the losses are finite, and so is every gradient."""

    class Masked(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body
            self.register_buffer("mask", torch.arange(10) == 9)

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images).masked_fill(self.mask, -torch.inf)

    classifier, generator = players()
    engine = Engine(method, Masked(classifier), generator)
    for _ in range(2):
        batches = [minibatch(classes=9) for _ in range(method.minibatches())]
        metrics = engine.step(batches, [draws_for(engine, batch, 0) for batch in batches])
        assert torch.tensor(list(metrics.values())).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in engine.state.parameters())
    assert largest_difference(engine.state.classifier, Masked(classifier)) > 1e-4


@pytest.mark.parametrize("statistics", ["clean", "perturbed", "both"])
def test_batch_norm_statistics_see_the_passes_that_they_are_told_to(statistics: str) -> None:
    """Each forward pass counts once, a shared one too: clean, then perturbed."""
    classifier = BatchNormNet().double()
    engine = Engine(FastGradientL2(epsilon=0.9), classifier, statistics=statistics)
    images, labels = batch = minibatch()
    engine.step([batch])
    eta = fast_gradient(copy.deepcopy(classifier), images, labels, 0.9, "l2")
    if statistics != "perturbed":
        classifier(images)
    if statistics != "clean":
        classifier(images + eta)
    for name, buffer in engine.state.classifier.named_buffers():
        torch.testing.assert_close(buffer, classifier.get_buffer(name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", ["paper", "alternating", "simultaneous"])
def test_statistics_count_passes_in_every_schedule(schedule: str) -> None:
    method = GAT(cg=0.3, schedule=schedule)
    counts = {}
    for statistics in ("clean", "perturbed", "both"):
        engine = Engine(method, BatchNormNet().double(), players()[1], statistics=statistics)
        engine.step([minibatch() for _ in range(method.minibatches())])
        counts[statistics] = int(engine.state.classifier.get_buffer("norm.num_batches_tracked"))
    clean, perturbed = {"paper": (2, 2), "alternating": (1, 2), "simultaneous": (1, 1)}[schedule]
    assert counts == {"clean": clean, "perturbed": perturbed, "both": clean + perturbed}


@pytest.mark.parametrize(
    ("schedule", "delta"),
    [("paper", "fixed"), ("alternating", "fixed"), ("simultaneous", "fixed"), ("simultaneous", "through")],
)
def test_between_two_updates_of_the_generator_the_classifier_steps_alone(schedule: str, delta: str) -> None:
    method = GAT(cg=0.3, schedule=schedule, generator_interval=3, delta=delta)
    classifier, generator = players()
    engine = Engine(method, classifier, generator)
    optimizer, start = adam(classifier), copy.deepcopy(generator)
    assert [method.kind(step) for step in range(5)] == ["full", "resting", "resting", "full", "resting"]
    assert [method.generator_position(step) for step in range(5)] == (
        [0, 1, 1, 1, 2] if schedule == "paper" else [0] * 5
    )
    for _ in range(3):
        batch = minibatch()
        metrics = engine.step([batch], kind="resting")
        textbook.classifier_step(
            classifier, generator, optimizer, batch, method.alpha, through_delta=delta == "through"
        )
        assert metrics.keys() == set(method.metrics)
        assert engine.state.generator is not None
        assert largest_difference(engine.state.generator, start) == 0
        assert largest_difference(engine.state.classifier, classifier) < EXACT


def test_a_generator_of_ones_own_has_its_own_last_layer() -> None:
    """Table 1's tanh is part of the joint kernel; what another generator returns is the perturbation itself."""

    class Own(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, input_gradient: Tensor) -> Tensor:
            return self.body(input_gradient).tanh()

    classifier, generator = players()
    own = Own(generator.body)  # type: ignore[arg-type]  # a sequence of layers
    engines = [Engine(GAT(cg=0.3, schedule="simultaneous"), classifier, g) for g in (generator, own)]
    for _ in range(3):
        batch = minibatch()
        for engine in engines:
            engine.step([batch])
    for one, other in zip(*(engine.state.parameters() for engine in engines), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class Fed(nn.Module):
    """A generator of (Delta, x) as the textbook's generator of Delta alone; `images` are those of the step."""

    images: Tensor

    def __init__(self, generator: nn.Module, feed: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.generator, self.feed = generator, feed

    def forward(self, delta: Tensor) -> Tensor:
        return self.generator(self.feed(delta, self.images))


@pytest.mark.parametrize(
    ("schedule", "delta"),
    [("paper", "fixed"), ("alternating", "fixed"), ("simultaneous", "fixed"), ("alternating", "through")],
)
@pytest.mark.parametrize(
    ("name", "feed"),
    [
        ("normalised", lambda delta, x: delta / delta.flatten(1).norm(dim=1)[:, None, None, None]),
        ("with-image", lambda delta, x: torch.cat([delta, x], 1)),
    ],
)
def test_what_the_generator_is_given(
    name: str, feed: Callable[[Tensor, Tensor], Tensor], schedule: str, delta: str
) -> None:
    method = GAT(cg=0.3, schedule=schedule, generator_input=name, delta=delta)
    classifier, _ = players()
    generator = Generator(6, in_channels=method.generator_channels(3)).double()
    engine = Engine(method, classifier, generator)
    fed, batch = Fed(generator, feed), minibatch()
    fed.images = batch.images
    optimizers = adam(classifier), adam(generator)
    before = copy.deepcopy(fed)
    for _ in range(3):
        engine.step([batch] * method.minibatches())
        now = copy.deepcopy(fed)
        textbook.generator_step(classifier, fed, optimizers[1], batch, method.cg)
        met = now if schedule == "simultaneous" else fed
        textbook.classifier_step(classifier, met, optimizers[0], batch, method.alpha, through_delta=delta == "through")
        assert engine.state.generator is not None
        assert largest_difference(engine.state.generator, generator) < EXACT
        assert largest_difference(engine.state.classifier, classifier) < EXACT
    assert largest_difference(fed, before) > 1e-4, "the generator must have moved for this to mean anything"


class Counting(BatchNormNet):
    """It replaces a buffer at every forward pass, by one of another shape where it is told to."""

    passes: Tensor

    def __init__(self, grows: bool = False) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(1))
        self.grows = grows

    def forward(self, images: Tensor) -> Tensor:
        self.passes = torch.cat([self.passes, self.passes]) if self.grows else self.passes + 1
        return super().forward(images)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_buffer_that_a_network_replaces_is_kept(compiled: bool) -> None:
    with compiled_by("aot_eager"):
        engine = Engine(GAT(), Counting().double(), players()[1], compiled=compiled)
        for _ in range(3):
            engine.step([minibatch()])
    assert float(engine.state.classifier.get_buffer("passes")) == 6


def test_a_buffer_that_changes_its_shape_is_an_error() -> None:
    engine = Engine(Baseline(), Counting(grows=True).double())
    with pytest.raises(ConfigError, match="the classifier's buffer passes must keep its shape"):
        engine.step([minibatch()])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("layer_twice", "delta"), [(False, "fixed"), (True, "fixed"), (True, "through")])
def test_frozen_and_shared_parameters_stay_so(layer_twice: bool, delta: str, compiled: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = self.first if layer_twice else nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight
            self.first.bias.requires_grad_(False)  # type: ignore[union-attr]  # it has a bias
            self.head = nn.Linear(3, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.second(self.first(images).relu()).mean((2, 3)))

    classifier = Tied().double()
    weight = classifier.first.weight.detach().clone()
    frozen = classifier.first.bias.clone()  # type: ignore[union-attr]  # it has a bias
    generator = players()[1]
    method = GAT(cg=0.3, schedule="paper", delta=delta)
    engine = Engine(method, classifier, generator, compiled=compiled)
    optimizers = torch.optim.Adam([p for p in classifier.parameters() if p.requires_grad], lr=1e-3), adam(generator)
    for _ in range(3):
        batches = [minibatch(), minibatch()]
        with compiled_by("aot_eager"):
            engine.step(batches)
        textbook.algorithm1_step(
            classifier, generator, *optimizers, batches, 0.5, 0.3, through_delta=delta == "through"
        )
    trained = engine.state.classifier
    assert isinstance(trained, Tied)
    assert largest_difference(trained, classifier) < EXACT
    assert trained.first.bias.equal(frozen)  # type: ignore[union-attr]  # it has a bias
    assert trained.first.weight is trained.second.weight
    assert trained.first.weight.requires_grad
    assert not trained.first.weight.allclose(weight, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_resnet_of_timm_is_trained_as_by_the_textbook() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    from fastgat.models import create_classifier

    classifier = create_classifier("timm:resnet18", num_classes=10).double()
    generator = players()[1]
    engine = Engine(GAT(cg=0.3, schedule="paper"), classifier, generator)
    optimizers = adam(classifier), adam(generator)
    for _ in range(2):
        batches = [minibatch(side=32) for _ in range(2)]
        engine.step(batches)
        textbook.algorithm1_step(classifier, generator, *optimizers, batches, 0.5, 0.3)
    assert engine.state.generator is not None
    assert largest_difference(engine.state.generator, generator) < EXACT
    assert largest_difference(engine.state.classifier, classifier) < 1e-7, (
        "Adam enlarges the rounding of tiny gradients"
    )
