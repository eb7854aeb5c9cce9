"""Double backpropagation (Drucker and LeCun 1992), in plain eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


def gradient_penalty_step(
    classifier: nn.Module, optimizer: Optimizer, minibatch: tuple[Tensor, Tensor], penalty: float
) -> Tensor:
    """One step of F on J(x) + lambda ||dJ/dx||_2^2, the mean over samples; returns it."""
    x, y = minibatch
    x = x.detach().requires_grad_()
    each = functional.cross_entropy(classifier(x), y, reduction="none")
    (gradient,) = torch.autograd.grad(each.sum(), x, create_graph=True)
    loss = (each + penalty * gradient.flatten(1).square().sum(1)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
