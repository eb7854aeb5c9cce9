"""A small training problem: networks, loaders and a configuration that run in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastgat import TrainConfig, Trainer
from fastgat.config import OptimizerConfig, RunConfig
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.events import Callback, Interval
from fastgat.methods import GAT, Method
from fastgat.models import Generator

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


class Tied(nn.Module):
    """Two convolutions that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


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
    run = RunConfig(log_interval=2, checkpoint_interval=4, deterministic=True, device="cpu", compile=False)
    optimizer = OptimizerConfig(lr=1e-2, generator_lr=1e-3)
    settings: dict[str, Any] = {
        "method": GAT(cg=0.1, schedule="paper"),
        "epochs": 3,
        "batch_size": 8,
        "run": run,
        "optimizer": optimizer,
    }
    return TrainConfig(output=output, **{**settings, **changes})


def trainer(
    settings: TrainConfig,
    classifier: Callable[[], nn.Module] = Small,
    callbacks: tuple[Callback, ...] = (),
    generator: Callable[[], nn.Module] = lambda: Generator(4),
) -> Trainer:
    torch.manual_seed(7)
    assert isinstance(settings.method, Method)
    return Trainer(
        settings,
        classifier=classifier(),
        generator=generator() if settings.method.needs_generator else None,
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


class At(Callback):
    """Does something once, when a step has been reported."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_interval(self, event: Interval) -> None:
        if event.step == self.step:
            self.action()
