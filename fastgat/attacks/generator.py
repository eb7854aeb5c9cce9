"""The generator attack: a fresh G, trained against the frozen classifier by equation (9).

The attack scales what G gives to the norm epsilon.

Delta = dF(x)_y / dx                                        below (7)
(9)     L_G = F(x + G(Delta))_y + c_g ||G(Delta)||_2^2      mean over samples
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.attacks.base import Attack, Isolated, ascent, check_network, frozen, loss_gradient
from fastgat.batch import Batch
from fastgat.contract import check_perturbation, checked_batch
from fastgat.data.loader import Loader
from fastgat.engine.optimizer import Adam, trainable_parameters
from fastgat.engine.state import unchanged
from fastgat.engine.step import Step, compile_and_capture
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.functional import tensor_paths
from fastgat.kernels.input_gradient import input_gradient
from fastgat.methods.gat import GAT
from fastgat.methods.players import Draws, Network, Players
from fastgat.models import Generator
from fastgat.options import Options, option
from fastgat.randomness import seed_torch


@dataclass(frozen=True)
class GeneratorTraining(Options):
    """How a generator is trained against a classifier that does not change."""

    cg: float = option(1.0, "c_g of (9), the price of the perturbation", at_least=0, at_most=1e30)
    width: int = option(48, "channels of the generator", at_least=1)
    lr: float = option(3e-4, "learning rate of Adam", above=0)
    epochs: int = option(20, "passes at most", at_least=1)
    patience: int = option(3, "passes without a lower validation loss before training stops", at_least=1)
    seed: int = option(0, "of the initial weights and of the order of the images", at_least=0)


class Trained(NamedTuple):
    """A generator as it was at its lowest validation loss, that epoch, and every epoch's mean L_G on validation."""

    generator: nn.Module
    best_epoch: int
    validation_losses: list[float]


def train_generator(
    model: nn.Module,
    train: Loader,
    validation: Iterable[Batch],
    training: GeneratorTraining | None = None,
    *,
    compiled: bool = False,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Trained:
    """Train a fresh generator of Table 1 to fool `model`; stops early, by the loss (9) on validation.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K); it comes back as it was.
        train: its stream of player 0 is trained on.
        validation: batches, read once an epoch.
        compiled: compile the step into one graph, which takes half a minute and pays on a GPU or for long.
        progress: told the number of epochs done, and their last validation loss.

    Raises ConfigError for a model or images that do not fit, NonFiniteError where the loss becomes NaN, CompileError
    where the step cannot be compiled.
    """
    training = training or GeneratorTraining()
    if not train.batches_per_epoch:
        raise ConfigError("a generator needs at least one full batch to train on")
    if iter(validation) is validation:
        raise ConfigError(
            "validation images are read after every epoch: pass a list of batches, or a class with __iter__"
        )
    images, labels = checked_batch(*next(train.stream(0)))
    with frozen(model), torch.random.fork_rng([images.device] if images.is_cuda else []):
        classes = check_network(model, images, labels)
        seed_torch(training.seed, images.device)
        generator = Generator(training.width, images.shape[1]).to(images)
        classifier = Isolated(model)
        players = Players(
            Network("classifier", classifier, {}, dict(classifier.named_buffers()), tensor_paths(classifier)),
            Network("generator", generator, dict(trainable_parameters(generator)), {}, tensor_paths(generator)),
        )
        optimizer = Adam(generator, training.lr)
        step: Step = partial(_generator_step, GAT(cg=training.cg), players, optimizer)
        if compiled:
            with torch.no_grad(), unchanged(generator, optimizer):
                step = compile_and_capture(step, ([Batch(images, labels)], []), images.device)
        best, lowest, losses = copy.deepcopy(generator), math.inf, list[float]()
        stream = train.stream(0)
        for epoch in range(training.epochs):
            for batch in islice(stream, train.batches_per_epoch):
                with torch.no_grad():
                    step([batch], [])
            held_out = (checked_batch(*batch, classes) for batch in validation)
            losses.append(_validation_loss(classifier, generator, held_out, training.cg))
            if not math.isfinite(losses[-1]):
                raise NonFiniteError(f"the generator's loss became {losses[-1]} in epoch {epoch + 1}; try a smaller lr")
            progress(epoch + 1, losses[-1])
            if losses[-1] < lowest:
                best, lowest = copy.deepcopy(generator), losses[-1]
            elif epoch - losses.index(lowest) >= training.patience:
                break
    return Trained(best.eval(), losses.index(lowest) + 1, losses)


def _generator_step(
    method: GAT, players: Players, optimizer: Adam, batches: Sequence[Batch], draws: Sequence[Draws]
) -> None:
    """Update the generator on a minibatch, in place."""
    (batch,), generator = batches, players.generator
    assert generator is not None
    delta, _ = method.delta_alone(players, batch, Draws())
    perturbed, _ = method.perturbed_pass(players, delta, batch, Draws())
    optimizer.update(generator.parameters, method.generator_gradients(perturbed))


@torch.no_grad()
def _validation_loss(classifier: nn.Module, generator: nn.Module, batches: Iterable[Batch], cg: float) -> float:
    """The mean of L_G (9) over the samples of all batches."""
    total, samples = torch.zeros((), dtype=torch.float64), 0
    for images, labels in batches:
        p = generated(classifier, generator, images, labels)
        probability = classifier(images + p).softmax(1).gather(1, labels[:, None]).flatten()
        loss = probability + cg * p.flatten(1).square().sum(1)
        total, samples = total + loss.sum(dtype=torch.float64).cpu(), samples + len(labels)
    if not samples:
        raise ConfigError("a generator needs validation images to know when to stop")
    return float(total) / samples


def generated(model: nn.Module, generator: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The perturbation p = G(Delta), (B, C, H, W), detached; Delta = dF(x)_y/dx = -F_y dJ/dx. Both must be frozen."""
    with torch.enable_grad():
        logits, gradient = loss_gradient(model, images, labels)
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    with torch.no_grad():
        p: Tensor = generator(input_gradient(gradient, "probability", loss=loss).value)
    check_perturbation(p, images)
    return p


@dataclass(frozen=True)
class GeneratorAttack(Attack):
    """A generator's direction at a given size: x' = x + eps p / ||p||, or with linf x + eps sign(p), p = G(Delta).

    Attributes:
        generator: from `train_generator`, or any other, input gradients to perturbations.
    """

    generator: nn.Module = field(kw_only=True)

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        p = generated(self.model, self.generator, images, labels)
        return self.add(images, ascent(p, self.norm, self.epsilon))
