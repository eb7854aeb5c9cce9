"""A loader on torch's DataLoader and Pillow: slower than the others, and wherever PyTorch is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastgat.batch import Batch
from fastgat.data.augmentation import Augmentation, Uniforms
from fastgat.data.bad_samples import BadSamples, Rows
from fastgat.data.decoding import BadSampleError, arrange
from fastgat.data.encoded import EncodedSet
from fastgat.data.sampler import Sampled, Sampler
from fastgat.data.sets import Images, ImageSet
from fastgat.kernels.image_batch import unit_scaled
from fastgat.processes import launched


class Key(NamedTuple):
    """One sample of a batch, and what is drawn for it."""

    row: int
    uniforms: Uniforms | None


class Sample(NamedTuple):
    """Pixels (C, H, W) uint8, and the label; or why there are none."""

    row: int
    pixels: Tensor
    label: int
    flaw: str | None = None


class Samples(NamedTuple):
    """A batch of them: pixels (B, C, H, W) uint8."""

    rows: Rows
    pixels: Tensor
    labels: Tensor
    flaws: list[tuple[int, str]]


@dataclass
class Arranged(Dataset[Sample]):
    """A data set that is asked by key."""

    images: Images
    augmentation: Augmentation

    def __getitem__(self, key: Key) -> Sample:
        output = self.images.shape[:2]
        label = int(self.images.labels[key.row])
        try:
            image = self.images.images[key.row] if isinstance(self.images, ImageSet) else self.images.decoded(key.row)
        except BadSampleError as error:
            height, width, channels = self.images.shape
            return Sample(key.row, torch.zeros(channels, height, width, dtype=torch.uint8), label, str(error))
        uniforms = None if key.uniforms is None else key.uniforms[None]
        placement = self.augmentation.place(uniforms, np.array([image.shape[:2]]), output)
        hole = 0 if uniforms is None else self.augmentation.hole
        arranged = arrange(image, placement, output, hole)
        return Sample(key.row, torch.from_numpy(arranged.copy()).permute(2, 0, 1), label)


def collate(samples: list[Sample]) -> Samples:
    return Samples(
        np.array([sample.row for sample in samples]),
        torch.stack([sample.pixels for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        [(sample.row, sample.flaw) for sample in samples if sample.flaw is not None],
    )


def leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; it is the run's to end its workers, by SIGTERM. torchrun's SIGTERM
    reaches every process of a rank's group: workers of one of several ranks have a group of their own."""
    if launched():
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass
class Keys:
    """An iterable, again and again, of the keys of each batch."""

    batches: Callable[[], Iterator[list[Key]]]

    def __iter__(self) -> Iterator[list[Key]]:
        return self.batches()


class TorchLoader(Sampled):
    """Batches of float32 images in [0, 1] on the training device.

    Args:
        images: in memory, or in files that Pillow decodes.
        sampler: which samples are in which batch.
        workers: processes of the DataLoader; 0 prepares batches in this one.
        bad: samples that are not to be used, added to as they are found.
    """

    def __init__(
        self,
        images: Images,
        sampler: Sampler,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
        bad: BadSamples | None = None,
    ) -> None:
        super().__init__(sampler, bad)
        self.images, self.device = images, torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.workers = workers

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        def keys() -> Iterator[list[Key]]:
            number = start
            while True:
                rows, uniforms = self.sampler.rows(player, number), self.sampler.uniforms(player, number)
                yield [Key(int(row), None if uniforms is None else uniforms[i]) for i, row in enumerate(rows)]
                number += 1

        for samples in self._loaded(keys):
            self._report(samples)
            yield self._batch(samples, self.bad.substitutes(samples.rows))

    def once(self) -> Iterator[Batch]:
        def keys() -> Iterator[list[Key]]:
            return ([Key(int(row), None) for row in rows] for rows in self.sampler.in_order())

        def batches() -> Iterator[Batch]:
            for samples in self._loaded(keys):
                self._report(samples)
                yield self._batch(samples, np.flatnonzero(np.isin(samples.rows, self.bad.good(samples.rows))))

        return self.bad.without_empty(batches())

    def _loaded(self, keys: Callable[[], Iterator[list[Key]]]) -> Iterable[Samples]:
        return DataLoader(
            Arranged(self.images, self.sampler.augmentation),
            batch_sampler=Keys(keys),  # of keys, not of numbers
            num_workers=self.workers,
            collate_fn=collate,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=self.device.type == "cuda",
        )

    def _report(self, samples: Samples) -> None:
        for row, flaw in samples.flaws:
            assert isinstance(self.images, EncodedSet)
            self.bad.report(row, self.images.name(row), flaw)

    def _batch(self, samples: Samples, places: Rows) -> Batch:
        pixels, labels = samples.pixels, samples.labels
        if samples.flaws:
            pixels, labels = pixels[torch.from_numpy(places)], labels[torch.from_numpy(places)]
        pixels = pixels.to(self.device, non_blocking=True).contiguous(memory_format=self.layout)
        return Batch(unit_scaled(pixels), labels.to(self.device, non_blocking=True))
