"""Dynamic loss scaling for float16, on the device: the host is never asked whether a step overflowed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

START, GROWTH_INTERVAL = 2.0**10, 2000
"""The seeds of a step are one for each sample, not 1 / B, so it starts below the 2^16 of other trainers."""
SMALLEST = 2.0**-14
"""Below it, gradients overflow for a reason that no scale can mend."""


class LossScale(nn.Module):
    """What backward passes are multiplied by, so that small gradients survive float16 (Micikevicius et al. 2018).

    A step with a gradient that is not finite changes nothing but the scale, which it halves; 2000 good steps in a row
    double it.
    """

    scale: Tensor
    good_steps: Tensor
    skipped: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(START, device=device))
        self.register_buffer("good_steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64, device=device))

    def commit_or_restore(self, finite: Tensor, tensors: Iterable[Tensor], before: Iterable[Tensor]) -> None:
        """End a step: take `tensors` back to what they were `before` unless the step was `finite` (0-d, bool)."""
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(finite, tensor, old))
        good = torch.where(finite, self.good_steps + 1, 0)
        grown = good >= GROWTH_INTERVAL
        self.scale.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5))
        self.good_steps.copy_(torch.where(grown, 0, good))
        self.skipped.add_(~finite)


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry of every tensor is finite, 0-d, bool."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
