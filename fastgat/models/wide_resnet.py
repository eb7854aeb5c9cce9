"""WideResNet for images of 32 x 32 (Zagoruyko and Komodakis 2016), with the names of parameters that the TRADES code,
and after it most published robust weights, have."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.errors import ConfigError


class Block(nn.Module):
    """Two 3 x 3 convolutions, each behind batch norm and ReLU, with dropout between, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(x))
        past = x if self.convShortcut is None else self.convShortcut(out)
        out = functional.relu(self.bn2(self.conv1(out)))
        if self.dropout:
            out = functional.dropout(out, self.dropout, self.training)
        return self.conv2(out) + past


class Group(nn.Module):
    """Blocks of one width, the first with the stride."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride, dropout)
        self.layer = nn.Sequential(first, *(Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K). For K = 10, C = 3 and width 10, 36,479,194 parameters at depth 28
    and 46,160,474 at depth 34.

    Raises ConfigError unless depth is 6 n + 4, n at least 1.
    """

    def __init__(
        self, depth: int = 28, width: int = 10, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest or width < 1:
            raise ConfigError(f"wrn-{depth}-{width}: the depth must be 6 n + 4, such as 28 or 34, the width at least 1")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = Group(blocks, 16, 16 * width, 1, dropout)
        self.block2 = Group(blocks, 16 * width, 32 * width, 2, dropout)
        self.block3 = Group(blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """As the TRADES code: normal weights of variance 2 / (k^2 outputs), and no bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, math.sqrt(2 / (module.weight[0, 0].numel() * module.out_channels)))
        self.fc.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))
