"""Image sets that stay in their files: an index in memory, one file read for one sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastgat.data.decoding import MAX_PIXELS, BadSampleError, decode


class Files(Protocol):
    """Where encoded images lie, by number."""

    def key(self, number: int) -> str:
        """The name of that image within its data set, which stays when the data set moves."""
        ...

    def name(self, number: int) -> str:
        """Where a person finds that image: a path, or a shard and a name in it."""
        ...

    def read(self, number: int) -> bytes:
        """Its bytes; raises OSError."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """N images in files, and their labels (N,) int64; scaled to `size` x `size` x 3 when they are decoded.

    An image of more than `max_pixels` pixels is a bad sample.
    """

    files: Files
    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    size: int
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a decoded image."""
        return self.size, self.size, 3

    def take(self, indices: NDArray[np.int64] | slice) -> EncodedSet:
        return replace(self, numbers=self.numbers[indices], labels=self.labels[indices])

    def first(self, count: int | None) -> EncodedSet:
        """The first `count` images, or all of them."""
        return self.take(slice(count))

    def keys(self) -> list[str]:
        return [self.files.key(number) for number in self.numbers.tolist()]

    def name(self, row: int) -> str:
        return self.files.name(int(self.numbers[row]))

    def read(self, row: int) -> bytes:
        """The bytes of an image; raises BadSampleError."""
        try:
            return self.files.read(int(self.numbers[row]))
        except OSError as error:
            raise BadSampleError(error.strerror or "cannot be read") from None

    def decoded(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) RGB, upright; raises BadSampleError."""
        return decode(self.read(row), self.max_pixels)
