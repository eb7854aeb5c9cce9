"""The two players of a step as plain values: a module, and the tensors that a step may change.

A method never mutates a player. It reads parameters and buffers from here, hands gradients to the engine's `update`,
and passes on the buffers that a forward pass changed (batch-norm statistics), so that a step is a pure function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fastgat.kernels.dual_loss import cross_entropy

Tensors = dict[str, Tensor]
Masks = tuple[Tensor, ...]
Metrics = dict[str, Tensor]
Left = TypeVar("Left")


class Network(NamedTuple):
    """One player: its module, trainable parameters, buffers, and the dtype of autocast (None: as the inputs are)."""

    module: nn.Module
    parameters: Tensors
    buffers: Tensors
    autocast: torch.dtype | None = None

    def __call__(self, parameters: Tensors, inputs: Tensor, masks: Masks = ()) -> tuple[Tensor, Tensors]:
        """The module's output and its buffers afterwards; dropout masks are a second argument where there are any."""
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        with torch.autocast(inputs.device.type, self.autocast, enabled=self.autocast is not None):
            output = functional_call(self.module, (parameters, buffers), (inputs, masks) if masks else (inputs,))
        return output, buffers

    @property
    def interacts(self) -> bool:
        """Whether the samples of a batch influence each other's output: batch norm in train mode."""
        return any(isinstance(layer, _BatchNorm) and layer.training for layer in self.module.modules())


class Players(NamedTuple):
    """F, and G where the method has one."""

    classifier: Network
    generator: Network | None = None

    def after(self, *, classifier: Tensors | None = None, generator: Tensors | None = None) -> Players:
        """The players once a forward pass of F, or of G, has left these buffers."""
        players = self
        if classifier is not None:
            players = players._replace(classifier=players.classifier._replace(buffers=classifier))
        if generator is not None and players.generator is not None:
            players = players._replace(generator=players.generator._replace(buffers=generator))
        return players


class Draws(NamedTuple):
    """The randomness of one minibatch: dropout masks of the clean and the perturbed pass, and noise like the images."""

    clean: Masks = ()
    perturbed: Masks = ()
    noise: Tensor | None = None


class Update(Protocol):
    """Applies a player's gradients; the players that come back are the ones to go on with."""

    def __call__(
        self, players: Players, *, classifier: Tensors | None = None, generator: Tensors | None = None
    ) -> Players: ...


class Aux(NamedTuple):
    """What a forward pass of F leaves beside its loss: how many samples it got right, as a mean, and its buffers."""

    accuracy: Tensor
    buffers: Tensors


def sample_losses(
    classifier: Network, labels: Tensor, masks: Masks = ()
) -> Callable[[Tensors, Tensor], tuple[Tensor, Aux]]:
    """J (8) of each sample as a function of F's parameters and its input, for `torch.func.vjp(..., has_aux=True)`."""

    def losses(parameters: Tensors, images: Tensor) -> tuple[Tensor, Aux]:
        logits, buffers = classifier(parameters, images, masks)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return cross_entropy(logits, labels), Aux(accuracy, buffers)

    return losses


def pull_back(function: Callable[..., tuple[Tensor, Left]], *at: Any) -> tuple[Tensor, Callable[[Tensor], Any], Left]:
    """The value of `function` at `at` (J of each sample, or p), its pull-back from a seed of the value's shape to the
    gradients of each of `at`, and what the forward pass left beside."""
    value, pull, aux = torch.func.vjp(function, *at, has_aux=True)  # type: ignore[misc]  # typed as if without aux
    return value, pull, aux


def mix(gradients: Mapping[str, Tensor], others: Mapping[str, Tensor], alpha: float, samples: int) -> Tensors:
    """The gradient of (2), (4) and (10) from sums over samples: (alpha g + (1 - alpha) g') / B."""
    return {name: (alpha * g + (1 - alpha) * others[name]) / samples for name, g in gradients.items()}
