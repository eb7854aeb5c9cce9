"""The data sets that experiments know, and how large they are."""

from __future__ import annotations

from typing import NamedTuple


class DataSize(NamedTuple):
    classes: int
    train_images: int
    test_images: int


DATASETS = {
    "cifar10": DataSize(10, 45_000, 10_000),
    "cifar100": DataSize(100, 45_000, 10_000),
    "digits": DataSize(10, 1_257, 360),
}
