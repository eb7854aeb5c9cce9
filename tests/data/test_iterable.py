"""A loader of one's own: any sized iterable of (images, labels)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastgat.batch import Batch
from fastgat.data import IterableLoader
from fastgat.errors import ConfigError, DataError


def labels(batches: list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


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


def shuffled(**changes: object) -> DataLoader[tuple[torch.Tensor, ...]]:
    data = TensorDataset(torch.rand(8, 3, 4, 4), torch.arange(8))
    return DataLoader(data, batch_size=2, shuffle=True, **changes)  # type: ignore[arg-type]  # any of its options


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "generator of its own"])
def test_a_shuffling_loader_goes_on_within_a_pass(own: bool) -> None:
    def loader() -> IterableLoader:
        return IterableLoader(shuffled(generator=torch.Generator().manual_seed(3) if own else None), num_classes=8)

    torch.manual_seed(5)
    first = loader()
    before = labels(list(islice(first.stream(0), 6)))  # four batches a pass: into the second one
    state, passes = torch.get_rng_state(), json.loads(json.dumps(first.passes))
    torch.manual_seed(9)
    later = loader()
    later.continued = passes
    torch.set_rng_state(state)
    rest = labels(list(islice(later.stream(0, 6), 2)))
    assert sorted(before[8:] + rest) == list(range(8))
    assert torch.get_rng_state().equal(state), "skipped batches leave the generators as they were"


def test_going_on_reads_no_pass_that_is_over() -> None:
    reads: list[int] = []

    class Counted(TensorDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            reads.append(index)
            return super().__getitem__(index)

    data = Counted(torch.rand(8, 3, 4, 4), torch.arange(8))
    first, later = (IterableLoader(DataLoader(data, batch_size=2, shuffle=True), num_classes=8) for _ in range(2))
    before = labels(list(islice(first.stream(0), 14)))  # four batches a pass: into the fourth one
    later.continued = json.loads(json.dumps(first.passes))
    reads.clear()
    rest = labels(list(islice(later.stream(0, 14), 2)))
    assert sorted(before[24:] + rest) == list(range(8))
    assert len(reads) == 8


def test_persistent_workers_serve_both_players_and_validation() -> None:
    data = TensorDataset(torch.rand(8, 3, 4, 4), torch.arange(8))
    loader = IterableLoader(DataLoader(data, batch_size=2, num_workers=1, persistent_workers=True), num_classes=8)
    one, other = loader.stream(0), loader.stream(1)
    taken = [labels([next(stream)]) for stream in (one, one, other, one, other)]
    assert taken == [[0, 1], [2, 3], [0, 1], [4, 5], [2, 3]]
    assert labels(list(loader.once())) == list(range(8))
    assert labels([next(one)]) == [6, 7]


class RunsDry:
    """Its passes share one iterator, as those of a generator that somebody has wrapped."""

    def __init__(self, batches: int) -> None:
        self.pairs = iter([(torch.rand(2, 3, 4, 4), torch.arange(2))] * batches)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return islice(self.pairs, 3)


@pytest.mark.parametrize(("batches", "second"), [(3, 0), (5, 2)])
def test_a_loader_that_runs_dry_scores_nothing(batches: int, second: int) -> None:
    """Epochs are compared by what each pass has."""
    loader = IterableLoader(RunsDry(batches), num_classes=2)
    assert len(list(loader.once())) == 3
    with pytest.raises(DataError, match=f"gave {second} batches, but its length is 3; it must be iterable again"):
        list(loader.once())


def test_a_look_at_the_first_batch_is_no_pass() -> None:
    loader = IterableLoader(data_loader(), num_classes=8)
    next(loader.once())
    assert len(list(loader.once())) == len(data_loader())
