"""The protocol of everything that feeds a run with batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fastgat.batch import Batch
from fastgat.data.bad_samples import BadSamples


class Loader(Protocol):
    """A source of batches whose position is a number: batch `i` of a stream depends on nothing that was read before."""

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in one pass; the rest of a pass is dropped in training."""
        ...

    @property
    def skipped(self) -> BadSamples:
        """The samples that could not be read so far, and are done without."""
        ...

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        """Endless training batches from number `start` on. Each player (0: classifier, 1: generator) has
        permutations of its own; epoch `e` of a stream is its batches `e * batches_per_epoch` onwards."""
        ...

    def once(self) -> Iterator[Batch]:
        """Every sample once, in order, the last batch smaller where need be."""
        ...
