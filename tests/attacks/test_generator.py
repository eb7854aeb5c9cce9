"""The generator attack: equation (9) against a frozen classifier."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import GeneratorAttack, GeneratorTraining, train_generator
from fastgat.attacks.generator import generated
from fastgat.batch import Batch
from fastgat.data import IterableLoader
from fastgat.errors import CompileError, ConfigError, NonFiniteError
from fastgat.models import Generator
from tests.attacks.victim import Victim
from tests.support import compiled_by, numerical_gradient

QUICK = GeneratorTraining(cg=0.05, width=8, lr=2e-3, epochs=6)


@pytest.fixture(scope="module")
def train(victim: Victim) -> IterableLoader:
    return IterableLoader(list(zip(victim.images[:150].split(15), victim.labels[:150].split(15), strict=True)), 10)


@pytest.fixture(scope="module")
def validation(victim: Victim) -> list[Batch]:
    return [Batch(victim.images[150:], victim.labels[150:])]


def loss_by_hand(model: nn.Module, generator: nn.Module, batch: Batch, cg: float) -> float:
    """Mean L_G (9), with Delta by plain autograd of the probability, in float64."""
    model, generator = copy.deepcopy(model).double(), copy.deepcopy(generator).double()
    x = batch.images.double().requires_grad_()
    own = model(x).softmax(1).gather(1, batch.labels[:, None]).sum()
    (delta,) = torch.autograd.grad(own, x)
    with torch.no_grad():
        p = generator(delta)
        probability = model(x + p).softmax(1).gather(1, batch.labels[:, None]).flatten()
        return float((probability + cg * p.flatten(1).square().sum(1)).mean())


def test_the_loss_is_equation_9_and_falls(victim: Victim, train: IterableLoader, validation: list[Batch]) -> None:
    trained = train_generator(victim.model, train, validation, QUICK)
    by_hand = loss_by_hand(victim.model, trained.generator, validation[0], QUICK.cg)
    assert trained.validation_losses[trained.best_epoch - 1] == pytest.approx(by_hand, rel=1e-4)
    torch.manual_seed(QUICK.seed)
    untrained = loss_by_hand(victim.model, Generator(QUICK.width), validation[0], QUICK.cg)
    assert min(trained.validation_losses) == trained.validation_losses[trained.best_epoch - 1]
    assert by_hand < untrained - 0.005


def test_its_input_is_the_gradient_of_the_probability(victim: Victim) -> None:
    model = copy.deepcopy(victim.model).double()
    images, labels = victim.images[:1, :, :4, :4].double(), victim.labels[:1]
    small = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).double()

    def probability(x: Tensor) -> Tensor:
        return small(x).softmax(1)[0, labels[0]]

    delta = generated(small, nn.Identity(), images, labels)
    torch.testing.assert_close(delta, numerical_gradient(probability, images), rtol=1e-6, atol=1e-9)
    assert model.training is False


def test_the_model_and_random_state_stay(victim: Victim, train: IterableLoader, validation: list[Batch]) -> None:
    model = copy.deepcopy(victim.model).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    train_generator(model, train, validation, GeneratorTraining(width=4, epochs=1))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.get_rng_state().equal(state)


def test_the_same_seed_gives_the_same_generator(victim: Victim, train: IterableLoader, validation: list[Batch]) -> None:
    settings = [GeneratorTraining(width=4, epochs=1, seed=seed) for seed in (0, 0, 1)]
    one, again, other = (train_generator(victim.model, train, validation, s).generator for s in settings)
    weights = [torch.cat([p.flatten() for p in g.parameters()]) for g in (one, again, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_it_stops_when_validation_no_longer_improves(victim: Victim, train: IterableLoader) -> None:
    """A validation set whose every image is misread from the second epoch on."""

    class Worse:
        passes = 0

        def __iter__(self) -> Iterator[Batch]:
            self.passes += 1
            chosen = victim.images[150:]
            with torch.no_grad():
                answers = victim.model(chosen).topk(2).indices
            # at first labels that the model does not believe in: a small loss; later those that it is sure of
            yield Batch(chosen, answers[:, 1 if self.passes == 1 else 0])

    trained = train_generator(victim.model, train, Worse(), GeneratorTraining(width=4, lr=1e-6, epochs=9, patience=2))
    assert trained.best_epoch == 1
    assert len(trained.validation_losses) == 3


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.long])])
def test_compiled_it_is_the_same(backend: str, victim: Victim, train: IterableLoader, validation: list[Batch]) -> None:
    settings = GeneratorTraining(width=4, epochs=1)
    plain = train_generator(victim.model, train, validation, settings)
    with compiled_by(backend):
        compiled = train_generator(victim.model, train, validation, settings, compiled=True)
    assert compiled.validation_losses == pytest.approx(plain.validation_losses, rel=1e-4)


def test_what_cannot_be_compiled_is_said(victim: Victim, train: IterableLoader, validation: list[Batch]) -> None:
    class Unfit(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            logits: Tensor = victim.model(images)
            return logits

    with pytest.raises(CompileError, match="the step cannot be compiled: "):
        train_generator(Unfit(), train, validation, GeneratorTraining(width=4, epochs=1), compiled=True)


def test_what_is_wrong_is_said(victim: Victim, train: IterableLoader, validation: list[Batch]) -> None:
    with pytest.raises(ConfigError, match="needs validation images"):
        train_generator(victim.model, train, [], GeneratorTraining(width=4, epochs=1))
    with pytest.raises(ConfigError, match="at least one full batch"):
        train_generator(victim.model, IterableLoader([], 10), validation)
    with pytest.raises(ConfigError, match="read after every epoch"):
        train_generator(victim.model, train, iter(validation), GeneratorTraining(width=4, epochs=1))
    wrong = [Batch(validation[0].images, torch.full_like(validation[0].labels, 10))]
    with pytest.raises(ConfigError, match=r"labels from 10 to 10, but the classifier has classes 0\.\.9"):
        train_generator(victim.model, train, wrong, GeneratorTraining(width=4, epochs=1))
    images, labels = validation[0]
    for generator in (nn.Conv2d(3, 1, 3, padding=1), nn.Flatten()):
        with pytest.raises(ConfigError, match="perturbations of the images' shape"):
            GeneratorAttack(victim.model, epsilon=0.1, generator=generator)(images, labels)
    lost = [Batch(validation[0].images * torch.nan, validation[0].labels)]
    with pytest.raises(ConfigError, match="pixels from nan"):
        train_generator(victim.model, train, lost, GeneratorTraining(width=4))
    with pytest.raises(NonFiniteError, match="the generator's loss became nan"):
        train_generator(victim.model, train, validation, GeneratorTraining(width=4, lr=1e38))
    with pytest.raises(ConfigError, match="cg must be at least 0"):
        GeneratorTraining(cg=-1)
