"""Generative adversarial training: G turns the input gradient Delta into a perturbation, F learns to withstand it.

    Delta = dF(x)_y / dx                                        below (7)
    (9)     L_G = F(x + G(Delta))_y + c_g ||G(Delta)||_2^2      mean over samples, trains G
    (10)    L_F = alpha J(x) + (1 - alpha) J(x + G(Delta))      mean over samples, trains F

Since J = -log F_y, dF_y/dx = -F_y dJ/dx: one backward pass of J with a unit seed per sample serves both players. Where
samples interact inside F (train-mode batch norm) that is not so, and a second pull-back with the seed -F_y is taken.
The schedules say which minibatch each player sees, and which passes they share. Every pass returns the players with
the buffers that it left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fastgat.data.batch import Batch
from fastgat.errors import ConfigError
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.perturbation import Perturbation, perturb
from fastgat.methods.base import Method, alpha_option
from fastgat.methods.players import Draws, Metrics, Players, Tensors, Update, mix, pull_back, sample_losses
from fastgat.options import option


class Clean(NamedTuple):
    """The clean half of a step: J(x), Delta and its share of zeros, F's gradients summed over samples, its accuracy."""

    loss: Tensor
    delta: Tensor
    zeros: Tensor
    gradients: Tensors
    accuracy: Tensor


@dataclass(frozen=True)
class GAT(Method):
    name: ClassVar[str] = "gat"
    needs_generator: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = (
        "loss",
        "accuracy",
        "perturbed_accuracy",
        "perturbation_norm",
        "generator_loss",
        "zero_gradients",
    )

    alpha: float = alpha_option()
    cg: float = option(1.0, "c_g of (9), the price of the generator's perturbation", at_least=0)
    generator_steps: int = option(1, "k of Algorithm 1, generator steps for each classifier step", at_least=1)
    schedule: str = option(
        "paper",
        "paper: each step of Algorithm 1 on its own minibatch; alternating: the same order on one minibatch; "
        "simultaneous: both players step from the same point",
        choices=("paper", "alternating", "simultaneous"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "simultaneous" and self.generator_steps > 1:
            raise ConfigError(
                "generator_steps must be 1 with schedule 'simultaneous': both players step once, together"
            )

    @property
    def generator_minibatches(self) -> int:
        return self.generator_steps if self.schedule == "paper" else 0

    def step(
        self, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update
    ) -> tuple[Players, Metrics]:
        return SCHEDULES[self.schedule](self, players, minibatches, draws, update)

    def input_gradient(self, players: Players, minibatch: Batch, draws: Draws) -> tuple[Tensor, Players]:
        """Delta alone: the seed -F(x)_y turns the pull-back of J into dF(x)_y/dx."""
        losses = sample_losses(players.classifier, minibatch.labels, draws.clean)
        loss, pull, aux = pull_back(lambda x: losses(players.classifier.parameters, x), minibatch.images)
        (delta,) = pull(-loss.neg().exp())
        return delta, players.after(classifier=aux.buffers)

    def clean_pass(self, players: Players, minibatch: Batch, draws: Draws) -> tuple[Clean, Players]:
        """J(x), F's gradients of it, and Delta, from one forward and one shared backward pass."""
        classifier = players.classifier
        losses = sample_losses(classifier, minibatch.labels, draws.clean)
        loss, pull, aux = pull_back(losses, classifier.parameters, minibatch.images)
        gradients, loss_gradient = pull(torch.ones_like(loss))
        if classifier.interacts:
            delta, _, zeros = input_gradient(pull(-loss.neg().exp())[1], "none")
        else:
            delta, _, zeros = input_gradient(loss_gradient, "probability", loss=loss)
        return Clean(loss, delta, zeros.mean(), gradients, aux.accuracy), players.after(classifier=aux.buffers)

    def generator_gradients(
        self, players: Players, delta: Tensor, minibatch: Batch, draws: Draws
    ) -> tuple[Tensors, Metrics, Players]:
        """G's gradients of the mean L_G (9), and its metrics."""
        moved, pull_generator, players = self.generate(players, delta, minibatch.images)
        losses = sample_losses(players.classifier, minibatch.labels, draws.perturbed)
        loss, pull, aux = pull_back(lambda x: losses(players.classifier.parameters, x), moved.perturbed)
        (probability_gradient,) = pull(-loss.neg().exp())
        gradients = pull_generator(self.generator_signal(probability_gradient, moved))
        return gradients, {"generator_loss": self.generator_loss(loss, moved)}, players.after(classifier=aux.buffers)

    def classifier_gradients(
        self, players: Players, clean: Clean, minibatch: Batch, draws: Draws
    ) -> tuple[Tensors, Metrics, Players]:
        """F's gradients of the mean L_F (10), and metrics."""
        moved, _, players = self.generate(players, clean.delta, minibatch.images)
        losses = sample_losses(players.classifier, minibatch.labels, draws.perturbed)
        loss, pull, aux = pull_back(lambda p: losses(p, moved.perturbed), players.classifier.parameters)
        (gradients,) = pull(torch.ones_like(loss))
        metrics = self.classifier_metrics(clean, loss, aux.accuracy, moved)
        return mix(clean.gradients, gradients, self.alpha, len(loss)), metrics, players.after(classifier=aux.buffers)

    def both_gradients(
        self, players: Players, clean: Clean, minibatch: Batch, draws: Draws
    ) -> tuple[Tensors, Tensors, Metrics, Players]:
        """F's gradients of (10) and G's of (9) from one perturbed pass, and metrics."""
        moved, pull_generator, players = self.generate(players, clean.delta, minibatch.images)
        classifier = players.classifier
        losses = sample_losses(classifier, minibatch.labels, draws.perturbed)
        loss, pull, aux = pull_back(losses, classifier.parameters, moved.perturbed)
        gradients, loss_gradient = pull(torch.ones_like(loss))
        if classifier.interacts:
            _, probability_gradient = pull(-loss.neg().exp())
        else:
            probability_gradient = input_gradient(loss_gradient, "probability", loss=loss).value
        generator_gradients = pull_generator(self.generator_signal(probability_gradient, moved))
        metrics = self.classifier_metrics(clean, loss, aux.accuracy, moved)
        metrics["generator_loss"] = self.generator_loss(loss, moved)
        gradients = mix(clean.gradients, gradients, self.alpha, len(loss))
        return gradients, generator_gradients, metrics, players.after(classifier=aux.buffers)

    def generate(
        self, players: Players, delta: Tensor, images: Tensor
    ) -> tuple[Perturbation, Callable[[Tensor], Tensors], Players]:
        """x + p and the power of p = G(Delta), p in Delta's dtype, and the pull-back from dL/dp to G's gradients."""
        generator = players.generator
        assert generator is not None

        def perturbation(parameters: Tensors) -> tuple[Tensor, Tensors]:
            p, buffers = generator(parameters, delta)
            return p.to(delta.dtype), buffers

        p, pull, buffers = pull_back(perturbation, generator.parameters)
        return perturb(images, p), lambda signal: pull(signal)[0], players.after(generator=buffers)

    def generator_signal(self, probability_gradient: Tensor, moved: Perturbation) -> Tensor:
        """dL_G/dp of the mean (9), from dF(x + p)_y/dx': (dF_y/dx' + 2 c_g p) / B."""
        return (probability_gradient + 2 * self.cg * moved.perturbation) / len(probability_gradient)

    def generator_loss(self, loss: Tensor, moved: Perturbation) -> Tensor:
        """L_G (9) from J(x + p), the mean over samples."""
        return (loss.neg().exp() + self.cg * moved.power).mean()

    def classifier_metrics(self, clean: Clean, perturbed: Tensor, accuracy: Tensor, moved: Perturbation) -> Metrics:
        return {
            "loss": (self.alpha * clean.loss + (1 - self.alpha) * perturbed).mean(),
            "accuracy": clean.accuracy,
            "perturbed_accuracy": accuracy,
            "perturbation_norm": moved.power.sqrt().mean(),
            "zero_gradients": clean.zeros,
        }


def paper(
    method: GAT, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update
) -> tuple[Players, Metrics]:
    """Algorithm 1: k generator steps, each on its own minibatch, then a classifier step on the last one."""
    metrics: Metrics = {}
    for minibatch, draw in zip(minibatches[:-1], draws[:-1], strict=True):
        delta, players = method.input_gradient(players, minibatch, draw)
        gradients, metrics, players = method.generator_gradients(players, delta, minibatch, draw)
        players = update(players, generator=gradients)
    clean, players = method.clean_pass(players, minibatches[-1], draws[-1])
    gradients, own, players = method.classifier_gradients(players, clean, minibatches[-1], draws[-1])
    return update(players, classifier=gradients), metrics | own


def alternating(
    method: GAT, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update
) -> tuple[Players, Metrics]:
    """The order of Algorithm 1 on one minibatch: its clean pass serves the k generator steps and the classifier's."""
    (minibatch,), (draw,) = minibatches, draws
    clean, players = method.clean_pass(players, minibatch, draw)
    metrics: Metrics = {}
    for _ in range(method.generator_steps):
        gradients, metrics, players = method.generator_gradients(players, clean.delta, minibatch, draw)
        players = update(players, generator=gradients)
    gradients, own, players = method.classifier_gradients(players, clean, minibatch, draw)
    return update(players, classifier=gradients), metrics | own


def simultaneous(
    method: GAT, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update
) -> tuple[Players, Metrics]:
    """Both players step from the same point: one clean and one perturbed pass serve both."""
    (minibatch,), (draw,) = minibatches, draws
    clean, players = method.clean_pass(players, minibatch, draw)
    gradients, generator_gradients, metrics, players = method.both_gradients(players, clean, minibatch, draw)
    return update(players, classifier=gradients, generator=generator_gradients), metrics


SCHEDULES = {"paper": paper, "alternating": alternating, "simultaneous": simultaneous}
