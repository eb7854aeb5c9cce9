"""The two players of a step as plain values: a module, and the tensors that a step may change.

A method never mutates a player. It reads parameters and buffers from here, hands gradients to the engine's `update`,
and passes on the buffers that a forward pass changed (batch-norm statistics), so that a step is a pure function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fastgat.contract import shape_of
from fastgat.errors import ConfigError
from fastgat.functional import TensorPaths, call, mixed_precision
from fastgat.kernels.backend import accumulation_dtype
from fastgat.kernels.dual_loss import SampleLoss
from fastgat.phases import phase

Tensors = dict[str, Tensor]
Masks = tuple[Tensor, ...]
Metrics = dict[str, Tensor]
Aux = TypeVar("Aux")
Pass = Literal["clean", "perturbed"]


class Network(NamedTuple):
    """One player: a module and its tensors.

    Attributes:
        name: "classifier" or "generator".
        module, parameters, buffers: the module, its trainable parameters and its buffers.
        paths: where its tensors are (`fastgat.functional.tensor_paths`).
        autocast: the dtype of mixed precision (None: as the inputs are).
        scale: the loss scale, 0-d, that keeps float16 gradients from underflowing (None: not needed).
        interacts: whether the samples of a batch influence each other's output, as in train-mode batch norm.
        statistics: which forward passes change the buffers: the "clean" ones, the "perturbed" ones, or "both".
    """

    name: str
    module: nn.Module
    parameters: Tensors
    buffers: Tensors
    paths: TensorPaths
    autocast: torch.dtype | None = None
    scale: Tensor | None = None
    interacts: bool = False
    statistics: str = "both"

    def __call__(self, parameters: Tensors, inputs: Tensor, *more: Any) -> tuple[Tensor, Tensors]:
        """The module's output and its buffers afterwards."""
        tensors = {**parameters, **{name: buffer.clone() for name, buffer in self.buffers.items()}}
        with phase(f"{self.name} forward"), mixed_precision(inputs.device, self.autocast):
            output, aux = call(self.module, tensors, (inputs, *more), self.paths)
        for name, buffer in self.buffers.items():
            if (aux[name].shape, aux[name].dtype) != (buffer.shape, buffer.dtype):
                raise ConfigError(f"the {self.name}'s buffer {name} must keep its shape and dtype in a forward pass")
        return output, {name: aux[name] for name in self.buffers}

    def after(self, which: Pass, buffers: Tensors) -> Network:
        """The player once a forward pass has left these buffers, which count only where `statistics` says so."""
        return self._replace(buffers=buffers) if self.statistics in (which, "both") else self


class Players(NamedTuple):
    """The classifier F, the generator G where the method has one, and the memory handed on from step to step."""

    classifier: Network
    generator: Network | None = None
    memory: Tensor | None = None

    def after_classifier(self, which: Pass, buffers: Tensors) -> Players:
        """The players once a forward pass of F has left these buffers."""
        return self._replace(classifier=self.classifier.after(which, buffers))


class Draws(NamedTuple):
    """The randomness of one minibatch: dropout masks of the clean and the perturbed pass, and noise like the images."""

    clean: Masks = ()
    perturbed: Masks = ()
    noise: Tensor | None = None


class Update(Protocol):
    """The engine's function that applies gradients, and returns the players to go on with."""

    def __call__(
        self, players: Players, *, classifier: Tensors | None = None, generator: Tensors | None = None
    ) -> Players: ...


def logits(classifier: Network, masks: Masks = ()) -> Callable[[Tensors, Tensor], tuple[Tensor, Tensors]]:
    """F's logits (B, K), float32 or wider, and its buffers afterwards, as a function of its parameters and its input.

    Dropout masks are a second argument of the module where there are any.
    """

    def function(parameters: Tensors, images: Tensor) -> tuple[Tensor, Tensors]:
        z, buffers = classifier(parameters, images, *([masks] if masks else []))
        if not isinstance(z, Tensor) or z.dim() != 2:
            raise ConfigError(f"the classifier must return logits (B, K) in train mode too, got {shape_of(z)}")
        return z.to(accumulation_dtype(z.dtype)), buffers

    return function


def classify(
    classifier: Network, images: Tensor, masks: Masks = (), wrt: str = "parameters"
) -> tuple[Tensor, Callable[[Tensor], Any], Tensors]:
    """F's logits, their vector-Jacobian product by "parameters", "images" or "both", and F's buffers afterwards."""
    function = logits(classifier, masks)
    if wrt == "parameters":
        x = images.clone()  # the caller's, which a network may change in place
        return value_and_vjp(classifier, lambda p: function(p, x), classifier.parameters)
    if wrt == "images":
        return value_and_vjp(classifier, lambda x: function(classifier.parameters, x), images)
    return value_and_vjp(classifier, function, classifier.parameters, images)


def value_and_vjp(
    player: Network, function: Callable[..., tuple[Any, Aux]], *primals: Any
) -> tuple[Any, Callable[[Any], Any], Aux]:
    """The value of `function` at the primals, its vector-Jacobian product, and its auxiliary output.

    `function` runs `player`, whose loss scale the product applies and undoes.
    """
    if torch.compiler.is_compiling():
        value, vjp, aux = torch.func.vjp(function, *primals, has_aux=True)  # type: ignore[misc]  # typed as if without aux
    else:
        value, vjp, aux = _autograd(function, *primals)
    scale = player.scale

    def scaled(cotangent: Any) -> Any:
        with phase(f"{player.name} backward"):
            if scale is None:
                return vjp(cotangent)
            return tree_map(lambda g: g / scale, vjp(tree_map(lambda s: s * scale, cotangent)))

    return value, scaled, aux


def _autograd(function: Callable[..., tuple[Any, Aux]], *primals: Any) -> tuple[Any, Callable[[Any], Any], Aux]:
    """As torch.func.vjp, which can be compiled, but under which gradient checkpointing, full backward hooks and the old
    style of autograd.Function do not work."""
    leaves, structure = tree_flatten(tree_map(lambda tensor: tensor.detach().requires_grad_(), primals))
    with torch.enable_grad():
        value, aux = function(*tree_unflatten(leaves, structure))

    def vjp(cotangent: Any) -> Any:
        pairs = zip(tree_leaves(value), tree_leaves(cotangent), strict=True)
        outputs, cotangents = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        gradients = torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True, materialize_grads=True)
        return tree_unflatten(gradients, structure)

    return tree_map(Tensor.detach, value), vjp, tree_map(Tensor.detach, aux)


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook sees what this module is called with, what it returns, or the gradients of these."""
    kinds = "forward", "forward_pre", "backward", "backward_pre"
    return any(getattr(module, f"_{kind}_hooks") for kind in kinds) or bool(_has_any_global_hook())


def probability_cotangent(loss: SampleLoss) -> Tensor:
    """dF(x)_y by the logits, (B, K), from that of J: dF_y = -F_y dJ, since J = -log F_y."""
    return -loss.probability[:, None] * loss.gradient


def mix(gradients: Mapping[str, Tensor], others: Mapping[str, Tensor], alpha: float, samples: int) -> Tensors:
    """The gradient of (2), (4) and (10) from sums over samples: (alpha g + (1 - alpha) g') / B."""
    return {name: (alpha * g + (1 - alpha) * others[name]) / samples for name, g in gradients.items()}


def mean(gradients: Mapping[str, Tensor], samples: int) -> Tensors:
    """The gradient of a mean over samples, from that of the sum."""
    return {name: g / samples for name, g in gradients.items()}


def share_of_zeros(tensor: Tensor) -> Tensor:
    """The share of a tensor's entries that are 0, 0-d, float32."""
    return (tensor == 0).float().mean()
