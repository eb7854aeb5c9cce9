"""Adversarial training with the fast gradient: equations (1) and (2) for L-inf, (3) and (4) for L2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


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
    minibatch: tuple[Tensor, Tensor],
    epsilon: float,
    norm: str,
    alpha: float = 0.5,
) -> Tensor:
    """One step of F on alpha J(x) + (1 - alpha) J(x + eta), (2) or (4), the mean over samples; returns it."""
    x, y = minibatch
    eta = fast_gradient(classifier, x, y, epsilon, norm)
    clean = functional.cross_entropy(classifier(x), y)
    perturbed = functional.cross_entropy(classifier(x + eta), y)
    loss = alpha * clean + (1 - alpha) * perturbed
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
