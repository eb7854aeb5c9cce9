"""Loaders: each epoch a permutation, each batch a function of its number, pixels in [0, 1]."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastgat.data import ImageSet, IterableLoader, ResidentLoader
from fastgat.data.batch import Batch
from fastgat.errors import ConfigError, DataError


def numbered(count: int = 23) -> ImageSet:
    """Image i has all its pixels equal to i, and label i."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 5, 3))
    return ImageSet(np.ascontiguousarray(images), np.arange(count))


def labels(batches: list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_scaled_and_laid_out(channels_last: bool) -> None:
    loader = ResidentLoader(numbered(), 5, channels_last=channels_last)
    for images, numbers in [*islice(loader.stream(0), 3), *loader.once()]:
        assert images.shape[1:] == (3, 4, 5)
        assert images.dtype == torch.float32
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=layout)
        assert images.equal((numbers / 255).float()[:, None, None, None].expand_as(images))


def test_white_is_one() -> None:
    images = ImageSet(np.full((1, 2, 2, 3), 255, np.uint8), np.zeros(1, np.int64))
    assert next(ResidentLoader(images, 1).once()).images.max() == 1


def test_an_epoch_shows_no_image_twice_and_each_has_its_own_order() -> None:
    loader = ResidentLoader(numbered(), 5, seed=1)
    assert loader.batches_per_epoch == 4
    batches = list(islice(loader.stream(0), 12))
    epochs = [labels(batches[i : i + 4]) for i in (0, 4, 8)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_players_and_seeds_have_their_own_permutations() -> None:
    orders = [
        labels(list(islice(ResidentLoader(numbered(), 5, seed=seed).stream(player), 4)))
        for seed in (0, 1)
        for player in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 40])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stream_can_start_anywhere_with_any_number_of_workers(start: int, workers: int) -> None:
    whole = labels(list(islice(ResidentLoader(numbered(), 5).stream(1), 44)))
    tail = labels(list(islice(ResidentLoader(numbered(), 5, workers=workers).stream(1, start), 4)))
    assert tail == whole[5 * start : 5 * start + 20]


def test_once_shows_every_image_in_order() -> None:
    assert labels(list(ResidentLoader(numbered(), 5).once())) == list(range(23))


def data_loader(**changes: object) -> DataLoader[tuple[torch.Tensor, ...]]:
    images, targets = changes.pop("images", torch.rand(8, 3, 4, 4)), changes.pop("labels", torch.arange(8))
    assert isinstance(images, torch.Tensor)
    assert isinstance(targets, torch.Tensor)
    return DataLoader(TensorDataset(images, targets), batch_size=4)


def test_any_sized_iterable_of_pairs_is_a_loader() -> None:
    loader = IterableLoader(data_loader(), num_classes=8, channels_last=True)
    assert loader.batches_per_epoch == 2
    assert labels(list(islice(loader.stream(0), 3))) == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    assert labels(list(islice(loader.stream(0, start=3), 1))) == [4, 5, 6, 7]
    assert labels(list(loader.once())) == list(range(8))
    assert next(loader.once()).images.is_contiguous(memory_format=torch.channels_last)


def test_bytes_are_scaled() -> None:
    images = torch.full((8, 3, 4, 4), 255, dtype=torch.uint8)
    assert next(IterableLoader(data_loader(images=images), num_classes=8).once()).images.max() == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (data_loader(labels=torch.arange(8) + 1), r"labels from 5 to 8, but the classifier has classes 0\.\.7"),
        (data_loader(labels=torch.arange(8) - 1), "labels from -1"),
        (data_loader(labels=torch.rand(8)), "expected 4 integer labels"),
        (data_loader(images=torch.rand(8, 4, 4)), r"expected images \(B, C, H, W\)"),
        (data_loader(images=torch.rand(8, 3, 4, 4) * 255), r"pixels from .* must lie in \[0, 1\]"),
        (data_loader(images=torch.full((8, 3, 4, 4), torch.nan)), "pixels from nan"),
        ([torch.rand(4, 3, 4, 4)], r"\(images, labels\) pairs"),
        ([7], r"\(images, labels\) pairs"),
    ],
)
def test_wrong_batches_are_described(source: object, message: str) -> None:
    loader = IterableLoader(source, num_classes=8)  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(DataError, match=message):
        list(loader.once())


def test_a_smaller_last_batch_says_what_to_do() -> None:
    images, targets = torch.rand(6, 3, 4, 4), torch.zeros(6, dtype=torch.int64)
    loader = IterableLoader(DataLoader(TensorDataset(images, targets), batch_size=4), num_classes=8)
    with pytest.raises(DataError, match="drop_last=True"):
        list(islice(loader.stream(0), 2))
    assert [len(batch.labels) for batch in loader.once()] == [4, 2]


def test_a_loader_needs_a_length() -> None:
    with pytest.raises(ConfigError, match="needs a length"):
        IterableLoader(iter([]), num_classes=8)
