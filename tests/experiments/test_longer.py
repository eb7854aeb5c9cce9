"""A longer run that goes on from a shorter one ends where it would have ended alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgat.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.errors import CheckpointError, ConfigError
from fastgat.experiments import RunStore
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Training
from fastgat.experiments.longer import check_keeps_whole, shorter_run
from fastgat.experiments.store import WHOLE
from fastgat.methods import GAT, Baseline
from fastgat.reporting.jobs import News
from tests.experiments.made_up import diverge, finish


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
    assert goes_on(train(store, cell(2))) == [f"{cell(2).name}: goes on after epoch 1 of {cell(1).name}"]
    return store


def test_it_ends_as_a_run_of_that_length(kept: RunStore, tmp_path: Path) -> None:
    alone = RunStore(tmp_path, whole=True)
    assert goes_on(train(alone, cell(3))) == []
    assert goes_on(train(kept, cell(3))) == [f"{cell(3).name}: goes on after epoch 2 of {cell(2).name}"]
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
        cell(3, method=GAT(cg=2)),
        cell(3, data=DataConfig(dataset="digits", train_images=49)),
    ],
    ids=["seed", "batch", "method", "schedule", "early stopping", "c_g", "images"],
)
def test_only_a_run_that_would_have_begun_alike(kept: RunStore, other: Cell) -> None:
    assert shorter_run(kept, other) is None


def test_a_longer_run_is_none_to_go_on_from(kept: RunStore) -> None:
    assert shorter_run(kept, cell(1)) is None


def test_what_is_not_kept_whole_is_none_either(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    train(store, cell(1))
    assert shorter_run(store, cell(2)) is None
    assert {path.name for path in store.run_folder(cell(1)).glob("*.safetensors")} == {"best.safetensors"}


def test_what_was_kept_whole_stays_so(kept: RunStore) -> None:
    later = RunStore(kept.folder)
    assert Training(cell(1)).done(later)
    assert shorter_run(later, cell(4)) is not None


def test_a_run_that_has_begun_is_left_alone(kept: RunStore) -> None:
    assert shorter_run(kept, cell(2)) is None


def test_all_images_said_or_not(tmp_path: Path) -> None:
    """Both have one name, but a run keeps what it was told."""
    every, unsaid = (DataConfig(dataset="digits", train_images=count) for count in (1257, None))
    store = RunStore(tmp_path, whole=True)
    assert cell(1, data=every).name == cell(1, data=unsaid).name
    finish(store, cell(1, data=every), 0.5)
    for name in ("last.safetensors", WHOLE):
        (store.run_folder(cell(1, data=every)) / name).touch()
    assert shorter_run(store, cell(2, data=every)) == cell(1, data=every)
    assert shorter_run(store, cell(2, data=unsaid)) is None


def test_what_diverged_is_not_kept_whole(tmp_path: Path) -> None:
    store = RunStore(tmp_path, whole=True)
    diverge(store, cell(1))
    (store.run_folder(cell(1)) / "last.safetensors").touch()
    assert not store.slim(cell(1))
    store.make_slim(cell(1))
    assert store.slim(cell(1))
    assert not list(store.run_folder(cell(1)).glob("*.safetensors"))


def test_a_damaged_checkpoint_is_named_where_it_lies(tmp_path: Path) -> None:
    store = RunStore(tmp_path, whole=True)
    train(store, cell(1))
    last = store.run_folder(cell(1)) / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=str(last)):
        train(store, cell(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": OptimizerConfig(lr_schedule="cosine")}, "no effect with --lr-schedule cosine"),
        ({"run": RunConfig(early_stopping=3)}, "no effect with --early-stopping"),
    ],
)
def test_where_no_longer_run_could_go_on(changes: dict[str, Any], message: str) -> None:
    check_keeps_whole(cell(2).config)
    with pytest.raises(ConfigError, match=message):
        check_keeps_whole(cell(2, **changes).config)
