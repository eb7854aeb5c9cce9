"""The trainer on small networks: what it writes, and that every method trains."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastgat import TrainConfig, Trainer, load_classifier
from fastgat.batch import Batch
from fastgat.config import Augmentation, DataConfig, ModelConfig, OptimizerConfig, PrecisionConfig, RunConfig, load_toml
from fastgat.engine.accuracy import score
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.events import Callback, EpochEnd, Start
from fastgat.errors import ConfigError
from fastgat.methods import GAT, Baseline
from fastgat.randomness import seeded
from fastgat.trainer.held_folder import HeldFolder
from tests.engine.small import STEPS, Small, Tied, assert_same_weights, config, loader, rows, trainer
from tests.support import BatchNormNet, compiled_by


def test_the_run_folder(tmp_path: Path) -> None:
    history = trainer(config(tmp_path / "run")).fit()
    names = {path.name for path in history.output.iterdir()}
    assert names == {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "last.safetensors",
        "best.safetensors",
        "best-accuracy.safetensors",
        "best-loss.safetensors",
        ".lock",
    }
    summary = json.loads((history.output / "summary.json").read_text())
    assert summary == history.summary
    assert summary.keys() == {
        "method",
        "dataset",
        "seed",
        "epochs",
        "select",
        "best_epoch",
        "validation_accuracy",
        "test_accuracy",
        "test_accuracies",
        "last_validation_accuracy",
        "images_per_second",
        "seconds",
        "skipped_samples",
    }
    assert (summary["method"], summary["dataset"], summary["seed"], summary["epochs"]) == ("gat", "custom", 0, 3)
    best = max(history.epochs, key=lambda row: row["validation_accuracy"])
    assert summary["validation_accuracy"] == best["validation_accuracy"]
    assert summary["best_epoch"] == best["epoch"]
    assert [row["step"] for row in rows(history.output, "epoch")] == [6, 12, 18]
    assert [row["step"] for row in rows(history.output, "interval")] == list(range(2, 19, 2))
    settings = tomllib.loads((history.output / "config.toml").read_text())
    assert settings["method"] == {"name": "gat", **vars(GAT(cg=0.1, schedule="paper"))}
    assert json.loads((history.output / "environment.json").read_text())["packages"]["torch"] == torch.__version__


def test_epoch_metrics_are_the_means_of_all_steps(tmp_path: Path) -> None:
    history = trainer(config(tmp_path / "run", epochs=1)).fit()
    intervals = rows(history.output, "interval")
    for name in ("loss", "accuracy", "generator_loss", "perturbation_norm"):
        mean = sum(row[name] for row in intervals) / len(intervals)
        assert history.epochs[0][name] == pytest.approx(mean, rel=1e-6)


class OwnPrecision(Small):
    """Mixed precision of its own, which keeps casts of weights."""

    @torch.autocast("cpu", torch.bfloat16, cache_enabled=True)
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)


@pytest.mark.parametrize("network", [Small, OwnPrecision])
def test_mixed_precision_validates_the_weights_of_each_epoch(tmp_path: Path, network: type[Small]) -> None:
    precision = PrecisionConfig(amp=network is Small, amp_dtype="bfloat16" if network is Small else "auto")
    with torch.autocast("cpu", torch.bfloat16):  # the caller's, at whose end torch forgets casts
        history = trainer(config(tmp_path / "run", method="baseline", precision=precision), network).fit()
    batches = [Batch(*batch) for batch in loader(1)]
    last = load_classifier(history.output, checkpoint="last", classifier=network())
    expected = score(last, batches, autocast=torch.bfloat16 if network is Small else None)
    assert history.epochs[-1]["validation_loss"] == expected.loss
    assert len({row["validation_loss"] for row in history.epochs}) == 3


class Evaluating(Callback):
    """Evaluates the network as it is, and leaves it in eval mode."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def on_epoch(self, event: EpochEnd) -> None:
        with torch.no_grad():
            self.network.eval()(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_callback_that_evaluates_changes_nothing(tmp_path: Path, compiled: bool) -> None:
    """The casts of weights that its pass has made are not those of the next epoch, nor is its mode."""
    losses, run = [], RunConfig(deterministic=True, device="cpu", compile=compiled)
    for evaluates in (False, True):
        job = trainer(config(tmp_path / str(evaluates), method="baseline", run=run), OwnPrecision)
        assert job.classifier is not None
        job.callbacks = (Evaluating(job.classifier),) if evaluates else ()
        with compiled_by("aot_eager"):
            losses.append([row["validation_loss"] for row in job.fit().epochs])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


@pytest.mark.parametrize("method", ["baseline", "dropout", "random", "fg-linf", "fg-l2", "gat", "dropout-gat"])
def test_every_method_trains_and_learns(tmp_path: Path, method: str) -> None:
    history = trainer(config(tmp_path / "run", method=method, epochs=12)).fit()
    assert history.epochs[-1]["loss"] < 0.7 * history.epochs[0]["loss"]
    assert history.summary is not None
    assert history.summary["validation_accuracy"] > 0.7


@pytest.mark.parametrize("schedule", ["paper", pytest.param("alternating", marks=pytest.mark.long), "simultaneous"])
def test_a_generator_that_is_cheap_to_perturb_learns_to_fool(tmp_path: Path, schedule: str) -> None:
    settings = config(tmp_path / "run", method=GAT(cg=1e-3, schedule=schedule, delta="fixed"), epochs=16)
    history = trainer(replace(settings, optimizer=OptimizerConfig(lr=1e-2, generator_lr=1e-2))).fit()
    norms = [row["perturbation_norm"] for row in history.epochs]
    assert norms[-1] > 2 * norms[0]
    assert history.epochs[-1]["perturbed_accuracy"] < history.epochs[-1]["accuracy"]


class StopAfter(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, event: EpochEnd) -> None:
        if event.epoch == self.epoch:
            event.stop("enough")


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        trainer(config(tmp_path / name, seed=seed)).fit()
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "one", tmp_path / "three")


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    job = trainer(config(tmp_path / "run"))
    before = torch.get_rng_state()
    job.fit()
    assert torch.get_rng_state().equal(before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_callers_choice_of_algorithms_is_left_alone() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with seeded(0, torch.device("cpu"), deterministic=True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_early_stopping(tmp_path: Path) -> None:
    class Best(Callback):
        epochs: tuple[int, int]

        def on_epoch(self, event: EpochEnd) -> None:
            self.epochs = event.epoch, event.best_epoch

    best = Best()
    settings = config(tmp_path / "run", epochs=60)
    settings = replace(settings, run=replace(settings.run, early_stopping=2))
    history = trainer(settings, callbacks=(best,)).fit()
    assert history.summary is not None
    assert best.epochs[0] - best.epochs[1] == 2
    assert history.summary["epochs"] == best.epochs[0] < 60
    again = trainer(replace(settings, resume="auto")).fit()
    assert again.summary is not None
    assert again.summary["epochs"] == best.epochs[0], "a run that stopped early stays stopped"


def test_a_callback_can_stop(tmp_path: Path) -> None:
    history = trainer(config(tmp_path / "run"), callbacks=(StopAfter(1),)).fit()
    assert history.summary is not None
    assert history.summary["epochs"] == 1


def test_the_moving_average_is_what_is_validated_and_loaded(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", optimizer=OptimizerConfig(lr=1e-2, ema=0.9))).fit()
    tensors = load_checkpoint(tmp_path / "run" / "best.safetensors")[0]
    loaded = load_classifier(tmp_path / "run", classifier=Small())
    assert loaded.get_parameter("conv.weight").equal(tensors["ema.shadow.conv/weight"])
    assert not loaded.get_parameter("conv.weight").equal(tensors["classifier.conv.weight"])
    assert not loaded.training


def test_batch_norm_statistics_are_kept(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", method="fg-l2"), classifier=lambda: BatchNormNet(4)).fit()
    tensors = load_checkpoint(tmp_path / "run" / "last.safetensors")[0]
    assert int(tensors["classifier.norm.num_batches_tracked"]) == 2 * 3 * STEPS
    load_classifier(tmp_path / "run", checkpoint="last", classifier=BatchNormNet(4))


def test_tied_weights_are_averaged_and_loaded_as_one(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", optimizer=OptimizerConfig(lr=1e-2, ema=0.9)), classifier=Tied).fit()
    tensors = load_checkpoint(tmp_path / "run" / "best.safetensors")[0]
    loaded = load_classifier(tmp_path / "run", classifier=Tied())
    assert isinstance(loaded, Tied)
    assert loaded.first.weight is loaded.second.weight
    assert loaded.first.weight.equal(tensors["ema.shadow.first/weight"])


def test_a_generator_s_batch_norm_statistics_are_kept(tmp_path: Path) -> None:
    job = trainer(config(tmp_path / "run"))
    job.generator = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Tanh())
    job.fit()
    assert int(job.generator.get_buffer("1.num_batches_tracked")) == 2 * 3 * STEPS


def test_images_are_counted_and_not_assumed(tmp_path: Path) -> None:
    history = trainer(config(tmp_path / "run", batch_size=128)).fit()
    for row in history.epochs:
        assert row["images_per_second"] * row["seconds"] == pytest.approx(8 * STEPS)


def test_a_callback_can_stop_before_the_start(tmp_path: Path) -> None:
    class Never(Callback):
        def on_start(self, event: Start) -> None:
            event.stop("not today")

    history = trainer(config(tmp_path / "run"), callbacks=(Never(),)).fit()
    assert history.summary is not None
    assert history.summary["epochs"] == 0


def test_frozen_batch_norm_stays_frozen(tmp_path: Path) -> None:
    classifier = BatchNormNet(4)
    classifier.norm.eval()
    before = {name: tensor.clone() for name, tensor in classifier.norm.named_buffers()}
    history = trainer(config(tmp_path, method=Baseline()), lambda: classifier).fit()
    assert len(history.epochs) == 3
    assert (classifier.training, classifier.norm.training) == (True, False)
    for name, tensor in classifier.norm.named_buffers():
        assert tensor.equal(before[name]), name


def test_a_network_in_eval_mode_is_trained(tmp_path: Path) -> None:
    classifier = BatchNormNet(4).eval()
    trainer(config(tmp_path, method=Baseline()), lambda: classifier).fit()
    assert classifier.norm.training
    assert int(classifier.norm.num_batches_tracked or 0) == 18


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"augmentation": Augmentation(cutout=4)},
            "augmentation.cutout has no effect: the run has loaders",
        ),
        ({"data": DataConfig(train_images=3)}, "data.train_images has no effect: the run has loaders of your own"),
        ({"data": DataConfig(dataset="digits")}, "data.dataset has no effect: the run has loaders of your own"),
        ({"model": ModelConfig(classifier="wrn-10-1")}, "model.classifier has no effect: the run has a classifier"),
        ({"model": ModelConfig(generator_width=8)}, "model.generator_width has no effect: the run has a generator"),
    ],
)
def test_settings_beside_networks_and_loaders_of_one_s_own(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(config(tmp_path / "run", **settings))


def test_the_batches_of_a_loader_of_one_s_own_have_its_size(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", epochs=1, batch_size=99)
    trainer(settings).fit()
    assert TrainConfig.from_dict(load_toml(tmp_path / "run" / "config.toml")).batch_size == 8
    trainer(replace(settings, epochs=2, resume="auto")).fit()


def test_a_generator_for_a_method_without_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method 'baseline' has no generator"):
        Trainer(config(tmp_path / "run", method="baseline"), generator=nn.Identity())


def test_the_settings_of_a_run_with_loaders_of_one_s_own_train_another(tmp_path: Path) -> None:
    history = trainer(config(tmp_path / "run", epochs=1)).fit()
    settings = TrainConfig.from_dict(load_toml(history.output / "config.toml"))
    trainer(replace(settings, output=tmp_path / "other")).fit()
    assert_same_weights(tmp_path / "run", tmp_path / "other")


class Changes(Callback):
    """Freezes a layer, or the opposite, after the first epoch."""

    def __init__(self, layer: nn.Module, trainable: bool) -> None:
        self.layer, self.trainable = layer, trainable

    def on_epoch(self, event: EpochEnd) -> None:
        self.layer.requires_grad_(self.trainable)


def test_a_layer_that_a_callback_freezes_stays_as_it_is(tmp_path: Path) -> None:
    network = Small()
    head = network.head
    kept: list[torch.Tensor] = []

    class Keep(Changes):
        def on_epoch(self, event: EpochEnd) -> None:
            super().on_epoch(event)
            kept.append(head.weight.detach().clone())

    trainer(config(tmp_path / "run", epochs=2), lambda: network, callbacks=(Keep(head, False),)).fit()
    assert kept[0].equal(kept[1])


def test_a_layer_that_is_made_trainable_is_named(tmp_path: Path) -> None:
    network = Small()
    network.head.requires_grad_(False)
    run = trainer(config(tmp_path / "run"), lambda: network, callbacks=(Changes(network.head, True),))
    with pytest.raises(ConfigError, match=r"head.weight of the classifier was made trainable after the first step"):
        run.fit()


def test_two_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with HeldFolder() as one, HeldFolder() as other:
        folders = [held.claim(Path("runs", name) for name in "ab") for held in (one, other)]
        (folders[0] / "config.toml").touch()
    assert folders == [Path("runs/a"), Path("runs/b")]
    assert folders[0].exists()
    assert not folders[1].exists(), "nothing was written there"
