"""Evaluate the classifier of a run folder on the data set that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fastgat.attacks import GeneratorTraining
from fastgat.config import DataConfig, TrainConfig
from fastgat.data import Batch, DataSet, Images, Loader, choose, create_loader, load_dataset
from fastgat.data.bad_samples import POLICIES
from fastgat.data.registry import moved, users_images
from fastgat.engine.accuracy import score
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.device import pick_device, tf32
from fastgat.engine.load import checkpoint_path, trained_classifier
from fastgat.engine.resume import check_same_classes
from fastgat.engine.run_checkpoints import BEST
from fastgat.errors import ConfigError, DataError
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.protocol import Evaluation, EvaluationSettings, Progress, evaluate
from fastgat.options import Options, option
from fastgat.reporting.environment import environment

QUICK = 100
"""Samples to attack where all of them would take too long."""
BLOCK = 256
"""Samples that are read, and whose figures are kept, together."""
CURVES = 1000
"""Samples of curves, which cost little, at least."""


@dataclass(frozen=True)
class RunSettings(Options):
    """Which network of a run meets which images."""

    checkpoint: str = option("best", "which of the run's checkpoints", choices=("best", "last"))
    split: str = option("test", "which images", choices=("test", "validation"))
    data_dir: Path | None = option(
        None, "folder of the data set, or the PATH or PATTERN of folder: or webdataset:  [default: as in training]"
    )
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")
    on_bad_sample: str = option("error", "what becomes of an image that cannot be read", choices=POLICIES)
    samples: int | None = option(QUICK, "images to attack", at_least=1)
    generator_images: int = option(1000, "images to train a fresh generator on, at most", at_least=64)
    generator_epochs: int = option(4, "passes over them, at most", at_least=1)


class Loaded(NamedTuple):
    """A run's classifier on its device, and where it came from."""

    path: Path
    classifier: nn.Module
    header: dict[str, Any]
    data: DataConfig


class Passes:
    """The batches of a loader, as often as they are asked for."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return self.loader.once()


class RunData:
    """The images that a run's network is evaluated on."""

    def __init__(self, loaded: Loaded, settings: RunSettings, batch_size: int, device: torch.device) -> None:
        data, self.settings, self.batch_size, self.device = loaded.data, settings, batch_size, device
        self.name, place = data.dataset, settings.data_dir or data.data_dir
        if users_images(self.name) is not None:
            self.name, place = moved(self.name, settings.data_dir) if settings.data_dir else self.name, None
        self.images: DataSet[Images] = load_dataset(self.name, place, data.split_seed, image_size=data.image_size)
        self.part = {"test": self.images.test, "validation": self.images.validation}[settings.split]
        if not len(self.part):
            raise DataError(f"{self.images.name} has no {settings.split} images; --split validation has some")
        check_same_classes(loaded.path, loaded.header, self.images.classes)

    def loader(self, part: Images, batch_size: int | None = None) -> Loader:
        return create_loader(
            choose("auto", part, self.device).name,
            part,
            batch_size or self.batch_size,
            device=self.device,
            on_bad_sample=self.settings.on_bad_sample,
        )

    def some(self, count: int | None, seed: int) -> Passes:
        """A random choice of the images, the same and in the same order for every larger count."""
        return Passes(self.loader(shuffled(self.part, count, seed)))


def shuffled(images: Images, count: int | None, seed: int) -> Images:
    """`count` images, or all, in a random order: folders keep theirs class by class."""
    order = np.random.default_rng((seed, len(images))).permutation(len(images))
    return images.take(order[: count or len(order)])


def load_run(run: Path, checkpoint: str, device: torch.device) -> Loaded:
    """Raises CheckpointError where there is no such checkpoint, or no classifier in it."""
    path = checkpoint_path(run, checkpoint)
    tensors, header = load_checkpoint(path)
    classifier = trained_classifier(path, tensors, header).to(device)
    return Loaded(path, classifier, header, TrainConfig.from_dict(header["config"], str(path)).data)


def evaluate_clean(loaded: Loaded, data: RunData) -> dict[str, Any]:
    """Clean accuracy and cross entropy on the whole split, in float32 and eval mode."""
    loader = data.loader(data.part)
    result = score(loaded.classifier, loader.once())
    return {
        "checkpoint": loaded.path.name,
        "dataset": data.name,
        "split": data.settings.split,
        "samples": result.samples,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "skipped_samples": len(loader.skipped),
    }


def evaluate_run(
    run: Path,
    settings: RunSettings | None = None,
    attacks: EvaluationSettings | None = None,
    *,
    sources: Sequence[Path] = (),
    networks: Sequence[Path] = (),
    cgs: Sequence[float] = (1.0,),
    clean_only: bool = False,
    cache: Cache | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """What a trained classifier is worth.

    Args:
        run: a run folder or a checkpoint.
        sources, networks: other runs, as in `evaluate`.
        cgs: c_g of each generator that is trained against the classifier.
        clean_only: its accuracy on clean images, and nothing else.

    Raises FastgatError if checkpoints, data or settings are not as they must be.
    """
    settings, attacks = settings or RunSettings(), attacks or EvaluationSettings()
    generators = [GeneratorTraining(cg=cg, epochs=settings.generator_epochs, seed=attacks.seed) for cg in cgs]
    device = pick_device(settings.device)
    loaded = load_run(run, settings.checkpoint, device)
    data = RunData(loaded, settings, attacks.batch_size or BLOCK, device)
    others = {label: load_run(path, settings.checkpoint, device) for label, path in _labels(run, sources, networks)}
    for other in others.values():
        check_same_classes(other.path, other.header, data.images.classes)
    with tf32(False):
        figures = evaluate_clean(loaded, data)
    figures |= {
        "run": str(loaded.path),
        "other_runs": {label: str(other.path) for label, other in others.items()},
        "run_settings": {
            key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()
        },
        "classes": list(data.images.classes),
        "environment": environment(),
    }
    if clean_only:
        return Evaluation(figures, [])
    labels, modules = list(others), {label: other.classifier for label, other in others.items()}
    count = settings.samples
    training = shuffled(data.images.train, settings.generator_images, attacks.seed)
    result = evaluate(
        loaded.classifier,
        data.some(count, attacks.seed),
        attacks,
        name=_label(run),
        networks={label: modules[label] for label in labels[len(sources) :]},
        sources={label: modules[label] for label in labels[: len(sources)]},
        curve_batches=data.some(None if count is None else max(count, CURVES), attacks.seed),
        train=data.loader(training, min(64, len(training))),
        validation=Passes(data.loader(shuffled(data.images.validation, 256, attacks.seed))),
        generators=generators,
        cache=cache,
        progress=progress,
    )
    return result._replace(figures=figures | result.figures)


def _labels(run: Path, sources: Sequence[Path], networks: Sequence[Path]) -> list[tuple[str, Path]]:
    """A name for each of the other runs: its folder's."""
    pairs = [(_label(path), path) for path in (*sources, *networks)]
    names = [_label(run), *(label for label, _ in pairs)]
    for label in names:
        if names.count(label) > 1:
            raise ConfigError(f"two runs are called {label!r}: name their folders differently")
    return pairs


def _label(run: Path) -> str:
    place = run.resolve()
    if run.is_dir():
        return place.name
    return place.parent.name if place.name == BEST else f"{place.parent.name}/{place.stem}"
