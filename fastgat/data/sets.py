"""Image sets in memory, and the seeded split into train and validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastgat.data.encoded import EncodedSet
from fastgat.errors import DataError

HELD_OUT = 0.1
"""The share of the images that validates where a data set does not say which."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (N, H, W, C) uint8 and labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, indices: NDArray[np.int64]) -> ImageSet:
        return ImageSet(self.images[indices], self.labels[indices])

    def first(self, count: int | None) -> ImageSet:
        """The first `count` images, or all of them."""
        return self if count is None else ImageSet(self.images[:count], self.labels[:count])

    def checked(self, where: str, num_classes: int) -> ImageSet:
        """The set itself; raises DataError, naming `where`, if shapes, dtypes or labels are not as they must be."""
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise DataError(f"{where}: expected images (N, H, W, C) of uint8, got {_described(self.images)}")
        if self.labels.shape != (len(self.images),):
            raise DataError(f"{where}: {len(self.images)} images but labels of shape {self.labels.shape}")
        outside = (self.labels < 0) | (self.labels >= num_classes)
        if outside.any():
            first = int(outside.argmax())
            raise DataError(f"{where}: label {self.labels[first]} of image {first} is outside 0..{num_classes - 1}")
        return self


Images = ImageSet | EncodedSet


Set = TypeVar("Set", bound=Images, covariant=True)


class DataSet(NamedTuple, Generic[Set]):
    """The splits of one data set, with the names of its classes, where it came from, and why it was chosen.

    Where nobody has set test images aside, `test` is empty.
    """

    name: str
    train: Set
    validation: Set
    test: Set
    classes: tuple[str, ...]
    source: str
    reason: str = "asked for"


def split(images: ImageSet, held_out: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """All but `held_out` images, and those: a seeded choice, each part in the order of `images`."""
    order = np.random.default_rng(seed).permutation(len(images))
    return images.take(np.sort(order[held_out:])), images.take(np.sort(order[:held_out]))


def hold_out(images: EncodedSet, seed: int) -> tuple[EncodedSet, EncodedSet, EncodedSet]:
    """Nine tenths of the images in random order, the rest, and none: a seeded choice, class by class.

    Every class keeps an image to train on. Raises DataError where there is none to hold out.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    by_class = order[np.argsort(images.labels[order], kind="stable")]
    classes, first, counts = np.unique(images.labels[by_class], return_index=True, return_counts=True)
    held = np.minimum(np.rint(counts * HELD_OUT).astype(int), counts - 1)
    if not held.any():
        held[counts.argmax()] = min(1, counts.max() - 1)
    if not held.any():
        raise DataError(f"{len(images)} images of {len(classes)} classes are too few to hold any out for validation")
    rows = np.concatenate([by_class[at : at + count] for at, count in zip(first, held, strict=True)])
    train = order[~np.isin(order, rows)]
    return images.take(train), images.take(np.sort(rows)), images.take(order[:0])


def shuffled(images: EncodedSet, seed: int) -> EncodedSet:
    """The same images in random order, so that the first of them are of all classes."""
    return images.take(np.random.default_rng(seed).permutation(len(images)))


def _described(array: NDArray[np.generic]) -> str:
    return f"{array.shape} of {array.dtype}"
