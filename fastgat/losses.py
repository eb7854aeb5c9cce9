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
from torch.nn.parameter import is_lazy

from fastgat.contract import check_labels, check_logits, checked_batch, network_errors_in_one_line, shape_of
from fastgat.engine.checks import check_nothing_shared
from fastgat.errors import ConfigError
from fastgat.functional import call, parametrizations_uncached
from fastgat.kernels.backend import accumulation_dtype
from fastgat.methods import GAT
from fastgat.methods.double_backward import check_second_derivatives, twice_differentiable
from fastgat.randomness import RandomState, random_state, replayed


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
    delta: str = "through",
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
        delta: "through" differentiates Delta in (10) by the classifier's parameters too; "fixed" holds it constant.

    A network that draws random numbers (dropout) draws the same ones for both losses, and one that changes its buffers
    (batch norm, spectral norm) begins from the same ones.

    Raises ConfigError where images or labels are not as described, which waits for the device, where the classifier
    returns no logits or changes its input in place, where the generator's output has not the images' shape, where both
    would train the same tensor, for another `delta`, where gradients are switched off, and through Delta where a layer
    of the classifier has no second derivative.
    """
    images, labels = checked_batch(images, labels)
    if not len(images):
        raise ConfigError("an empty batch: the losses are means over at least one image")
    if not torch.is_grad_enabled():
        raise ConfigError("gat_loss needs gradients: call it outside of torch.no_grad()")
    method = GAT(alpha=alpha, cg=cg, delta=delta, clamp=clamp)
    for name, network in (("classifier", classifier), ("generator", generator)):
        if not isinstance(network, nn.Module):
            raise ConfigError(f"the {name} must be a torch.nn.Module, got {type(network).__name__}")
    check_nothing_shared(classifier, generator)
    with parametrizations_uncached():
        return _losses(method, classifier, generator, images.detach(), labels)


def _losses(method: GAT, classifier: nn.Module, generator: nn.Module, images: Tensor, labels: Tensor) -> GATLoss:
    x, device = images.clone().requires_grad_(), images.device
    through = method.delta == "through"
    with network_errors_in_one_line(images), twice_differentiable() if through else nullcontext():
        z = _accumulated(check_logits(classifier(x), len(x)))  # one that works in place fails: x is a leaf
        check_labels(labels, z.shape[1])
        probability = z.softmax(1).gather(1, labels[:, None]).sum()
        (input_gradient,) = torch.autograd.grad(
            probability, x, retain_graph=True, create_graph=through, materialize_grads=True
        )
        if through:
            check_second_derivatives(input_gradient)
    before = _state(generator, device) if through else None
    with network_errors_in_one_line(images):
        p = generator(input_gradient.detach())
    if not isinstance(p, Tensor) or p.shape != images.shape:
        raise ConfigError(f"the generator made {shape_of(p)} for images of {shape_of(images)}")
    p_classifier = p.detach() if before is None else _again(generator, before, input_gradient)
    x_classifier, x_generator = ((images + q).clamp(0, 1) if method.clamp else images + q for q in (p_classifier, p))
    before = _state(classifier, device)
    perturbed = functional.cross_entropy(_accumulated(classifier(x_classifier)), labels)
    fooled = _accumulated(_again(classifier, before, x_generator))
    power = _accumulated(p).flatten(1).square().sum(1)
    each = fooled.softmax(1).gather(1, labels[:, None])[:, 0] + method.cg * power
    clean = functional.cross_entropy(z, labels)
    return GATLoss(method.alpha * clean + (1 - method.alpha) * perturbed, each.mean())


def _accumulated(tensor: Tensor) -> Tensor:
    """In float32 where it is in half precision: there F_y of a sure sample rounds to 1, and its gradient to 0."""
    return tensor.to(accumulation_dtype(tensor.dtype))


def _state(module: nn.Module, device: torch.device) -> tuple[RandomState, dict[str, Tensor]]:
    """What decides the output of a forward pass besides parameters: random numbers, and the module's buffers."""
    buffers = ((name, buffer) for name, buffer in module.named_buffers() if not is_lazy(buffer))
    return random_state(device), {name: buffer.detach().clone() for name, buffer in buffers}


def _again(module: nn.Module, state: tuple[RandomState, dict[str, Tensor]], inputs: Tensor) -> Tensor:
    """The module's output from that state; gradients reach the inputs alone, and its buffers stay as they are."""
    drawn, buffers = state
    parameters = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    with replayed(drawn, inputs.device):
        return call(module, parameters | buffers, (inputs,))[0]
