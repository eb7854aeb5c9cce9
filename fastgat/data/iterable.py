"""A loader over anything that yields (images, labels), such as a torch DataLoader."""

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgat.batch import Batch
from fastgat.contract import checked_batch
from fastgat.data.bad_samples import BadSamples
from fastgat.errors import ConfigError, DataError
from fastgat.kernels.image_batch import unit_scaled
from fastgat.randomness import as_text, from_text, generator_states, restore_generators


class IterableLoader:
    """Wraps a sized iterable of (images, labels) pairs; one pass over it is one epoch.

    Images are (B, C, H, W), uint8 or floating point in [0, 1]; labels (B,) of any integer type. Each player iterates it
    on its own, so a shuffling loader gives each its own order.

    A stream from a later batch on skips those before it. That is exact where a pass is decided by the random state that
    it begins with, as a shuffling DataLoader's is: that of the global generators, and of the DataLoader's own.

    Attributes:
        passes: by player, the number of the pass that its stream is in, and the random states that this began with.
        continued: `passes` of the run that the next streams continue.

    Raises ConfigError if the iterable has no length, and DataError for a batch that is not as described.
    """

    def __init__(
        self,
        source: Iterable[Any],
        num_classes: int | None,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        if not hasattr(source, "__len__"):
            raise ConfigError("a custom loader needs a length: the number of batches in an epoch")
        self.source: Any = source
        self.num_classes, self.device = num_classes, torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.passes: dict[str, dict[str, Any]] = {}
        self.continued: dict[str, dict[str, Any]] = {}
        self._copies: dict[str, Any] = {}
        self.skipped = BadSamples()  # none, always: what a custom loader yields is used

    @property
    def batches_per_epoch(self) -> int:
        return len(self.source)

    def stream(self, player: int, start: int = 0) -> Iterator[Batch]:
        shape = None
        for pair in self._pairs(str(player), start):
            batch = self._checked(pair)
            shape = shape or batch.images.shape
            if batch.images.shape != shape:
                raise DataError(
                    f"training batches must have one shape, got {tuple(shape)} and {tuple(batch.images.shape)}; "
                    "a DataLoader needs drop_last=True"
                )
            yield batch

    def _pairs(self, player: str, skip: int) -> Iterator[Any]:
        """The source over and over, without the first `skip` pairs; passes whose end is known are not read again."""
        source, continued = self._source_for(player), self.continued.pop(player, None)
        generator = getattr(source, "generator", None)
        now = generator_states()
        first = min(continued["number"], skip // len(source)) if continued is not None else 0
        skip -= first * len(source)
        for number in itertools.count(first):
            if continued is not None and number == continued["number"]:
                restore_generators(continued["states"])
                if generator is not None and "generator" in continued:
                    generator.set_state(from_text(continued["generator"]))
            self.passes[player] = {"number": number, "states": generator_states()}
            if generator is not None:
                self.passes[player]["generator"] = as_text(generator.get_state())
            for pair in _one_pass(source, "training"):
                if not skip:
                    yield pair
                    continue
                skip -= 1
                if not skip:
                    restore_generators(now)

    def _source_for(self, use: str) -> Any:
        """The source; persistent workers serve one iterator at a time, so with them each use has a copy of its own."""
        if not getattr(self.source, "persistent_workers", False):
            return self.source
        if use not in self._copies:
            self._copies[use] = copy.copy(self.source)
            self._copies[use]._iterator = None
        return self._copies[use]

    def once(self) -> Iterator[Batch]:
        for pair in _one_pass(self._source_for("once"), "validation"):
            yield self._checked(pair)

    def _checked(self, pair: Any) -> Batch:
        try:
            images, labels = pair
        except (TypeError, ValueError):
            raise DataError("a custom loader must yield (images, labels) pairs") from None
        if isinstance(images, Tensor) and images.dtype == torch.uint8:
            images = unit_scaled(images)
        if isinstance(images, Tensor) and isinstance(labels, Tensor):
            labels = labels.to(images.device)
        images, labels = checked_batch(images, labels, self.num_classes, error=DataError)
        if not len(labels):
            raise DataError("a custom loader has yielded a batch without images")
        images = images.to(self.device, torch.float32, non_blocking=True).contiguous(memory_format=self.layout)
        return Batch(images, labels.to(self.device, non_blocking=True))


def _one_pass(source: Any, use: str) -> Iterator[Any]:
    """The pairs of one pass over a loader. Raises DataError where they are not as many as its length says."""
    count = 0
    for pair in source:
        count += 1
        yield pair
    if count != len(source):
        raise DataError(
            f"a pass over the {use} loader gave {count} batches, but its length is {len(source)}; it must be iterable "
            "again and again"
        )
