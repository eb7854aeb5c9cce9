"""The loader of a run as the source of a profiled step's minibatches."""

import time

import numpy as np
import torch

from fastgat.batch import Batch
from fastgat.config import TrainConfig
from fastgat.data import ImageSet, choose, create_loader
from fastgat.phases import phase

BATCHES = 16  # in the set of random images that feeds it


class Feeder:
    """A loader of the kind that the configuration asks for, over random images of `shape` (H, W, C)."""

    def __init__(
        self, config: TrainConfig, shape: tuple[int, int, int], num_classes: int, device: torch.device
    ) -> None:
        count, source = BATCHES * config.batch_size, np.random.default_rng(0)
        images = ImageSet(source.integers(0, 256, (count, *shape), np.uint8), source.integers(0, num_classes, count))
        self.name = choose(config.data.loader, images, device).name
        loader = create_loader(
            self.name,
            images,
            config.batch_size,
            augmentation=config.augmentation,
            device=device,
            channels_last=config.precision.channels_last,
            workers=config.data.workers,
        )
        self.classifier_batches, self.generator_batches = loader.stream(0), loader.stream(1)
        self.waited = 0.0

    def minibatches(self, count: int) -> list[Batch]:
        """The next `count` minibatches: the generator's first, then the classifier's."""
        began = time.perf_counter()
        with phase("data"):
            streams = [self.generator_batches] * (count - 1) + [self.classifier_batches]
            batches = [next(stream) for stream in streams]
        self.waited += time.perf_counter() - began
        return batches
