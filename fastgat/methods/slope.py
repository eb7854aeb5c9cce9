"""The slope of J or F_y along a direction, and the way back from it to F's parameters: second derivatives without a
Hessian.

Forward mode gives the slope in the pass that gives J, and its pull-back is a backward pass like any other: no
derivative of a backward pass is needed. It is right only as far as torch's formulas for forward mode can themselves be
differentiated. Those of layers that normalise take some statistics for constants, and the result is wrong without a
word, by order one. So every classifier is tried once (`forward_mode_is_right`); where forward mode fails, the slope is
v . d/dx, and its pull-back a double backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from fastgat.batch import Batch
from fastgat.methods.players import Masks, Network, Tensors, logits, pull_back
from fastgat.randomness import seed_torch

NORMALISING = _NormBase, nn.GroupNorm, nn.LayerNorm
"""Layers without forward mode: torch differentiates it wrongly, or cannot compile it."""
AGREEMENT = 1e-3
"""How far, relative to its norm, a gradient in float32 may be from that of a double backward pass."""


def loss_and_slope(
    classifier: Network, minibatch: Batch, direction: Tensor, masks: Masks = (), *, probability: bool = False
) -> tuple[tuple[Tensor, Tensor], Callable[[Any], Any], Tensors]:
    """J(x) of each sample, (B,), and the slope of their sum along a direction v, 0-d, with the pull-back of both to F's
    parameters and the buffers that the pass left.

    The slope is d/dt of the sum of J(x + t v) at t = 0, or of F(x + t v)_y with `probability`.

    Args:
        direction: v, (B, C, H, W), held fixed.
    """
    images, labels = minibatch
    direction = direction.to(images.dtype)
    function = logits(classifier, masks)

    def loss(parameters: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        with twice_differentiable():
            z, buffers = function(parameters, x)
        return -z.log_softmax(1).gather(1, labels[:, None])[:, 0], buffers

    def forward_mode(parameters: Tensors) -> tuple[tuple[Tensor, Tensor], Tensors]:
        result = torch.func.jvp(lambda x: loss(parameters, x), (images,), (direction,), has_aux=True)
        value, slope, buffers = result  # type: ignore[misc]  # typed as if without aux
        return (value, (-torch.exp(-value) * slope if probability else slope).sum()), buffers

    def double_backward(parameters: Tensors) -> tuple[tuple[Tensor, Tensor], Tensors]:
        value, pull, buffers = torch.func.vjp(lambda x: loss(parameters, x), images, has_aux=True)  # type: ignore[misc]
        (gradient,) = pull(-torch.exp(-value) if probability else torch.ones_like(value))
        return (value, (gradient * direction).sum()), buffers

    return pull_back(classifier, forward_mode if classifier.forward_mode else double_backward, classifier.parameters)


def twice_differentiable() -> AbstractContextManager[None]:
    """A context in which attention has second derivatives: computed as it is defined, by no fused kernel."""
    return sdpa_kernel(SDPBackend.MATH)


def forward_mode_is_right(classifier: Network, minibatch: Batch, masks: Masks = ()) -> bool:
    """Whether forward mode gives F's parameters the gradient that a double backward pass gives them, on a minibatch.

    False too where forward mode is not there for a layer. Nothing changes, the random generators neither.

    Raises what the classifier raises in a double backward pass.
    """
    layers, weights = classifier.module.modules(), classifier.parameters.values()
    if any(isinstance(layer, NORMALISING) for layer in layers) or any(w.dtype.itemsize < 4 for w in weights):
        return False
    images = minibatch.images
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    gradients: list[Tensor] = []
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        for forward_mode in (False, True):
            seed_torch(0, images.device)  # the same dropout for both
            tried = classifier._replace(forward_mode=forward_mode, autocast=None, scale=None)
            try:
                (loss, slope), pull, _ = loss_and_slope(tried, minibatch, direction, masks)
                (found,) = pull((torch.zeros_like(loss), torch.ones_like(slope)))
            except RuntimeError:
                if not forward_mode:
                    raise
                return False
            gradients.append(torch.cat([gradient.flatten() for gradient in found.values()]))
    expected, gradient = gradients
    return bool((gradient - expected).norm() <= AGREEMENT * expected.norm())
