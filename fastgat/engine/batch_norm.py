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
        wide = x.to(accumulation_dtype(x.dtype))
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        own, own_mean = torch.var_mean(wide, dims, correction=0)
        mean, variance = self._of_all(own_mean, own)
        count = x.numel() // x.shape[1] * self.ranks.count
        self._keep(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        wide = (wide - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            wide = wide + self.bias.view(shape)
        return wide.to(x.dtype)

    def _of_all(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all ranks' batches, which are of one size, from those of this rank's."""
        mine = torch.stack([mean, variance])
        nothing = torch.zeros_like(mine)
        rows = [mine if rank == self.ranks.rank else nothing for rank in range(self.ranks.count)]
        means, variances = differentiable_sum(torch.stack(rows, 1), self.ranks).unbind()
        whole = means.mean(0)
        return whole, variances.mean(0) + (means - whole).square().mean(0)

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
    """Within, the layers of batch norm in `modules` that are in train mode are AcrossRanks; afterwards they are what
    they were.

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
            layer.__class__ = _across(kind)  # type: ignore[arg-type]  # classes are hashable
            layer.ranks = ranks  # type: ignore[assignment]
        yield
    finally:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = kind
            layer.__dict__.pop("ranks", None)
