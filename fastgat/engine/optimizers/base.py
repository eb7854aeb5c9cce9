"""What an optimiser is: a module that holds every tensor it changes, so that a `state_dict()` holds a whole checkpoint
and a compiled step finds its state at fixed addresses. torch's own keep theirs in dictionaries, and break the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgat.config import OptimizerConfig


class Optimizer(nn.Module):
    """Base of the optimisers, each for the trainable parameters of one `player`; `update` is what they add.

    Attributes:
        learning_rate: the learning rate of the next update, a 0-d buffer of the parameters' dtype, or of float32 where
            that is wider.
    """

    learning_rate: Tensor

    def __init__(self, player: nn.Module, learning_rate: float) -> None:
        super().__init__()
        some = next(iter(trainable_parameters(player).values()))
        dtype = torch.promote_types(some.dtype, torch.float32)
        self.register_buffer("learning_rate", torch.tensor(learning_rate, dtype=dtype, device=some.device))

    @classmethod
    def of(cls, player: nn.Module, config: OptimizerConfig) -> Optimizer:
        """As the configuration has it for the classifier."""
        raise NotImplementedError

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """One step, in place; `gradients` are those of `parameters`, by name."""
        raise NotImplementedError


class PerParameter(nn.Module):
    """Zeros like each trainable parameter of `player`, as buffers."""

    def __init__(self, player: nn.Module) -> None:
        super().__init__()
        for name, parameter in trainable_parameters(player).items():
            self.register_buffer(buffer_name(name), torch.zeros_like(parameter, requires_grad=False))

    def of(self, parameters: dict[str, Tensor]) -> list[Tensor]:
        return [self.get_buffer(buffer_name(name)) for name in parameters]


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step updates, by name; a shared one appears once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def buffer_name(parameter_name: str) -> str:
    """A parameter's name as one that a buffer may have: buffer names cannot hold dots."""
    return parameter_name.replace(".", "/")
