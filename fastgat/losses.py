"""GAT for a training loop of one's own: the losses of both players, for `backward` and any optimisers.

    classifier_loss, generator_loss = gat_loss(classifier, generator, images, labels)
    (classifier_loss + generator_loss).backward()

gives each player its own gradients and no other's. It is the mathematics in plain autograd, eager, with nothing shared:
`fastgat.compile_step` is the fast way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.contract import check_labels, checked_batch, explained
from fastgat.errors import ConfigError
from fastgat.functional import call
from fastgat.kernels.backend import accumulation_dtype


class GATLoss(NamedTuple):
    """L_F (10) and L_G (9), 0-d, the means over samples; the first moves the classifier alone, the second the
    generator alone."""

    classifier: Tensor
    generator: Tensor


def gat_loss(
    classifier: nn.Module, generator: nn.Module, images: Tensor, labels: Tensor, alpha: float = 0.5, cg: float = 1.0
) -> GATLoss:
    """Both losses of one minibatch, both players at the same point (schedule "simultaneous").

        L_F = alpha J(x) + (1 - alpha) J(x + G(Delta))              (10)
        L_G = F(x + G(Delta))_y + c_g ||G(Delta)||_2^2              (9)

    Args:
        classifier: images (B, C, H, W) -> logits (B, K).
        generator: input gradients Delta = dF(x)_y/dx, (B, C, H, W) -> perturbations of that shape.
        images: (B, C, H, W), floating point, in [0, 1]; they need no gradient and get none.
        labels: (B,), of any integer type.
        alpha, cg: as in the equations.

    Raises ConfigError where images or labels are not as described, which waits for the device, where the generator's
    output has not the images' shape, and where the classifier changes its input in place.
    """
    images, labels = checked_batch(images, labels)
    x = images.detach().requires_grad_()
    with explained(images):
        z = classifier(x)  # one that works in place fails: x is a leaf
    check_labels(labels, z.shape[1])
    probability = z.softmax(1).gather(1, labels[:, None]).sum()
    (delta,) = torch.autograd.grad(probability, x, retain_graph=True)
    p = generator(delta.detach())
    if p.shape != images.shape:
        raise ConfigError(f"the generator made {tuple(p.shape)} for images of {tuple(images.shape)}")
    perturbed = functional.cross_entropy(classifier(images + p.detach()), labels)
    frozen = {name: tensor.detach() for name, tensor in (*classifier.named_parameters(), *classifier.named_buffers())}
    fooled, _ = call(classifier, {name: tensor.clone() for name, tensor in frozen.items()}, (images + p,))
    power = p.to(accumulation_dtype(p.dtype)).flatten(1).square().sum(1)
    each = fooled.softmax(1).gather(1, labels[:, None])[:, 0] + cg * power
    return GATLoss(alpha * functional.cross_entropy(z, labels) + (1 - alpha) * perturbed, each.mean())
