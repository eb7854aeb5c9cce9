"""The trainer on small networks: what it writes, how it stops, and that going on changes nothing."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastgat import TrainConfig, Trainer, load_classifier
from fastgat.config import DataConfig, OptimizerConfig, PrecisionConfig, RunConfig
from fastgat.engine.checkpoint import load_checkpoint, save_checkpoint
from fastgat.engine.events import Callback, EpochEnd, Interval, Start
from fastgat.errors import CheckpointError, ConfigError, DataError, FastgatError, NonFiniteError, OutputError
from fastgat.methods import GAT, DropoutGAT
from fastgat.models import Generator
from tests.support import BatchNormNet

STEPS = 6


class Small(nn.Module):
    """Logits of the mean colour, with torch's own dropout."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.conv(images).relu()).mean((2, 3)))


def loader(seed: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Images whose brightest colour is their class; a fourth class is grey."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(8 * STEPS) % 4
    images = torch.rand(len(labels), 3, 8, 8, generator=source) / 2
    for i, label in enumerate(labels):
        if label < 3:
            images[i, label] += 0.5
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def config(output: Path, **changes: Any) -> TrainConfig:
    run = RunConfig(log_interval=2, checkpoint_interval=4, deterministic=True, device="cpu")
    optimizer = OptimizerConfig(lr=1e-2, generator_lr=1e-3)
    settings: dict[str, Any] = {"method": GAT(cg=0.1), "epochs": 3, "batch_size": 8, "run": run, "optimizer": optimizer}
    return TrainConfig(output=output, **{**settings, **changes})


def trainer(
    settings: TrainConfig, classifier: Callable[[], nn.Module] = Small, callbacks: tuple[Callback, ...] = ()
) -> Trainer:
    torch.manual_seed(7)
    return Trainer(
        settings,
        classifier=classifier(),
        generator=Generator(4),
        train_loader=loader(0),
        validation_loader=loader(1),
        callbacks=callbacks,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.safetensors")[0]


def assert_same_weights(one: Path, other: Path) -> None:
    tensors, others = weights(one), weights(other)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.equal(others[name]), name


def rows(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


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
    }
    summary = json.loads((history.output / "summary.json").read_text())
    assert summary == history.summary
    assert summary.keys() == {
        "method",
        "dataset",
        "seed",
        "epochs",
        "best_epoch",
        "validation_accuracy",
        "test_accuracy",
        "images_per_second",
        "seconds",
    }
    assert (summary["method"], summary["dataset"], summary["seed"], summary["epochs"]) == ("gat", "custom", 0, 3)
    best = max(history.epochs, key=lambda row: row["validation_accuracy"])
    assert summary["validation_accuracy"] == best["validation_accuracy"]
    assert summary["best_epoch"] == best["epoch"]
    assert [row["step"] for row in rows(history.output, "epoch")] == [6, 12, 18]
    assert [row["step"] for row in rows(history.output, "interval")] == list(range(2, 19, 2))
    settings = tomllib.loads((history.output / "config.toml").read_text())
    assert settings["method"] == {"name": "gat", **vars(GAT(cg=0.1))}
    assert json.loads((history.output / "environment.json").read_text())["packages"]["torch"] == torch.__version__


def test_epoch_metrics_are_the_means_of_all_steps(tmp_path: Path) -> None:
    history = trainer(config(tmp_path / "run", epochs=1)).fit()
    intervals = rows(history.output, "interval")
    for name in ("loss", "accuracy", "generator_loss", "perturbation_norm"):
        mean = sum(row[name] for row in intervals) / len(intervals)
        assert history.epochs[0][name] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("method", ["baseline", "dropout", "random", "fg-linf", "fg-l2", "gat", "dropout-gat"])
def test_every_method_trains_and_learns(tmp_path: Path, method: str) -> None:
    history = trainer(config(tmp_path / "run", method=method, epochs=12)).fit()
    assert history.epochs[-1]["loss"] < 0.7 * history.epochs[0]["loss"]
    assert history.summary is not None
    assert history.summary["validation_accuracy"] > 0.7


@pytest.mark.parametrize("schedule", ["paper", "alternating", "simultaneous"])
def test_a_generator_that_is_cheap_to_perturb_learns_to_fool(tmp_path: Path, schedule: str) -> None:
    settings = config(tmp_path / "run", method=GAT(cg=1e-3, schedule=schedule), epochs=16)
    history = trainer(replace(settings, optimizer=OptimizerConfig(lr=1e-2, generator_lr=1e-2))).fit()
    norms = [row["perturbation_norm"] for row in history.epochs]
    assert norms[-1] > 2 * norms[0]
    assert history.epochs[-1]["perturbed_accuracy"] < history.epochs[-1]["accuracy"]


class At(Callback):
    """Does something once, when a step has been reported."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_interval(self, event: Interval) -> None:
        if event.step == self.step:
            self.action()


class StopAfter(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, event: EpochEnd) -> None:
        if event.epoch == self.epoch:
            event.stop("enough")


SETTINGS: list[dict[str, Any]] = [
    {},
    {"method": DropoutGAT(cg=0.1, generator_steps=2)},
    {"method": "random", "optimizer": OptimizerConfig(lr_schedule="one-cycle", ema=0.9, clip_grad=0.1)},
    {"precision": PrecisionConfig(amp=True, channels_last=True)},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=["gat", "dropout-gat k=2", "one-cycle ema clip", "amp"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_going_on_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], number: signal.Signals
) -> None:
    whole = config(tmp_path / "whole", **changes)
    trainer(whole).fit()
    interrupted = config(tmp_path / "interrupted", resume="auto", **changes)
    for step in (2, 8, 10):
        history = trainer(interrupted, callbacks=(At(step, lambda: os.kill(os.getpid(), number)),)).fit()
        assert history.summary is None
        position = load_checkpoint(history.output / "last.safetensors")[1]["position"]
        assert step <= position["step"] <= step + 1
        assert not (history.output / "summary.json").exists()
    assert trainer(interrupted).fit().summary is not None
    assert_same_weights(tmp_path / "whole", tmp_path / "interrupted")
    numbers = [
        [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in rows(folder, "epoch")]
        for folder in (tmp_path / "whole", tmp_path / "interrupted")
    ]
    assert [row["step"] for row in numbers[1]] == [6, 12, 18]
    for one, other in zip(*numbers, strict=True):
        assert one == pytest.approx(other)


def test_more_epochs_go_on_from_the_end(tmp_path: Path) -> None:
    trainer(config(tmp_path / "whole", epochs=4)).fit()
    trainer(config(tmp_path / "parts", epochs=2)).fit()
    trainer(config(tmp_path / "elsewhere", epochs=4, resume=str(tmp_path / "parts"))).fit()
    assert_same_weights(tmp_path / "whole", tmp_path / "elsewhere")
    assert [row["epoch"] for row in trainer(config(tmp_path / "parts", epochs=4, resume="auto")).fit().epochs] == [
        1,
        2,
        3,
        4,
    ]


def test_a_finished_run_is_reported_again(tmp_path: Path) -> None:
    first = trainer(config(tmp_path / "run")).fit()
    again = trainer(config(tmp_path / "run", resume="auto")).fit()
    assert again.summary is not None
    assert first.summary is not None
    assert {**again.summary, "seconds": 0} == {**first.summary, "seconds": 0}


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


BAD: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": OptimizerConfig(lr=1e30)}, "classifier"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_loss_that_is_not_finite_names_player_and_step(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NonFiniteError, match=message):
        trainer(config(tmp_path / "run", **changes)).fit()
    tensors = weights(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in tensors.values()), "the last good checkpoint stays"


def test_the_generator_is_named_too(tmp_path: Path) -> None:
    job = trainer(config(tmp_path / "run", method=GAT(cg=1e37)))
    assert isinstance(job.generator, Generator)
    nn.init.constant_(job.generator.body[-1].bias, 20.0)  # type: ignore[arg-type]  # saturated: no gradient
    with pytest.raises(NonFiniteError, match="the loss of the generator became NaN or infinite at step 1"):
        job.fit()


def test_a_checkpoint_is_not_overwritten_by_bad_weights(tmp_path: Path) -> None:
    """The loss of a step is that before its update: a bad update shows only at the save."""
    job = trainer(config(tmp_path / "run"))

    def spoil() -> None:
        assert job.classifier is not None
        job.classifier.get_parameter("conv.weight").data.fill_(torch.nan)

    job.callbacks = (At(4, spoil),)
    with pytest.raises(NonFiniteError, match="a parameter of the classifier became NaN or infinite by step 4"):
        job.fit()
    assert load_checkpoint(tmp_path / "run" / "last.safetensors")[1]["position"]["step"] == 0


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run: continue it with --resume auto"):
        trainer(config(tmp_path / "run", epochs=1)).fit()
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def check_resume(tmp_path: Path, message: str, classifier: Callable[[], nn.Module] = Small, **changes: Any) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    with pytest.raises(CheckpointError, match=message):
        trainer(config(tmp_path / "run", resume="auto", **changes), classifier=classifier).fit()


def test_a_run_keeps_its_settings(tmp_path: Path) -> None:
    check_resume(tmp_path, r"made with method\.cg = 0\.1, but now 0\.2 is asked for", method=GAT(cg=0.2))


def test_a_run_keeps_its_networks(tmp_path: Path) -> None:
    check_resume(tmp_path, "of another model: .* is only in one", classifier=lambda: BatchNormNet(4))


def test_a_run_keeps_its_classes(tmp_path: Path) -> None:
    check_resume(tmp_path, r"of another model: .*head.* has shape \(4", classifier=lambda: Small(5))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    last = tmp_path / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"last\.safetensors: damaged"):
        trainer(config(tmp_path / "run", resume="auto")).fit()
    assert load_classifier(tmp_path / "run", classifier=Small()) is not None, "the best one is still good"


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="run: cannot be made: Not a directory"):
        trainer(config(tmp_path / "file" / "run")).fit()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_loader": loader(0)}, "give both"),
        ({"train_loader": loader(0), "validation_loader": loader(1)}, "need a classifier of your own"),
    ],
)
def test_half_a_choice_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(**arguments)


def test_a_classifier_of_another_shape_is_described(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must return logits \(B, K\), got \(2, 3, 8, 8\)"):
        trainer(config(tmp_path / "run"), classifier=lambda: nn.Conv2d(3, 3, 1)).fit()


def test_labels_beyond_the_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels from 0 to 3, but the classifier has classes 0\.\.2"):
        trainer(config(tmp_path / "run"), classifier=lambda: Small(3)).fit()


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(FastgatError, match="device 'cuda' asked for") as error:
        trainer(config(tmp_path / "run", run=RunConfig(device="cuda"))).fit()
    assert error.value.exit_code == 1


class Tied(nn.Module):
    """Two convolutions that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


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


def test_an_epoch_that_a_kill_kept_from_metrics_is_written_later(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=2)).fit()
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-1]) + '{"event": "epo')
    trainer(config(tmp_path / "run", epochs=3, resume="auto")).fit()
    assert [row["epoch"] for row in rows(tmp_path / "run", "epoch")] == [1, 2, 3]


def test_a_best_checkpoint_that_is_not_this_run_s_is_not_believed(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=2)).fit()
    for content in (None, (tmp_path / "run" / "last.safetensors")):
        best = tmp_path / "run" / "best.safetensors"
        best.unlink()
        if content is not None:
            trainer(config(tmp_path / "other", epochs=1, seed=5)).fit()
            tensors, header = load_checkpoint(tmp_path / "other" / "best.safetensors")
            header["position"]["best_epoch"] = 77
            save_checkpoint(best, tensors, header)
        epochs = 3 if content is None else 4
        history = trainer(config(tmp_path / "run", epochs=epochs, resume="auto")).fit()
        assert history.summary is not None
        assert history.summary["best_epoch"] == epochs, "the only epoch whose weights are known"


def test_a_run_that_continues_elsewhere_takes_its_best_along(tmp_path: Path) -> None:
    first = trainer(config(tmp_path / "run", epochs=2)).fit()
    history = trainer(config(tmp_path / "new", epochs=2, resume=str(tmp_path / "run"))).fit()
    assert first.summary is not None
    assert history.summary is not None
    assert history.summary["best_epoch"] == first.summary["best_epoch"]
    assert [row["epoch"] for row in rows(tmp_path / "new", "epoch")] == [1, 2]
    assert_same_weights(tmp_path / "run", tmp_path / "new")


def test_a_folder_of_another_run_is_not_continued_into(tmp_path: Path) -> None:
    for name in ("run", "other"):
        trainer(config(tmp_path / name, epochs=1)).fit()
    with pytest.raises(ConfigError, match="other holds another run already"):
        trainer(config(tmp_path / "other", epochs=2, resume=str(tmp_path / "run"))).fit()


def test_a_schedule_over_all_epochs_keeps_their_number(tmp_path: Path) -> None:
    cosine = OptimizerConfig(lr_schedule="cosine")
    trainer(config(tmp_path / "run", epochs=1, optimizer=cosine)).fit()
    with pytest.raises(CheckpointError, match="made with epochs = 1, but now 2"):
        trainer(config(tmp_path / "run", epochs=2, optimizer=cosine, resume="auto")).fit()


def test_other_data_are_noticed(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    job = trainer(config(tmp_path / "run", epochs=2, resume="auto"))
    job.train_loader = list(loader(0))[:2]
    with pytest.raises(CheckpointError, match="had 6 batches an epoch, the data now have 2"):
        job.fit()


def test_parts_of_a_killed_write_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.safetensors.12345").write_bytes(b"half")
    trainer(config(tmp_path / "run", epochs=1)).fit()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_callback_can_stop_before_the_start(tmp_path: Path) -> None:
    class Never(Callback):
        def on_start(self, event: Start) -> None:
            event.stop("not today")

    history = trainer(config(tmp_path / "run"), callbacks=(Never(),)).fit()
    assert history.summary is not None
    assert history.summary["epochs"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": Small(5), "generator": nn.Conv2d(3, 1, 1)}, r"generator must return .* got \(2, 1, 8, 8\) for"),
        ({"validation_loader": []}, "a loader is empty"),
        ({"train_loader": []}, "no full batch in an epoch|a loader is empty"),
        (
            {"train_loader": [(torch.rand(8, 1, 8, 8), torch.zeros(8).long())]},
            r"do not take images of shape \(2, 1, 8, 8\)",
        ),
    ],
)
def test_what_does_not_fit_is_described(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments = {"classifier": Small(), "train_loader": loader(0), "validation_loader": loader(1), **change}
    with pytest.raises(ConfigError, match=message):
        Trainer(config(tmp_path / "run"), **arguments).fit()


def test_a_classifier_of_too_few_classes_for_a_data_set(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", data=DataConfig(dataset="digits"))
    with pytest.raises(ConfigError, match="tells 3 classes apart, but the data have 10"):
        Trainer(settings, classifier=Small(3)).fit()


class Once:
    """A loader that can be iterated one time only."""

    def __init__(self) -> None:
        self.batches = iter(list(loader(0)))

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Any]:
        return self.batches


def test_a_loader_that_runs_dry_is_an_error(tmp_path: Path) -> None:
    job = trainer(config(tmp_path / "run", method="baseline"))
    job.train_loader = Once()
    with pytest.raises(DataError, match=r"gave \d batches, but its length is 6"):
        job.fit()
