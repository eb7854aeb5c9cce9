"""Input normalisation as part of a classifier, so that images stay in [0, 1] and epsilon keeps its meaning."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgat.errors import ConfigError

USUAL = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and std of each channel of a data set's training images, as the field's code has them."""
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def normalization(mean: str | None, std: str | None, dataset: str) -> Normalization | None:
    """The values that the options `mean` and `std` ask for; None where they are not given.

    Raises ConfigError for text that is not a number a channel, a mean above 1, one without the other, and "dataset"
    where nothing is usual for that data set.
    """
    if mean == "dataset":
        if std is not None:
            raise ConfigError("mean 'dataset' stands for mean and std: leave out std")
        if dataset not in USUAL:
            raise ConfigError(f"no mean and std are usual for {dataset}: give both, such as mean 0.5,0.5,0.5")
        return USUAL[dataset]
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ConfigError("mean and std belong together: give both, or neither")
    values = []
    for name, text in (("mean", mean), ("std", std)):
        try:
            values.append(tuple(float(part) for part in text.split(",")))
        except ValueError:
            raise ConfigError(f"{name} must be a number for each channel, such as 0.5,0.5,0.5; got {text!r}") from None
    if not all(map(math.isfinite, (*values[0], *values[1]))):
        raise ConfigError(f"mean and std must be finite, got {mean!r} and {std!r}")
    if max(values[0]) > 1:
        raise ConfigError(
            f"mean is of pixels in [0, 1], got {mean!r}: for pixels of 0 to 255 divide mean and std by 255"
        )
    return values[0], values[1]


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
