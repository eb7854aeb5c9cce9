"""Stochastic gradient descent with momentum, Nesterov's too (Sutskever et al. 2013): torch's arithmetic.

v <- mu v + g + decay w,      w <- w - lr v      or, with Nesterov,  w <- w - lr (g + decay w + mu v)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgat.config import OptimizerConfig
from fastgat.engine.optimizers.base import Optimizer, PerParameter


class SGD(Optimizer):
    def __init__(
        self,
        player: nn.Module,
        learning_rate: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
    ) -> None:
        super().__init__(player, learning_rate)
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self.velocity = PerParameter(player)

    @classmethod
    def of(cls, player: nn.Module, config: OptimizerConfig) -> SGD:
        return cls(player, config.lr, config.momentum, config.weight_decay or 0.0, nesterov=config.nesterov)

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        weights, g = list(parameters.values()), [gradients[name] for name in parameters]
        v = self.velocity.of(parameters)
        if self.weight_decay:
            g = list(torch._foreach_add(g, weights, alpha=self.weight_decay))
        torch._foreach_mul_(v, self.momentum)
        torch._foreach_add_(v, g)
        moves = torch._foreach_add(g, v, alpha=self.momentum) if self.nesterov else v
        torch._foreach_sub_(weights, torch._foreach_mul(moves, self.learning_rate))
