"""A loader over anything that yields (images, labels), such as a torch DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgat.batch import Batch
from fastgat.data.bad_samples import BadSamples
from fastgat.errors import ConfigError, DataError
from fastgat.kernels.image_batch import unit_scaled


class IterableLoader:
    """Wraps a sized iterable of (images, labels) pairs; one pass over it is one epoch.

    Images are (B, C, H, W), uint8 or floating point in [0, 1]; labels (B,) of an integer type. Each player iterates it
    on its own, so a shuffling loader gives each its own order. Resuming skips the batches already seen, which is exact
    only where the iterable repeats itself.

    Raises ConfigError if the iterable has no length, and DataError for a batch that is not as described.
    """

    def __init__(
        self,
        source: Iterable[Any],
        num_classes: int,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        if not hasattr(source, "__len__"):
            raise ConfigError("a custom loader needs a length: the number of batches in an epoch")
        self.source: Any = source
        self.num_classes, self.device = num_classes, torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def batches_per_epoch(self) -> int:
        return len(self.source)

    @property
    def skipped(self) -> BadSamples:
        """None: what a custom loader yields is used."""
        return BadSamples()

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        shape = None
        for pair in itertools.islice(self._passes(), start, None):
            batch = self._checked(pair)
            shape = shape or batch.images.shape
            if batch.images.shape != shape:
                raise DataError(
                    f"training batches must have one shape, got {tuple(shape)} and {tuple(batch.images.shape)}; "
                    "a DataLoader needs drop_last=True"
                )
            yield batch

    def _passes(self) -> Iterator[Any]:
        """The source over and over."""
        while True:
            count = 0
            for pair in self.source:
                count += 1
                yield pair
            if count != len(self.source):
                raise DataError(
                    f"a pass over the loader gave {count} batches, but its length is {len(self.source)}; it must be "
                    "iterable again and again"
                )

    def once(self) -> Iterator[Batch]:
        return map(self._checked, self.source)

    def _checked(self, pair: Any) -> Batch:
        try:
            images, labels = pair
        except (TypeError, ValueError):
            raise DataError("a custom loader must yield (images, labels) pairs") from None
        if not isinstance(images, Tensor) or images.dim() != 4 or not _is_pixel_type(images.dtype):
            raise DataError(f"expected images (B, C, H, W) of uint8 or a floating type, got {_described(images)}")
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
            raise DataError(f"expected {len(images)} integer labels, got {_described(labels)}")
        if not len(labels):
            raise DataError("a custom loader has yielded a batch without images")
        low, high = labels.aminmax()
        if low < 0 or high >= self.num_classes:
            raise DataError(f"labels from {low} to {high}, but the classifier has classes 0..{self.num_classes - 1}")
        if images.dtype == torch.uint8:
            images = unit_scaled(images)
        else:
            low, high = images.aminmax()
            if not (low >= 0 and high <= 1):
                raise DataError(f"pixels from {low:.4g} to {high:.4g}; they must lie in [0, 1]")
        images = images.to(self.device, torch.float32, non_blocking=True).contiguous(memory_format=self.layout)
        return Batch(images, labels.to(self.device, torch.int64, non_blocking=True))


def _is_pixel_type(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype == torch.uint8


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
