"""What an experiment is asked to do: how much of it, and with which settings."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastgat.config import TrainConfig
from fastgat.deciding import deciding_settings, flatten
from fastgat.errors import ConfigError
from fastgat.experiments import paper
from fastgat.experiments.cell import DATASETS, Cell
from fastgat.methods import GAT, Method
from fastgat.options import Options, option

WIDTHS = (8, 16, 24, 32, 48, 64)
INTERVALS = (1, 2, 4)


@dataclass(frozen=True)
class Plan(Options):
    """The extent of the experiments, and in `base` the settings of every run but for its method and seed."""

    seeds: int = option(3, "initialisations of every row, from --seed on (the paper: 50)", at_least=1)
    search_epochs: int | None = option(
        None, "epochs of the runs that choose hyperparameters  [default: as many as the others]", at_least=1
    )
    search_seeds: int = option(1, "initialisations of the runs that choose hyperparameters", at_least=1)
    samples: int | None = option(None, "test images of figures and attacks  [default: all]", at_least=1)
    generator_images: int | None = option(
        None,
        "images to train Figure 2's generators on, and at most as many to validate them  [default: the classifier's]",
        at_least=64,
    )
    generator_epochs: int = option(20, "passes over them, at most; validation stops them earlier", at_least=1)
    rounds: int = option(9, "how often the sides of a timing take turns", at_least=1)
    timed: str = option(
        "all",
        "methods to time: all, or gat (and fast gradient L2, to compare with)",
        choices=("all", "gat"),
    )
    points: str | None = option(
        None,
        "generators that capacity compares, WIDTH/INTERVAL,...  [default: widths 8, 16, 24, 32, 48, 64 x intervals 1, "
        "2, 4]",
    )
    base: TrainConfig = field(default_factory=TrainConfig)
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Values to choose from, by method, in place of those of `fastgat.experiments.search`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base.data.dataset not in DATASETS:
            known = ", ".join(DATASETS)
            raise ConfigError(f"experiments run on {known}; got dataset {self.base.data.dataset!r}")
        if any(min(pair) < 1 for pair in self.generators):
            raise ConfigError(f"points must have widths and intervals of at least 1, got {self.points!r}")

    @property
    def dataset(self) -> str:
        return self.base.data.dataset

    @property
    def seed_values(self) -> range:
        """The seeds."""
        return range(self.base.seed, self.base.seed + self.seeds)

    @property
    def generators(self) -> list[tuple[int, int]]:
        """The width, and the interval of learning, of each generator of `capacity`."""
        if self.points is None:
            return list(itertools.product(WIDTHS, INTERVALS))
        pairs = [re.fullmatch(r"(\d{1,6})/(\d{1,6})", word) for word in self.points.split(",")]
        if not all(pairs):
            raise ConfigError(f"points are WIDTH/INTERVAL, such as 24/1,48/2; got {self.points!r}")
        return list(dict.fromkeys((int(pair[1]), int(pair[2])) for pair in pairs if pair))

    def cell(self, method: Method, seed: int, **changes: Any) -> Cell:
        return Cell(replace(self.base, method=method, seed=seed, output=None, resume=None, **changes))

    @property
    def train_images(self) -> int:
        """How many images train."""
        available = DATASETS[self.dataset].train_images
        return min(available, self.base.data.train_images or available)

    def deviating(self) -> dict[str, Any]:
        """The settings of training that the paper has otherwise, and their values here."""
        defaults = dict(flatten(TrainConfig(select="accuracy").to_dict()))
        settings = deciding_settings(self.base) | {"run.early_stopping": self.base.run.early_stopping}
        return {
            key: value
            for key, value in settings.items()
            if not key.startswith("method.") and key not in OPEN and value != defaults.get(key)
        }

    @property
    def comparable(self) -> bool:
        """Whether accuracies can be held against Table 2: its data, all of them, and its settings where it has any; in
        whatever number format."""
        settings = {key for key in self.deviating() if not key.startswith("precision.")}
        options = self.gat_options()
        updates = options.get("generator_steps", 1), options.get("generator_interval", 1)
        return (
            self.dataset in paper.TABLE2
            and self.train_images == paper.TRAIN_IMAGES
            and updates == (1, 1)
            and not settings
        )

    def gat_options(self) -> dict[str, Any]:
        """The options of the base's method that every GAT of the experiments shares."""
        method = self.base.method
        if not isinstance(method, GAT):
            return {}
        return {name: getattr(method, name) for name in ("schedule", "generator_steps", "generator_interval", "delta")}


OPEN = ("seed", "epochs", "batch_size", "data.dataset", "data.split_seed", "data.train_images")
"""Settings that the paper leaves open, or that are told otherwise."""
