"""Adam (Kingma and Ba 2015) for one player, with every tensor that it changes in a module.

`torch.optim.Adam` keeps its state in a dictionary of its own; here the moments and step counters are buffers, so that
one `state_dict()` holds a whole checkpoint and a compiled step finds its state at fixed addresses. The arithmetic is
torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam(nn.Module):
    """Adam for the trainable parameters of `player`.

    Attributes:
        learning_rate: the learning rate of the next update, a 0-d buffer of the parameters' dtype.
    """

    learning_rate: Tensor

    def __init__(self, player: nn.Module, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__()
        self.betas = betas
        self.epsilon = 1e-8
        trainable = trainable_parameters(player)
        some = next(iter(trainable.values()))
        self.register_buffer("learning_rate", some.new_tensor(learning_rate))
        self.exp_avg, self.exp_avg_sq, self.updates = nn.Module(), nn.Module(), nn.Module()
        for name, parameter in trainable.items():
            key = buffer_name(name)
            for moment in (self.exp_avg, self.exp_avg_sq):
                moment.register_buffer(key, torch.zeros_like(parameter, requires_grad=False))
            self.updates.register_buffer(key, torch.zeros((), dtype=torch.float32, device=parameter.device))

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """One Adam step, in place; `gradients` are those of `parameters`, by name."""
        keys = [buffer_name(name) for name in parameters]
        adam(
            list(parameters.values()),
            [gradients[name] for name in parameters],
            [self.exp_avg.get_buffer(key) for key in keys],
            [self.exp_avg_sq.get_buffer(key) for key in keys],
            [],
            [self.updates.get_buffer(key) for key in keys],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=self.epsilon,
            maximize=False,
        )


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step updates, by name; a shared one appears once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def buffer_name(parameter_name: str) -> str:
    """A parameter's name as one that a buffer may have: buffer names cannot hold dots."""
    return parameter_name.replace(".", "/")
