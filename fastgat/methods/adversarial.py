"""Adversarial training in the L-inf ball: J(x + delta, y), delta made by signed gradient steps from a random start.

    delta_0 = start * u,                        u uniform in [-1, 1] per pixel
    delta_i = clamp(delta_(i-1) + a sign(dJ/dx at x + delta_(i-1)))
    L_F     = J(x + delta_k)                    mean over samples

where clamp keeps |delta| <= eps (unless the method does without) and x + delta in [0, 1]. The gradient steps are taken
in train mode, like everything else; in the running statistics of batch norm they leave no trace, and the pass that F
learns from always counts: there is no clean one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.methods.base import OnePlayer, epsilon_option
from fastgat.methods.joints import perturbation, projected_step, sample_loss
from fastgat.methods.players import Draws, Metrics, Network, Tensors, logits, mean, pull_back
from fastgat.options import option


def step_size_option(default: float, help: str) -> Any:
    return option(default, help, at_least=0)


def attack_steps_option(default: int) -> Any:
    return option(default, "gradient steps of the perturbation", at_least=1)


@dataclass(frozen=True)
class Adversarial(OnePlayer):
    """Base of the methods that train on the perturbed half alone; each says where it starts and how far a step goes."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "perturbed_accuracy", "perturbation_norm")
    projects: ClassVar[bool] = True
    """Whether |delta| <= eps holds after each step."""

    epsilon: float = epsilon_option(8 / 255)

    @property
    def start(self) -> float:
        """The largest entry of delta_0."""
        return self.epsilon

    @property
    def steps(self) -> int:
        return 1

    @property
    def size(self) -> float:
        """a, how far a step goes in each pixel."""
        raise NotImplementedError

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(noise=torch.empty_like(images).uniform_(-1, 1, generator=source))

    def perturbation(self, classifier: Network, minibatch: Batch, noise: Tensor) -> Tensor:
        """delta_k, (B, C, H, W)."""
        images, labels = minibatch
        delta = inside(images, self.start * noise)
        for _ in range(self.steps):
            gradient = loss_gradient(classifier, images + delta, labels)
            radius = self.epsilon if self.projects else None
            delta = projected_step(images, delta, gradient, size=self.size, epsilon=radius)
        return delta

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        assert draws.noise is not None
        moved = perturbation(minibatch.images, self.perturbation(classifier, minibatch, draws.noise), tanh=False)
        of = logits(classifier, draws.perturbed)
        z, pull, buffers = pull_back(classifier, lambda p: of(p, moved.perturbed), classifier.parameters)
        half = sample_loss(z, minibatch.labels)
        (gradients,) = pull(half.gradient)
        metrics = {
            "loss": half.loss.mean(),
            "perturbed_accuracy": half.correct.float().mean(),
            "perturbation_norm": moved.power.sqrt().mean(),
        }
        return mean(gradients, len(z)), metrics, buffers


def loss_gradient(classifier: Network, at: Tensor, labels: Tensor) -> Tensor:
    """dJ/dx at these images, (B, C, H, W)."""
    of = logits(classifier)
    z, pull, _ = pull_back(classifier, lambda x: of(classifier.parameters, x), at)
    (gradient,) = pull(sample_loss(z, labels).gradient)
    return gradient


def inside(images: Tensor, delta: Tensor) -> Tensor:
    """delta cut so that x + delta is an image, in [0, 1]."""
    return torch.clamp(delta, -images, 1 - images)
