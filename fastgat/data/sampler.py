"""Which samples are in which batch: a pure function of (seed, player, batch number), the same for every loader."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fastgat.data.augmentation import Augmentation, Uniforms
from fastgat.data.bad_samples import Rows
from fastgat.errors import DataError

EXTRA_STREAM = 3  # tells these draws from augmentation's of the same seed


@dataclass
class Sampler:
    """The order of `count` samples, for one rank of several.

    Batch `i` of all ranks together is one slice of the epoch's permutation; each rank has a consecutive part of it, so
    that ranks share no sample and have equally many batches, and their batches one after the other are the batch of a
    single rank with as many times the batch size.

    The set ends with `extra` additional samples. Each batch of all ranks takes the share `extra_fraction`, rounded
    down, from these, with replacement; the rest is the next of the permutation. Batches are shuffled, and an epoch
    keeps the number of batches that it has without extra ones, as in the code of Wang et al. (2023,
    github.com/wzekai99/DM-Improves-AT, core/data/semisup.py): it shows a part of the samples.

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
    extra: int = 0
    extra_fraction: float = 0.0

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
        whole = self.batch_size * self.ranks
        drawn = share_of(whole, self.extra_fraction) if self.extra else 0
        first = position * (whole - drawn)
        rows = permutation(self.seed, player, epoch, self.count)[first : first + whole - drawn]
        if drawn:
            source = np.random.default_rng((self.seed, player, number, EXTRA_STREAM))
            rows = source.permutation(np.concatenate([rows, self.count + source.integers(self.extra, size=drawn)]))
        return rows[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def uniforms(self, player: int, number: int) -> Uniforms | None:
        """What augmentation draws for those samples; None where there is no augmentation."""
        if not self.augmentation.active:
            return None
        drawn = self.augmentation.draw(self.seed, player, number, self.batch_size * self.ranks)
        return drawn[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def in_order(self) -> Iterator[Rows]:
        """This rank's samples, each once, in order. Ranks have equally many, or differ by one."""
        mine = np.arange(self.rank, self.count, self.ranks)
        for first in range(0, len(mine), self.batch_size):
            yield mine[first : first + self.batch_size]


@functools.lru_cache(4)  # two players, in the epoch that is read and in the one that is read ahead
def permutation(seed: int, player: int, epoch: int, count: int) -> Rows:
    """The order of a player's `count` samples in an epoch."""
    return np.random.default_rng((seed, player, epoch)).permutation(count)


def share_of(count: int, fraction: float) -> int:
    """floor(count * fraction), but for float64's rounding: 0.58 of 50 is 29."""
    return int(count * fraction + 1e-9)
