"""Under mixed precision the small perturbation survives, though most pixels of x + p round to what they were."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat import textbook
from fastgat.batch import Batch
from fastgat.data.digits import DIGITS
from fastgat.data.loaders import create_loader
from fastgat.data.registry import silent
from fastgat.engine.device import has_fast_bfloat16
from fastgat.engine.optimizer import Adam
from fastgat.functional import tensor_paths
from fastgat.methods import GAT
from fastgat.methods.players import Draws, Network, Players
from fastgat.models import Classifier
from tests.support import Engine, minibatch, players

RMS = 1e-3


STEPS = 110
Trained = tuple[Classifier, Tensor, Tensor]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A Table-1 network that has begun to learn, and a batch."""
    torch.manual_seed(1)
    loader = create_loader("resident", DIGITS.load(None, 0, silent).train, 32, channels_last=True)
    classifier = Classifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)  # of twice that the network dies on some CPUs
    batches = loader.stream(0)
    for images, labels in itertools.islice(batches, STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(images.device)):  # else it takes minutes
            loss = functional.cross_entropy(classifier(images), labels)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 2.2, "it has learnt nothing yet"
    images, labels = next(batches)
    return classifier, images, labels


def test_an_adversarial_perturbation_moves_bfloat16_logits_as_float32_ones(trained: Trained) -> None:
    classifier, images, labels = trained
    delta = textbook.input_gradient(classifier, images, labels)
    p = delta * (RMS / delta.flatten(1).square().mean(1).sqrt().clamp(min=1e-30))[:, None, None, None]
    bright = images > 0.5  # where bfloat16 is coarsest
    assert ((images + p).bfloat16() == images.bfloat16())[bright].float().mean() > 0.5, "most round to what they were"

    def change(autocast: torch.dtype | None) -> Tensor:
        parameters: dict[str, Tensor] = dict(classifier.named_parameters())
        network = Network("classifier", classifier, parameters, {}, tensor_paths(classifier), autocast)
        with torch.no_grad():
            before, after = (network(network.parameters, x)[0].float() for x in (images, images + p))
        return (after - before).flatten()

    correlation = torch.corrcoef(torch.stack([change(None), change(torch.bfloat16)]))[0, 1]
    assert correlation >= 0.98


def test_a_gat_step_under_autocast_sees_the_same_perturbation(trained: Trained) -> None:
    """Delta, p and both losses of a bfloat16 step are those of a float32 step to bfloat16's rounding."""
    classifier, images, labels = trained
    generator = players(dtype=torch.float32, width=8)[1]
    steps = [
        Engine(GAT(cg=0.1, schedule="simultaneous"), classifier, generator, autocast=autocast).step(
            [Batch(images, labels)]
        )
        for autocast in (None, torch.bfloat16)
    ]
    for name in ("loss", "generator_loss", "perturbation_norm"):
        exact, rounded = (step[name] for step in steps)
        assert abs(rounded - exact) <= 0.03 * abs(exact), name
    assert steps[0]["perturbation_norm"] > 0


@pytest.mark.parametrize(
    ("schedule", "delta"),
    [
        pytest.param("paper", "fixed", marks=pytest.mark.long),
        ("alternating", "fixed"),
        ("alternating", "through"),
    ],
)
def test_bfloat16_gradients_are_as_good_as_pytorchs_own(trained: Trained, schedule: str, delta: str) -> None:
    """Against float64, both players' gradients may be off by twice what the textbook's are under the same autocast."""
    classifier, images, labels = trained
    generator = players(dtype=torch.float32, width=8)[1]
    batch = Batch(images[:16], labels[:16])
    batches = [batch, batch] if schedule == "paper" else [batch]
    method = GAT(cg=0.1, schedule=schedule, delta=delta)
    engine = Engine(method, classifier, generator, autocast=torch.bfloat16)
    engine.step(batches)
    state = engine.state
    assert state.generator_optimizer is not None
    adams = (state.classifier_optimizer, state.generator_optimizer)
    ours = [flat(adam.exp_avg.buffers()) for adam in adams if isinstance(adam, Adam)]
    exact = textbook_moments(classifier, generator, batch, torch.float64, None, delta)
    theirs = textbook_moments(classifier, generator, batch, torch.float32, torch.bfloat16, delta)
    for player, own, torchs, true in zip(("classifier", "generator"), ours, theirs, exact, strict=True):
        errors = [float((moments - true).norm() / true.norm()) for moments in (own, torchs)]
        assert 0 < errors[0] <= 2 * errors[1], f"{player}: {errors[0]:.3g}, PyTorch {errors[1]:.3g}"
        assert errors[0] < 0.1


def textbook_moments(
    classifier: nn.Module,
    generator: nn.Module,
    batch: Batch,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    delta: str,
) -> list[Tensor]:
    """The first moments of both players after one step of Algorithm 1: a tenth of their gradients."""
    f, g = (copy.deepcopy(module).to(dtype) for module in (classifier, generator))
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-3) for module in (f, g)]
    batches = [Batch(batch.images.to(dtype), batch.labels)] * 2
    with torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False):
        textbook.algorithm1_step(f, g, optimizers[0], optimizers[1], batches, c_g=0.1, through_delta=delta == "through")
    return [flat(state["exp_avg"] for state in optimizer.state.values()) for optimizer in optimizers]


def test_a_perturbation_of_a_confident_classifier_survives_float16() -> None:
    """Delta of 1e-8 is zero in float16, and so is what comes back to G: G computes in float32."""
    classifier, module = players(dtype=torch.float32)
    images, delta = torch.rand(4, 3, 8, 8), 1e-8 * torch.randn(4, 3, 8, 8)
    found = []
    for autocast, scale in ((None, None), (torch.float16, torch.tensor(1024.0))):
        f, g = (
            Network(name, network, dict(network.named_parameters()), {}, tensor_paths(network), autocast, scale)
            for name, network in (("classifier", classifier), ("generator", module))
        )
        with torch.no_grad():
            _, power, pull, _ = GAT().perturb(Players(f, g), delta, images)
            found.append((power, flat(pull(delta, torch.zeros(4), None)[0].values())))
    (exact_power, exact), (power, gradients) = found
    assert exact_power.all()
    torch.testing.assert_close(power, exact_power)
    assert exact.any()
    torch.testing.assert_close(gradients, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("schedule", ["paper", "alternating", "simultaneous"])
@pytest.mark.parametrize("size", [1, 1e-4])
def test_float16_gives_the_generator_its_gradients_however_small_delta_is(schedule: str, size: float) -> None:
    """Up to the rounding of F, which turns some of its ReLUs over."""
    method = GAT(cg=0.3, schedule=schedule)
    classifier, generator = players(dtype=torch.float32)
    with torch.no_grad():
        classifier.conv7.weight.mul_(size)  # type: ignore[union-attr,operator]  # Table 1's
    batches = [minibatch(dtype=torch.float32) for _ in range(method.minibatches())]
    moments = []
    for autocast in (None, torch.float16):
        engine = Engine(method, classifier, generator, generator_lr=1e-6, autocast=autocast)
        assert engine.step(batches)["perturbation_norm"] > 0
        assert isinstance(engine.state.generator_optimizer, Adam)
        moments.append(flat(engine.state.generator_optimizer.exp_avg.buffers()))
    assert float((moments[1] - moments[0]).norm() / moments[0].norm()) < 0.25


def test_float16_differentiates_through_delta_however_small_its_gradient_is() -> None:
    """What the derivative through Delta gives F is rounded as F is, which turns some ReLUs over, for dJ'/dx' of any
    size."""
    classifier, module = players(dtype=torch.float32)
    batch, loss_gradient = minibatch(dtype=torch.float32), torch.randn(4, 3, 8, 8)
    method, errors = GAT(alpha=0.0, delta="through"), []
    for size in (1, 1e-6):
        found = []
        for autocast, scale in ((None, None), (torch.float16, torch.tensor(2.0**16))):
            f, g = (
                Network(name, network, dict(network.named_parameters()), {}, tensor_paths(network), autocast, scale)
                for name, network in (("classifier", classifier), ("generator", module))
            )
            with torch.no_grad():
                clean, both = method.clean_pass(Players(f, g), batch, Draws())
                perturbed, _ = method.perturbed_pass(both, clean.delta, batch, Draws(), clean.loss.loss)
                nothing = {name: torch.zeros_like(parameter) for name, parameter in f.parameters.items()}
                perturbed = perturbed._replace(gradients=nothing, loss_gradient=size * loss_gradient)
                gradients = method.classifier_gradients(clean, perturbed)
                found.append(flat(gradients.values()))
        exact, rounded = found
        errors.append(float((rounded - exact).norm() / exact.norm()))
    assert errors[0] < 0.5
    assert errors[1] < 1.1 * errors[0]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])
