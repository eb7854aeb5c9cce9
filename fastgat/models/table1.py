"""Table 1 of Lee, Han and Lee (2017): the classifier F and the generator G.

Both are Xavier-initialised, without batch norm. Logits come out of F; the softmax (6) belongs to the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def xavier(module: nn.Module) -> nn.Module:
    """Xavier-uniform weights and zero biases for every convolution of `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


class Classifier(nn.Module):
    """F of Table 1: images (B, C, H, W) in [0, 1] -> logits (B, K). 240,058 parameters for K = 10, C = 3.

    `dropout` is the rate behind each of the two strided convolutions (the paper does not say where it drops; this is
    where all-convolutional networks usually do). The masks are an input, so that two implementations of a training step
    can be given the same ones; without them, train mode draws its own from torch's global generator.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = nn.Conv2d(in_channels, 48, 3, padding=1)
        self.conv2 = nn.Conv2d(48, 48, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(48, 96, 3, padding=1)
        self.conv4 = nn.Conv2d(96, 96, 3, stride=2, padding=1)
        self.conv5 = nn.Conv2d(96, 96, 3, padding=1)
        self.conv6 = nn.Conv2d(96, 96, 1)
        self.conv7 = nn.Conv2d(96, num_classes, 1)
        xavier(self)

    def forward(self, images: Tensor, masks: tuple[Tensor, ...] | None = None) -> Tensor:
        if masks is None:
            masks = self.draw_masks(images) if self.training else ()
        after_conv2, after_conv4 = masks or (None, None)
        x = functional.relu(self.conv1(images))
        x = self._drop(functional.relu(self.conv2(x)), after_conv2)
        x = functional.relu(self.conv3(x))
        x = self._drop(functional.relu(self.conv4(x)), after_conv4)
        x = functional.relu(self.conv5(x))
        x = functional.relu(self.conv6(x))
        return self.conv7(x).mean((2, 3))

    def draw_masks(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The two boolean keep-masks for a batch like `images`; an empty tuple where nothing is dropped."""
        if not self.dropout:
            return ()
        masks = []
        height, width = images.shape[2:]
        for channels in (48, 96):
            height, width = (height + 1) // 2, (width + 1) // 2
            shape = (len(images), channels, height, width)
            masks.append(torch.rand(shape, generator=generator, device=images.device) >= self.dropout)
        return tuple(masks)

    def _drop(self, x: Tensor, keep: Tensor | None) -> Tensor:
        return x if keep is None else x * keep.to(x.dtype) / (1 - self.dropout)


class Generator(nn.Module):
    """G of Table 1 (7): input gradient (B, C, H, W) -> perturbation (B, C, H, W) in (-1, 1).

    Six 3x3 convolutions of `width` channels, one 1x1, ReLU between, then 1x1 to the image's channels and tanh.
    107,763 parameters at width 48. `bounded=False` leaves the tanh to the caller, who may fuse it with what follows, if
    `ends_in_tanh` says so: a subclass may have a `forward` that goes on.
    `in_channels` is for a generator that is given more than the gradient; by default C.
    """

    def __init__(self, width: int = 48, channels: int = 3, in_channels: int | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (in_channels or channels, *[width] * 5):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1)]
        self.body = nn.Sequential(*layers)
        self.ends_in_tanh = type(self).forward is Generator.forward
        xavier(self)

    def forward(self, input_gradient: Tensor, bounded: bool = True) -> Tensor:
        z: Tensor = self.body(input_gradient)
        return z.tanh() if bounded else z
