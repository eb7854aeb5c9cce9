"""What tests of loaders share: their names, images, and what a stream gives."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgat.batch import Batch
from fastgat.data import Images, ImageSet, Loader
from fastgat.data.folder import Folder
from fastgat.data.registry import silent

NAMES = ["resident", "dali", "torch"]
names = pytest.mark.parametrize("name", NAMES)


@cache
def noise(count: int = 23) -> ImageSet:
    """Random images whose label is their number."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count))


def take(loader: Loader, count: int, player: int = 0, start: int = 0) -> list[Batch]:
    stream = loader.stream(player, start)
    found = list(islice(stream, count))
    assert isinstance(stream, Iterator)
    return found


def labels(batches: list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def assert_same(these: list[Batch], those: list[Batch], tolerance: float = 0.0) -> None:
    for a, b in zip(these, those, strict=True):
        assert a.labels.equal(b.labels)
        assert a.labels.dtype == b.labels.dtype == torch.int64
        assert a.images.stride() == b.images.stride()
        torch.testing.assert_close(a.images, b.images, rtol=0, atol=tolerance)


def folder(path: Path, size: int = 16) -> Images:
    return Folder(path, size).load(0, silent).train
