"""Image sets, in memory or in files, and the seeded split into train and validation."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastgat.data.decoding import BadSampleError, decode
from fastgat.errors import DataError

HELD_OUT = 0.1  # the share of the images that validates where a data set does not say which
SHOWN = 8  # classes, or kinds of files, that are named
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""What the splits of a data set are called, in any case."""


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

    def take(self, indices: NDArray[np.int64] | slice) -> Self:
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def decoded(self, row: int) -> NDArray[np.uint8]:
        """(H, W, C), as it is."""
        return self.images[row]


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
    max_pixels: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a decoded image."""
        return self.size, self.size, 3

    def take(self, indices: NDArray[np.int64] | slice) -> Self:
        return replace(self, numbers=self.numbers[indices], labels=self.labels[indices])

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


Images = ImageSet | EncodedSet
Set = TypeVar("Set", bound=Images, covariant=True)


class DataSet(NamedTuple, Generic[Set]):
    """The splits of one data set, with the names of its classes, where it came from, and why it was chosen.

    Where nobody has set test images aside, `test` is empty. `passed_over` says what was not taken for an image.
    """

    name: str
    train: Set
    validation: Set
    test: Set
    classes: tuple[str, ...]
    source: str
    reason: str = "asked for"
    passed_over: str = ""

    def contents(self) -> str:
        """How many images there are of which size, and what for, for people."""
        parts = [part for part in (self.train, self.validation, self.test) if len(part)]
        sizes = " / ".join(f"{len(part):,}" for part in parts)
        splits = ", ".join(("train", "validate", "test")[: len(parts)])
        height, width, _ = self.train.shape
        return f"{sizes} images of {height} x {width} to {splits}"


def split(images: ImageSet, held_out: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """All but `held_out` images, and those: a seeded choice, each part in the order of `images`."""
    order = np.random.default_rng(seed).permutation(len(images))
    return images.take(np.sort(order[held_out:])), images.take(np.sort(order[:held_out]))


def some_of(classes: Sequence[str]) -> str:
    """How many classes there are, and the first of them, for people."""
    return f"{len(classes):,}: {', '.join(classes[:SHOWN])}{', ...' if len(classes) > SHOWN else ''}"


@dataclass
class PassedOver:
    """What lies beside the images of a data set and was not taken: counts by kind, with the first of each."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        before, first = self.kinds.get(kind, (0, example))
        self.kinds[kind] = (before + count, first)

    def __str__(self) -> str:
        kinds = sorted(self.kinds.items(), key=lambda item: -item[1][0])
        shown = [f"{count:,} {kind} (such as {example})" for kind, (count, example) in kinds[:SHOWN]]
        return ", ".join(shown) + (f", and {len(kinds) - SHOWN} other kinds" if len(kinds) > SHOWN else "")


def assemble(
    name: str,
    parts: Mapping[str, EncodedSet],
    classes: tuple[str, ...],
    source: str,
    seed: int,
    rule: str,
    passed_over: PassedOver,
) -> DataSet[EncodedSet]:
    """The data set of a user's images: `parts` has train, maybe val and test.

    Without val, a tenth of train is held out by `rule`: "place", or as runs of earlier versions did, "name" or
    "position". Raises DataError where there are too few.
    """
    train = parts["train"]
    test = parts.get("test", train.take(slice(0)))
    if "val" in parts:
        order = np.random.default_rng(seed).permutation(len(train))  # so that the first of them are of all classes
        train, validation = train.take(order), parts["val"]
    else:
        train, validation = (hold_out_by_position if rule == "position" else hold_out)(train, seed)
        if not len(validation):
            raise DataError(f"{len(train)} images of {len(classes)} classes are too few to hold any out for validation")
        source += ", a tenth of the training images held out to validate"
    return DataSet(name, train, validation, test, classes, source, passed_over=str(passed_over))


def hold_out(images: EncodedSet, seed: int) -> tuple[EncodedSet, EncodedSet]:
    """About nine tenths of the images, in random order, and the rest: a seeded choice by each image's name alone.

    So another image more or less moves none. Two exceptions: every class keeps an image to train on, and one image at
    least is held out, where a class has one to spare.
    """
    shares = np.array([_share(key, seed) for key in images.keys()])  # noqa: SIM118  # not a dictionary's
    order = np.argsort(shares, kind="stable")
    _, last = np.unique(images.labels[order[::-1]], return_index=True)
    kept = order[::-1][last]  # of each class the image with the largest share
    held = np.setdiff1d(np.flatnonzero(shares < HELD_OUT), kept)
    if not len(held):
        held = order[~np.isin(order, kept)][:1]
    return images.take(order[~np.isin(order, held)]), images.take(held)


def _share(key: str, seed: int) -> float:
    """A number in [0, 1), a hash of the image's name, whichever Unicode form a file system gives it."""
    text = f"{seed}:{unicodedata.normalize('NFC', key)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48


def hold_out_by_position(images: EncodedSet, seed: int) -> tuple[EncodedSet, EncodedSet]:
    """The split of earlier versions: a seeded choice of positions, class by class, which other images redraw."""
    order = np.random.default_rng(seed).permutation(len(images))
    by_class = order[np.argsort(images.labels[order], kind="stable")]
    _, first, counts = np.unique(images.labels[by_class], return_index=True, return_counts=True)
    held = np.minimum(np.rint(counts * HELD_OUT).astype(int), counts - 1)
    if not held.any():
        held[counts.argmax()] = min(1, counts.max() - 1)
    rows = np.concatenate([by_class[at : at + count] for at, count in zip(first, held, strict=True)])
    return images.take(order[~np.isin(order, rows)]), images.take(np.sort(rows))
