"""Input gradient: from dJ/dx per sample to what a method feeds on, in one pass over the image.

probability   Delta = dF(x)_y/dx = -exp(-J) dJ/dx      below (7), since J = -log F(x)_y
l2            eta   = eps dJ/dx / ||dJ/dx||_2          (3), the norm per sample; a zero gradient stays zero
linf          eta   = eps sign(dJ/dx)                  (1)
"""

from __future__ import annotations

from torch import Tensor


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """A (B,) tensor shaped to broadcast against (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def sample_norm(images: Tensor) -> Tensor:
    """||.||_2 of each sample: (B, ...) -> (B,)."""
    return images.flatten(1).norm(dim=1)


def probability_gradient(loss_gradient: Tensor, loss: Tensor) -> Tensor:
    """Delta = dF(x)_y/dx from dJ/dx and J: (B, C, H, W), (B,) -> (B, C, H, W) of the gradient's dtype.

    Exact where each sample's loss depends on that sample alone; under train-mode batch norm it is not (seed the
    backward pass with -exp(-J) there instead).
    """
    return loss_gradient * _per_sample(-loss.neg().exp(), loss_gradient).to(loss_gradient.dtype)


def l2_perturbation(loss_gradient: Tensor, epsilon: float) -> Tensor:
    """Fast gradient (3): each sample scaled to the L2 norm `epsilon` (pixel units of [0, 1])."""
    norm = _per_sample(sample_norm(loss_gradient), loss_gradient)
    return loss_gradient * (epsilon / norm.where(norm > 0, norm.new_ones(())))


def linf_perturbation(loss_gradient: Tensor, epsilon: float) -> Tensor:
    """Fast gradient sign (1): `epsilon` times the sign, zero where the gradient is zero."""
    return epsilon * loss_gradient.sign()
