"""Batch norm over the batches of all ranks, so that n ranks compute what one would.

torch's own SyncBatchNorm runs on GPUs only, and not under torch.func, which the step takes its gradients by.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgat.engine.ranks import Ranks
from fastgat.engine.reduction import differentiable_sum
from fastgat.errors import ConfigError
from fastgat.kernels.backend import accumulation_dtype


class AcrossRanks(_BatchNorm):
    """Mixed into the class of a layer of batch norm: in train mode its statistics are those of all ranks' batches.

    The sums of x - s and (x - s)^2 over the batch travel together, in one collective; s, the running mean, keeps
    their difference from losing its digits.
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
        wide = x.to(accumulation_dtype(x.dtype))
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        count = x.numel() // x.shape[1] * self.ranks.count
        shift = wide.new_zeros(x.shape[1]) if self.running_mean is None else self.running_mean.to(wide.dtype, copy=True)
        wide = wide - shift.view(shape)
        sums = torch.stack([wide.sum(dims), wide.square().sum(dims)])
        mean, square = (differentiable_sum(sums, self.ranks) / count).unbind()
        variance = (square - mean.square()).clamp(min=0)
        self._keep(mean.detach() + shift, variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        wide = (wide - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            wide = wide + self.bias.view(shape)
        return wide.to(x.dtype)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch does: by momentum, or to the average of all batches so far."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return  # torch has all of them or none
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(mean.dtype)
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_(torch.lerp(running, now.to(running.dtype), weight))


@functools.cache
def _across(kind: type[_BatchNorm]) -> type[AcrossRanks]:
    return type(f"{kind.__name__}AcrossRanks", (AcrossRanks, kind), {})


@contextmanager
def batch_norm_across(ranks: Ranks, *modules: nn.Module | None) -> Iterator[None]:
    """Within, the layers of batch norm in `modules` are AcrossRanks; afterwards they are what they were.

    Raises ConfigError for a layer of a kind that computes something else besides.
    """
    inside = [layer for module in modules if module is not None and not ranks.alone for layer in module.modules()]
    layers = [layer for layer in inside if isinstance(layer, _BatchNorm)]
    for layer in layers:
        if type(layer).forward is not _BatchNorm.forward and not hasattr(layer, "act"):
            raise ConfigError(
                f"batch norm of the kind {type(layer).__name__} cannot take its statistics over several ranks: use "
                "torch's BatchNorm, or freeze it in eval mode"
            )
    before = [type(layer) for layer in layers]
    try:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = _across(kind)  # type: ignore[arg-type]  # classes are hashable
            layer.ranks = ranks  # type: ignore[assignment]
        yield
    finally:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = kind
            layer.__dict__.pop("ranks", None)
