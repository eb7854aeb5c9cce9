"""timm's ResNet-18 for images of 32 x 32: a 3 x 3 first convolution, no pooling behind it. For `fastgat profile`:

fastgat profile --delta fixed --classifier bench.resnet18:create --batch-size 128 --channels-last
"""

from __future__ import annotations

import timm
from timm.utils.model import freeze_batch_norm_2d
from torch import nn


def create(num_classes: int, in_channels: int) -> nn.Module:
    """Images (B, C, 32, 32) in [0, 1] -> logits (B, K); 11 million parameters, 0.56 G multiply-adds an image."""
    model = timm.create_model("resnet18", num_classes=num_classes, in_chans=in_channels)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def frozen(num_classes: int, in_channels: int) -> nn.Module:
    """The same with its batch norms frozen: no sample influences another."""
    return freeze_batch_norm_2d(create(num_classes, in_channels))
