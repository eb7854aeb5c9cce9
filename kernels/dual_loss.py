"""Dual loss: J(x, y) = -log F(x)_y (8) per sample, and alpha J(x) + (1 - alpha) J(x + p) (2), (4), (10).

J is taken from logits with the log-sum-exp, so F(x)_y = exp(-J) neither overflows nor loses the tail.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """J (8) per sample: logits (B, K), labels (B,) int64 -> (B,), accumulated in float32 or better."""
    accumulate = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(accumulate), labels, reduction="none")


def dual_loss(clean: Tensor, perturbed: Tensor, alpha: float) -> Tensor:
    """L_F (10) per sample from J(x) and J(x + p), each (B,)."""
    return alpha * clean + (1 - alpha) * perturbed
