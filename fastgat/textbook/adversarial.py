"""Adversarial training as its authors write it: PGD, FGSM-RS, N-FGSM, Free, TRADES, in L-inf, in plain eager PyTorch.

Images x are (B, C, H, W) in [0, 1]; `noise` is drawn by the caller, like x. Every step updates F, which is in train
mode, in place and returns the mean loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from fastgat.textbook.standard import Minibatch, learn


def ball_step(
    classifier: nn.Module,
    optimizer: Optimizer,
    minibatch: Minibatch,
    noise: Tensor,
    epsilon: float,
    *,
    start: float,
    size: float,
    steps: int = 1,
    project: bool = True,
    label_smoothing: float = 0.0,
) -> Tensor:
    """One step of F on J(x + p): PGD (Madry et al. 2018), FGSM-RS (Wong et al. 2020), N-FGSM (de Jorge et al.
    2022). `noise` is uniform in [-1, 1]. The labels that p is made with are not smoothed.
    """
    x, y = minibatch
    p = (start * noise).clamp(-x, 1 - x)
    for _ in range(steps):
        p.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(classifier(x + p), y), p)
        p = p.detach() + size * gradient.sign()
        if project:
            p = p.clamp(-epsilon, epsilon)
        p = p.clamp(-x, 1 - x)
    return learn(optimizer, functional.cross_entropy(classifier(x + p), y, label_smoothing=label_smoothing))


def free_step(
    classifier: nn.Module, optimizer: Optimizer, minibatch: Minibatch, p: Tensor, epsilon: float, replays: int
) -> list[Tensor]:
    """m steps of F on one minibatch (Shafahi et al. 2019); `p` is carried on, in place. Returns the m losses."""
    x, y = minibatch
    losses = []
    for _ in range(replays):
        at = p.clone().requires_grad_()
        losses.append(learn(optimizer, functional.cross_entropy(classifier((x + at).clamp(0, 1)), y)))
        assert at.grad is not None  # of the same backward pass as F's
        p.copy_((p + epsilon * at.grad.sign()).clamp(-epsilon, epsilon))
    return losses


def trades_step(
    classifier: nn.Module,
    optimizer: Optimizer,
    minibatch: Minibatch,
    noise: Tensor,
    epsilon: float,
    size: float,
    steps: int,
    beta: float,
    label_smoothing: float = 0.0,
    *,
    attack_in_eval_mode: bool = False,
) -> Tensor:
    """One step of F on J(x) + beta KL(F(x) || F(x')) (Zhang et al. 2019), whose code attacks in eval mode; `noise` is
    normal.
    """
    x, y = minibatch
    perturbed = x + 0.001 * noise
    classifier.train(not attack_in_eval_mode)
    with torch.no_grad():
        clean = classifier(x).softmax(1)
    for _ in range(steps):
        perturbed = perturbed.detach().requires_grad_()
        divergence = functional.kl_div(classifier(perturbed).log_softmax(1), clean, reduction="sum")
        (gradient,) = torch.autograd.grad(divergence, perturbed)
        perturbed = perturbed.detach() + size * gradient.sign()
        perturbed = torch.min(torch.max(perturbed, x - epsilon), x + epsilon).clamp(0, 1)
    classifier.train()
    logits = classifier(x)
    divergence = functional.kl_div(classifier(perturbed).log_softmax(1), logits.softmax(1), reduction="batchmean")
    loss = functional.cross_entropy(logits, y, label_smoothing=label_smoothing)
    return learn(optimizer, loss + beta * divergence)
