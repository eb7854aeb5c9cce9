"""The run folder: config.toml, environment.json, metrics.jsonl, summary.json and curves.png.

metrics.jsonl has a row for each report ("event": "interval", means over the steps since the last one) and for each
epoch ("event": "epoch"); `step` is the number of steps done. A run that continues drops the
rows that it will write again.
"""

import contextlib
import json
from pathlib import Path
from typing import Any, TypedDict

from fastgat.config import TrainConfig
from fastgat.engine.events import Callback, Compiled, End, EpochEnd, Interval, Start
from fastgat.engine.run_checkpoints import SUMMARY
from fastgat.errors import DataError
from fastgat.files import append_line, read_file, write_atomically
from fastgat.reporting.environment import environment
from fastgat.reporting.plots import draw_curves
from fastgat.store import as_json
from fastgat.typed import check_type, parse_json


class Row(TypedDict):
    """The fields that every row of metrics.jsonl has."""

    event: str
    step: int


class RunFolder(Callback):
    """Writes what people and programs want to know of a run; the checkpoints are the engine's."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder, self.config = folder, config
        self.metrics = folder / "metrics.jsonl"
        self.environment: dict[str, Any] = {}
        self.epochs: list[dict[str, Any]] = []

    def on_start(self, event: Start) -> None:
        self._write("config.toml", self.config.to_toml().encode(errors="surrogateescape"))  # a path that is not UTF-8
        self.environment = {**environment(), **event.facts}
        self._write("environment.json", as_json(self.environment))
        known = [row for row in read_metrics(self.metrics) if row["event"] == "interval" and row["step"] <= event.step]
        self.epochs = list(event.history)
        rows = sorted([*known, *({"event": "epoch", **row} for row in event.history)], key=lambda row: row["step"])
        self._write(self.metrics.name, "".join(json.dumps(row) + "\n" for row in rows).encode())
        with contextlib.suppress(FileNotFoundError):
            (self.folder / SUMMARY).unlink()

    def on_compiled(self, event: Compiled) -> None:
        self._write("environment.json", as_json(self.environment | {"compiled": vars(event)}))

    def on_interval(self, event: Interval) -> None:
        row = {"event": "interval", "step": event.step, "epoch": event.epoch, **event.metrics}
        rates = {"images_per_second": event.images_per_second, "data_wait": event.data_wait}
        append_line(self.metrics, json.dumps({**row, **rates}))

    def on_epoch(self, event: EpochEnd) -> None:
        self.epochs.append(event.row())
        append_line(self.metrics, json.dumps({"event": "epoch", **event.row()}))

    def on_end(self, event: End) -> None:
        if self.epochs:
            self._write("curves.png", draw_curves(self.epochs))
        if event.summary is not None:
            self._write(SUMMARY, as_json(event.summary))

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.folder / name, content)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics.jsonl; what a kill has cut off, or another program written, is left out."""
    try:
        content = read_file(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    rows = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            row = parse_json(line)
            check_type(row, Row, "row")
            if row["event"] != "epoch" or "epoch" in row:
                rows.append(row)
    return rows
