"""The rules that pick an epoch of a run, and what a finished run says by each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean
from typing import Any

from fastgat.experiments.cell import Cell
from fastgat.experiments.store import RunStore

COLUMNS = {
    "accuracy": "test, best validation accuracy",
    "loss": "test, lowest validation loss",
    "last": "test, last epoch",
    "last_ten": "validation, mean of the last 10 epochs",
}
"""What is told of each run, in percent."""
AVERAGED, PLAIN = "average", "no average"
"""The weights that are looked at: the moving average of a run that has one, or the trained weights themselves."""
LAST = 10


def by_rule(store: RunStore, cells: Mapping[str, Cell]) -> dict[str, dict[str, dict[str, float]]]:
    """The columns of the cells, by weights, column and key of `cells`; what a run does not tell is left out."""
    table: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for key, cell in cells.items():
        for weights, values in _of_run(store, cell).items():
            for column, value in values.items():
                table[weights][column][key] = value
    return {weights: dict(columns) for weights, columns in table.items()}


def _of_run(store: RunStore, cell: Cell) -> dict[str, dict[str, float]]:
    summary, rows = store.summary(cell), store.epochs(cell)[-LAST:]
    assert summary is not None
    averaged = cell.config.optimizer.ema is not None
    told = {AVERAGED if averaged else PLAIN: {"accuracy": summary["test_accuracy"], **_last_ten(rows, "")}}
    if averaged and (plain := store.unaveraged(cell)):
        told[PLAIN] = {"accuracy": plain["test_accuracy"], **_last_ten(rows, "_unaveraged")}
    return told


def _last_ten(rows: list[dict[str, Any]], suffix: str) -> dict[str, float]:
    values = [row[f"validation_accuracy{suffix}"] for row in rows if f"validation_accuracy{suffix}" in row]
    return {"last_ten": mean(values)} if values else {}
