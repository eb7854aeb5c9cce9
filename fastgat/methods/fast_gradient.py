"""Training on x and x + eta together: the fast gradient (1) and (3), and random noise of the same form.

    alpha J(x) + (1 - alpha) J(x + eta)         (2) and (4), mean over samples, eta held fixed

One backward pass of J(x) gives F's clean gradient and dJ/dx together, so an eta made from dJ/dx costs no pass of its
own. The seed is the same for every sample, so sharing stays exact under batch norm too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.kernels.dual_loss import perturbed_loss, sample_loss
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.perturbation import perturbation
from fastgat.methods.base import OnePlayer, alpha_option, clamp_option, epsilon_option
from fastgat.methods.players import Draws, Metrics, Network, Tensors, classify, mix


@dataclass(frozen=True)
class Perturbed(OnePlayer):
    """Base of the methods whose perturbation is a formula; `eta` is all that they add."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "perturbed_accuracy", "perturbation_norm")
    needs_input_gradient: ClassVar[bool] = True
    norm: ClassVar[str] = "l2"

    alpha: float = alpha_option()
    epsilon: float = epsilon_option(0.5)
    clamp: bool = clamp_option()

    def eta(self, direction: Tensor) -> Tensor:
        """eta, (B, C, H, W), from dJ/dx, or from the noise unless `needs_input_gradient`."""
        return input_gradient(direction, self.norm, epsilon=self.epsilon).value

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        images, labels = minibatch
        wrt = "both" if self.needs_input_gradient else "parameters"
        z, vjp, buffers = classify(classifier, images, draws.clean, wrt=wrt)
        clean = sample_loss(z, labels)
        clean_gradients, *loss_gradient = vjp(clean.gradient)
        direction = loss_gradient[0] if loss_gradient else draws.noise
        assert direction is not None
        x_perturbed, power = perturbation(images, self.eta(direction), tanh=False, clamp=self.clamp)

        classifier = classifier.after("clean", buffers)
        z, vjp, buffers = classify(classifier, x_perturbed, draws.perturbed)
        perturbed, loss = perturbed_loss(z, labels, clean.loss, self.alpha)
        (gradients,) = vjp(perturbed.gradient)

        metrics = {
            "loss": loss.mean(),
            "accuracy": clean.correct.float().mean(),
            "perturbed_accuracy": perturbed.correct.float().mean(),
            "perturbation_norm": power.sqrt().mean(),
        }
        classifier = classifier.after("perturbed", buffers)
        return mix(clean_gradients, gradients, self.alpha, len(loss)), metrics, classifier.buffers


@dataclass(frozen=True)
class FastGradientL2(Perturbed):
    """eta = eps dJ/dx / ||dJ/dx||_2 (3), loss (4)."""

    name: ClassVar[str] = "fg-l2"


@dataclass(frozen=True)
class FastGradientLinf(Perturbed):
    """eta = eps sign(dJ/dx) (1), loss (2)."""

    name: ClassVar[str] = "fg-linf"
    norm: ClassVar[str] = "linf"

    epsilon: float = epsilon_option(2 / 255)


@dataclass(frozen=True)
class RandomPerturbation(Perturbed):
    """eta = eps n / ||n||_2 for Gaussian noise n, loss (4)."""

    name: ClassVar[str] = "random"
    needs_input_gradient: ClassVar[bool] = False

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(noise=torch.empty_like(images).normal_(generator=source))
