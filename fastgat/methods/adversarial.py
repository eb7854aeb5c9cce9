"""Adversarial training in the L-inf ball: J(x + p, y), p made by signed gradient steps from a random start.

    p_0 = clamp(start * u)                      u uniform in [-1, 1] per pixel
    p_i = clamp(p_(i-1) + a sign(dJ/dx at x + p_(i-1)))
    L_F = J(x + p_k)                            mean over samples

where clamp keeps |p| <= eps (unless the method does without) and x + p in [0, 1]. The gradient steps are taken
in train mode, like everything else; in the running statistics of batch norm they leave no trace, and the pass that F
learns from always counts: there is no clean one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.kernels.dual_loss import sample_loss
from fastgat.kernels.perturbation import perturbation
from fastgat.kernels.projected_step import projected_step
from fastgat.methods.base import OnePlayer, epsilon_option, label_smoothing_option, smoothed_loss
from fastgat.methods.players import Draws, Metrics, Network, Tensors, classify, mean
from fastgat.options import option


def step_size_option(default: float) -> Any:
    return option(default, "size of a gradient step in each pixel", at_least=0)


def attack_steps_option(default: int) -> Any:
    return option(default, "gradient steps of the perturbation", at_least=1)


class Ascent(NamedTuple):
    """Signed gradient ascent on J from a random start.

    Attributes:
        start: the largest entry that p_0 may have.
        steps: k.
        size: a, how far a step goes in each pixel.
    """

    start: float
    steps: int
    size: float


@dataclass(frozen=True)
class Adversarial(OnePlayer):
    """Base of the methods that train on perturbed images alone; each has an `ascent` of its own."""

    clean_and_perturbed: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perturbed_accuracy", "perturbation_norm")
    select: ClassVar[str] = "robust"
    projects: ClassVar[bool] = True
    """Whether |p| <= eps holds after each step."""

    epsilon: float = epsilon_option(8 / 255)
    label_smoothing: float = label_smoothing_option()

    @property
    def ascent(self) -> Ascent:
        """How p is found."""
        return Ascent(self.epsilon, 1, self.epsilon)

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(noise=torch.empty_like(images).uniform_(-1, 1, generator=source))

    def attack(self, classifier: Network, minibatch: Batch, noise: Tensor) -> Tensor:
        """The perturbation p_k, (B, C, H, W)."""
        images, labels = minibatch
        start, steps, size = self.ascent
        p = torch.clamp(start * noise, -images, 1 - images)
        for _ in range(steps):
            z, vjp, _ = classify(classifier, images + p, wrt="images")
            (loss_gradient,) = vjp(sample_loss(z, labels).gradient)
            radius = self.epsilon if self.projects else None
            p = projected_step(images, p, loss_gradient, size=size, epsilon=radius)
        return p

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        assert draws.noise is not None
        p = self.attack(classifier, minibatch, draws.noise)
        x_perturbed, power = perturbation(minibatch.images, p, tanh=False)
        z, vjp, buffers = classify(classifier, x_perturbed, draws.perturbed)
        perturbed = smoothed_loss(z, minibatch.labels, self.label_smoothing)
        (gradients,) = vjp(perturbed.gradient)
        metrics = {
            "loss": perturbed.loss.mean(),
            "perturbed_accuracy": perturbed.correct.float().mean(),
            "perturbation_norm": power.sqrt().mean(),
        }
        return mean(gradients, len(z)), metrics, buffers


@dataclass(frozen=True)
class PGDTraining(Adversarial):
    """PGD adversarial training (Madry et al. 2018): k projected signed steps from a random start in the ball."""

    name: ClassVar[str] = "pgd"

    attack_steps: int = attack_steps_option(7)
    step_size: float = step_size_option(2 / 255)

    @property
    def ascent(self) -> Ascent:
        return Ascent(self.epsilon, self.attack_steps, self.step_size)


@dataclass(frozen=True)
class FGSMRandomStart(Adversarial):
    """FGSM-RS (Wong, Rice and Kolter 2020): one signed step of 1.25 eps from a random start, projected."""

    name: ClassVar[str] = "fgsm-rs"

    overshoot: float = option(1.25, "size of the step as a multiple of epsilon", at_least=0)

    @property
    def ascent(self) -> Ascent:
        return Ascent(self.epsilon, 1, self.overshoot * self.epsilon)


@dataclass(frozen=True)
class NoisyFGSM(Adversarial):
    """N-FGSM (de Jorge et al. 2022): noise of up to k eps, then one signed step of eps, and no projection."""

    name: ClassVar[str] = "n-fgsm"
    projects: ClassVar[bool] = False

    noise_factor: float = option(2.0, "k, size of the noise as a multiple of epsilon", at_least=0)

    @property
    def ascent(self) -> Ascent:
        return Ascent(self.noise_factor * self.epsilon, 1, self.epsilon)
