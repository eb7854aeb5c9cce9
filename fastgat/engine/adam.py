"""Adam (Kingma and Ba 2015) for one player, with every tensor that it changes in a module.

`torch.optim.Adam` keeps its state in a dictionary of its own, and its fused form cannot be compiled. Here the moments
are buffers, so that one `state_dict()` holds a whole checkpoint and a compiled step finds its state at fixed addresses;
the arithmetic is torch's, over all parameters at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Adam(nn.Module):
    """Adam for the trainable parameters of `player`.

    Attributes:
        learning_rate: the learning rate of the next update, a 0-d buffer of the parameters' dtype.
        updates: how many there have been, a 0-d buffer.
    """

    learning_rate: Tensor
    updates: Tensor

    def __init__(self, player: nn.Module, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__()
        self.betas = betas
        self.epsilon = 1e-8
        trainable = trainable_parameters(player)
        some = next(iter(trainable.values()))
        self.register_buffer("learning_rate", some.new_tensor(learning_rate))
        # An integer: Inductor forgets to write back a 0-d float64 that a compiled step on a CPU has changed.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=some.device))
        self.exp_avg, self.exp_avg_sq = nn.Module(), nn.Module()
        for name, parameter in trainable.items():
            for moment in (self.exp_avg, self.exp_avg_sq):
                moment.register_buffer(buffer_name(name), torch.zeros_like(parameter, requires_grad=False))

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """One step, in place; `gradients` are those of `parameters`, by name."""
        keys = [buffer_name(name) for name in parameters]
        weights, g = list(parameters.values()), [gradients[name] for name in parameters]
        m, v = ([moment.get_buffer(key) for key in keys] for moment in (self.exp_avg, self.exp_avg_sq))
        self.updates.add_(1)
        corrections = [1 - beta ** self.updates.double() for beta in self.betas]
        rate = (self.learning_rate / corrections[0]).to(g[0].dtype)
        spread = corrections[1].sqrt().to(g[0].dtype)
        torch._foreach_lerp_(m, g, 1 - self.betas[0])
        torch._foreach_mul_(v, self.betas[1])
        torch._foreach_addcmul_(v, g, g, 1 - self.betas[1])
        divisors = torch._foreach_div(torch._foreach_sqrt(v), spread)
        torch._foreach_add_(divisors, self.epsilon)
        torch._foreach_sub_(weights, torch._foreach_mul(torch._foreach_div(m, divisors), rate))


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step updates, by name; a shared one appears once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def buffer_name(parameter_name: str) -> str:
    """A parameter's name as one that a buffer may have: buffer names cannot hold dots."""
    return parameter_name.replace(".", "/")
