"""The runs and measurements of experiments, in one folder that several processes and machines may share.

cells/NAME/          the run folder of each cell
measured/NAME.json   what was computed from trained networks, or timed
locks/NAME           held by the process that works on it; the system releases it when that process dies
results.json         all of these without weights, written with the page; it is read where cells or measured are missing
"""

import contextlib
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
from fastgat.errors import ConfigError, DataError
from fastgat.experiments.archive import Archive, Environment, Epoch, KeptRun, Measured, Row, Summary
from fastgat.experiments.cell import Cell, deciding
from fastgat.files import locked, make_folder, writing
from fastgat.reporting.run_folder import read_metrics
from fastgat.store import Store, key_text, read_object
from fastgat.typed import check_type

FOLDERS = CELLS, MEASURED, LOCKS = "cells", "measured", "locks"
WHOLE = ".whole"


class RunStore:
    """The folder of an experiment; making one writes nothing.

    Attributes:
        whole: whether cells that finish keep their whole checkpoints, for good: longer runs can go on from them.
        archived: the names of what has been asked for and is known from results.json alone.
    """

    def __init__(self, folder: Path, *, whole: bool = False) -> None:
        self.folder, self.whole = folder, whole
        self.archived: set[str] = set()
        self.archive = Archive.read(folder)
        self._measured = Store(folder / MEASURED)
        self._runs: dict[str, KeptRun] = {}

    @contextlib.contextmanager
    def claim(self, name: str, *, alone: bool = False) -> Iterator[bool]:
        """Whether this process may work on `name` inside the context; False where another process does.

        With `alone`, also False while anything else is worked on from this machine, and nothing else is begun on it.
        """
        locks = self.folder / LOCKS
        make_folder(locks)
        machine = locks / f"machine-{platform.node() or 'unnamed'}"
        with contextlib.ExitStack() as stack:
            quiet = stack.enter_context(locked(machine, shared=not alone))
            yield quiet and stack.enter_context(locked(locks / name))

    def run_folder(self, cell: Cell) -> Path:
        return self.folder / CELLS / cell.name

    def run(self, cell: Cell) -> KeptRun | None:
        """A cell that has been trained to its end, or has diverged; None until then.

        Raises DataError where its folder is damaged or holds another run, or one of other code.
        """
        if cell.name not in self._runs:
            code = self.code(cell)
            if code is not None and code != cell.code:
                own = cell.config.model.classifier
                raise DataError(f"{self.run_folder(cell)}: the code of {own} has changed since; choose another --out")
            run = self._kept(cell)
            if run is None:
                return None
            self._runs[cell.name] = run  # a finished cell does not change
        return self._runs[cell.name]

    def _kept(self, cell: Cell) -> KeptRun | None:
        """A finished cell as its folder has it, and the archive; code that its settings name is not imported."""
        run, archived, code = self._read(cell), self.archive.cells.get(cell.name), self.code(cell)
        if run is None:
            if archived is None:
                return None
            self.archived.add(cell.name)
        merged: Any = {"environment": {}, **(archived or {}), **(run or {}), **({"code": code} if code else {})}
        if key_text(merged["settings"]) != key_text(deciding(cell.config)):
            raise DataError(f"{self.run_folder(cell)}: holds another run than its name says; move it away")
        return merged

    def _read(self, cell: Cell) -> KeptRun | None:
        """What the cell's folder holds."""
        folder = self.run_folder(cell)
        summary, path = read_object(folder / SUMMARY, Summary), folder / "config.toml"
        diverged = Store(folder).load("diverged", dict[str, str])
        if summary is None and diverged is None:
            return None
        run: KeptRun = {"settings": deciding(cell.config), "summary": summary, "diverged": None}
        if summary is None:
            run["diverged"] = diverged.get("reason", "unknown")
        else:
            try:
                run["settings"] = deciding(TrainConfig.from_run(load_toml(path), str(path)))
            except ConfigError as error:
                raise DataError(str(error)) from None
        with contextlib.suppress(DataError):
            if environment := read_object(folder / "environment.json", Environment):
                run["environment"] = environment
        return run

    def note_code(self, cell: Cell) -> None:
        """Keep the digest of the code of the cell's classifier, where that is the user's own."""
        if cell.code is not None:
            Store(self.run_folder(cell)).save("code", {"files": cell.code})

    def code(self, cell: Cell) -> str | None:
        """The digest of the code that made the cell's classifier; None for built-in ones, and where none was kept."""
        kept: dict[str, str] = Store(self.run_folder(cell)).load("code", dict[str, str]) or {}
        archived = self.archive.cells.get(cell.name)
        return kept.get("files") or (archived.get("code") if archived is not None else None)

    def summary(self, cell: Cell) -> Summary | None:
        """summary.json of a cell that has been trained to its end, else None."""
        run = self.run(cell)
        return run["summary"] if run is not None else None

    def summaries(self, cells: Iterable[Cell]) -> list[Summary]:
        """The summaries of the cells that have been trained to their end."""
        return [summary for cell in cells if (summary := self.summary(cell)) is not None]

    def diverged(self, cell: Cell) -> str | None:
        """Why a cell diverged (a loss became NaN or infinite, which is a result too), else None."""
        run = self.run(cell)
        return run.get("diverged") if run is not None else None

    def finished(self, cell: Cell) -> bool:
        return self.run(cell) is not None

    def note_divergence(self, cell: Cell, reason: str) -> None:
        Store(self.run_folder(cell)).save("diverged", {"reason": reason})

    def slim(self, cell: Cell) -> bool:
        """Whether a finished cell needs no trimming: only its classifier is left, or it is kept whole."""
        folder = self.run_folder(cell)
        return (folder / WHOLE).exists() or not (folder / LAST).exists()

    def make_slim(self, cell: Cell) -> None:
        """Leave of a finished cell's checkpoints the classifier of its best epoch; nothing where it diverged."""
        folder = self.run_folder(cell)
        if self.whole and self.diverged(cell) is None:
            Store(folder).save_file(WHOLE, b"")
            return
        with writing(folder, "trimmed"):
            if self.diverged(cell) is not None:
                (folder / BEST).unlink(missing_ok=True)
            elif (folder / BEST).exists():
                keep_classifier(folder / BEST)
            for name in (LAST, *(candidate.file for candidate in candidates(has_average=True, robust=True))):
                (folder / name).unlink(missing_ok=True)

    def epochs(self, cell: Cell) -> list[Row]:
        """A row for each epoch of a cell so far. Raises DataError if one has values of other types."""
        path = self.run_folder(cell) / "metrics.jsonl"
        rows = [row for row in read_metrics(path) if row["event"] == "epoch"]
        rows = rows or self.archive.epochs.get(cell.name, [])
        try:
            check_type(rows, list[Epoch], "epoch")
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        return rows

    def classifier(self, cell: Cell, device: torch.device) -> nn.Module:
        """The classifier of a cell at its best validation epoch. Raises DataError where its weights were not kept."""
        folder = self.run_folder(cell)
        if cell.name in self.archive.cells and not self.has_weights(cell):
            raise DataError(f"{self.folder}: the weights of {cell.name} were not kept; train it in another --out")
        return load_classifier(folder, device=device, classifier=cell.config.model.classifier)

    def has_weights(self, cell: Cell) -> bool:
        """Whether the classifier of a cell was kept, not its figures alone."""
        return (self.run_folder(cell) / BEST).exists()

    def measured(self, name: str) -> Measured | None:
        """The measurement that was kept under `name`."""
        content: Measured | None = self._measured.load(name, Measured)
        if content is None and name in self.archive.measured:
            self.archived.add(name)
            return self.archive.measured[name]
        return content

    def all_measured(self, prefix: str) -> dict[str, Measured]:
        """The kept measurements whose names begin with `prefix`, by name."""
        names = {*self._measured.names(prefix), *(name for name in self.archive.measured if name.startswith(prefix))}
        return {name: content for name in sorted(names) if (content := self.measured(name)) is not None}

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        self._measured.save(name, content)

    def write_archive(self) -> None:
        """Write results.json: what it held, every finished cell of this folder, and all that was measured."""
        cells, measured, epochs = dict(self.archive.cells), self.all_measured(""), dict(self.archive.epochs)
        for path in sorted((self.folder / CELLS).glob("*/config.toml")):
            with contextlib.suppress(ConfigError, DataError):  # a damaged cell stops the experiments that need it
                cell = Cell(TrainConfig.from_run(load_toml(path), str(path)))
                if cell.name == path.parent.name and (run := self._kept(cell)) is not None:
                    environment: Any = {k: value for k, value in run.get("environment", {}).items() if k != "command"}
                    rows = [{key: row[key] for key in row if key != "event"} for row in self.epochs(cell)]
                    cells[cell.name], epochs[cell.name] = run | {"environment": environment}, rows
        if (archive := Archive(cells, measured, epochs)) != self.archive:
            archive.write(self.folder)
            self.archive = archive
