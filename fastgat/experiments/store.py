"""The runs and measurements of experiments, in one folder that several processes and machines may share.

cells/NAME/          the run folder of each cell
measured/NAME.json   what was computed from trained networks, or timed
locks/NAME           held by the process that works on it; the system releases it when that process dies
results.json         all of these without weights, written with the page; it is read where cells or measured are missing
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgat.config import TrainConfig, load_toml
from fastgat.engine.checkpoint import keep_classifier
from fastgat.engine.load import load_classifier
from fastgat.engine.run_checkpoints import BEST, LAST, SUMMARY
from fastgat.engine.selection import candidates
from fastgat.errors import ConfigError, DataError, OutputError
from fastgat.experiments.archive import Archive, read_archive, write_archive
from fastgat.experiments.cell import Cell, deciding
from fastgat.files import locked
from fastgat.reporting.run_folder import read_metrics
from fastgat.store import UNKNOWN_CONTENT, Store, make_folder, read_object

NEEDED = {"validation_accuracy", "test_accuracy", "best_epoch", "seconds"}
"""Keys that every summary has."""


class RunStore:
    """The folder of an experiment; making one writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = read_archive(folder)
        self._measured = Store(folder / "measured")
        self._summaries: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def claim(self, name: str, *, alone: bool = False) -> Iterator[bool]:
        """Whether this process may work on `name` inside the context; False where another process does.

        With `alone`, also False while anything else is worked on from this machine, and nothing else is begun on it.
        """
        locks = self.folder / "locks"
        make_folder(locks)
        machine = locks / f"machine-{platform.node() or 'unnamed'}"
        with locked(machine, shared=not alone) as quiet, locked(locks / name) if quiet else _no_lock() as mine:
            yield quiet and mine

    def run_folder(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """summary.json of a cell that has been trained to its end, else None.

        Raises DataError where its folder is damaged or holds another run.
        """
        if cell.name not in self._summaries:
            summary = self._read_summary(cell)
            if summary is None:
                return None
            self._summaries[cell.name] = summary  # a finished cell does not change
        return self._summaries[cell.name]

    def summaries(self, cells: Iterable[Cell]) -> list[dict[str, Any]]:
        """Those of the cells that have been trained to their end."""
        return [summary for cell in cells if (summary := self.summary(cell)) is not None]

    def _read_summary(self, cell: Cell) -> dict[str, Any] | None:
        folder = self.run_folder(cell)
        summary, path = read_object(folder / SUMMARY), folder / "config.toml"
        if summary is None and cell.name in self.archive.cells:
            archived, path = self.archive.cells[cell.name], self.folder / "results.json"
            summary, settings = archived["summary"], archived["settings"]
        elif summary is not None:
            try:
                settings = deciding(TrainConfig.from_dict(load_toml(path), str(path)))
            except ConfigError as error:
                raise DataError(str(error)) from None
        if summary is None:
            return None
        if not summary.keys() >= NEEDED:
            raise DataError(f"{folder / SUMMARY}: {UNKNOWN_CONTENT}")
        if _plain(settings) != _plain(deciding(cell.config)):
            raise DataError(f"{folder}: holds another run than its name says; move it away")
        return summary

    def diverged(self, cell: Cell) -> str | None:
        """Why the training of a cell came to nothing: a loss became NaN or infinite, which is a result too."""
        content = Store(self.run_folder(cell)).load("diverged")
        reason = (content or {}).get("reason") or self.archive.cells.get(cell.name, {}).get("diverged")
        return str(reason) if content or reason else None

    def finished(self, cell: Cell) -> bool:
        return self.summary(cell) is not None or self.diverged(cell) is not None

    def note_divergence(self, cell: Cell, reason: str) -> None:
        Store(self.run_folder(cell)).save("diverged", {"reason": reason})

    def slim(self, cell: Cell) -> bool:
        """Whether a finished cell has been rid of what only going on with it would need."""
        return not (self.run_folder(cell) / LAST).exists()

    def make_slim(self, cell: Cell) -> None:
        """Leave of a finished cell's checkpoints the classifier of its best epoch; nothing where it diverged."""
        folder = self.run_folder(cell)
        try:
            if self.diverged(cell) is not None:
                (folder / BEST).unlink(missing_ok=True)
            elif (folder / BEST).exists():
                keep_classifier(folder / BEST)
            for name in (LAST, *(candidate.file for candidate in candidates(has_average=True))):
                (folder / name).unlink(missing_ok=True)
        except OutputError:  # a checkpoint cannot be written, and says so
            raise
        except OSError as error:
            raise OutputError(f"{folder}: a checkpoint cannot be removed: {error.strerror}") from None

    def epochs(self, cell: Cell) -> list[dict[str, Any]]:
        """A row for each epoch of a cell so far."""
        rows = read_metrics(self.run_folder(cell) / "metrics.jsonl")
        return [row for row in rows if row["event"] == "epoch"] or self.archive.epochs.get(cell.name, [])

    def unaveraged(self, cell: Cell) -> dict[str, Any] | None:
        """What is kept of the same run without the moving average of its weights."""
        return self.archive.cells.get(cell.name, {}).get("unaveraged")

    def environment(self, cell: Cell) -> dict[str, Any]:
        """What a cell ran on; nothing where that is not known."""
        with contextlib.suppress(DataError):
            if environment := read_object(self.run_folder(cell) / "environment.json"):
                return environment
        return self.archive.cells.get(cell.name, {}).get("environment") or {}

    def classifier(self, cell: Cell, device: torch.device) -> nn.Module:
        """The classifier of a cell at its best validation epoch. Raises DataError where its weights were not kept."""
        folder = self.run_folder(cell)
        if cell.name in self.archive.cells and not (folder / BEST).exists():
            raise DataError(f"{self.folder}: the weights of {cell.name} were not kept; train it in another --out")
        return load_classifier(folder, device=device, classifier=cell.config.model.classifier)

    def measured(self, name: str) -> dict[str, Any] | None:
        """What was kept under `name`: its key, figures (None where they diverged), environment and seconds."""
        content = self._measured.load(name) or self.archive.measured.get(name)
        if content is not None and not {"key", "figures"} <= content.keys():
            raise DataError(f"{self.folder / 'measured' / name}.json: {UNKNOWN_CONTENT}")
        return content

    def all_measured(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Everything that was kept under names that begin with `prefix`, by name."""
        names = {*self._measured.names(prefix), *(name for name in self.archive.measured if name.startswith(prefix))}
        return {name: content for name in sorted(names) if (content := self.measured(name)) is not None}

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        self._measured.save(name, content)

    def write_archive(self) -> None:
        """Write results.json: what it held, every finished cell of this folder, and all that was measured."""
        cells, measured, epochs = dict(self.archive.cells), self.all_measured(""), dict(self.archive.epochs)
        for path in sorted((self.folder / "cells").glob("*/config.toml")):
            with contextlib.suppress(ConfigError):  # a damaged cell stops the experiments that need it
                cell = Cell(TrainConfig.from_dict(load_toml(path), str(path)))
                if cell.name == path.parent.name and cell.name not in cells and self.finished(cell):
                    environment = {key: value for key, value in self.environment(cell).items() if key != "command"}
                    result = {"summary": self.summary(cell), "diverged": self.diverged(cell)}
                    cells[cell.name] = {"settings": deciding(cell.config), **result, "environment": environment}
                    rows = ({key: row[key] for key in row if key != "event"} for row in self.epochs(cell))
                    epochs[cell.name] = list(rows)
        if (archive := Archive(cells, measured, epochs)) != self.archive:
            write_archive(self.folder, archive)
            self.archive = archive


def _plain(settings: Mapping[str, Any]) -> Any:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings))


@contextlib.contextmanager
def _no_lock() -> Iterator[bool]:
    yield False
