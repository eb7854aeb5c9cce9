"""The gradient of J or F_y by the images, kept as a function of F's parameters: it can be differentiated by them.

With Delta = dF(x)_y/dx and a direction u held fixed, d(u . Delta)/dtheta is a vector-Jacobian product of the backward
pass that gave Delta: a double backward pass. No Hessian is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgat.batch import Batch
from fastgat.errors import ConfigError, first_line
from fastgat.methods.players import Masks, Network, Tensors, logits, value_and_vjp


def loss_and_gradient(
    classifier: Network, minibatch: Batch, masks: Masks = (), *, probability: bool = False
) -> tuple[tuple[Tensor, Tensor], Callable[[Any], Any], tuple[Tensor, Tensors]]:
    """J(x) of each sample, (B,), and the gradient of their sum by the images, (B, C, H, W), with the product of both
    to F's parameters; the logits and the buffers that the pass left.

    With `probability` it is the gradient of the sum of F(x)_y.
    """
    function = logits(classifier, masks)
    scale = 1.0 if classifier.scale is None else classifier.scale  # of the inner backward pass

    def loss(parameters: Tensors, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensors]]:
        with twice_differentiable():
            z, buffers = function(parameters, x)
        return -z.log_softmax(1).gather(1, minibatch.labels[:, None])[:, 0], (z, buffers)

    def cotangent(value: Tensor) -> Tensor:
        return scale * (-torch.exp(-value) if probability else torch.ones_like(value))

    def both(parameters: Tensors) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensors]]:
        if torch.compiler.is_compiling():
            result = torch.func.vjp(lambda x: loss(parameters, x), minibatch.images, has_aux=True)
            value, vjp, aux = result  # type: ignore[misc]  # typed as if without aux
            (gradient,) = vjp(cotangent(value))
        else:  # as `value_and_vjp`, for the sake of what works under autograd alone
            x = minibatch.images.detach().requires_grad_()
            value, aux = loss(parameters, x)
            (gradient,) = torch.autograd.grad(value, x, cotangent(value), create_graph=True, materialize_grads=True)
            check_second_derivatives(gradient)
        return (value, gradient / scale), aux

    value, vjp, aux = value_and_vjp(classifier, both, classifier.parameters)

    def vjp_apart(cotangents: tuple[Tensor, Tensor]) -> tuple[Tensors]:
        """Both products apart, the direction scaled to a largest entry of 1, so that float16 can hold it."""
        by_loss, direction = cotangents
        size = direction.abs().amax().clamp_min(torch.finfo(direction.dtype).tiny)
        (gradients,) = vjp((by_loss, torch.zeros_like(direction)))
        (others,) = vjp((torch.zeros_like(by_loss), direction / size))
        return ({name: gradient + size * others[name] for name, gradient in gradients.items()},)

    return value, vjp if classifier.scale is None else vjp_apart, aux


def check_second_derivatives(gradient: Tensor) -> None:
    """Raises ConfigError where a gradient comes from a function that autograd differentiates once only.

    Asked for the gradients by some tensors only, autograd leaves out such a function's part and says nothing.
    """
    for node in autograd_nodes(gradient):
        if node.name() in ("torch::autograd::Error", "torch::autograd::NotImplemented"):
            try:
                node(*(gradient for _ in node._input_metadata))  # it says why
            except RuntimeError as error:
                raise ConfigError(
                    "a layer of the classifier has no second derivative, which this method needs, but gat with delta "
                    f"fixed does not: {first_line(error)}"
                ) from None


def autograd_nodes(tensor: Tensor) -> Iterator[Any]:
    """The nodes of the graph by which autograd would differentiate `tensor`."""
    waiting: list[Any] = [tensor.grad_fn]
    seen = {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += (before for before, _ in node.next_functions)
            yield node


def twice_differentiable() -> AbstractContextManager[None]:
    """A context in which attention has second derivatives: computed as it is defined, by no fused kernel."""
    return sdpa_kernel(SDPBackend.MATH)
