"""A loader that keeps a whole image set as bytes on the training device; a batch is one kernel."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgat.batch import Batch
from fastgat.data.loader import Readable, Requests, SampledLoader
from fastgat.data.sampler import Sampler
from fastgat.data.sets import ImageSet
from fastgat.kernels.image_batch import image_batch


class ResidentLoader(SampledLoader):
    """Batches that are gathered and augmented on the device, to which the whole set in memory is copied."""

    def __init__(self, images: ImageSet, sampler: Sampler, **common: Any) -> None:
        super().__init__(images, sampler, **common)
        pixels = torch.from_numpy(np.ascontiguousarray(images.images)).permute(0, 3, 1, 2)
        self.pixels = pixels.to(self.device).contiguous(memory_format=self.layout)
        self.labels = torch.from_numpy(images.labels).to(self.device)

    def _batches(self, request: Requests, numbers: range, readable: Readable) -> Iterator[Batch]:
        augmentation, size = self.sampler.augmentation, self.images.shape[:2]
        resize = augmentation.random_resized_crop is not None
        for rows, uniforms in map(request, numbers):
            table = None
            if len(self.skipped):
                kept = readable(rows)
                rows, uniforms = rows[kept], None if uniforms is None else uniforms[kept]
            if uniforms is not None:
                table = self._sent(augmentation.place(uniforms, np.tile(size, (len(rows), 1)), size).table())
            indices = self._sent(rows)
            images = image_batch(self.pixels, indices, table, hole=augmentation.hole, resize=resize)
            yield Batch(images, self.labels[indices])

    def _sent(self, array: np.ndarray[Any, Any]) -> Tensor:
        """On the device, without waiting for it."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
