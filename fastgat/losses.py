"""GAT for a training loop of one's own: the losses of both players, for `backward` and any optimisers.

    classifier_loss, generator_loss = gat_loss(classifier, generator, images, labels)
    (classifier_loss + generator_loss).backward()

gives each player its own gradients and no other's. It is the mathematics in plain autograd, eager, with nothing shared:
`fastgat.compile_step` is the fast way.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.contract import check_labels, check_logits, checked_batch, explained
from fastgat.errors import ConfigError
from fastgat.functional import call
from fastgat.kernels.backend import accumulation_dtype
from fastgat.methods import GAT
from fastgat.methods.double_backward import twice_differentiable
from fastgat.randomness import random_state, replayed


class GATLoss(NamedTuple):
    """The means over samples of L_F (10) and L_G (9), 0-d; each trains its player alone."""

    classifier: Tensor
    generator: Tensor


def gat_loss(
    classifier: nn.Module,
    generator: nn.Module,
    images: Tensor,
    labels: Tensor,
    alpha: float = 0.5,
    cg: float = 1.0,
    delta: str = "fixed",
    clamp: bool = False,
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
        clamp: keep x + G(Delta) in [0, 1]; the power is that of G(Delta) before it.
        delta: "fixed" holds Delta constant in (10); "through" differentiates it by the classifier's parameters too.

    A network that draws random numbers (dropout) draws the same ones for both losses.

    Raises ConfigError where images or labels are not as described, which waits for the device, where the classifier
    returns no logits or changes its input in place, where the generator's output has not the images' shape, for another
    `delta`, and where gradients are switched off.
    """
    images, labels = checked_batch(images, labels)
    if not len(images):
        raise ConfigError("an empty batch: the losses are means over at least one image")
    if not torch.is_grad_enabled():
        raise ConfigError("gat_loss needs gradients: call it outside of torch.no_grad()")
    method = GAT(alpha=alpha, cg=cg, delta=delta, clamp=clamp)
    images, device = images.detach(), images.device
    x = images.clone().requires_grad_()
    through = method.delta == "through"
    with explained(images), twice_differentiable() if through else nullcontext():
        z = check_logits(classifier(x), len(x))  # one that works in place fails: x is a leaf
    check_labels(labels, z.shape[1])
    probability = z.softmax(1).gather(1, labels[:, None]).sum()
    (input_gradient,) = torch.autograd.grad(
        probability, x, retain_graph=True, create_graph=through, materialize_grads=True
    )
    before = random_state(device)
    with explained(images):
        p = generator(input_gradient.detach())
    if not isinstance(p, Tensor) or p.shape != images.shape:
        made = tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__
        raise ConfigError(f"the generator made {made} for images of {tuple(images.shape)}")
    p_classifier = p.detach()
    if through:
        with replayed(before, device):
            p_classifier = _frozen(generator, input_gradient)
    x_classifier, x_generator = ((images + q).clamp(0, 1) if method.clamp else images + q for q in (p_classifier, p))
    before = random_state(device)
    perturbed = functional.cross_entropy(classifier(x_classifier), labels)
    with replayed(before, device):
        fooled = _frozen(classifier, x_generator)
    power = p.to(accumulation_dtype(p.dtype)).flatten(1).square().sum(1)
    each = fooled.softmax(1).gather(1, labels[:, None])[:, 0] + method.cg * power
    clean = functional.cross_entropy(z, labels)
    return GATLoss(method.alpha * clean + (1 - method.alpha) * perturbed, each.mean())


def _frozen(module: nn.Module, inputs: Tensor) -> Tensor:
    """The module's output; gradients reach the inputs alone, and its buffers stay as they are."""
    tensors = {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return call(module, tensors, (inputs,))[0]
