"""What experiments have found so far, in one folder that several processes and machines may share.

cells/NAME/          the run folder of each cell
measured/NAME.json   what was computed from trained networks, or timed
locks/NAME           held by the process that is at it; the system lets go of it when that process dies
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgat.config import TrainConfig, load_toml
from fastgat.engine.checkpoint import keep_classifier
from fastgat.engine.load import load_classifier
from fastgat.engine.run_checkpoints import BEST, LAST, SUMMARY
from fastgat.errors import ConfigError, DataError, OutputError
from fastgat.experiments.cell import Cell, deciding
from fastgat.files import locked
from fastgat.reporting.run_folder import read_metrics
from fastgat.store import UNKNOWN_CONTENT, read_object
from fastgat.store import Store as KeyedStore

DIVERGED = "diverged.json"
FIGURES = {"validation_accuracy", "test_accuracy", "best_epoch", "seconds"}
"""What is wanted of a summary."""


class Store:
    """The folder of an experiment; making one writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._summaries: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def claim(self, name: str, *, alone: bool = False) -> Iterator[bool]:
        """Whether `name` is this process's to work on, inside the context; False where another one has it.

        With `alone`, also False where anything else is worked on from this machine, which nothing else is meanwhile.
        """
        machine = f"machine-{platform.node() or 'unnamed'}"
        with self._locked(machine, shared=not alone) as quiet:
            if not quiet:
                yield False
                return
            with self._locked(name) as mine:
                yield mine

    @contextlib.contextmanager
    def _locked(self, name: str, *, shared: bool = False) -> Iterator[bool]:
        path = self.folder / "locks" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be locked: {error.strerror}") from None
        with locked(path, shared=shared) as mine:
            yield mine

    def run_folder(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """summary.json of a cell that has been trained to its end, else None.

        Raises DataError where its folder is damaged or holds another run.
        """
        if cell.name in self._summaries:
            return self._summaries[cell.name]
        folder = self.run_folder(cell)
        summary = read_object(folder / SUMMARY)
        if summary is not None:
            if not summary.keys() >= FIGURES:
                raise DataError(f"{folder / SUMMARY}: {UNKNOWN_CONTENT}")
            path = folder / "config.toml"
            try:
                held = TrainConfig.from_dict(load_toml(path), str(path))
            except ConfigError as error:
                raise DataError(str(error)) from None
            if deciding(held) != deciding(cell.config):
                raise DataError(f"{folder}: holds another run than its name says; move it away")
            self._summaries[cell.name] = summary  # it will not change
        return summary

    def diverged(self, cell: Cell) -> str | None:
        """Why the training of a cell came to nothing: a loss became NaN or infinite, which is a result too."""
        found = read_object(self.run_folder(cell) / DIVERGED)
        return None if found is None else str(found.get("reason"))

    def finished(self, cell: Cell) -> bool:
        return self.summary(cell) is not None or self.diverged(cell) is not None

    def note_divergence(self, cell: Cell, reason: str) -> None:
        KeyedStore(self.run_folder(cell)).save("diverged", {"reason": reason})

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
            (folder / LAST).unlink(missing_ok=True)
        except OutputError:  # a checkpoint cannot be written, and says so
            raise
        except OSError as error:
            raise OutputError(f"{folder}: a checkpoint cannot be removed: {error.strerror}") from None

    def epochs(self, cell: Cell) -> list[dict[str, Any]]:
        """A row for each epoch of a cell so far."""
        return [row for row in read_metrics(self.run_folder(cell) / "metrics.jsonl") if row["event"] == "epoch"]

    def environment(self, cell: Cell) -> dict[str, Any]:
        """What a cell ran on; nothing where that is not known."""
        with contextlib.suppress(DataError):
            return read_object(self.run_folder(cell) / "environment.json") or {}
        return {}

    def classifier(self, cell: Cell, device: torch.device) -> nn.Module:
        """The classifier of a cell at its best validation epoch."""
        return load_classifier(self.run_folder(cell), device=device)

    def measured(self, name: str) -> dict[str, Any] | None:
        """What was kept under `name`: its key, figures (None where they diverged), environment and seconds."""
        content = KeyedStore(self.folder / "measured").load(name)
        if content is not None and not {"key", "figures"} <= content.keys():
            raise DataError(f"{self.folder / 'measured' / name}.json: {UNKNOWN_CONTENT}")
        return content

    def all_measured(self, prefix: str) -> list[dict[str, Any]]:
        """Everything that was kept under names that begin with `prefix`."""
        names = KeyedStore(self.folder / "measured").names(prefix)
        return [content for name in names if (content := self.measured(name)) is not None]

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        KeyedStore(self.folder / "measured").save(name, content)
