"""Which epoch counts: the files that a run keeps hold the classifiers of the epochs that its metrics say."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastgat import Trainer, load_classifier
from fastgat.batch import Batch
from fastgat.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from fastgat.data.digits import DIGITS
from fastgat.data.loaders import create_loader
from fastgat.data.registry import silent
from fastgat.engine.accuracy import score
from fastgat.engine.checkpoint import load_checkpoint, save_checkpoint
from fastgat.engine.events import Callback, Start
from fastgat.engine.load import checkpoint_path
from fastgat.engine.selection import Candidate, mean_of_last
from fastgat.errors import CheckpointError, ConfigError
from tests.engine.small import At, Small, config, loader, rows, trainer

EMA = OptimizerConfig(lr=3e-2, ema=0.9)
STEEP: dict[str, Any] = {"method": "baseline", "epochs": 6, "optimizer": EMA}


def measured(classifier: nn.Module) -> tuple[float, float]:
    result = score(classifier, [Batch(*batch) for batch in loader(1)])
    return result.accuracy, result.loss


@pytest.mark.parametrize("rule", ["accuracy", "loss", "last"])
def test_each_file_holds_the_epoch_that_its_rule_chooses(tmp_path: Path, rule: str) -> None:
    run = tmp_path / "run"
    summary = trainer(config(run, select=rule, **STEEP)).fit().summary
    epochs = rows(run, "epoch")
    by_accuracy = max(epochs, key=lambda row: row["validation_accuracy"])
    by_loss = min(epochs, key=lambda row: row["validation_loss"])
    chosen = {"accuracy": by_accuracy, "loss": by_loss, "last": epochs[-1]}
    assert summary is not None
    assert summary["best_epoch"] == chosen[rule]["epoch"]
    assert summary["validation_accuracy"] == chosen[rule]["validation_accuracy"]
    for name, row in {**chosen, "best": chosen[rule]}.items():
        expected = row["validation_accuracy"], row["validation_loss"]
        assert measured(load_classifier(run, checkpoint=name, classifier=Small())) == pytest.approx(expected, rel=1e-5)
    unaveraged = max(epochs, key=lambda row: row["validation_accuracy_unaveraged"])
    found = load_classifier(run / Candidate("accuracy", averaged=False).file, classifier=Small())
    assert measured(found)[1] == pytest.approx(unaveraged["validation_loss_unaveraged"], rel=1e-5)
    assert by_loss["validation_loss"] != by_loss["validation_loss_unaveraged"]


def test_test_images_are_judged_by_every_rule(tmp_path: Path) -> None:
    """On digits; the classifier in each file, judged here, has the accuracy that the summary reports."""
    run = tmp_path / "run"
    settings = TrainConfig(
        method="baseline",
        epochs=3,
        output=run,
        data=DataConfig(dataset="digits"),
        optimizer=OptimizerConfig(lr=1e-2, ema=0.9),
        run=RunConfig(compile=False, device="cpu"),
    )
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))
    Trainer(settings, classifier=network).fit()
    summary = json.loads((run / "summary.json").read_text())
    images = DIGITS.load(None, 0, silent).test
    assert images is not None
    test = create_loader("resident", images, 128)

    def accuracy(checkpoint: str) -> float:
        return score(load_classifier(run, checkpoint=checkpoint, classifier=network), test.once()).accuracy

    expected = {name: accuracy(name) for name in ("accuracy", "loss", "last")}
    assert summary["test_accuracies"] == pytest.approx(expected)
    assert summary["test_accuracy"] == pytest.approx(expected["accuracy"])
    assert summary["test_accuracies_unaveraged"].keys() == expected.keys()
    epochs = rows(run, "epoch")
    assert summary["last_validation_accuracy"] == pytest.approx(
        sum(row["validation_accuracy"] for row in epochs) / len(epochs)
    )

    # Where the best epoch's file is lost and none is left to train, what is known of it stays.
    (run / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"best\.safetensors is lost, and all epochs are done"):
        Trainer(replace(settings, resume="auto"), classifier=network).fit()
    assert json.loads((run / "summary.json").read_text()) == summary
    tensors, header = load_checkpoint(run / "last.safetensors")
    header["position"] |= {"best_epoch": None, "kept": {}}  # as a run that goes on has it until its next epoch ends
    save_checkpoint(run / "last.safetensors", tensors, header)
    with pytest.raises(CheckpointError, match="is lost, and all epochs are done"):
        Trainer(replace(settings, resume="auto"), classifier=network).fit()
    assert json.loads((run / "summary.json").read_text()) == summary


def test_a_run_that_is_stopped_before_its_first_epoch_claims_nothing(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_start(self, event: Start) -> None:
            event.stop("enough")

    summary = trainer(config(tmp_path / "run"), callbacks=(Stop(),)).fit().summary
    assert summary is not None
    assert (summary["epochs"], summary["best_epoch"], summary["validation_accuracy"]) == (0, None, None)


def test_a_run_that_stops_and_goes_on_keeps_the_same(tmp_path: Path) -> None:
    trainer(config(tmp_path / "whole", select="loss", **STEEP)).fit()
    parts = config(tmp_path / "parts", select="loss", resume="auto", **STEEP)
    for step in (9, 20):
        trainer(parts, callbacks=(At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)),)).fit()
    trainer(parts).fit()
    for path in (tmp_path / "whole").glob("best*.safetensors"):
        whole, continued = (
            load_classifier(path.parent.parent / run / path.name, classifier=Small()) for run in ("whole", "parts")
        )
        for one, other in zip(whole.parameters(), continued.parameters(), strict=True):
            assert torch.equal(one, other), path.name


def test_a_file_that_is_not_of_the_run_is_written_anew(tmp_path: Path) -> None:
    """As a kill between two writes leaves it; the next better epoch is, and the summary does not claim the lost one."""
    run = tmp_path / "run"
    trainer(config(run, **{**STEEP, "epochs": 2})).fit()
    (run / Candidate("loss").file).unlink()
    trainer(config(run, resume="auto", **{**STEEP, "epochs": 3})).fit()
    found = measured(load_classifier(run, checkpoint="loss", classifier=Small()))
    assert found[1] == pytest.approx(rows(run, "epoch")[-1]["validation_loss"], rel=1e-5)


def test_without_the_best_epoch_s_file_a_worse_epoch_is_not_the_best(tmp_path: Path) -> None:
    """Neither in a run of an earlier version, which kept none, nor beside a file of an epoch that was never done."""
    run = tmp_path / "run"
    trainer(config(run, **{**STEEP, "epochs": 2})).fit()
    tensors, header = load_checkpoint(run / "last.safetensors")
    header["position"]["kept"] = {}
    for row in header["position"]["epochs"]:
        row |= {"validation_accuracy": 1.0, "validation_loss": 0.0}
    save_checkpoint(run / "last.safetensors", tensors, header)
    assert (run / Candidate("loss").file).exists()
    summary = trainer(config(run, resume="auto", **{**STEEP, "epochs": 3})).fit().summary
    assert summary is not None
    for rule in ("accuracy", "loss"):
        assert not (run / Candidate(rule).file).exists()


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="select must be another rule than last"):
        config(tmp_path, select="last", run=RunConfig(early_stopping=2))
    run = tmp_path / "run"
    trainer(config(run, method="baseline", epochs=1)).fit()
    with pytest.raises(CheckpointError, match="made with select = 'accuracy', but now 'loss'"):
        trainer(config(run, method="baseline", epochs=2, select="loss", resume="auto")).fit()
    (run / Candidate("loss").file).unlink()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint_path(run, "loss")


def test_an_epoch_without_a_loss_is_never_better() -> None:
    candidate, nan = Candidate("loss"), {"validation_loss": float("nan")}
    assert not candidate.better(nan, None)
    assert not candidate.better(nan, {"validation_loss": 1.0})
    assert candidate.better({"validation_loss": 1.0}, None)
    plain = Candidate("accuracy", averaged=False)
    row = {"validation_loss": 1.0, "validation_loss_unaveraged": float("nan"), "validation_accuracy_unaveraged": 0.9}
    assert not plain.better(row, None), "NaN logits count as class 0"


@pytest.mark.parametrize("averaged", [True, False])
def test_of_equal_robust_accuracy_the_greater_accuracy_is_better(averaged: bool) -> None:
    """Else the first epoch were the best of a run that resists nothing."""
    end = "" if averaged else "_unaveraged"
    first, second = (
        {f"validation_robust_accuracy{end}": 0.0, f"validation_accuracy{end}": accuracy} for accuracy in (0.2, 0.3)
    )
    candidate = Candidate("robust", averaged)
    assert candidate.better(second, first)
    assert not candidate.better(first, second)
    assert not candidate.better(first, first)
    assert not candidate.better(second, {**first, f"validation_robust_accuracy{end}": 0.1})


def test_the_mean_of_the_last_epochs() -> None:
    history = [{"validation_accuracy": value} for value in range(12)]
    assert mean_of_last(history) == pytest.approx(6.5)
    assert mean_of_last([]) is None
