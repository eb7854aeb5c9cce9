"""Algorithm 1 of Lee, Han and Lee (2017): alternate k steps of the generator G with one of the classifier F.

Images x are (B, C, H, W) in [0, 1], labels y (B,) int64. `masks` are the dropout masks of the clean and of the
perturbed forward pass, for classifiers that take them as a second argument; without dropout leave them out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

Masks = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
Minibatch = tuple[Tensor, Tensor]


def logits(classifier: nn.Module, x: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    return classifier(x, masks) if masks else classifier(x)


def probability(classifier: nn.Module, x: Tensor, y: Tensor, masks: tuple[Tensor, ...] = ()) -> Tensor:
    """F(x)_y (6) of each sample, (B,)."""
    return logits(classifier, x, masks).softmax(1).gather(1, y[:, None])[:, 0]


def input_gradient(
    classifier: nn.Module, x: Tensor, y: Tensor, masks: tuple[Tensor, ...] = (), create_graph: bool = False
) -> Tensor:
    """Delta = dF(x)_y / dx, below (7): of the probability of the true class, not of the loss."""
    x = x.detach().requires_grad_()
    (delta,) = torch.autograd.grad(probability(classifier, x, y, masks).sum(), x, create_graph=create_graph)
    return delta


def perturbed(x: Tensor, perturbation: Tensor, clamp: bool) -> Tensor:
    """x + G(Delta), kept in [0, 1] if `clamp`; the paper does not clamp."""
    return (x + perturbation).clamp(0, 1) if clamp else x + perturbation


def generator_step(
    classifier: nn.Module,
    generator: nn.Module,
    optimizer: Optimizer,
    minibatch: Minibatch,
    c_g: float,
    masks: Masks = ((), ()),
    clamp: bool = False,
) -> Tensor:
    """One step of G on L_G = F(x + G(Delta))_y + c_g ||G(Delta)||_2^2 (9), the mean over samples; returns it."""
    x, y = minibatch
    delta = input_gradient(classifier, x, y, masks[0])
    perturbation = generator(delta)
    fooled = probability(classifier, perturbed(x, perturbation, clamp), y, masks[1])
    power = perturbation.flatten(1).square().sum(1)
    loss = (fooled + c_g * power).mean()
    optimizer.zero_grad()
    loss.backward(inputs=list(generator.parameters()))
    optimizer.step()
    return loss.detach()


def classifier_step(
    classifier: nn.Module,
    generator: nn.Module,
    optimizer: Optimizer,
    minibatch: Minibatch,
    alpha: float,
    masks: Masks = ((), ()),
    through_delta: bool = True,
    clamp: bool = False,
) -> Tensor:
    """One step of F on L_F = alpha J(x) + (1 - alpha) J(x + G(Delta)) (10), the mean over samples; returns it.

    Delta depends on F's parameters too, and (10) is differentiated by them there as well. Without `through_delta` Delta
    counts as a constant.
    """
    x, y = minibatch
    delta = input_gradient(classifier, x, y, masks[0], create_graph=through_delta)
    with torch.set_grad_enabled(through_delta):
        perturbation = generator(delta)
    clean = functional.cross_entropy(logits(classifier, x, masks[0]), y)
    adversarial = functional.cross_entropy(logits(classifier, perturbed(x, perturbation, clamp), masks[1]), y)
    loss = alpha * clean + (1 - alpha) * adversarial
    optimizer.zero_grad()
    loss.backward(inputs=[parameter for parameter in classifier.parameters() if parameter.requires_grad])
    optimizer.step()
    return loss.detach()


def algorithm1_step(
    classifier: nn.Module,
    generator: nn.Module,
    classifier_optimizer: Optimizer,
    generator_optimizer: Optimizer,
    minibatches: Sequence[Minibatch],
    alpha: float = 0.5,
    c_g: float = 1.0,
    masks: Sequence[Masks] | None = None,
    through_delta: bool = True,
    clamp: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """One round of Algorithm 1: a generator step on each minibatch but the last, a classifier step on the last.

    k generator steps take k + 1 minibatches. Returns the k losses L_G and the loss L_F.
    """
    masks = masks or [((), ())] * len(minibatches)
    generator_losses = [
        generator_step(classifier, generator, generator_optimizer, minibatch, c_g, mask, clamp)
        for minibatch, mask in zip(minibatches[:-1], masks[:-1], strict=True)
    ]
    loss = classifier_step(
        classifier, generator, classifier_optimizer, minibatches[-1], alpha, masks[-1], through_delta, clamp
    )
    return generator_losses, loss
