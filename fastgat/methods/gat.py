"""Generative adversarial training: G turns the input gradient Delta into a perturbation, F learns to withstand it.

    Delta = dF(x)_y / dx                                        below (7)
    (9)     L_G = F(x + G(Delta))_y + c_g ||G(Delta)||_2^2      mean over samples, trains G
    (10)    L_F = alpha J(x) + (1 - alpha) J(x + G(Delta))      mean over samples, trains F

Since J = -log F_y, dF_y/dx = -F_y dJ/dx: one backward pass from a cotangent of 1 for each J serves both players. Where
samples interact inside F (train-mode batch norm) that is not so, and a second backward pass is made, from -F_y.
Every pass returns the players with the buffers that it left behind. The schedules:

    paper           k generator steps on minibatches of their own, then a classifier step on another (Algorithm 1)
    alternating     the same order on one minibatch: its clean pass serves all of these steps
    simultaneous    both players step from the same point: one clean and one perturbed pass serve both
    resting         the classifier alone, between two steps of the generator (`generator_interval`)

Delta depends on F's parameters theta, so the derivative of (10) has, with u = dL_F/dDelta held fixed, the term

    sum over samples of d(u . Delta)/dtheta

It takes a double backward pass (`fastgat.methods.double_backward`). `delta` is "through" with it, "fixed" without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.kernels.dual_loss import SampleLoss, perturbed_loss, sample_loss
from fastgat.kernels.images import per_sample
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.perturbation import perturbation, perturbation_gradient
from fastgat.methods.base import Method, alpha_option, clamp_option, dropout_masks, dropout_option
from fastgat.methods.double_backward import loss_and_gradient
from fastgat.methods.players import (
    Draws,
    Metrics,
    Players,
    Tensors,
    Update,
    classify,
    has_hooks,
    mean,
    mix,
    probability_cotangent,
    share_of_zeros,
    value_and_vjp,
)
from fastgat.options import option

GeneratorVjp = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensors, Tensor | None]]
"""(dL/dx', dL/dpower, J') -> G's gradients, and dL/dDelta where Delta is differentiated through. If J' is given, the
first argument is dJ'/dx', which is turned into dF(x')_y/dx'."""


class CleanPass(NamedTuple):
    """The pass of x.

    Attributes:
        loss: J(x) and its companions.
        zeros: the share of Delta's entries that are 0.
        gradients: of J(x) by F's parameters, summed over samples; none where Delta is differentiated through.
        vjp: from cotangents of J(x) and of Delta to F's gradients, where Delta is differentiated through.
    """

    loss: SampleLoss
    delta: Tensor
    zeros: Tensor
    gradients: Tensors
    vjp: Callable[[Any], tuple[Tensors]] | None = None


class PerturbedPass(NamedTuple):
    """The pass of x' = x + p, p = G(Delta), and the ways back.

    Attributes:
        power: ||p||_2^2 of each sample.
        loss: J(x') and its companions.
        dual_loss: alpha J(x) + (1 - alpha) J(x') of each sample; None for a generator step, as the next two.
        gradients, loss_gradient: of J(x') by F's parameters, summed over samples, and by x'.
        classifier_vjp: from cotangents of F's logits; its last result is the gradient by x'.
        interacts: whether samples interact inside F.
    """

    power: Tensor
    loss: SampleLoss
    dual_loss: Tensor | None
    gradients: Tensors
    loss_gradient: Tensor | None
    classifier_vjp: Callable[[Tensor], Sequence[Any]]
    generator_vjp: GeneratorVjp
    interacts: bool


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
        "through",
        "how (10) is differentiated by the classifier's parameters: through, also through Delta, which depends on "
        "them; fixed, with Delta held constant, in 0.7 of the time (two CPU cores)",
        choices=("through", "fixed"),
    )
    clamp: bool = clamp_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "simultaneous" and self.generator_steps > 1:
            raise ConfigError(
                "generator_steps must be 1 with schedule 'simultaneous', where both players step once, together: "
                "choose paper or alternating"
            )

    def step(
        self, players: Players, minibatches: Sequence[Batch], draws: Sequence[Draws], update: Update, kind: str = "full"
    ) -> tuple[Players, Metrics]:
        """Algorithm 1: k generator steps, then one of the classifier, on the minibatches that the schedule says."""
        schedule = self.schedule if kind == "full" else "resting"
        generator_loss: Metrics = {}
        if schedule == "paper":
            for minibatch, draw in zip(minibatches[:-1], draws[:-1], strict=True):
                delta, players = self.delta_alone(players, minibatch, draw)
                players, generator_loss = self.generator_step(players, delta, minibatch, draw, update)
        minibatch, draw = minibatches[-1], draws[-1]
        clean, players = self.clean_pass(players, minibatch, draw)
        if schedule == "alternating":
            for _ in range(self.generator_steps):
                players, generator_loss = self.generator_step(players, clean.delta, minibatch, draw, update)
        perturbed, players = self.perturbed_pass(players, clean.delta, minibatch, draw, clean.loss.loss)
        gradients = {"classifier": self.classifier_gradients(clean, perturbed)}
        if schedule == "simultaneous":
            gradients["generator"] = self.generator_gradients(perturbed)
        return update(players, **gradients), self.step_metrics(clean, perturbed) | generator_loss

    def generator_step(
        self, players: Players, delta: Tensor, minibatch: Batch, draws: Draws, update: Update
    ) -> tuple[Players, Metrics]:
        """A step of G alone, and its loss."""
        perturbed, players = self.perturbed_pass(players, delta, minibatch, draws)
        players = update(players, generator=self.generator_gradients(perturbed))
        return players, {"generator_loss": self.generator_loss(perturbed)}

    def generator_loss(self, perturbed: PerturbedPass) -> Tensor:
        """L_G = F(x + p)_y + c_g ||p||_2^2 (9), the mean over samples."""
        return (perturbed.loss.probability + self.cg * perturbed.power).mean()

    def generator_gradients(self, perturbed: PerturbedPass) -> Tensors:
        """G's gradients of the mean L_G (9), by dF(x')_y/dx' = -F(x')_y dJ(x')/dx' where that was computed for F."""
        gradient = perturbed.loss_gradient
        loss: Tensor | None = perturbed.loss.loss
        if gradient is None or perturbed.interacts:
            (*_, gradient), loss = perturbed.classifier_vjp(probability_cotangent(perturbed.loss)), None
        gradients, _ = perturbed.generator_vjp(gradient, torch.full_like(perturbed.power, self.cg), loss)
        return mean(gradients, len(perturbed.power))

    def classifier_gradients(self, clean: CleanPass, perturbed: PerturbedPass) -> Tensors:
        """F's gradients of the mean L_F = alpha J(x) + (1 - alpha) J(x + p) (10)."""
        if clean.vjp is None:
            return mix(clean.gradients, perturbed.gradients, self.alpha, len(perturbed.power))
        assert perturbed.loss_gradient is not None
        _, u = perturbed.generator_vjp(perturbed.loss_gradient, torch.zeros_like(perturbed.power), None)
        assert u is not None
        weight = 1 - self.alpha
        (gradients,) = clean.vjp((torch.full_like(clean.loss.loss, self.alpha), weight * u))
        both = {name: gradient + weight * perturbed.gradients[name] for name, gradient in gradients.items()}
        return mean(both, len(perturbed.power))

    def step_metrics(self, clean: CleanPass, perturbed: PerturbedPass) -> Metrics:
        """The metrics of a step that trains F."""
        assert perturbed.dual_loss is not None
        return {
            "loss": perturbed.dual_loss.mean(),
            "accuracy": clean.loss.correct.float().mean(),
            "perturbed_accuracy": perturbed.loss.correct.float().mean(),
            "perturbation_norm": perturbed.power.sqrt().mean(),
            "generator_loss": self.generator_loss(perturbed),
            "zero_gradients": clean.zeros,
        }

    def delta_alone(self, players: Players, minibatch: Batch, draws: Draws) -> tuple[Tensor, Players]:
        """Delta without F's gradients, by the cotangent of F(x)_y instead of that of J."""
        z, vjp, buffers = classify(players.classifier, minibatch.images, draws.clean, wrt="images")
        (delta,) = vjp(probability_cotangent(sample_loss(z, minibatch.labels)))
        return delta, players.after_classifier("clean", buffers)

    def clean_pass(self, players: Players, minibatch: Batch, draws: Draws) -> tuple[CleanPass, Players]:
        """J(x), F's gradients of it, and Delta, from one forward and one shared backward pass."""
        classifier = players.classifier
        if self.differentiates_twice:
            (_, delta), vjp, (z, buffers) = loss_and_gradient(classifier, minibatch, draws.clean, probability=True)
            clean = CleanPass(sample_loss(z, minibatch.labels), delta, share_of_zeros(delta), {}, vjp)
            return clean, players.after_classifier("clean", buffers)
        z, vjp, buffers = classify(classifier, minibatch.images, draws.clean, wrt="both")
        loss = sample_loss(z, minibatch.labels)
        gradients, loss_gradient = vjp(loss.gradient)
        if classifier.interacts:
            *_, delta = vjp(probability_cotangent(loss))
            zeros = share_of_zeros(delta)
        else:
            delta, each_zeros = input_gradient(loss_gradient, "probability", loss=loss.loss)
            zeros = each_zeros.mean()
        clean = CleanPass(loss, delta, zeros, gradients)
        return clean, players.after_classifier("clean", buffers)

    def perturbed_pass(
        self, players: Players, delta: Tensor, minibatch: Batch, draws: Draws, clean_loss: Tensor | None = None
    ) -> tuple[PerturbedPass, Players]:
        """x' = x + G(Delta) and J(x'), with F's gradients of it where J(x) is given, because F learns too."""
        images, power, generator_vjp, players = self.perturb(players, delta, minibatch.images)
        wrt = "images" if clean_loss is None else "both"
        z, vjp, buffers = classify(players.classifier, images, draws.perturbed, wrt=wrt)
        gradients: Tensors = {}
        dual_loss = loss_gradient = None
        if clean_loss is None:
            loss = sample_loss(z, minibatch.labels)
        else:
            loss, dual_loss = perturbed_loss(z, minibatch.labels, clean_loss, self.alpha)
            gradients, loss_gradient = vjp(loss.gradient)
        ways_back = vjp, generator_vjp, players.classifier.interacts
        perturbed = PerturbedPass(power, loss, dual_loss, gradients, loss_gradient, *ways_back)
        return perturbed, players.after_classifier("perturbed", buffers)

    def perturb(self, players: Players, delta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, GeneratorVjp, Players]:
        """x + G(Delta), its power and its vector-Jacobian product. Table 1's tanh is part of the joint; another G
        has its own.

        Where F computes in float16, G computes in float32: its activations are as small as Delta, below 1e-8 once F is
        confident, and a loss scale helps gradients alone.
        """
        assert players.generator is not None
        generator = players.generator
        if generator.autocast == torch.float16:
            generator = generator._replace(autocast=None, scale=None)
        tanh = getattr(generator.module, "ends_in_tanh", False) and not has_hooks(generator.module)
        feed = self.generator_feed(delta, images)
        primals = (generator.parameters, feed) if self.differentiates_twice else (generator.parameters,)
        z, vjp, buffers = value_and_vjp(
            generator, lambda g, fed=feed: generator(g, fed, *([False] if tanh else [])), *primals
        )
        x_perturbed, power = perturbation(images, z, tanh=tanh, clamp=self.clamp)

        def generator_vjp(d_perturbed: Tensor, d_power: Tensor, loss: Tensor | None) -> tuple[Tensors, Tensor | None]:
            d_z = perturbation_gradient(images, z, d_perturbed, d_power, loss=loss, tanh=tanh, clamp=self.clamp)
            gradients, *d_feed = vjp(d_z)
            return gradients, self.feed_gradient(delta, d_feed[0]) if d_feed else None

        players = players._replace(generator=players.generator._replace(buffers=buffers))
        return x_perturbed, power, generator_vjp, players

    @property
    def differentiates_twice(self) -> bool:
        """Whether (10) is differentiated through Delta."""
        return self.delta == "through"

    @property
    def period(self) -> int:
        return self.generator_interval

    @property
    def generator_minibatches(self) -> int:
        return self.generator_steps if self.schedule == "paper" else 0

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
            length = per_sample(delta.flatten(1).norm(dim=1))
            unit = delta / torch.where(length > 0, length, 1)
            across = d_delta - unit * per_sample((d_delta * unit).flatten(1).sum(1))
            d_delta = torch.where(length > 0, across / length, 0)
        return d_delta


@dataclass(frozen=True)
class DropoutGAT(GAT):
    """Dropout + GAT: the clean pass and Delta share one mask, the perturbed pass has its own."""

    name: ClassVar[str] = "dropout-gat"

    dropout: float = dropout_option()

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(dropout_masks(classifier, images, source), dropout_masks(classifier, images, source))
