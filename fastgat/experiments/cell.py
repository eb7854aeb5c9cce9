"""A cell: one training run of an experiment, known by everything that decides what it computes."""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fastgat.config import TrainConfig
from fastgat.deciding import deciding_settings, flatten
from fastgat.engine.load import checkpoint_path
from fastgat.errors import CheckpointError
from fastgat.evaluation.fingerprint import code_fingerprint
from fastgat.models.registry import import_factory, is_factory
from fastgat.store import key_digest


class DataSize(NamedTuple):
    classes: int
    train_images: int
    test_images: int


DATASETS = {
    "cifar10": DataSize(10, 45_000, 10_000),
    "cifar100": DataSize(100, 45_000, 10_000),
    "digits": DataSize(10, 1_257, 360),
}
"""The data sets that experiments know."""

SHOWN = (
    *("cg", "epsilon", "penalty", "dropout"),
    *("schedule", "generator_interval", "generator_steps", "generator_input", "delta"),
)
"""Options of a method that a cell's name spells out where they are not the default."""
EARLIER_DEFAULTS = {"method.delta": "fixed"}
"""Settings whose default has changed, with the first one, which names leave out."""


@dataclass(frozen=True)
class Cell:
    """One training run and the name of its folder.

    Two cells have the same name if and only if they compute the same thing: settings at their (first) defaults, and
    those that decide only how fast a run is, do not enter it.
    """

    config: TrainConfig

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def name(self) -> str:
        """DATASET-METHOD-options-seedN-DIGEST."""
        settings = deciding(self.config)
        method = self.config.to_dict()["method"]["name"]
        shown = {key: settings[f"method.{key}"] for key in SHOWN if f"method.{key}" in settings}
        options = [f"{key}{value:.4g}" if isinstance(value, float) else f"{key}{value}" for key, value in shown.items()]
        words = [self.config.data.dataset, method, *options, f"seed{self.seed}", key_digest(settings, 8)]
        return "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words)

    @property
    def code(self) -> str | None:
        """A digest of the code that makes a classifier of one's own, else None; the name does without it."""
        classifier = self.config.model.classifier
        return code_of(classifier) if is_factory(classifier) else None


@cache
def code_of(factory: str) -> str:
    """A digest of a factory's code, as it is before it is first called: then it may import more."""
    import_factory(factory)
    return code_fingerprint(factory.partition(":")[0])


def _content(path: Path) -> str:
    """What a file holds, by its SHA-256 sum; of a run, its best checkpoint. Its path where there is no such file."""
    with suppress(CheckpointError, OSError):
        file = checkpoint_path(path) if path.is_dir() else path
        stat = file.stat()
        return _sum(file, stat.st_mtime_ns, stat.st_size)
    return str(path)


@cache
def _sum(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return f"SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def deciding(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the result of a whole run and are not the defaults of its method, flat.

    Files with extra images and first weights are known by what they hold.
    """
    defaults = dict(flatten(TrainConfig(method=type(config.method)(), select="accuracy").to_dict()))
    defaults = {key: EARLIER_DEFAULTS.get(key, value) for key, value in defaults.items()}
    settings = deciding_settings(config) | {"epochs": config.epochs}
    size = DATASETS.get(config.data.dataset)
    if size is not None and (settings.get("data.train_images") or 0) >= size.train_images:
        settings["data.train_images"] = None  # all there are
    for key, path in (("data.extra_data", config.data.extra_data), ("model.init_from", config.model.init_from)):
        if path is not None:
            settings[key] = _content(path)
    if config.run.early_stopping is not None:
        settings["run.early_stopping"] = config.run.early_stopping
    always = ("method.name", "data.dataset", "seed", "epochs")
    return {key: value for key, value in sorted(settings.items()) if key in always or value != defaults.get(key)}
