"""A loader on torch's DataLoader and Pillow: slower than the others, but there wherever PyTorch is."""

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
from fastgat.data.augmentation import Augmentation
from fastgat.data.decoding import BadSampleError, arrange
from fastgat.data.loader import Readable, Request, Requests, SampledLoader
from fastgat.data.sampler import Sampler
from fastgat.data.sets import EncodedSet, Images
from fastgat.kernels.image_batch import unit_scaled
from fastgat.processes import launched


class Samples(NamedTuple):
    """The samples `rows`: images, (B, H, W, C) uint8, and labels; black where there is a flaw, which is kept by row."""

    rows: Tensor
    images: Tensor
    labels: Tensor
    flaws: dict[int, str]


@dataclass
class Arranged(Dataset[Samples]):
    """A data set that is asked for whole batches."""

    images: Images
    augmentation: Augmentation

    def __getitem__(self, request: Request) -> Samples:
        rows, uniforms = request
        pixels, flaws = np.zeros((len(rows), *self.images.shape), np.uint8), {}
        for place, row in enumerate(rows.tolist()):
            drawn = None if uniforms is None else uniforms[place : place + 1]
            try:
                pixels[place] = arrange(self.images.decoded(row), self.augmentation, drawn, self.images.shape[:2])
            except BadSampleError as error:
                flaws[row] = str(error)
        labels = torch.from_numpy(self.images.labels[rows])
        return Samples(torch.from_numpy(rows), torch.from_numpy(pixels), labels, flaws)


def leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; it is the run's to end its workers, by SIGTERM. torchrun's SIGTERM
    reaches every process of a rank's group: workers of one of several ranks have a group of their own."""
    if launched():
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class TorchLoader(SampledLoader):
    """Batches that `workers` processes of a DataLoader prepare by Pillow, or this process where there are none."""

    def __init__(self, images: Images, sampler: Sampler, *, workers: int = 0, **common: Any) -> None:
        super().__init__(images, sampler, **common)
        self.workers = workers

    def _batches(self, request: Requests, numbers: range, readable: Readable) -> Iterator[Batch]:
        loader = DataLoader(
            Arranged(self.images, self.sampler.augmentation),
            batch_size=None,
            sampler=map(request, numbers),
            num_workers=self.workers,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=self.device.type == "cuda",
        )
        for samples in loader:
            for row, flaw in samples.flaws.items():
                assert isinstance(self.images, EncodedSet)
                self.skipped.report(row, self.images.name(row), flaw)
            images, labels = samples.images, samples.labels
            if samples.flaws:
                kept = torch.from_numpy(readable(samples.rows.numpy()))
                images, labels = images[kept], labels[kept]
            images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
            yield Batch(unit_scaled(images), labels.to(self.device, non_blocking=True))
