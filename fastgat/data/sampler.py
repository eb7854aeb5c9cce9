"""Which samples are in which batch: a pure function of (seed, player, batch number), the same for every loader."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fastgat.data.augmentation import Augmentation, Uniforms
from fastgat.data.bad_samples import Rows
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

    @property
    def batches_per_epoch(self) -> int:
        return self.count // (self.batch_size * self.ranks)

    def rows(self, player: int, number: int) -> Rows:
        """This rank's samples of batch `number` of a player's stream.

        Raises DataError where there are too few samples for a single batch.
        """
        if not self.batches_per_epoch:
            raise DataError(f"{self.count} samples are too few for a batch of {self.batch_size * self.ranks}")
        epoch, position = divmod(number, self.batches_per_epoch)
        first = (position * self.ranks + self.rank) * self.batch_size
        return permutation(self.seed, player, epoch, self.count)[first : first + self.batch_size]

    def uniforms(self, player: int, number: int) -> Uniforms | None:
        """What augmentation draws for those samples; None where there is no augmentation."""
        if not self.augmentation.active:
            return None
        drawn = self.augmentation.draw(self.seed, player, number, self.batch_size * self.ranks)
        return drawn[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def in_order(self) -> Iterator[Rows]:
        """Every sample of this rank once; all ranks together have all of them, each as many as another, or one less."""
        mine = np.arange(self.rank, self.count, self.ranks)
        for first in range(0, len(mine), self.batch_size):
            yield mine[first : first + self.batch_size]


@functools.lru_cache(4)  # two players, in the epoch that is read and in the one that is read ahead
def permutation(seed: int, player: int, epoch: int, count: int) -> Rows:
    """The order of a player's `count` samples in an epoch."""
    return np.random.default_rng((seed, player, epoch)).permutation(count)
