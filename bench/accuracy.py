"""Accuracy of the textbook and of each schedule after the same short training, seed by seed.

    python bench/accuracy.py --seeds 3 --epochs 5 --train-images 10000 --json FILE

The textbook is Algorithm 1 in float32, channels first; the schedules run as `fastgat train --amp --channels-last`
does. Both start from the same weights and see the same minibatches. Differences are paired by seed, with the interval
of Student's t at 95 %.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import click
import torch
from torch import nn

from fastgat import TrainConfig, Trainer, load_classifier, textbook
from fastgat.config import DataConfig, PrecisionConfig
from fastgat.data import create_loader, load_dataset
from fastgat.data.sets import DataSet, Images
from fastgat.engine.accuracy import score
from fastgat.engine.device import keep_freed_memory
from fastgat.experiments.spread import Spread, interval
from fastgat.methods import GAT
from fastgat.models import Classifier, Generator
from fastgat.reporting.environment import environment

SIDES = ("textbook", "paper", "alternating", "simultaneous")
BATCH = 128


@click.command()
@click.option("--dataset", default="cifar10", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--train-images", type=click.IntRange(BATCH), default=10_000, show_default=True)
@click.option("--side", "sides", multiple=True, type=click.Choice(SIDES), default=SIDES, show_default=True)
@click.option("--json", "output", type=Path, help="also write the figures here, after each run")
def main(
    dataset: str,
    seeds: int,
    first_seed: int,
    epochs: int,
    train_images: int,
    sides: tuple[str, ...],
    output: Path | None,
) -> None:
    """Train each side with each seed and compare accuracy on the test images."""
    keep_freed_memory()
    data = load_dataset(dataset, None, 0)
    accuracies_by_side: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(first_seed, first_seed + seeds):
        for side in sides:
            trained = train_textbook if side == "textbook" else train_fastgat
            accuracies_by_side[side].append(trained(side, data, seed, epochs, train_images))
            click.echo(f"seed {seed}  {side:13} {accuracies_by_side[side][-1]:.2%}")
            if output is not None:
                settings = {"dataset": data.name, "epochs": epochs, "train_images": train_images, "batch": BATCH}
                settings["first_seed"] = first_seed
                content = {"settings": settings, "test_accuracy": accuracies_by_side, "environment": environment()}
                output.write_text(json.dumps(content, indent=2) + "\n")
    for side, accuracies in accuracies_by_side.items():
        click.echo(f"{side:13} {described(accuracies)}")
        if side != sides[0]:
            click.echo(f"{'':13} {paired(accuracies, accuracies_by_side[sides[0]])} against {sides[0]}")


def train_fastgat(schedule: str, data: DataSet[Images], seed: int, epochs: int, train_images: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            method=GAT(schedule=schedule, delta="fixed"),
            epochs=epochs,
            batch_size=BATCH,
            seed=seed,
            output=Path(folder),
            data=DataConfig(dataset=data.name, train_images=train_images),
            precision=PrecisionConfig(amp=True, channels_last=True),
        )
        Trainer(config).fit()
        return test_accuracy(load_classifier(folder, checkpoint="last"), data)


def train_textbook(side: str, data: DataSet[Images], seed: int, epochs: int, train_images: int) -> float:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier, generator = Classifier(len(data.classes)), Generator()
    optimizers = torch.optim.Adam(classifier.parameters(), 1e-3), torch.optim.Adam(generator.parameters(), 1e-6)
    loader = create_loader("resident", data.train.take(slice(train_images)), BATCH, seed=seed)
    streams = loader.stream(1), loader.stream(0)
    for _step in range(epochs * loader.batches_per_epoch):
        batches = [next(stream) for stream in streams]
        textbook.algorithm1_step(classifier, generator, *optimizers, batches, through_delta=False)
    return test_accuracy(classifier, data)


def test_accuracy(classifier: nn.Module, data: DataSet[Images]) -> float:
    """Of the last weights, in float32."""
    return score(classifier, create_loader("resident", data.test, 500).once()).accuracy


def described(accuracies: list[float]) -> str:
    spread = Spread.of(accuracies)
    return f"{spread.mean:.2%}, standard deviation {math.nan if spread.sd is None else spread.sd:.2%}, n = {spread.n}"


def paired(accuracies: list[float], others: list[float]) -> str:
    """The mean difference and its interval."""
    differences = [a - b for a, b in zip(accuracies, others, strict=True)]
    half = interval(differences)
    return f"{Spread.of(differences).mean:+.2%} +- {math.nan if half is None else half:.2%}"


if __name__ == "__main__":
    main()
