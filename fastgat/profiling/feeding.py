"""A step that is fed: the same step, its minibatches from the run's loader instead of memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fastgat.data import Batch, ImageSet, choose, create_loader
from fastgat.phases import phase

if TYPE_CHECKING:
    from fastgat.profiling.sides import Fastgat

BATCHES = 16
"""In the set of random images that feeds it."""


class Feeder:
    """A loader of the kind that the side's configuration asks for, over random bytes."""

    def __init__(self, side: Fastgat) -> None:
        spec, data = side.spec, side.spec.config.data
        count = BATCHES * spec.config.batch_size
        source = np.random.default_rng(0)
        shape = (count, spec.image_size, spec.image_size, spec.channels)
        images = ImageSet(source.integers(0, 256, shape, np.uint8), source.integers(0, spec.num_classes, count))
        self.name = choose(data.loader, images, side.device).name
        loader = create_loader(
            self.name,
            images,
            spec.config.batch_size,
            augmentation=spec.config.augmentation,
            device=side.device,
            channels_last=spec.config.precision.channels_last,
            workers=data.workers,
        )
        self.classifier_batches, self.generator_batches = loader.stream(0), loader.stream(1)
        self.waited = 0.0

    def minibatches(self, count: int) -> list[Batch]:
        """The next `count`: the generator's first, then the classifier's."""
        began = time.perf_counter()
        with phase("data"):
            streams: list[Iterator[Batch]] = [self.generator_batches] * (count - 1) + [self.classifier_batches]
            batches = [next(stream) for stream in streams]
        self.waited += time.perf_counter() - began
        return batches
