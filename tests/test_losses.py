"""The losses of both players for a loop of one's own, held to the textbook and to the compiled step."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import fastgat
from fastgat import textbook
from fastgat.config import OptimizerConfig
from fastgat.errors import ConfigError
from fastgat.methods import GAT
from fastgat.models import Generator
from tests.support import (
    DOUBLE,
    BatchNormNet,
    Pair,
    Probabilities,
    SmallClassifier,
    largest_difference,
    minibatch,
    players,
)

EXACT = 1e-10
FAST = OptimizerConfig(lr=1e-3, generator_lr=1e-3)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # where only weights have gradients
@pytest.mark.parametrize("delta", ["fixed", "through"])
def test_a_generator_that_goes_on_after_its_tanh(delta: str) -> None:
    """A subclass of Table 1's, or a hook on it: what is trained is what the module computes."""

    class Tenth(Generator):
        def forward(self, input_gradient: torch.Tensor, bounded: bool = True) -> torch.Tensor:
            return super().forward(input_gradient, bounded) / 10

    hooked = Generator(4)
    hooked.register_forward_hook(lambda module, inputs, output: output / 10)
    before = Generator(4)
    before.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 10,))
    batch = minibatch()
    rolled = Generator(4)
    rolled.register_full_backward_pre_hook(lambda module, gradients: (gradients[0].roll(1, 3),))  # type: ignore[index]
    for generator in (Tenth(4).double(), hooked.double(), before.double(), rolled.double()):
        classifier, theirs = SmallClassifier().double(), copy.deepcopy(generator)
        own = copy.deepcopy(classifier)
        fastgat.compile_step(own, GAT(cg=0.1, delta=delta), generator=generator, optimizer=FAST, compile=False)(*batch)
        losses = fastgat.gat_loss(classifier, theirs, *batch, cg=0.1, delta=delta)
        (losses.classifier + losses.generator).backward()
        for trained, module in ((own, classifier), (generator, theirs)):
            torch.optim.Adam(module.parameters(), lr=1e-3).step()
            assert largest_difference(trained, module) < EXACT


@pytest.mark.parametrize("delta", ["fixed", "through"])
def test_both_losses_meet_one_perturbation(delta: str) -> None:
    """However random the networks are; and images that want a gradient get none."""

    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.3 * torch.rand_like(x)

    seen: list[torch.Tensor] = []
    classifier = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 10))
    classifier[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    images, labels = minibatch(dtype=torch.float32)
    images.requires_grad_()
    losses = fastgat.gat_loss(classifier, Noisy(), images, labels, delta=delta)
    (losses.classifier + losses.generator).backward()
    assert images.grad is None
    _, to_train, to_fool = seen
    assert to_train.equal(to_fool)


class Louder(nn.Module):
    """Multiplies by how often it has been called, which it counts in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.get_buffer("calls").add_(1)
        return x * self.get_buffer("calls").clone()


def test_both_losses_begin_from_the_same_buffers() -> None:
    """As spectral norm needs it, which moves on at every call."""
    classifier, seen = nn.Sequential(Louder(), nn.Flatten(), nn.Linear(192, 10)), []
    classifier[0].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    fastgat.gat_loss(classifier, Louder(), *minibatch(dtype=torch.float32), delta="through")
    (clean, first), (to_train, train), (to_fool, fool) = seen
    assert first.equal(clean)
    assert to_train.equal(to_fool), "one perturbation"
    assert train.equal(2 * to_train)
    assert fool.equal(train)


@pytest.mark.parametrize(
    ("classifier", "generator", "message"),
    [
        (Probabilities(), Generator(4), "returns probabilities"),
        (nn.Identity(), Generator(4), r"must return logits \(B, K\)"),
        (SmallClassifier(), nn.Sequential(nn.Flatten()), r"made \(4, 192\)"),
        (SmallClassifier(), Pair(), "made tuple"),
        (SmallClassifier(), torch.tanh, "the generator must be a torch.nn.Module, got builtin_function_or_method"),
    ],
)
def test_what_losses_cannot_take_is_one_line(classifier: nn.Module, generator: nn.Module, message: str) -> None:
    batch = minibatch(dtype=torch.float32)
    with pytest.raises(ConfigError, match=message):
        fastgat.gat_loss(classifier, generator, *batch)
    with pytest.raises(ConfigError, match="an empty batch"):
        fastgat.gat_loss(classifier, generator, batch[0][:0], batch[1][:0])
    with torch.no_grad(), pytest.raises(ConfigError, match=r"outside of torch\.no_grad"):
        fastgat.gat_loss(classifier, generator, *batch)


@pytest.mark.parametrize("delta", ["fixed", "through"])
@pytest.mark.parametrize("network", ["table1", "batch norm"])
def test_losses_give_each_player_its_own_gradients(network: str, delta: str) -> None:
    classifier, generator = players()
    if network == "batch norm":
        classifier = BatchNormNet().double()
    images, labels = minibatch()
    losses = fastgat.gat_loss(classifier, generator, images, labels, alpha=0.3, cg=0.7, delta=delta)
    (losses.classifier + losses.generator).backward()
    for player in (classifier, generator):
        found = {name: parameter.grad for name, parameter in player.named_parameters()}
        copies = copy.deepcopy((classifier, generator))
        own = copies[0] if player is classifier else copies[1]
        optimizer = torch.optim.SGD(own.parameters(), lr=0.0)
        if player is classifier:
            value = textbook.classifier_step(
                *copies, optimizer, (images, labels), 0.3, through_delta=delta == "through"
            )
        else:
            value = textbook.generator_step(*copies, optimizer, (images, labels), 0.7)
        loss = losses.classifier if player is classifier else losses.generator
        torch.testing.assert_close(value, loss.detach())
        for name, parameter in own.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)
    assert images.grad is None
    with pytest.raises(ConfigError, match="made"):
        fastgat.gat_loss(classifier, nn.Conv2d(3, 1, 1, dtype=DOUBLE), images, labels)
    with pytest.raises(ConfigError, match="delta: unknown value 'none'"):
        fastgat.gat_loss(classifier, generator, images, labels, delta="none")


def test_losses_take_numbers_as_text_as_methods_do() -> None:
    networks, batch = players(), minibatch()
    given: list[dict[str, Any]] = [{"alpha": number, "cg": number} for number in ("1/2", 0.5)]
    one, other = (fastgat.gat_loss(*networks, *batch, **numbers) for numbers in given)
    torch.testing.assert_close(tuple(one), tuple(other))


@pytest.mark.parametrize("where", ["bfloat16 autocast", "float16 autocast", "bfloat16 network"])
def test_a_sure_sample_has_its_input_gradient_in_half_precision_too(where: str) -> None:
    """There F_y rounds to 1, and dF_y/dz_y = F_y (1 - F_y) to 0."""

    class Spy(nn.Module):
        seen: torch.Tensor

        def forward(self, input_gradient: torch.Tensor) -> torch.Tensor:
            self.seen = input_gradient.float()
            return torch.zeros_like(input_gradient)

    classifier = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))
    images, labels = minibatch(dtype=torch.float32)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    while float((1 - classifier(images).softmax(1).gather(1, labels[:, None])).max().detach()) > 1e-3:
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(images), labels).backward()
        optimizer.step()
    exact, rounded = Spy(), Spy()
    fastgat.gat_loss(classifier, exact, images, labels)
    dtype = torch.float16 if where == "float16 autocast" else torch.bfloat16
    if where == "bfloat16 network":
        classifier, images = classifier.bfloat16(), images.bfloat16()
    with torch.autocast("cpu", dtype, enabled="autocast" in where):
        fastgat.gat_loss(classifier, rounded, images, labels)
    assert exact.seen.abs().max() > 0
    torch.testing.assert_close(rounded.seen.norm(), exact.seen.norm(), rtol=0.1, atol=0)
    assert nn.functional.cosine_similarity(rounded.seen.flatten(), exact.seen.flatten(), 0) > 0.99


def test_players_share_nothing() -> None:
    generator = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1))
    classifier = nn.Sequential(generator[0], nn.Flatten(), nn.Linear(6 * 64, 10))
    with pytest.raises(ConfigError, match=r"the generator shares 0\.weight|the generator shares 0\.bias"):
        fastgat.gat_loss(classifier, generator, *minibatch(dtype=torch.float32))


def test_a_generator_without_a_size_yet() -> None:
    generator = nn.Sequential(nn.LazyBatchNorm2d(), nn.Conv2d(3, 3, 3, padding=1))
    losses = fastgat.gat_loss(SmallClassifier(), generator, *minibatch(dtype=torch.float32), delta="through")
    (losses.classifier + losses.generator).backward()


def test_parametrized_weights_that_a_context_keeps() -> None:
    """Each pass has parameters of its own: the first one's weights are not the others'."""
    results = []
    for cached in (False, True):
        torch.manual_seed(0)
        convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        classifier = nn.Sequential(convolution, nn.Flatten(), nn.Linear(4 * 36, 10)).double()
        generator, batch = Generator(4).double(), minibatch()
        with nn.utils.parametrize.cached() if cached else nullcontext():
            losses = fastgat.gat_loss(classifier, generator, *batch, delta="through")
        of_classifier = torch.autograd.grad(losses.classifier, list(classifier.parameters()), retain_graph=True)
        of_generator = torch.autograd.grad(losses.generator, list(classifier.parameters()), allow_unused=True)
        assert of_generator == (None,) * len(of_generator)
        step = fastgat.compile_step(classifier, generator=generator, optimizer=FAST, compile=False)
        with nn.utils.parametrize.cached() if cached else nullcontext():
            step(*batch)
            step(*batch)
        results.append([*of_classifier, *(parameter.detach() for parameter in classifier.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=0)
