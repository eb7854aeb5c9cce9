"""A loader on torch's DataLoader and Pillow: slower than the others, and wherever PyTorch is."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastgat.batch import Batch
from fastgat.data.augmentation import Augmentation, Uniforms
from fastgat.data.bad_samples import Rows
from fastgat.data.decoding import BadSampleError, arrange
from fastgat.data.encoded import EncodedSet
from fastgat.data.sampler import Sampled, Sampler
from fastgat.data.sets import Images, ImageSet
from fastgat.kernels.image_batch import unit_scaled
from fastgat.processes import launched

Key = tuple[Rows, Uniforms | None]
"""The rows of a batch, and what is drawn for them."""


class Samples(NamedTuple):
    """A batch of images, (B, H, W, C) uint8, and labels; black where there is a flaw."""

    rows: Rows
    images: Tensor
    labels: Tensor
    flaws: list[tuple[int, str]]


@dataclass
class Arranged(Dataset[Samples]):
    """A data set that is asked for whole batches."""

    images: Images
    augmentation: Augmentation

    def __getitem__(self, key: Key) -> Samples:
        rows, uniforms = key
        output, hole = self.images.shape[:2], self.augmentation.hole if uniforms is not None else 0
        arranged, flaws = np.zeros((len(rows), *self.images.shape), np.uint8), []
        for place, row in enumerate(rows.tolist()):
            drawn = None if uniforms is None else uniforms[place : place + 1]
            try:
                image = self.images.images[row] if isinstance(self.images, ImageSet) else self.images.decoded(row)
                placement = self.augmentation.place(drawn, np.array([image.shape[:2]]), output)
                arranged[place] = arrange(image, placement, output, hole)
            except BadSampleError as error:
                flaws.append((row, str(error)))
        return Samples(rows, torch.from_numpy(arranged), torch.from_numpy(self.images.labels[rows]), flaws)


def _as_it_is(samples: Samples) -> Samples:
    return samples


def leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; it is the run's to end its workers, by SIGTERM. torchrun's SIGTERM
    reaches every process of a rank's group: workers of one of several ranks have a group of their own."""
    if launched():
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class TorchLoader(Sampled):
    """Batches that `workers` processes of a DataLoader prepare by Pillow, or this process where there are none."""

    def __init__(self, images: Images, sampler: Sampler, *, workers: int = 0, **common: Any) -> None:
        super().__init__(images, sampler, **common)
        self.workers = workers

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        numbers = itertools.count(start)
        keys = ((self.sampler.rows(player, number), self.sampler.uniforms(player, number)) for number in numbers)
        for samples in self._loaded(keys):
            yield self._batch(samples, self.skipped.substitutes(samples.rows))

    def once(self) -> Iterator[Batch]:
        loaded = self._loaded((rows, None) for rows in self.sampler.in_order())
        batches = (self._batch(samples, self.skipped.good_places(samples.rows)) for samples in loaded)
        return self.skipped.without_empty(batches)

    def _loaded(self, keys: Iterator[Key]) -> Iterator[Samples]:
        loader = DataLoader(
            Arranged(self.images, self.sampler.augmentation),
            batch_size=None,
            sampler=keys,
            num_workers=self.workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # torch's annotation knows of lists only
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=self.device.type == "cuda",
        )
        for samples in loader:
            for row, flaw in samples.flaws:
                assert isinstance(self.images, EncodedSet)
                self.skipped.report(row, self.images.name(row), flaw)
            yield samples

    def _batch(self, samples: Samples, places: Rows) -> Batch:
        images, labels = samples.images, samples.labels
        if samples.flaws:
            images, labels = images[torch.from_numpy(places)], labels[torch.from_numpy(places)]
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        return Batch(unit_scaled(images), labels.to(self.device, non_blocking=True))
