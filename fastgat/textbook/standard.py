"""The rows of Table 2 without an adversary: baseline, dropout, and a random perturbation of the same form as (4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


def baseline_step(
    classifier: nn.Module, optimizer: Optimizer, minibatch: tuple[Tensor, Tensor], masks: tuple[Tensor, ...] = ()
) -> Tensor:
    """One step of F on the mean of J(x, y) (8); with dropout masks, the dropout row."""
    x, y = minibatch
    loss = functional.cross_entropy(classifier(x, masks) if masks else classifier(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def random_perturbation_step(
    classifier: nn.Module,
    optimizer: Optimizer,
    minibatch: tuple[Tensor, Tensor],
    noise: Tensor,
    epsilon: float,
    alpha: float = 0.5,
) -> Tensor:
    """One step of F on alpha J(x) + (1 - alpha) J(x + eps n / ||n||_2) for the noise n, (B, C, H, W)."""
    x, y = minibatch
    eta = epsilon * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    clean = functional.cross_entropy(classifier(x), y)
    perturbed = functional.cross_entropy(classifier(x + eta), y)
    loss = alpha * clean + (1 - alpha) * perturbed
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
