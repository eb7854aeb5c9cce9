"""What the training loop adds to its step: data, draws, metrics and learning rates, at one batch size."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import DEVICE
from fastgat import TrainConfig, Trainer
from fastgat.config import DataConfig, PrecisionConfig
from fastgat.engine.events import Callback, EpochEnd
from fastgat.methods import GAT


class Rates(Callback):
    """Milliseconds a step of each epoch, validation and checkpoints left out."""

    def __init__(self, steps: int) -> None:
        self.steps, self.epochs = steps, [0.0]

    def on_epoch(self, event: EpochEnd) -> None:
        self.epochs.append(event.seconds * 1e3 / self.steps)


def bench_loop(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """An epoch of training and the same number of bare steps on one batch take turns."""
    epochs = 6
    config = TrainConfig(
        method=GAT(schedule="simultaneous", delta="fixed"),
        epochs=epochs,
        output=tmp_path / "run",
        data=DataConfig(dataset="digits"),
        precision=PrecisionConfig(amp=True, channels_last=True),
    )
    bare: list[float] = []

    class BareSteps(Callback):
        def on_epoch(self, event: EpochEnd) -> None:
            batch = next(loop.train_loader.stream(0))
            draws = loop.draws([batch])
            began = time.perf_counter()
            for _ in range(loop.steps_per_epoch):
                loop.stepper([batch], draws)
            if DEVICE == "cuda":
                import torch

                torch.cuda.synchronize()
            bare.append((time.perf_counter() - began) * 1e3 / loop.steps_per_epoch)

    trainer = Trainer(config, callbacks=[BareSteps()])
    loop = trainer.prepare()
    rates = Rates(loop.steps_per_epoch)
    loop.callbacks.append(rates)
    loop.folder.mkdir()
    benchmark.pedantic(loop.run, rounds=1)
    step, loop_ms = statistics.median(bare[1:]), statistics.median(rates.epochs[2:])
    benchmark.extra_info |= {"bare_step_ms": step, "step_in_loop_ms": loop_ms, "loop_over_step": loop_ms / step}
