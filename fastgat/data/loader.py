"""What feeds a run with batches: the base of fastgat's loaders, and the type of any."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch

from fastgat.batch import Batch
from fastgat.data.augmentation import Uniforms
from fastgat.data.bad_samples import BadSamples, Rows
from fastgat.data.iterable import IterableLoader
from fastgat.data.sampler import Sampler
from fastgat.data.sets import Images
from fastgat.errors import DataError

Request = tuple[Rows, Uniforms | None]  # the samples of a batch and, in training, what augmentation draws for them
Requests = Callable[[int], Request]  # the request of each batch, by its number
Readable = Callable[[Rows], Rows]
"""From the samples of a batch to the positions of those that can be read, as far as is known."""


class SampledLoader(ABC):
    """Base of the loaders: images, the order in which they are shown, and where batches go.

    The position of a stream is a number: batch `i` depends on nothing that was read before.

    Args:
        images: in memory, or in files.
        sampler: which samples are in which batch.
        device: where batches are wanted, float32 in [0, 1].
        skipped: samples that are not to be used, added to as they are met.
    """

    def __init__(
        self, images: Images, sampler: Sampler, *, device: torch.device, channels_last: bool, skipped: BadSamples
    ) -> None:
        self.images, self.sampler, self.device, self.skipped = images, sampler, device, skipped
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in one pass; the rest of a pass is dropped in training."""
        return self.sampler.batches_per_epoch

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        """Endless training batches from number `start` on. Each player (0: classifier, 1: generator) has
        permutations of its own; epoch `e` of a stream is its batches `e * batches_per_epoch` onwards."""

        def request(number: int) -> Request:
            return self.sampler.rows(player, number), self.sampler.uniforms(player, number)

        return self._batches(request, range(start, sys.maxsize), self.skipped.substitutes)

    def once(self) -> Iterator[Batch]:
        """Every sample once, in order, the last batch smaller where need be."""
        parts, any_left, bad = list(self.sampler.in_order()), False, self.skipped
        for batch in self._batches(lambda number: (parts[number], None), range(len(parts)), bad.good_places):
            if len(batch.labels):
                any_left = True
                yield batch
        if bad.reasons and not any_left:
            first = next(iter(bad.reasons.values()))
            raise DataError(f"no sample of the whole set can be read; one of them: {first}")

    @abstractmethod
    def _batches(self, request: Requests, numbers: range, readable: Readable) -> Iterator[Batch]:
        """One batch for each number, of the samples whose positions `readable` returns."""


Loader = SampledLoader | IterableLoader
