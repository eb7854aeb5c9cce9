"""A loader that keeps a whole image set as bytes on the training device; a batch is one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgat.batch import Batch
from fastgat.data.bad_samples import Rows
from fastgat.data.sampler import Sampled, Sampler
from fastgat.data.sets import ImageSet
from fastgat.kernels.image_batch import image_batch


class ResidentLoader(Sampled):
    """Batches that are gathered and augmented on the device, to which the whole set in memory is copied."""

    def __init__(self, images: ImageSet, sampler: Sampler, **common: Any) -> None:
        super().__init__(images, sampler, **common)
        pixels = torch.from_numpy(np.ascontiguousarray(images.images)).permute(0, 3, 1, 2)
        self.pixels = pixels.to(self.device).contiguous(memory_format=self.layout)
        self.labels = torch.from_numpy(images.labels).to(self.device)
        self.sizes = np.array([images.images.shape[1:3]])
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        while True:
            yield self._batch(player, start)
            start += 1

    def once(self) -> Iterator[Batch]:
        return self.skipped.without_empty(self._in_order())

    def _in_order(self) -> Iterator[Batch]:
        for rows in self.sampler.in_order():
            good = self._sent(rows[self.skipped.good_places(rows)])
            yield Batch(image_batch(self.pixels, good), self.labels[good])

    def _batch(self, player: int, number: int) -> Batch:
        uniforms = self.sampler.uniforms(player, number)
        places = self.skipped.substitutes(self.sampler.rows(player, number)) if len(self.skipped) else None
        rows = self._rows(player, number, places)
        if uniforms is None:
            return Batch(image_batch(self.pixels, rows), self.labels[rows])
        uniforms = uniforms if places is None else uniforms[places]
        augmentation, sizes = self.sampler.augmentation, self.sizes.repeat(len(rows), 0)
        table = augmentation.place(uniforms, sizes, tuple(self.sizes[0])).table()
        resize = augmentation.random_resized_crop is not None
        images = image_batch(self.pixels, rows, self._sent(table), hole=augmentation.hole, resize=resize)
        return Batch(images, self.labels[rows])

    def _rows(self, player: int, number: int, places: Rows | None) -> Tensor:
        """The rows of a batch, on the device, where the order of a whole epoch is kept."""
        if places is not None:
            return self._sent(self.sampler.rows(player, number)[places])
        epoch, part = self.sampler.locate(number)
        known, order = self._orders.get(player, (-1, self.labels))
        if known != epoch:
            order = self._sent(self.sampler.permutation(player, epoch))
            self._orders[player] = (epoch, order)
        return order[part]

    def _sent(self, array: np.ndarray[Any, Any]) -> Tensor:
        """On the device, without waiting for it."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
