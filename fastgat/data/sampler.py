"""Which samples are in which batch: a pure function of (seed, player, batch number), the same for every loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from fastgat.data.augmentation import Augmentation, Uniforms
from fastgat.data.bad_samples import BadSamples, Rows
from fastgat.data.sets import Images
from fastgat.errors import DataError


@dataclass
class Sampler:
    """The order of `count` samples, for one rank of several.

    Batch `i` of all ranks together is one slice of the epoch's permutation; each rank has a consecutive part of it, so
    that ranks share no sample and have equally many batches, and their batches one after the other are the batch of a
    single rank with as many times the batch size.

    Attributes:
        batch_size: samples in this rank's part of a batch.
        augmentation: what varies in training batches.
    """

    count: int
    batch_size: int
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    _known: dict[int, tuple[int, Rows]] = field(default_factory=dict, repr=False)

    @property
    def batches_per_epoch(self) -> int:
        return self.count // (self.batch_size * self.ranks)

    def locate(self, number: int) -> tuple[int, slice]:
        """The epoch of batch `number`, and the slice of its permutation that is this rank's part.

        Raises DataError where there are too few samples for a single batch.
        """
        if not self.batches_per_epoch:
            raise DataError(f"{self.count} samples are too few for a batch of {self.batch_size * self.ranks}")
        epoch, position = divmod(number, self.batches_per_epoch)
        first = (position * self.ranks + self.rank) * self.batch_size
        return epoch, slice(first, first + self.batch_size)

    def permutation(self, player: int, epoch: int) -> Rows:
        known, order = self._known.get(player, (-1, None))
        if known != epoch or order is None:
            order = np.random.default_rng((self.seed, player, epoch)).permutation(self.count)
            self._known[player] = (epoch, order)
        return order

    def rows(self, player: int, number: int) -> Rows:
        """The samples of batch `number` of a player's stream."""
        epoch, part = self.locate(number)
        return self.permutation(player, epoch)[part]

    def uniforms(self, player: int, number: int) -> Uniforms | None:
        """What augmentation draws for them, if there is any."""
        if not self.augmentation.active:
            return None
        drawn = self.augmentation.draw(self.seed, player, number, self.batch_size * self.ranks)
        return drawn[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def in_order(self) -> Iterator[Rows]:
        """Every sample of this rank once; all ranks together have all of them, each as many as another, or one less."""
        mine = np.arange(self.rank, self.count, self.ranks)
        for first in range(0, len(mine), self.batch_size):
            yield mine[first : first + self.batch_size]


class Sampled:
    """Base of the loaders: images, the order in which they are shown, and where batches go.

    Args:
        images: in memory, or in files.
        sampler: which samples are in which batch.
        device: where batches are wanted, float32 in [0, 1].
        skipped: samples that are not to be used, added to as they are found.
    """

    def __init__(
        self,
        images: Images,
        sampler: Sampler,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        skipped: BadSamples | None = None,
    ) -> None:
        self.images, self.sampler, self.device = images, sampler, torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.skipped = skipped if skipped is not None else BadSamples()

    @property
    def batches_per_epoch(self) -> int:
        return self.sampler.batches_per_epoch
