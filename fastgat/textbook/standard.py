"""The rows of Table 2 without a generator, in plain eager PyTorch: baseline, dropout, random noise, fast gradient.

Images x are (B, C, H, W) in [0, 1], labels y (B,) int64. Every step updates F and returns the mean loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

Minibatch = tuple[Tensor, Tensor]


def learn(optimizer: Optimizer, loss: Tensor) -> Tensor:
    """One step of F down the loss, which it returns."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def baseline_step(
    classifier: nn.Module,
    optimizer: Optimizer,
    minibatch: Minibatch,
    masks: tuple[Tensor, ...] = (),
    label_smoothing: float = 0.0,
) -> Tensor:
    """One step of F on J(x, y) (8); with dropout masks, the dropout row."""
    x, y = minibatch
    logits = classifier(x, masks) if masks else classifier(x)
    return learn(optimizer, functional.cross_entropy(logits, y, label_smoothing=label_smoothing))


def perturbed_step(
    classifier: nn.Module, optimizer: Optimizer, minibatch: Minibatch, eta: Tensor, alpha: float, clamp: bool
) -> Tensor:
    """One step of F on alpha J(x) + (1 - alpha) J(x + eta), (2) or (4); `clamp` keeps x + eta in [0, 1]."""
    x, y = minibatch
    clean = functional.cross_entropy(classifier(x), y)
    perturbed = functional.cross_entropy(classifier((x + eta).clamp(0, 1) if clamp else x + eta), y)
    return learn(optimizer, alpha * clean + (1 - alpha) * perturbed)


def random_perturbation_step(
    classifier: nn.Module,
    optimizer: Optimizer,
    minibatch: Minibatch,
    noise: Tensor,
    epsilon: float,
    alpha: float = 0.5,
    clamp: bool = False,
) -> Tensor:
    """One step of F on (4) with eta = eps n / ||n||_2 for the noise n, (B, C, H, W)."""
    eta = epsilon * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return perturbed_step(classifier, optimizer, minibatch, eta, alpha, clamp)


def fast_gradient(classifier: nn.Module, x: Tensor, y: Tensor, epsilon: float, norm: str) -> Tensor:
    """eta of (1), norm "linf", or of (3), norm "l2", per sample; a sample without gradient gets none."""
    x = x.detach().requires_grad_()
    loss = functional.cross_entropy(classifier(x), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    if norm == "linf":
        return epsilon * gradient.sign()
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return epsilon * gradient / torch.where(length > 0, length, torch.ones_like(length))


def fast_gradient_step(
    classifier: nn.Module,
    optimizer: Optimizer,
    minibatch: Minibatch,
    epsilon: float,
    norm: str,
    alpha: float = 0.5,
    clamp: bool = False,
) -> Tensor:
    """One step of F on (2), norm "linf", or (4), norm "l2"."""
    eta = fast_gradient(classifier, *minibatch, epsilon, norm)
    return perturbed_step(classifier, optimizer, minibatch, eta, alpha, clamp)


def gradient_penalty_step(classifier: nn.Module, optimizer: Optimizer, minibatch: Minibatch, penalty: float) -> Tensor:
    """One step of F on J(x) + lambda ||dJ/dx||_2^2, double backpropagation (Drucker and LeCun 1992)."""
    x, y = minibatch
    x = x.detach().requires_grad_()
    each = functional.cross_entropy(classifier(x), y, reduction="none")
    (gradient,) = torch.autograd.grad(each.sum(), x, create_graph=True)
    return learn(optimizer, (each + penalty * gradient.flatten(1).square().sum(1)).mean())
