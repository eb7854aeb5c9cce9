"""Second derivatives without a Hessian: of the slope of J or F_y along a direction, by F's parameters.

For a direction v held fixed, d(v . dJ/dx)/dtheta has two ways. Forward mode gives the slope v . dJ/dx in one pass with
the tangent v, and the pull-back of that pass is a backward pass like any other (`loss_and_slope`). Or dJ/dx is kept as
a function of theta, and pulled back by v: a double backward pass (`loss_and_gradient`).

Forward mode has been taken wherever it is right, though by count and by time it is the dearer of the two
(docs/mathematics.md). It is right only as far as torch's formulas for it can themselves be differentiated: those of
layers that normalise take some statistics for constants, and the result is wrong without a word, by order one. And its
pass is another than the one that gave v, so a classifier that draws random numbers meets others there. So every
classifier is tried once (`forward_mode_is_right`).
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

NORMALISING = _NormBase, nn.GroupNorm, nn.LayerNorm
"""Layers without forward mode: torch differentiates it wrongly, or cannot compile it."""
AGREEMENT = 1e-3
"""How far, relative to its norm, a gradient in float32 may be from that of a double backward pass."""


def loss_and_slope(
    classifier: Network, minibatch: Batch, direction: Tensor, masks: Masks = (), *, probability: bool = False
) -> tuple[tuple[Tensor, Tensor], Callable[[Any], Any], Tensors]:
    """By forward mode: J(x) of each sample, (B,), and the slope of their sum along a direction v, 0-d, with the
    pull-back of both to F's parameters and the buffers that the pass left.

    The slope is d/dt of the sum of J(x + t v) at t = 0, or of F(x + t v)_y with `probability`.

    Args:
        direction: v, (B, C, H, W), held fixed.
    """
    images = minibatch.images
    direction = direction.to(images.dtype)
    loss = _loss(classifier, minibatch, masks)

    def function(parameters: Tensors) -> tuple[tuple[Tensor, Tensor], Tensors]:
        result = torch.func.jvp(lambda x: loss(parameters, x), (images,), (direction,), has_aux=True)
        value, slope, (_, buffers) = result  # type: ignore[misc]  # typed as if without aux
        return (value, (-torch.exp(-value) * slope if probability else slope).sum()), buffers

    return pull_back(classifier, function, classifier.parameters)


def loss_and_gradient(
    classifier: Network, minibatch: Batch, masks: Masks = (), *, probability: bool = False
) -> tuple[tuple[Tensor, Tensor], Callable[[Any], Any], tuple[Tensor, Tensors]]:
    """By a double backward pass: J(x) of each sample, (B,), and the gradient of their sum by the images, with the
    pull-back of both to F's parameters; the logits and the buffers that the pass left.

    With `probability` it is the gradient of the sum of F(x)_y.
    """
    loss = _loss(classifier, minibatch, masks)
    scale = 1.0 if classifier.scale is None else classifier.scale  # of the inner backward pass

    def seed(value: Tensor) -> Tensor:
        return scale * (-torch.exp(-value) if probability else torch.ones_like(value))

    def function(parameters: Tensors) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensors]]:
        if torch.compiler.is_compiling():
            result = torch.func.vjp(lambda x: loss(parameters, x), minibatch.images, has_aux=True)
            value, pull, left = result  # type: ignore[misc]  # typed as if without aux
            (gradient,) = pull(seed(value))
        else:  # as `pull_back`, for the sake of what works under autograd alone
            x = minibatch.images.detach().requires_grad_()
            value, left = loss(parameters, x)
            (gradient,) = torch.autograd.grad(value, x, seed(value), create_graph=True, materialize_grads=True)
        return (value, gradient / scale), left

    value, pull, left = pull_back(classifier, function, classifier.parameters)

    def pull_apart(seed: tuple[Tensor, Tensor]) -> tuple[Tensors]:
        """One after the other: float16 holds a direction of any size once its largest entry is 1."""
        by_loss, direction = seed
        size = direction.abs().amax().clamp_min(torch.finfo(direction.dtype).tiny)
        (gradients,) = pull((by_loss, torch.zeros_like(direction)))
        (others,) = pull((torch.zeros_like(by_loss), direction / size))
        return ({name: gradient + size * others[name] for name, gradient in gradients.items()},)

    return value, pull if classifier.scale is None else pull_apart, left


def _loss(
    classifier: Network, minibatch: Batch, masks: Masks
) -> Callable[[Tensors, Tensor], tuple[Tensor, tuple[Tensor, Tensors]]]:
    """J of each sample, and the logits and the buffers afterwards, as a function of F's parameters and its input."""
    function = logits(classifier, masks)

    def loss(parameters: Tensors, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensors]]:
        with twice_differentiable():
            z, buffers = function(parameters, x)
        return -z.log_softmax(1).gather(1, minibatch.labels[:, None])[:, 0], (z, buffers)

    return loss


def twice_differentiable() -> AbstractContextManager[None]:
    """A context in which attention has second derivatives: computed as it is defined, by no fused kernel."""
    return sdpa_kernel(SDPBackend.MATH)


def forward_mode_is_right(classifier: Network, minibatch: Batch, masks: Masks = ()) -> bool:
    """Whether forward mode gives F's parameters the gradient that a double backward pass gives them, on a minibatch.

    False too where forward mode is not there for a layer, and where F draws random numbers. Nothing changes, the random
    generators neither.

    Raises what the classifier raises in a double backward pass.
    """
    layers, weights = classifier.module.modules(), classifier.parameters.values()
    if any(isinstance(layer, NORMALISING) for layer in layers) or any(w.dtype.itemsize < 4 for w in weights):
        return False
    classifier, images = classifier._replace(autocast=None, scale=None), minibatch.images
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        before = _random_state(images.device)
        (loss, _), pull, _ = loss_and_gradient(classifier, minibatch, masks)
        if not torch.equal(_random_state(images.device), before):  # however seldom its numbers make a difference
            return False
        expected = _flat(pull((torch.zeros_like(loss), direction)))
        try:
            (loss, slope), pull, _ = loss_and_slope(classifier, minibatch, direction, masks)
            gradient = _flat(pull((torch.zeros_like(loss), torch.ones_like(slope))))
        except RuntimeError:
            return False
    return bool((gradient - expected).norm() <= AGREEMENT * expected.norm())


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _flat(gradients: tuple[Tensors]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients[0].values()])
