"""results.json and its types: one file with everything that pages are made of, small enough to commit.

cells      by name: settings (those that decide the result), summary or the reason why it diverged, environment
measured   by name: key, figures, environment, seconds
epochs     a row for each epoch of each cell
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Self, TypedDict

from fastgat.files import write_atomically
from fastgat.store import read_object

RESULTS = "results.json"
Row = dict[str, Any]  # an epoch's row of metrics.jsonl


class Environment(TypedDict, total=False):
    """The part of environment.json that pages show."""

    packages: dict[str, str]
    gpus: list[str]
    device: str
    cpus: int | None
    cpu_capability: str


class Summary(TypedDict):
    """A run's summary.json; what older versions do not write may be missing."""

    validation_accuracy: float
    test_accuracy: float
    best_epoch: int
    seconds: float
    epochs: NotRequired[int]
    images_per_second: NotRequired[float]
    test_accuracies: NotRequired[dict[str, float | None]]
    test_accuracies_unaveraged: NotRequired[dict[str, float | None]]
    last_validation_accuracy: NotRequired[float | None]
    last_validation_accuracy_unaveraged: NotRequired[float | None]


class KeptRun(TypedDict):
    """A finished cell; `unaveraged` is its best epoch without the moving average of its weights.

    `code` is a digest of the code of a classifier of one's own.
    """

    settings: dict[str, Any]
    summary: Summary | None
    diverged: NotRequired[str | None]
    environment: NotRequired[Environment]
    unaveraged: NotRequired[dict[str, float]]
    code: NotRequired[str]


class Measured(TypedDict):
    """A measurement of trained networks, or a timing; `figures` is None where it diverged."""

    key: dict[str, Any]
    figures: dict[str, Any] | None
    diverged: NotRequired[str | None]
    seconds: NotRequired[float]
    environment: NotRequired[Environment]


class Epoch(TypedDict, total=False):
    """The part of an epoch's row that is read."""

    epoch: int
    validation_accuracy: float
    validation_accuracy_unaveraged: float
    perturbation_norm: float


class _EpochOfCell(TypedDict):
    cell: str


class _Content(TypedDict):
    cells: dict[str, KeptRun]
    measured: dict[str, Measured]
    epochs: list[_EpochOfCell]


class Archive(NamedTuple):
    """The content of a results.json, the epochs by cell."""

    cells: dict[str, KeptRun]
    measured: dict[str, Measured]
    epochs: dict[str, list[Row]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The content of `folder`/results.json, empty where there is none. Raises DataError if it is damaged."""
        content = read_object(folder / RESULTS, _Content) or {"cells": {}, "measured": {}, "epochs": []}
        epochs: dict[str, list[Row]] = defaultdict(list)
        for row in content["epochs"]:
            epochs[row["cell"]].append({key: value for key, value in row.items() if key != "cell"})
        return cls(content["cells"], content["measured"], epochs)

    def write(self, folder: Path) -> None:
        """Replace `folder`/results.json, a line for each epoch."""
        rows = [{"cell": name, **row} for name in sorted(self.epochs) for row in self.epochs[name]]
        lines = ",\n".join("    " + json.dumps(row) for row in rows)
        parts = {"cells": dict(sorted(self.cells.items())), "measured": dict(sorted(self.measured.items()))}
        head = json.dumps(parts, indent=2).removesuffix("\n}")
        write_atomically(folder / RESULTS, f'{head},\n  "epochs": [\n{lines}\n  ]\n}}\n'.encode())
