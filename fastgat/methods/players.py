"""The two players of a step as plain values: a module, and the tensors that a step may change.

A method never mutates a player. It reads parameters and buffers from here, hands gradients to the engine's `update`,
and passes on the buffers that a forward pass changed (batch-norm statistics), so that a step is a pure function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.functional import Places, call
from fastgat.kernels.backend import accumulation_dtype
from fastgat.kernels.dual_loss import SampleLoss
from fastgat.phases import phase

Tensors = dict[str, Tensor]
Masks = tuple[Tensor, ...]
Metrics = dict[str, Tensor]
Left = TypeVar("Left")
Half = Literal["clean", "perturbed"]


class Network(NamedTuple):
    """One player: a module and its tensors.

    Attributes:
        name: "classifier" or "generator".
        module, parameters, buffers: the module, its trainable parameters and its buffers.
        places: those of its tensors (`fastgat.functional.places`).
        autocast: the dtype of mixed precision (None: as the inputs are).
        scale: the loss scale, 0-d, that keeps float16 gradients from underflowing (None: not needed).
        interacts: whether the samples of a batch influence each other's output, as in train-mode batch norm.
        statistics: which forward passes change the buffers: the "clean" ones, the "perturbed" ones, or "both".
    """

    name: str
    module: nn.Module
    parameters: Tensors
    buffers: Tensors
    places: Places
    autocast: torch.dtype | None = None
    scale: Tensor | None = None
    interacts: bool = False
    statistics: str = "both"

    def __call__(self, parameters: Tensors, inputs: Tensor, *more: Any) -> tuple[Tensor, Tensors]:
        """The module's output and its buffers afterwards."""
        tensors = {**parameters, **{name: buffer.clone() for name, buffer in self.buffers.items()}}
        autocast = torch.autocast(inputs.device.type, self.autocast, enabled=self.autocast is not None)
        with phase(f"{self.name} forward"), autocast:
            output, left = call(self.module, tensors, (inputs, *more), self.places)
        for name, buffer in self.buffers.items():
            if (left[name].shape, left[name].dtype) != (buffer.shape, buffer.dtype):
                raise ConfigError(f"the {self.name}'s buffer {name} must keep its shape and dtype in a forward pass")
        return output, {name: left[name] for name in self.buffers}

    def after(self, half: Half, buffers: Tensors) -> Network:
        """The player once a forward pass has left these buffers, which count only where `statistics` says so."""
        return self._replace(buffers=buffers) if self.statistics in (half, "both") else self


class Players(NamedTuple):
    """The classifier F, the generator G where the method has one, and the memory handed on from step to step."""

    classifier: Network
    generator: Network | None = None
    memory: Tensor | None = None

    def after_classifier(self, half: Half, buffers: Tensors) -> Players:
        """The players once a forward pass of F has left these buffers."""
        return self._replace(classifier=self.classifier.after(half, buffers))


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
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ConfigError(f"the classifier must return logits (B, K) in train mode too, got {got}")
        return z.to(accumulation_dtype(z.dtype)), buffers

    return function


def classify(
    classifier: Network, images: Tensor, masks: Masks = (), by: str = "parameters"
) -> tuple[Tensor, Callable[[Tensor], Any], Tensors]:
    """F's logits, their pull-back to gradients by "parameters", "images" or "both", and F's buffers afterwards."""
    function = logits(classifier, masks)
    if by == "parameters":
        return pull_back(classifier, lambda p: function(p, images), classifier.parameters)
    if by == "images":
        return pull_back(classifier, lambda x: function(classifier.parameters, x), images)
    return pull_back(classifier, function, classifier.parameters, images)


def pull_back(
    player: Network, function: Callable[..., tuple[Any, Left]], *at: Any
) -> tuple[Any, Callable[[Any], Any], Left]:
    """The value of `function` at `at`, its pull-back from a seed to the gradients of each of `at`, and what it left.

    `function` runs `player`, whose loss scale the pull-back applies and undoes.
    """
    if torch.compiler.is_compiling():
        value, pull, left = torch.func.vjp(function, *at, has_aux=True)  # type: ignore[misc]  # typed as if without aux
    else:
        value, pull, left = _autograd(function, *at)
    scale = player.scale

    def scaled(seed: Any) -> Any:
        with phase(f"{player.name} backward"):
            if scale is None:
                return pull(seed)
            return tree_map(lambda g: g / scale, pull(tree_map(lambda s: s * scale, seed)))

    return value, scaled, left


def _autograd(function: Callable[..., tuple[Any, Left]], *at: Any) -> tuple[Any, Callable[[Any], Any], Left]:
    """As torch.func.vjp, which can be compiled, but under which gradient checkpointing, full backward hooks and the old
    style of autograd.Function do not work."""
    leaves, structure = tree_flatten(tree_map(lambda tensor: tensor.detach().requires_grad_(), at))
    with torch.enable_grad():
        value, left = function(*tree_unflatten(leaves, structure))

    def pull(seed: Any) -> Any:
        pairs = zip(tree_leaves(value), tree_leaves(seed), strict=True)
        outputs, seeds = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        gradients = torch.autograd.grad(outputs, leaves, seeds, retain_graph=True, materialize_grads=True)
        return tree_unflatten(gradients, structure)

    return tree_map(Tensor.detach, value), pull, tree_map(Tensor.detach, left)


def loss_and_slope(
    classifier: Network, minibatch: Batch, direction: Tensor, masks: Masks = (), *, probability: bool = False
) -> tuple[tuple[Tensor, Tensor], Callable[[Any], Any], Tensors]:
    """J(x) of each sample, (B,), and the slope of their sum along a direction v, 0-d, with the pull-back of both to F's
    parameters and the buffers that the pass left.

    The slope is d/dt of the sum of J(x + t v) at t = 0, or of F(x + t v)_y with `probability`. It is taken in forward
    mode, so that its pull-back needs no derivative of a backward pass. Layers that take statistics of their input are
    the exception: torch's formula for their forward mode cannot itself be differentiated (the statistics count as
    constants), so with them the slope is v . d/dx, and the pull-back a double backward pass.

    Args:
        direction: v, (B, C, H, W), held fixed.
    """
    images, labels = minibatch
    direction = direction.to(images.dtype)
    function = logits(classifier, masks)

    def loss(parameters: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
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

    slope_of = double_backward if classifier.interacts or _has_input_statistics(classifier.module) else forward_mode
    return pull_back(classifier, slope_of, classifier.parameters)


def _has_input_statistics(module: nn.Module) -> bool:
    """Whether a layer normalises by the mean and variance of what it is given, as instance norm does."""
    layers = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
    return any(layer.training or not layer.track_running_stats for layer in layers)


def probability_seed(loss: SampleLoss) -> Tensor:
    """dF(x)_y by the logits, (B, K), from that of J: dF_y = -F_y dJ, since J = -log F_y."""
    return -loss.probability[:, None] * loss.gradient


def mix(gradients: Mapping[str, Tensor], others: Mapping[str, Tensor], alpha: float, samples: int) -> Tensors:
    """The gradient of (2), (4) and (10) from sums over samples: (alpha g + (1 - alpha) g') / B."""
    return {name: (alpha * g + (1 - alpha) * others[name]) / samples for name, g in gradients.items()}


def mean(gradients: Mapping[str, Tensor], samples: int) -> Tensors:
    """The gradient of a mean over samples, from that of the sum."""
    return {name: g / samples for name, g in gradients.items()}
