"""Perturbation: x' = x + p and the power ||p||_2^2 of each sample.

The paper does not clamp x + p to the pixel range, so clamping is off unless bounds are given. The power is that of p
before clamping, as in (9). p is never recovered as x' - x: in low precision that loses most of it.
"""

from __future__ import annotations

from torch import Tensor


def perturb(images: Tensor, perturbation: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """x' = clamp(x + p, low, high) for (B, C, H, W); without bounds x' = x + p."""
    perturbed = images + perturbation
    return perturbed if low is None and high is None else perturbed.clamp(low, high)


def power(perturbation: Tensor) -> Tensor:
    """||p||_2^2 of each sample: (B, ...) -> (B,)."""
    return perturbation.flatten(1).square().sum(1)
