"""Going on: a run that was stopped ends as one that was not, and never becomes another one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastgat import load_classifier
from fastgat.config import OptimizerConfig, PrecisionConfig
from fastgat.engine.checkpoint import load_checkpoint, save_checkpoint
from fastgat.engine.interrupts import Interrupts
from fastgat.errors import CheckpointError, ConfigError, OutputError
from fastgat.methods import GAT, DropoutGAT
from fastgat.trainer.networks import make_networks
from tests.engine.small import At, Small, assert_same_weights, config, loader, rows, trainer
from tests.support import BatchNormNet

CLOCKED = ("images_per_second", "seconds", "data_wait", "robust_seconds")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"method": DropoutGAT(cg=0.1, schedule="paper", generator_steps=2)},
    {"method": GAT(cg=0.1, generator_interval=3)},
    {"method": "random", "optimizer": OptimizerConfig(lr_schedule="one-cycle", ema=0.9, clip_grad=0.1)},
    {"precision": PrecisionConfig(amp=True, channels_last=True)},
    {"method": "free"},
]


@pytest.mark.parametrize(
    ("changes", "number"),
    [*((changes, signal.SIGTERM) for changes in SETTINGS), (SETTINGS[0], signal.SIGINT)],
    ids=["gat", "dropout-gat k=2", "gat n=3", "one-cycle ema clip", "amp", "free", "gat, ctrl-c"],
)
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
        [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows(folder, "epoch")]
        for folder in (tmp_path / "whole", tmp_path / "interrupted")
    ]
    assert [row["step"] for row in numbers[1]] == [6, 12, 18]
    for one, other in zip(*numbers, strict=True):
        assert one == pytest.approx(other)


def test_a_signal_before_the_first_step_ends_a_run_before_it(tmp_path: Path) -> None:
    asked = config(tmp_path / "run", resume="auto")
    with Interrupts():  # of the command that trains it
        signal.raise_signal(signal.SIGTERM)
        history = trainer(asked, callbacks=(At(1, lambda: pytest.fail("a step was taken")),)).fit()
    assert history.summary is None
    trainer(config(tmp_path / "whole")).fit()
    assert trainer(asked).fit().summary is not None
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


class Shuffling:
    """A loader of one's own that draws the order of each pass, and its images' noise, from the global generators."""

    def __init__(self) -> None:
        self.batches, self.seen = list(loader(0)), list[int]()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number in torch.randperm(len(self.batches)).tolist():
            self.seen.append(number)
            images, labels = self.batches[number]
            yield (images + random.random() / 10).clamp(0, 1), labels


@pytest.mark.parametrize("method", ["baseline", "fgsm-rs"])
def test_loaders_of_one_s_own_that_shuffle_go_on_exactly(method: str, tmp_path: Path) -> None:
    """Stopped within both epochs and between them, where the next pass draws its order. For the robust accuracy of
    FGSM-RS each part reads the validation images once more."""
    for name, stops in (("whole", ()), ("parts", (2, 6, 8))):
        for step in (*stops, None):
            settings = config(tmp_path / name, epochs=2, method=method, resume="auto")
            callbacks = (At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)),) if step else ()
            job = trainer(settings, callbacks=callbacks)
            job.train_loader, job.validation_loader = Shuffling(), Shuffling()
            job.fit()
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


class Counting(Small):
    """A classifier that is another one at each step, by a buffer that its own state_dict lacks."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return super().forward(images) / self.calls


def test_buffers_that_are_not_persistent_go_on_too(tmp_path: Path) -> None:
    trainer(config(tmp_path / "whole", epochs=2, method="baseline"), Counting).fit()
    trainer(config(tmp_path / "parts", epochs=1, method="baseline"), Counting).fit()
    parts = config(tmp_path / "parts", epochs=2, method="baseline", resume="auto")
    trainer(parts, Counting).fit()
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    best, _ = load_checkpoint(tmp_path / "parts" / "best.safetensors")
    calls = load_classifier(tmp_path / "parts", classifier=Counting()).calls
    assert calls == best["transient.classifier/calls"] > 1

    class Sized(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(3), persistent=False)

    others = load_classifier(tmp_path / "parts", classifier=Sized()).get_buffer("calls")
    assert not others.any(), "of another shape: its own business"

    last = tmp_path / "parts" / "last.safetensors"
    tensors, header = load_checkpoint(last)
    assert tensors.pop("transient.classifier/calls") > 0
    save_checkpoint(last, tensors, header)  # as earlier versions wrote it
    assert trainer(parts, Counting).fit().summary is not None


@pytest.mark.parametrize("resumed", ["", "run", "run/best.safetensors"])
def test_a_run_that_another_wants_to_write_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: str
) -> None:
    """While this one is prepared, which takes long where data are read: its folder is locked, if it is there."""
    monkeypatch.chdir(tmp_path)
    late, other = config(Path("run"), epochs=2), config(Path("run"), epochs=3)
    if resumed:
        trainer(config(Path("run"), epochs=1)).fit()
        late, other = replace(late, output=None, resume=resumed), replace(other, resume="run")
    build = make_networks

    def slow(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr("fastgat.trainer.trainer.make_networks", build)
        if resumed:
            with pytest.raises(OutputError, match="another process is training there"):
                trainer(other).fit()
        else:
            trainer(other).fit()
        return build(*arguments, **keywords)

    monkeypatch.setattr("fastgat.trainer.trainer.make_networks", slow)
    with nullcontext() if resumed else pytest.raises(ConfigError, match="already holds a run"):
        trainer(late).fit()
    assert len(rows(Path("run"), "epoch")) == (2 if resumed else 3)


def test_a_run_without_its_last_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    """As experiments leave their cells: what can be evaluated, and not continued."""
    trainer(config(tmp_path / "run")).fit()
    trainer(config(tmp_path / "other")).fit()
    (tmp_path / "run" / "last.safetensors").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    kept = "holds a finished run, of which only the classifier was kept"
    with pytest.raises(ConfigError, match=f"{kept} .*: choose another --output"):
        trainer(config(tmp_path / "run")).fit()
    with pytest.raises(CheckpointError, match=f"{kept} .*: it can be evaluated, but not continued"):
        trainer(config(tmp_path / "run", epochs=9, resume="auto")).fit()
    with pytest.raises(ConfigError, match="holds another run already"):
        trainer(config(tmp_path / "run", resume=str(tmp_path / "other"))).fit()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before

    (tmp_path / "run" / "summary.json").unlink()  # as after a kill between the copy of another run's best and the start
    assert trainer(config(tmp_path / "run", resume=str(tmp_path / "other"))).fit().summary is not None
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "last.safetensors").unlink()
    assert len(trainer(config(tmp_path / "run", resume="auto")).fit().epochs) == 3


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_is_one_process_alone(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run")).fit()
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another process is training there"):
            trainer(config(tmp_path / "run", epochs=9, resume="auto")).fit()
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
    assert len(trainer(config(tmp_path / "run", epochs=3, resume="auto")).fit().epochs) == 3


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
    check_resume(
        tmp_path, r"made with method\.cg = 0\.1, but now 0\.2 is asked for", method=GAT(cg=0.2, schedule="paper")
    )


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


def test_a_damaged_best_checkpoint_may_be_deleted(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    best = tmp_path / "run" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: damaged.*; delete it to go on without"):
        trainer(config(tmp_path / "run", resume="auto", epochs=2)).fit()
    best.unlink()
    assert trainer(config(tmp_path / "run", resume="auto", epochs=2)).fit().summary is not None
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "was 1, but best.safetensors no longer holds it" in str(facts)


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
    assert job.classifier is not None
    before = {name: tensor.clone() for name, tensor in job.classifier.state_dict().items()}
    with pytest.raises(CheckpointError, match="had 6 batches an epoch, the data now have 2"):
        job.fit()
    assert all(tensor.equal(before[name]) for name, tensor in job.classifier.state_dict().items())


def test_parts_of_a_killed_write_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.safetensors.12345").write_bytes(b"half")
    trainer(config(tmp_path / "run", epochs=1)).fit()
    assert not list((tmp_path / "run").glob(".*.safetensors.*"))


def test_fewer_epochs_than_are_done(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=2)).fit()
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(ConfigError, match="the run has done 2 epochs already, more than 1"):
        trainer(config(tmp_path / "run", epochs=1, resume="auto")).fit()
    assert (tmp_path / "run" / "config.toml").read_text() == before
    stop = At(14, lambda: os.kill(os.getpid(), signal.SIGTERM))  # within the third epoch
    trainer(config(tmp_path / "run", epochs=3, resume="auto"), callbacks=(stop,)).fit()
    with pytest.raises(ConfigError, match="the run is in epoch 3 already, more than 2"):
        trainer(config(tmp_path / "run", epochs=2, resume="auto")).fit()


def test_a_later_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    run = trainer(config(tmp_path / "run", epochs=1)).fit().output
    (run / "best.safetensors").rename(tmp_path / "first.safetensors")
    trainer(config(run, epochs=3, resume="auto")).fit()
    (tmp_path / "first.safetensors").rename(run / "best.safetensors")
    with pytest.raises(ConfigError, match=r"best.safetensors is of step 6, and last.safetensors beside it of step 18"):
        trainer(replace(config(run, epochs=3), output=None, resume=str(run / "best.safetensors"))).fit()
    elsewhere = config(tmp_path / "other", epochs=2, resume=str(run / "best.safetensors"))
    assert len(trainer(elsewhere).fit().epochs) == 2
    (run / "last.safetensors").write_bytes(b"damaged")
    assert len(trainer(replace(config(run, epochs=2), resume=str(run / "best.safetensors"))).fit().epochs) == 2


def test_another_method_is_named_first(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", method="baseline", epochs=1)).fit()
    with pytest.raises(CheckpointError, match=r"made with method\.name = 'baseline', but now 'gat' is asked for"):
        trainer(config(tmp_path / "run", method="gat", epochs=2, resume="auto")).fit()


def test_a_classifier_alone_is_not_continued(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    with pytest.raises(CheckpointError, match=r"best-loss.safetensors: holds a classifier alone"):
        trainer(config(tmp_path / "other", resume=str(tmp_path / "run" / "best-loss.safetensors"))).fit()


def test_the_best_of_a_run_whose_last_is_gone_goes_when_another_begins(tmp_path: Path) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    for name in ("last.safetensors", "summary.json"):
        (tmp_path / "run" / name).unlink()
    stop = At(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert trainer(config(tmp_path / "run", seed=9), callbacks=(stop,)).fit().summary is None
    assert {path.name for path in (tmp_path / "run").glob("*.safetensors")} == {"last.safetensors"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": "bset"}, "checkpoint must be best, last, .*, got 'bset'"),
        ({"classifier": Small}, "classifier must be a module or a name, got the class Small"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_loaded_is_said(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    trainer(config(tmp_path / "run", epochs=1)).fit()
    with pytest.raises(ConfigError, match=message):
        load_classifier(tmp_path / "run", **arguments)
