"""Input normalisation as part of a classifier, so that images stay in [0, 1] and epsilon keeps its meaning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgat.errors import ConfigError


class Normalize(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> (x - mean) / std, channel by channel.

    Raises ConfigError unless mean and std have an entry for each channel, and std is above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean) or min(std) <= 0:
            raise ConfigError(f"Normalize takes a mean and a std above 0 for each channel, got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype())[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype())[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def normalized(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """`model`, behind the normalisation of its input: modules `normalize` and `model`."""
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), model=model))
