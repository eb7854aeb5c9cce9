"""Data in a run: any loader resumes exactly, bad samples end it without loss or are counted, and waiting is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgat import Trainer
from fastgat.config import Augmentation, DataConfig, RunConfig
from fastgat.data import LOADERS, Batch
from fastgat.data.dali import missing
from fastgat.engine.events import Callback, EpochEnd
from fastgat.engine.step import Stepper
from fastgat.errors import DataError
from fastgat.models import Generator
from tests.data.pictures import CLASSES, make_folder
from tests.engine.small import At, Small, assert_same_weights, config, rows

AUGMENTATION = Augmentation(flip=True, padded_crop=3, cutout=4, random_resized_crop=0.5)


def in_files(images: Path, output: Path, loader: str = "torch", **changes: Any) -> Trainer:
    """A run on the images of a folder, 9 steps in each of 2 epochs."""
    torch.manual_seed(7)
    on_bad_sample = changes.pop("on_bad_sample", "error")
    callbacks = changes.pop("callbacks", ())
    run = RunConfig(log_interval=2, checkpoint_interval=100, deterministic=True, device="cpu", compile=False)
    data = DataConfig(dataset=f"folder:{images}", image_size=12, loader=loader, workers=0, on_bad_sample=on_bad_sample)
    settings = config(output, data=data, epochs=2, run=run, augmentation=AUGMENTATION, **changes)
    return Trainer(settings, classifier=Small(len(CLASSES)), generator=Generator(4), callbacks=callbacks)


def images_of(tmp_path: Path) -> Path:
    make_folder(tmp_path / "images" / "train", each=24, size=(14, 16))
    make_folder(tmp_path / "images" / "val", each=4, size=(14, 16))
    return tmp_path / "images"


@pytest.mark.parametrize("loader", LOADERS[1:])
def test_a_run_that_was_stopped_in_mid_epoch_ends_as_one_that_was_not(tmp_path: Path, loader: str) -> None:
    if loader == "dali" and missing():
        pytest.skip(str(missing()))
    images = images_of(tmp_path)
    in_files(images, tmp_path / "whole", loader).fit()
    stop = At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert in_files(images, tmp_path / "parts", loader, callbacks=(stop,)).fit().summary is None
    assert in_files(images, tmp_path / "parts", loader, resume="auto").fit().summary is not None
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_image_that_vanishes_ends_the_run_and_loses_nothing(tmp_path: Path, part: str) -> None:
    images = images_of(tmp_path)
    in_files(images, tmp_path / "whole").fit()
    victims = sorted((images / part).glob("*/*"))[-1:] if part == "val" else sorted((images / part).glob("cats/*"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def vanish() -> None:
        for path in victims:
            path.rename(elsewhere / path.name)

    output = tmp_path / "parts"
    with pytest.raises(
        DataError, match=r": No such file.*; .*last\.safetensors holds the run after step \d+"
    ) as raised:
        in_files(images, output, callbacks=(At(6, vanish),)).fit()
    assert str(images / part) in str(raised.value)
    step = int(str(raised.value).rsplit(" ", 1)[1])
    assert step == 9 if part == "val" else 6 <= step < 9
    for path in victims:
        (elsewhere / path.name).rename(path)
    assert in_files(images, output, resume="auto").fit().summary is not None
    assert_same_weights(tmp_path / "whole", output)
    assert [row["step"] for row in rows(output, "epoch")] == [9, 18]


def test_skipped_samples_are_counted(tmp_path: Path) -> None:
    images = images_of(tmp_path)
    for path in (images / "train" / "ants" / "003.jpg", images / "val" / "bees" / "001.png"):
        path.write_bytes(path.read_bytes()[:-40])
    history = in_files(images, tmp_path / "run", on_bad_sample="skip").fit()
    assert history.summary is not None
    assert history.summary["skipped_samples"] == 2
    assert [row["skipped_samples"] for row in rows(tmp_path / "run", "epoch")] == [2, 2]


@pytest.mark.parametrize("step", [8, 10], ids=["within the first epoch", "after it"])
def test_skipped_samples_are_remembered_when_a_run_goes_on(tmp_path: Path, step: int) -> None:
    images = images_of(tmp_path)
    for path in (images / "train" / "ants").glob("*"):
        path.write_bytes(b"")
    make_folder(images / "test", each=2, size=(14, 16))
    (images / "test" / "bees" / "001.png").write_bytes(b"")
    whole = in_files(images, tmp_path / "whole", on_bad_sample="skip").fit()
    stop = At(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    in_files(images, tmp_path / "parts", on_bad_sample="skip", callbacks=(stop,)).fit()
    parts = in_files(images, tmp_path / "parts", on_bad_sample="skip", resume="auto").fit()
    for history in (whole, parts):
        assert history.summary is not None
        assert history.summary["skipped_samples"] == 25


def test_the_step_is_compiled_for_full_batches_though_the_first_sample_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(tmp_path)
    trainer = in_files(images, tmp_path / "run", on_bad_sample="skip")
    first = trainer.prepare().train_loader.images.name(0)  # type: ignore[union-attr]  # of a set in files
    Path(first).write_bytes(b"")
    sizes = []
    monkeypatch.setattr(Stepper, "prepare", lambda self, batches, draws: sizes.append(len(batches[0].labels)))
    loop = in_files(images, tmp_path / "run", on_bad_sample="skip").prepare()
    loop.stepper.compiled = True
    loop.folder.mkdir()
    loop._compile()
    assert sizes == [8]
    assert len(next(loop.train_loader.once()).labels) == 7


class Slow:
    """Batches that take a while."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            time.sleep(0.05)
            yield batch


def test_waiting_for_data_is_told(tmp_path: Path) -> None:
    batches = [Batch(torch.rand(4, 3, 8, 8), torch.arange(4)) for _ in range(5)]
    told: list[EpochEnd] = []

    class Ear(Callback):
        def on_epoch(self, event: EpochEnd) -> None:
            told.append(event)

    for source in (batches, Slow(batches)):
        trainer = Trainer(
            config(tmp_path / type(source).__name__, method="baseline", epochs=2),
            classifier=Small(),
            train_loader=source,
            validation_loader=batches,
            callbacks=(Ear(),),
        )
        trainer.fit()
    quick, slow = told[1], told[3]
    assert 0 <= quick.data_wait < 0.5
    assert slow.data_wait * slow.seconds == pytest.approx(0.25, abs=0.05)
    intervals = rows(tmp_path / "Slow", "interval")
    assert all(0.5 < row["data_wait"] <= 1 for row in intervals)
