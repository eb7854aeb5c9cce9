"""Networks whose gradients are of no use to an attack, and that are no more robust for it."""

from __future__ import annotations

from torch import Tensor, nn


class Loud(nn.Module):
    """Logits multiplied by 1000: the softmax is sure of itself, and its gradient rounds to nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return 1000 * logits


class Stairs(nn.Module):
    """A staircase on the input: constant almost everywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images * 8).round() / 8)
        return logits
