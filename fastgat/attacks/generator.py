"""The generator attack: a fresh G, trained against a frozen classifier by equation (9), then used as it was trained.

Delta = dF(x)_y / dx                                        below (7)
(9)     L_G = F(x + G(Delta))_y + c_g ||G(Delta)||_2^2      mean over samples
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.attacks.base import Attack, check_images, check_logits, frozen, loss_gradient
from fastgat.batch import Batch
from fastgat.data.loader import Loader
from fastgat.engine.compiled import ON_A_GPU, explained
from fastgat.engine.optimizers import Adam, trainable_parameters
from fastgat.engine.random import seed_torch
from fastgat.errors import CompileError, ConfigError, NonFiniteError
from fastgat.functional import places
from fastgat.kernels.input_gradient import ascent, input_gradient
from fastgat.methods.gat import GAT
from fastgat.methods.players import Draws, Network, Players
from fastgat.models import Generator
from fastgat.options import Options, option


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
    first = next(train.stream(0))
    check_images(*first)
    with frozen(model), torch.random.fork_rng([first.images.device] if first.images.is_cuda else []):
        check_logits(model, first.images[:2], first.labels)
        seed_torch(training.seed, first.images.device)
        generator = Generator(training.width, first.images.shape[1]).to(first.images)
        step, validate = _learner(model, generator, training, compiled)
        best, lowest, losses = copy.deepcopy(generator), math.inf, list[float]()
        stream = train.stream(0)
        for epoch in range(training.epochs):
            for batch in islice(stream, train.batches_per_epoch):
                step(batch)
            losses.append(validate(validation))
            if not math.isfinite(losses[-1]):
                raise NonFiniteError(f"the generator's loss became {losses[-1]} in epoch {epoch + 1}; try a smaller lr")
            progress(epoch + 1, losses[-1])
            if losses[-1] < lowest:
                best, lowest = copy.deepcopy(generator), losses[-1]
            elif epoch - losses.index(lowest) >= training.patience:
                break
    return Trained(best.eval(), losses.index(lowest) + 1, losses)


def _learner(
    model: nn.Module, generator: nn.Module, training: GeneratorTraining, compiled: bool
) -> tuple[Callable[[Batch], object], Callable[[Iterable[Batch]], float]]:
    """A step of the generator, and its mean loss (9) over batches."""
    method = GAT(cg=training.cg)
    adam = Adam(generator, training.lr)
    parameters = trainable_parameters(generator)
    players = Players(
        Network("classifier", model, {}, dict(model.named_buffers()), places(model)),
        Network("generator", generator, dict(parameters), dict(generator.named_buffers()), places(generator)),
    )

    @torch.no_grad()
    def step(batch: Batch) -> None:
        delta, _ = method.input_gradient(players, batch, Draws())
        gradients, _, _ = method.generator_gradients(players, delta, batch, Draws())
        adam.update(dict(parameters), gradients)

    @torch.no_grad()
    def validate(batches: Iterable[Batch]) -> float:
        total, samples = torch.zeros((), dtype=torch.float64), 0
        for images, labels in batches:
            p = generated(model, generator, images, labels)
            probability = model(images + p).softmax(1).gather(1, labels[:, None]).flatten()
            loss = probability + training.cg * p.flatten(1).square().sum(1)
            total, samples = total + loss.sum(dtype=torch.float64).cpu(), samples + len(labels)
        if not samples:
            raise ConfigError("a generator needs validation images to know when to stop")
        return float(total) / samples

    if not compiled:
        return step, validate
    options = ON_A_GPU if next(generator.parameters()).is_cuda else None
    whole, made = torch.compile(step, fullgraph=True, dynamic=False, options=options), False

    def compiled_step(batch: Batch) -> None:
        nonlocal made
        # What fails later has been compiled.
        with nullcontext() if made else explained(CompileError, "the generator's step cannot be compiled: {}"):
            whole(batch)
        made = True

    return compiled_step, validate


def generated(model: nn.Module, generator: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The perturbation p = G(Delta) as the generator gives it, Delta = dF(x)_y/dx = -F_y dJ/dx; (B, C, H, W)."""
    with torch.enable_grad():
        logits, gradient = loss_gradient(model, images, labels)
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    with torch.no_grad():
        p: Tensor = generator(input_gradient(gradient, "probability", loss=loss).value)
    return p


@dataclass(frozen=True)
class GeneratorAttack(Attack):
    """x' = x + eps p / ||p||, or with linf x + eps sign(p), p = G(Delta): a generator's direction at a given size.

    Attributes:
        generator: from `train_generator`, or any other, input gradients to perturbations.
    """

    generator: nn.Module = field(kw_only=True)

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        with frozen(self.generator):
            p = generated(self.model, self.generator, images, labels)
        return self.moved(images, ascent(p, self.norm, self.epsilon))
