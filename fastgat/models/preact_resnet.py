"""PreActResNet-18 for images of 32 x 32 (He et al. 2016), with the names of parameters that published weights have.

There are two forms of its blocks, with the same parameters: the shortcut of a strided block starts at x, as in the
code of the single-step papers (FGSM-RS, N-FGSM), or after batch norm and ReLU, as He et al. draw it. Weights of one
form load into the other without an error, where they make another network.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3 x 3 convolutions, each behind batch norm and ReLU, beside a shortcut.

    `late_shortcut`: a shortcut with a convolution starts after the first batch norm and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, late_shortcut: bool) -> None:
        super().__init__()
        self.late_shortcut = late_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(x))
        past = x if self.shortcut is None else self.shortcut(out if self.late_shortcut else x)
        out = self.conv1(out)
        return self.conv2(functional.relu(self.bn2(out))) + past


class PreActResNet18(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K). 11,171,146 parameters for K = 10, C = 3.

    `final_norm` puts batch norm and ReLU before the pooling (1,024 parameters more), as the single-step papers' code.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        final_norm: bool = False,
        late_shortcut: bool = False,
        width: int = 64,
    ) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
            first = Block(inputs * width, outputs * width, stride, late_shortcut)
            return nn.Sequential(first, Block(outputs * width, outputs * width, 1, late_shortcut))

        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.layer1 = layer(1, 1, 1)
        self.layer2 = layer(1, 2, 2)
        self.layer3 = layer(2, 4, 2)
        self.layer4 = layer(4, 8, 2)
        self.bn = nn.BatchNorm2d(8 * width) if final_norm else None
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        if self.bn is not None:
            x = functional.relu(self.bn(x))
        return self.linear(x.mean((2, 3)))
