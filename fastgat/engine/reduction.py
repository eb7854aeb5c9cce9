"""What a step computes over all ranks: sums, differentiable ones too, and the mean of gradients, in few large buckets.

These are functional collectives: torch.compile takes them into the step's graph, where Inductor starts each as soon as
its inputs are there and waits for it as late as it can, so that it runs beside the rest of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastgat.engine.ranks import Ranks
from fastgat.methods.players import Tensors

BUCKET_BYTES = 25 * 2**20
"""As in DistributedDataParallel: large enough for the bandwidth, small enough to start before the pass has ended."""


class GradientMean:
    """The mean over ranks of one player's gradients: as ranks have equal parts of a batch, that of the whole batch.

    Args:
        parameters: the player's, by name. Buckets are filled from the last one on, whose gradient is there first.
    """

    def __init__(self, parameters: Mapping[str, Tensor], ranks: Ranks, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.ranks = ranks
        self.buckets: list[list[str]] = []
        self.orders = {name: _outermost_first(parameter) for name, parameter in parameters.items()}
        room, dtype = 0, None
        for name, parameter in reversed(list(parameters.items())):
            if parameter.nbytes > room or parameter.dtype != dtype:
                self.buckets.append([])
                room, dtype = bucket_bytes, parameter.dtype
            self.buckets[-1].append(name)
            room -= parameter.nbytes

    def start(self, gradients: Tensors) -> Callable[[], Tensors]:
        """Begin; what is returned waits for the means, which are laid out in memory like the parameters."""
        if self.ranks.alone:
            return lambda: gradients
        laid_out = {name: gradient.permute(self.orders[name]) for name, gradient in gradients.items()}
        under_way = [
            start_sum(torch.cat([laid_out[name].flatten() for name in names]), self.ranks) for names in self.buckets
        ]

        def finish() -> Tensors:
            means: Tensors = {}
            for names, bucket in zip(self.buckets, under_way, strict=True):
                mean = finish_sum(bucket) / self.ranks.count
                parts = mean.split([laid_out[name].numel() for name in names])
                for name, part in zip(names, parts, strict=True):
                    order = self.orders[name]
                    back = [order.index(d) for d in range(len(order))]
                    means[name] = part.view(laid_out[name].shape).permute(back)
            return means

        return finish


def _outermost_first(tensor: Tensor) -> list[int]:
    """The dimensions as they lie in memory; `Tensor.dim_order` imports SymPy to say so."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dimension: -strides[dimension])


class _Sum(torch.autograd.Function):
    """y = sum of x over ranks, on every rank; so dL/dx is the sum over ranks of their dL/dy."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        return finish_sum(start_sum(x, ranks))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Ranks], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], ctx.ranks), None  # which can be differentiated again


def differentiable_sum(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum of `x` over ranks, through which gradients flow back to all of them."""
    return x if ranks.alone else _Sum.apply(x, ranks)


def everywhere(condition: Tensor, ranks: Ranks) -> Tensor:
    """Whether `condition` (0-d, bool) holds on every rank."""
    return condition if ranks.alone else finish_sum(start_sum((~condition).float(), ranks)) == 0


def start_sum(x: Tensor, ranks: Ranks) -> Tensor:
    """Begin to sum `x` over ranks, into a tensor of its own that is not to be used before `finish_sum`."""
    return torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", ranks.group)


def finish_sum(under_way: Tensor) -> Tensor:
    return torch.ops._c10d_functional.wait_tensor(under_way)
