"""TRADES (Zhang et al. 2019): J(x) + beta KL(F(x) || F(x')), x' the image in the L-inf ball that maximises the KL.

    x'_0 = x + 0.001 n,  n normal            then k signed steps along dKL/dx', projected onto the ball and [0, 1]

The seed of a step is the gradient of the KL by the perturbed logits, F(x') - F(x), with F(x) held fixed. Train and eval
mode differ where there is batch norm or dropout. The authors' code (github.com/yaodongyu/TRADES, trades.py) takes the
steps in eval mode, with the running statistics; much of what came after takes them in train mode. Either way they leave
the running statistics as they are.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.batch import Batch
from fastgat.functional import in_eval_mode
from fastgat.kernels.projected_step import projected_step
from fastgat.methods.adversarial import attack_steps_option, step_size_option
from fastgat.methods.base import OnePlayer, epsilon_option, label_smoothing_option
from fastgat.methods.players import Draws, Metrics, Network, Tensors, classify, logits, mean, value_and_vjp
from fastgat.options import option

START = 1e-3  # the scale of the noise that the steps start from: at x itself the KL has no slope


@dataclass(frozen=True)
class TRADES(OnePlayer):
    name: ClassVar[str] = "trades"
    select: ClassVar[str] = "robust"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "perturbed_accuracy", "perturbation_norm")

    epsilon: float = epsilon_option(8 / 255)
    attack_steps: int = attack_steps_option(10)
    step_size: float = step_size_option(2 / 255)
    beta: float = option(6.0, "weight of the KL divergence", at_least=0)
    attack_mode: str = option(
        "train",
        "mode of the classifier while its perturbation is made: train, or eval as in its authors' code",
        choices=("train", "eval"),
    )
    label_smoothing: float = label_smoothing_option()

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(noise=torch.empty_like(images).normal_(generator=source))

    def attack(self, classifier: Network, images: Tensor, noise: Tensor) -> Tensor:
        """The perturbation p = x' - x, (B, C, H, W)."""
        p = START * noise
        with in_eval_mode(classifier.module) if self.attack_mode == "eval" else contextlib.nullcontext():
            clean = logits(classifier)(classifier.parameters, images.clone())[0].softmax(1)
            for _ in range(self.attack_steps):
                z, vjp, _ = classify(classifier, images + p, wrt="images")
                (gradient,) = vjp(z.softmax(1) - clean)
                p = projected_step(images, p, gradient, size=self.step_size, epsilon=self.epsilon)
        return p

    def gradients(self, classifier: Network, minibatch: Batch, draws: Draws) -> tuple[Tensors, Metrics, Tensors]:
        images, labels = minibatch
        assert draws.noise is not None
        p = self.attack(classifier, images, draws.noise)

        def loss(parameters: Tensors) -> tuple[Tensor, tuple[Any, ...]]:
            z, buffers = logits(classifier, draws.clean)(parameters, images.clone())  # which it may change in place
            after_clean = classifier.after("clean", buffers)
            perturbed, buffers = logits(after_clean, draws.perturbed)(parameters, images + p)
            left = after_clean.after("perturbed", buffers).buffers
            each = functional.cross_entropy(z, labels, reduction="none", label_smoothing=self.label_smoothing)
            log_f = z.log_softmax(1), perturbed.log_softmax(1)
            divergence = functional.kl_div(log_f[1], log_f[0], reduction="none", log_target=True).sum(1)
            return each + self.beta * divergence, (z.argmax(1), perturbed.argmax(1), left)

        each, vjp, (answers, perturbed_answers, buffers) = value_and_vjp(classifier, loss, classifier.parameters)
        (gradients,) = vjp(torch.ones_like(each))
        metrics = {
            "loss": each.mean(),
            "accuracy": (answers == labels).float().mean(),
            "perturbed_accuracy": (perturbed_answers == labels).float().mean(),
            "perturbation_norm": p.flatten(1).norm(dim=1).mean(),
        }
        return mean(gradients, len(each)), metrics, buffers
