"""Sums over ranks within a step: differentiable ones, means of gradients in few large buckets, and batch norm.

These are functional collectives: torch.compile takes them into the step's graph, where Inductor starts each as soon as
its inputs are there and waits for it as late as it can, so that it runs beside the rest of the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgat.engine.ranks import Ranks
from fastgat.errors import ConfigError
from fastgat.kernels.backend import accumulation_dtype
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
        """Start the sums; the function that is returned waits for the means, laid out in memory like the parameters."""
        if self.ranks.alone:
            return lambda: gradients
        laid_out = {name: gradient.permute(self.orders[name]) for name, gradient in gradients.items()}
        under_way = [
            start_sum(torch.cat([laid_out[name].flatten() for name in names]), self.ranks.group)
            for names in self.buckets
        ]

        def finish() -> Tensors:
            means: Tensors = {}
            for names, bucket in zip(self.buckets, under_way, strict=True):
                parts = (finish_sum(bucket) / self.ranks.count).split([laid_out[name].numel() for name in names])
                for name, part in zip(names, parts, strict=True):
                    inverse = [self.orders[name].index(d) for d in range(laid_out[name].dim())]
                    means[name] = part.view(laid_out[name].shape).permute(inverse)
            return means

        return finish


def _outermost_first(tensor: Tensor) -> list[int]:
    """The dimensions as they lie in memory; `Tensor.dim_order` imports SymPy to say so."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dimension: -strides[dimension])


class _Sum(torch.autograd.Function):
    """y = sum of x over ranks, on every rank; so dL/dx is the sum over ranks of their dL/dy."""

    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        return finish_sum(start_sum(x, group))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], ctx.group), None  # which can be differentiated again


@torch.compiler.allow_in_graph  # looking into it, Dynamo would drop the second derivative without a word
def _sum_over_group(x: Tensor, group: str) -> Tensor:
    return _Sum.apply(x, group)


def differentiable_sum(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum of `x` over ranks, through which gradients flow back to all of them."""
    return x if ranks.alone else _sum_over_group(x, ranks.group)


def true_on_all_ranks(condition: Tensor, ranks: Ranks) -> Tensor:
    """Whether `condition` (0-d, bool) holds on every rank."""
    return condition if ranks.alone else finish_sum(start_sum((~condition).float(), ranks.group)) == 0


def start_sum(x: Tensor, group: str) -> Tensor:
    """Begin to sum `x` over the ranks of a group, into a new tensor that is not to be used before `finish_sum`."""
    return torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group)


def finish_sum(under_way: Tensor) -> Tensor:
    """The sum that `start_sum` began; waits for it."""
    return torch.ops._c10d_functional.wait_tensor(under_way)


class SyncBatchNorm(_BatchNorm):
    """Batch norm with the statistics of all ranks' batches in train mode; mixed into the class of a layer.

    Each rank's mean and variance travel together, in one collective: sums of squares would lose digits.
    """

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        x = self._normalised(x)
        for name in ("drop", "act"):  # which timm's layers do as well
            further = getattr(self, name, None)
            x = further(x) if further is not None else x
        return x

    def _normalised(self, x: Tensor) -> Tensor:
        accum = x.to(accumulation_dtype(x.dtype))
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        local_variance, local_mean = torch.var_mean(accum, dims, correction=0)
        mean, variance = self._over_ranks(local_mean, local_variance)
        count = x.numel() // x.shape[1] * self.ranks.count
        self._keep(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        accum = (accum - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            accum = accum + self.bias.view(shape)
        return accum.to(x.dtype)

    def _over_ranks(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all ranks' batches, which are of one size, from those of this rank's."""
        mine = torch.stack([mean, variance])
        nothing = torch.zeros_like(mine)
        rows = [mine if rank == self.ranks.rank else nothing for rank in range(self.ranks.count)]
        means, variances = differentiable_sum(torch.stack(rows, 1), self.ranks).unbind()
        whole = means.mean(0)
        return whole, variances.mean(0) + (means - whole).square().mean(0)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, as torch does: by momentum, or to the average of all batches so far."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return  # torch has all of them or none
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(mean.dtype)
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_(torch.lerp(running, now.to(running.dtype), weight))


@functools.cache
def _synchronised(kind: type[_BatchNorm]) -> type[SyncBatchNorm]:
    return type(kind.__name__.replace("BatchNorm", "SyncBatchNorm"), (SyncBatchNorm, kind), {})


@contextmanager
def synchronised_batch_norm(ranks: Ranks, *modules: nn.Module | None) -> Iterator[None]:
    """A context in which train-mode batch norm in `modules` takes its statistics over all ranks (SyncBatchNorm).

    Raises ConfigError for a layer of a kind that computes something else besides.
    """
    inside = [layer for module in modules if module is not None and not ranks.alone for layer in module.modules()]
    layers = [layer for layer in inside if isinstance(layer, _BatchNorm) and layer.training]
    for layer in layers:
        if type(layer).forward is not _BatchNorm.forward and not hasattr(layer, "act"):
            raise ConfigError(
                f"batch norm of the kind {type(layer).__name__} cannot take its statistics over several ranks: use "
                "torch's BatchNorm, or freeze it in eval mode"
            )
    before = [type(layer) for layer in layers]
    try:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = _synchronised(kind)  # type: ignore[arg-type]  # classes are hashable
            layer.ranks = ranks  # type: ignore[assignment]
        yield
    finally:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = kind
            layer.__dict__.pop("ranks", None)
