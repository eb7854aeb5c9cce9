"""A longer run that goes on from a shorter one ends where it would have ended alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgat.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.errors import CheckpointError
from fastgat.experiments import RunStore
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Training
from fastgat.experiments.longer import begin_from_shorter
from fastgat.methods import GAT, Baseline
from fastgat.reporting.jobs import News


def cell(epochs: int, **changes: object) -> Cell:
    config = TrainConfig(
        method=GAT(),
        epochs=epochs,
        batch_size=16,
        data=DataConfig(dataset="digits", train_images=48),
        model=ModelConfig(generator_width=4),
        optimizer=OptimizerConfig(ema=0.9),
        run=RunConfig(compile=False, device="cpu"),
    )
    return Cell(replace(config, **changes))  # type: ignore[arg-type]


def train(store: RunStore, cell: Cell) -> list[News]:
    heard: list[News] = []
    assert Training(cell).run(store, heard.append, lambda: None)
    return heard


def goes_on(news: list[News]) -> list[str]:
    return [each.words for each in news if not each.job]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A store that holds runs of 1 and of 2 epochs, whole."""
    store = RunStore(tmp_path_factory.mktemp("kept"), whole=True)
    assert goes_on(train(store, cell(1))) == []
    assert goes_on(train(store, cell(2))) == [f"{cell(2).name}: goes on after epoch 1 of a shorter run"]
    return store


def test_it_ends_as_a_run_of_that_length(kept: RunStore, tmp_path: Path) -> None:
    alone = RunStore(tmp_path, whole=True)
    assert goes_on(train(alone, cell(3))) == []
    assert goes_on(train(kept, cell(3))) == [f"{cell(3).name}: goes on after epoch 2 of a shorter run"]
    once, pieces = (store.run_folder(cell(3)) for store in (alone, kept))
    for name in sorted(path.name for path in once.glob("*.safetensors")):
        (expected, _), (tensors, _) = load_checkpoint(once / name), load_checkpoint(pieces / name)
        torch.testing.assert_close(tensors, expected, rtol=0, atol=0)
    expected, found = (json.loads((folder / "summary.json").read_text()) for folder in (once, pieces))
    for each in (expected, found):  # but for what a clock says
        each.pop("seconds"), each.pop("images_per_second")
    assert found == expected
    assert [row["epoch"] for row in kept.epochs(cell(3))] == [1, 2, 3]
    assert kept.finished(cell(1)), "the shorter runs stay"
    assert kept.finished(cell(2))


@pytest.mark.parametrize(
    "other",
    [
        cell(3, seed=1),
        cell(3, batch_size=8),
        cell(3, method=Baseline()),
        cell(3, optimizer=OptimizerConfig(ema=0.9, lr_schedule="cosine")),
        cell(3, run=RunConfig(compile=False, device="cpu", early_stopping=1)),
        cell(1, method=GAT(cg=2)),
    ],
    ids=["seed", "batch", "method", "schedule", "early stopping", "c_g"],
)
def test_only_a_run_that_would_have_begun_alike(kept: RunStore, other: Cell) -> None:
    assert begin_from_shorter(kept, other) == 0
    assert not kept.run_folder(other).exists()


def test_a_longer_run_is_none_to_go_on_from(tmp_path: Path) -> None:
    store = RunStore(tmp_path, whole=True)
    train(store, cell(2))
    assert begin_from_shorter(store, cell(1)) == 0


def test_what_is_not_kept_whole_is_none_either(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    train(store, cell(1))
    assert begin_from_shorter(store, cell(2)) == 0
    assert {path.name for path in store.run_folder(cell(1)).glob("*.safetensors")} == {"best.safetensors"}


def test_what_was_kept_whole_stays_so(tmp_path: Path) -> None:
    train(RunStore(tmp_path, whole=True), cell(1))
    later = RunStore(tmp_path)
    assert Training(cell(1)).done(later)
    assert begin_from_shorter(later, cell(2)) == 1


def test_a_run_that_has_begun_is_left_alone(kept: RunStore) -> None:
    assert begin_from_shorter(kept, cell(2)) == 0


def test_a_damaged_checkpoint_is_named_where_it_lies(tmp_path: Path) -> None:
    store = RunStore(tmp_path, whole=True)
    train(store, cell(1))
    last = store.run_folder(cell(1)) / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=str(last)):
        begin_from_shorter(store, cell(2))
    assert not store.run_folder(cell(2)).exists()
