"""Adam (Kingma and Ba 2015), with weight decay as a part of the gradient, and AdamW (Loshchilov and Hutter 2019), with
decay of its own: torch's arithmetic, over all parameters at once. On a CPU that is torch's fused kernel where it can
take them; otherwise, as on a GPU, it is written out, for Inductor to fuse with what comes before it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgat.config import OptimizerConfig
from fastgat.engine.optimizers.base import Optimizer, PerParameter
from fastgat.engine.optimizers.fused import adam_


class Adam(Optimizer):
    """
    Attributes:
        updates: how many there have been, a 0-d buffer.
    """

    decoupled: ClassVar[bool] = False
    decay: ClassVar[float] = 0.0
    """The weight decay where none is asked for."""
    updates: Tensor

    def __init__(
        self,
        player: nn.Module,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float | None = None,
    ) -> None:
        super().__init__(player, learning_rate)
        self.betas, self.epsilon = betas, 1e-8
        self.weight_decay = self.decay if weight_decay is None else weight_decay
        # An integer: Inductor forgets to write back a 0-d float64 that a compiled step on a CPU has changed.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=self.learning_rate.device))
        self.exp_avg, self.exp_avg_sq = PerParameter(player), PerParameter(player)

    @classmethod
    def of(cls, player: nn.Module, config: OptimizerConfig) -> Adam:
        return cls(player, config.lr, weight_decay=config.weight_decay)

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        weights, g = list(parameters.values()), [gradients[name] for name in parameters]
        m, v = self.exp_avg.of(parameters), self.exp_avg_sq.of(parameters)
        self.updates.add_(1)
        if self._can_fuse(weights, g, m, v):
            decay = self.weight_decay, self.decoupled
            adam_(weights, g, m, v, self.updates, self.learning_rate, list(self.betas), self.epsilon, *decay)
            return
        if self.weight_decay and self.decoupled:
            torch._foreach_mul_(weights, 1 - self.learning_rate * self.weight_decay)
        elif self.weight_decay:
            g = list(torch._foreach_add(g, weights, alpha=self.weight_decay))
        corrections = [1 - beta ** self.updates.double() for beta in self.betas]
        rate = (self.learning_rate / corrections[0]).to(g[0].dtype)
        spread = corrections[1].sqrt().to(g[0].dtype)
        torch._foreach_lerp_(m, g, 1 - self.betas[0])
        torch._foreach_mul_(v, self.betas[1])
        torch._foreach_addcmul_(v, g, g, 1 - self.betas[1])
        divisors = torch._foreach_div(torch._foreach_sqrt(v), spread)
        torch._foreach_add_(divisors, self.epsilon)
        torch._foreach_sub_(weights, torch._foreach_mul(torch._foreach_div(m, divisors), rate))

    @staticmethod
    def _can_fuse(weights: list[Tensor], gradients: list[Tensor], m: list[Tensor], v: list[Tensor]) -> bool:
        """Whether torch's fused kernel can take them: on a CPU, each weight with gradient and moments of its dtype, and
        with moments that lie as it does."""
        return all(
            weight.device.type == "cpu"
            and weight.dtype == gradient.dtype == first.dtype == second.dtype
            and weight.stride() == first.stride() == second.stride()
            for weight, gradient, first, second in zip(weights, gradients, m, v, strict=True)
        )


class AdamW(Adam):
    decoupled: ClassVar[bool] = True
    decay: ClassVar[float] = 0.01
