"""Finished cells that nobody has trained, for what is computed from them."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from fastgat.config import DataConfig, TrainConfig
from fastgat.experiments import Plan, RunStore
from fastgat.experiments.cell import Cell


def plan(dataset: str = "cifar10", **settings: Any) -> Plan:
    return Plan(base=TrainConfig(epochs=5, data=DataConfig(dataset=dataset)), **settings)


def finish(store: RunStore, cell: Cell, validation: float, test: float = 0.5, best_epoch: int = 1) -> None:
    """Leave in the store what a training of `cell` would."""
    folder = store.run_folder(cell)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(cell.config.to_toml())
    (folder / "environment.json").write_text(json.dumps({"device": "a machine", "packages": {"torch": "9"}}))
    summary = {"validation_accuracy": validation, "test_accuracy": test, "best_epoch": best_epoch, "seconds": 3.0}
    (folder / "summary.json").write_text(json.dumps(summary))


def diverge(store: RunStore, cell: Cell) -> None:
    """Leave what a training that came to nothing would."""
    store.run_folder(cell).mkdir(parents=True)
    store.note_divergence(cell, "the loss became NaN at step 7")


def check_tables(text: str) -> None:
    """Every row of a table has as many cells as its header."""
    rows = [re.split(r"(?<!\\)\|", line) if line.startswith("|") else None for line in text.splitlines()]
    for before, row in itertools.pairwise(rows):
        assert before is None or row is None or len(before) == len(row), row


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the tables' rows, by the first."""
    cells = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): row[1:] for row in cells}
