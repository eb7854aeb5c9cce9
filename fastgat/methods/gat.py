"""Generative adversarial training: G turns the input gradient Delta into a perturbation, F learns to withstand it.

    Delta = dF(x)_y / dx                                        below (7)
    (9)     L_G = F(x + G(Delta))_y + c_g ||G(Delta)||_2^2      mean over samples, trains G
    (10)    L_F = alpha J(x) + (1 - alpha) J(x + G(Delta))      mean over samples, trains F

Since J = -log F_y, dF_y/dx = -F_y dJ/dx: one backward pass of J with a unit seed per sample serves both players. Where
samples interact inside F (train-mode batch norm) that is not so, and a second pull-back with the seed -F_y is taken.
The schedules say which minibatch each player sees, and which passes they share. Every pass returns the players with
the buffers that it left behind.

Delta depends on F's parameters theta. `delta` says whether (10) is differentiated there too. "fixed" holds Delta
constant. "through" adds, with u = dL_F/dDelta held fixed,

    sum over samples of d(u . Delta)/dtheta,    u . Delta = the slope of F(x)_y along u

which is reverse over forward mode: one pass of x with the tangent u, and its pull-back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.kernels.dual_loss import SampleLoss, perturbed_loss, sample_loss
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.perturbation import perturbation, perturbation_gradient
from fastgat.methods.base import Method, alpha_option, clamp_option, dropout_masks, dropout_option
from fastgat.methods.players import (
    Draws,
    Metrics,
    Network,
    Players,
    Tensors,
    Update,
    classify,
    loss_and_slope,
    mean,
    mix,
    of_probability,
    pull_back,
)
from fastgat.options import option


class Clean(NamedTuple):
    """The clean half of a step: F as it was before it, J(x) and its companions, Delta and its share of zeros, and F's
    gradients summed over samples (none where Delta is not fixed: they come with the derivative through it)."""

    classifier: Network
    loss: SampleLoss
    delta: Tensor
    zeros: Tensor
    gradients: Tensors


class PerturbedImages(NamedTuple):
    """x + p for p = G(Delta), the power of p, and the way back through G.

    `pull(gradient, d_power, loss)` gives G's gradients, and dL/dDelta (None where Delta is fixed). `gradient` is
    dL/dx', or dJ'/dx' where `loss`, J' of each sample, is given; `d_power` is dL/dpower.
    """

    images: Tensor
    power: Tensor
    pull: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensors, Tensor | None]]


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
    generator_interval: int = option(1, "update the generator at every n-th step only", at_least=1)
    schedule: str = option(
        "simultaneous",
        "paper: each step of Algorithm 1 on its own minibatch; alternating: the same order on one minibatch; "
        "simultaneous: both players step from the same point",
        choices=("paper", "alternating", "simultaneous"),
    )
    generator_input: str = option(
        "gradient",
        "what the generator is given: gradient, Delta as in the paper; normalised, Delta / ||Delta||; with-image, "
        "Delta and x, one behind the other in its channels",
        choices=("gradient", "normalised", "with-image"),
    )

    delta: str = option(
        "fixed",
        "how (10) is differentiated by the classifier's parameters: fixed, with Delta held constant; through, with "
        "Delta as the function of them that it is",
        choices=("fixed", "through"),
    )
    clamp: bool = clamp_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "simultaneous" and self.generator_steps > 1:
            raise ConfigError(
                "generator_steps must be 1 with schedule 'simultaneous', where both players step once, together: "
                "choose paper or alternating"
            )

    @property
    def period(self) -> int:
        return self.generator_interval

    @property
    def generator_minibatches(self) -> int:
        return self.generator_steps if self.schedule == "paper" else 0

    def generator_position(self, step: int) -> int:
        return -(-step // self.generator_interval) * self.generator_minibatches

    def generator_channels(self, channels: int) -> int:
        return 2 * channels if self.generator_input == "with-image" else channels

    def generator_feed(self, delta: Tensor, images: Tensor) -> Tensor:
        """What the generator is given, from Delta and x, both (B, C, H, W)."""
        if self.generator_input == "normalised":
            return input_gradient(delta, "l2", epsilon=1.0).value
        if self.generator_input == "with-image":
            return torch.cat([delta, images.to(delta.dtype)], 1)
        return delta

    def feed_gradient(self, delta: Tensor, d_feed: Tensor) -> Tensor:
        """dL/dDelta, (B, C, H, W), from the derivative by `generator_feed`."""
        d_delta = d_feed[:, : delta.shape[1]].to(delta.dtype)
        if self.generator_input == "normalised":
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            unit = delta / torch.where(length > 0, length, 1)
            across = d_delta - unit * (d_delta * unit).flatten(1).sum(1).view(-1, 1, 1, 1)
            d_delta = torch.where(length > 0, across / length, 0)
        return d_delta

    def step(
        self,
        players: Players,
        minibatches: Sequence[Batch],
        draws: Sequence[Draws],
        update: Update,
        kind: str = "full",
    ) -> tuple[Players, Metrics]:
        schedule = SCHEDULES[self.schedule] if kind == "full" else resting
        return schedule(self, players, minibatches, draws, update)

    def delta_alone(self, players: Players, minibatch: Batch, draws: Draws) -> tuple[Tensor, Players]:
        """Delta alone: the seed of F(x)_y instead of that of J."""
        z, pull, buffers = classify(players.classifier, minibatch.images, draws.clean, by="images")
        clean = sample_loss(z, minibatch.labels)
        (delta,) = pull(of_probability(clean.gradient, clean.probability))
        return delta, players.after_classifier("clean", buffers)

    def clean_pass(self, players: Players, minibatch: Batch, draws: Draws) -> tuple[Clean, Players]:
        """J(x), F's gradients of it, and Delta, from one forward and one shared backward pass."""
        classifier = players.classifier
        # Where Delta is not fixed, the pass that differentiates through it gives F's gradients too.
        by = "both" if self.delta == "fixed" else "images"
        z, pull, buffers = classify(classifier, minibatch.images, draws.clean, by=by)
        loss = sample_loss(z, minibatch.labels)
        *gradients, loss_gradient = pull(loss.gradient)
        if classifier.interacts:
            *_, probability_gradient = pull(of_probability(loss.gradient, loss.probability))
            delta = input_gradient(probability_gradient, "none")
        else:
            delta = input_gradient(loss_gradient, "probability", loss=loss.loss)
        clean = Clean(classifier, loss, delta.value, delta.zeros.mean(), gradients[0] if gradients else {})
        return clean, players.after_classifier("clean", buffers)

    def generator_gradients(
        self, players: Players, delta: Tensor, minibatch: Batch, draws: Draws
    ) -> tuple[Tensors, Metrics, Players]:
        """G's gradients of the mean L_G (9), and that loss."""
        x, players = self.perturb(players, delta, minibatch.images)
        z, pull, buffers = classify(players.classifier, x.images, draws.perturbed, by="images")
        perturbed = sample_loss(z, minibatch.labels)
        (probability_gradient,) = pull(of_probability(perturbed.gradient, perturbed.probability))
        gradients = self.pull_generator(x, probability_gradient)
        metrics = {"generator_loss": self.generator_loss(perturbed, x)}
        return gradients, metrics, players.after_classifier("perturbed", buffers)

    def classifier_gradients(
        self, players: Players, clean: Clean, minibatch: Batch, draws: Draws, both: bool = False
    ) -> tuple[Tensors, Tensors, Metrics, Players]:
        """F's gradients of the mean L_F (10), G's of the mean L_G (9) from the same pass if `both` (else none), and
        metrics."""
        x, players = self.perturb(players, clean.delta, minibatch.images)
        z, pull, buffers = classify(players.classifier, x.images, draws.perturbed, by="both")
        perturbed, loss = perturbed_loss(z, minibatch.labels, clean.loss.loss, self.alpha)
        gradients, loss_gradient = pull(perturbed.gradient)
        generator_gradients: Tensors = {}
        if both and players.classifier.interacts:
            _, probability_gradient = pull(of_probability(perturbed.gradient, perturbed.probability))
            generator_gradients = self.pull_generator(x, probability_gradient)
        elif both:
            generator_gradients = self.pull_generator(x, loss_gradient, perturbed.loss)
        gradients = self.both_halves(clean, gradients, x, loss_gradient, minibatch, draws)
        metrics = {
            "loss": loss.mean(),
            "accuracy": clean.loss.correct.float().mean(),
            "perturbed_accuracy": perturbed.correct.float().mean(),
            "perturbation_norm": x.power.sqrt().mean(),
            "generator_loss": self.generator_loss(perturbed, x),
            "zero_gradients": clean.zeros,
        }
        return gradients, generator_gradients, metrics, players.after_classifier("perturbed", buffers)

    def both_halves(
        self,
        clean: Clean,
        perturbed: Tensors,
        x: PerturbedImages,
        loss_gradient: Tensor,
        minibatch: Batch,
        draws: Draws,
    ) -> Tensors:
        """F's gradients of the mean (10), from those of J' summed over samples and dJ'/dx'."""
        if self.delta == "fixed":
            return mix(clean.gradients, perturbed, self.alpha, len(loss_gradient))
        _, d_delta = x.pull(loss_gradient, torch.zeros_like(x.power), None)
        assert d_delta is not None
        # u . Delta is linear in u, which is small: scaled up, it is in the range of every dtype that F may compute in.
        size = d_delta.abs().amax().clamp_min(torch.finfo(d_delta.dtype).tiny)
        (loss, _), pull, _ = loss_and_slope(clean.classifier, minibatch, d_delta / size, draws.clean, probability=True)
        weight = 1 - self.alpha
        (gradients,) = pull((torch.full_like(loss, self.alpha), (weight * size).to(loss.dtype)))
        return mean({name: g + weight * perturbed[name] for name, g in gradients.items()}, len(loss))

    def perturb(self, players: Players, delta: Tensor, images: Tensor) -> tuple[PerturbedImages, Players]:
        """x + G(Delta), its power and its pull-back. Table 1's tanh is part of the joint; another G has its own.

        Where F computes in float16, G computes in float32: its activations are as small as Delta, below 1e-8 once F is
        confident, and a loss scale helps gradients alone.
        """
        generator = players.generator
        assert generator is not None
        if generator.autocast == torch.float16:
            generator = generator._replace(autocast=None, scale=None)
        tanh = getattr(generator.module, "ends_in_tanh", False)
        feed = self.generator_feed(delta, images)
        by = (generator.parameters, feed) if self.delta == "through" else (generator.parameters,)
        z, pull, buffers = pull_back(generator, lambda g, fed=feed: generator(g, fed, *([False] if tanh else [])), *by)
        x_perturbed, power = perturbation(images, z, tanh=tanh, clamp=self.clamp)

        def pull_perturbed(d_perturbed: Tensor, d_power: Tensor, loss: Tensor | None) -> tuple[Tensors, Tensor | None]:
            d_z = perturbation_gradient(images, z, d_perturbed, d_power, loss=loss, tanh=tanh, clamp=self.clamp)
            gradients, *d_feed = pull(d_z)
            return gradients, self.feed_gradient(delta, d_feed[0]) if d_feed else None

        return PerturbedImages(x_perturbed, power, pull_perturbed), players.after_generator(buffers)

    def pull_generator(self, x: PerturbedImages, gradient: Tensor, loss: Tensor | None = None) -> Tensors:
        """G's gradients of the mean (9) from dF(x')_y/dx', or from dJ'/dx' and J'; that by the power is c_g."""
        gradients, _ = x.pull(gradient, torch.full_like(x.power, self.cg), loss)
        return mean(gradients, len(x.power))

    def generator_loss(self, perturbed: SampleLoss, x: PerturbedImages) -> Tensor:
        """L_G (9), the mean over samples."""
        return (perturbed.probability + self.cg * x.power).mean()


def paper(
    method: GAT, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update
) -> tuple[Players, Metrics]:
    """Algorithm 1: k generator steps, each on its own minibatch, then a classifier step on the last one."""
    metrics: Metrics = {}
    for minibatch, draw in zip(minibatches[:-1], draws[:-1], strict=True):
        delta, players = method.delta_alone(players, minibatch, draw)
        gradients, metrics, players = method.generator_gradients(players, delta, minibatch, draw)
        players = update(players, generator=gradients)
    clean, players = method.clean_pass(players, minibatches[-1], draws[-1])
    gradients, _, step_metrics, players = method.classifier_gradients(players, clean, minibatches[-1], draws[-1])
    return update(players, classifier=gradients), step_metrics | metrics


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
    gradients, _, step_metrics, players = method.classifier_gradients(players, clean, minibatch, draw)
    return update(players, classifier=gradients), step_metrics | metrics


def simultaneous(
    method: GAT, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update
) -> tuple[Players, Metrics]:
    """Both players step from the same point: one clean and one perturbed pass serve both."""
    (minibatch,), (draw,) = minibatches, draws
    clean, players = method.clean_pass(players, minibatch, draw)
    gradients, generator_gradients, metrics, players = method.classifier_gradients(
        players, clean, minibatch, draw, both=True
    )
    return update(players, classifier=gradients, generator=generator_gradients), metrics


def resting(
    method: GAT, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update
) -> tuple[Players, Metrics]:
    """A step between two of the generator's (`generator_interval`): the classifier's alone."""
    (minibatch,), (draw,) = minibatches, draws
    clean, players = method.clean_pass(players, minibatch, draw)
    gradients, _, metrics, players = method.classifier_gradients(players, clean, minibatch, draw)
    return update(players, classifier=gradients), metrics


SCHEDULES = {"paper": paper, "alternating": alternating, "simultaneous": simultaneous}


@dataclass(frozen=True)
class DropoutGAT(GAT):
    """Dropout + GAT: the clean pass and Delta share one mask, the perturbed pass has its own."""

    name: ClassVar[str] = "dropout-gat"

    dropout: float = dropout_option()

    @property
    def classifier_dropout(self) -> float:
        return self.dropout

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(dropout_masks(classifier, images, source), dropout_masks(classifier, images, source))
