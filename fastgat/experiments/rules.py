"""What a finished run says by each rule that picks an epoch, with and without the moving average of its weights."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fastgat.engine.selection import LAST_EPOCHS, RULES, mean_of_last, suffix
from fastgat.experiments.cell import Cell
from fastgat.experiments.store import RunStore

COLUMNS = {
    "accuracy": "test, best validation accuracy",
    "loss": "test, lowest validation loss",
    "last": "test, last epoch",
    "last_ten": "validation, mean of the last 10 epochs",
}
"""A column for each rule, and one that picks no epoch."""


def by_rule(store: RunStore, cells: Mapping[str, Cell]) -> dict[str, dict[str, dict[str, float]]]:
    """The columns of the cells, by weights, column and key of `cells`; what a run does not tell is left out."""
    table: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for key, cell in cells.items():
        has_average = cell.config.optimizer.ema is not None
        for averaged in (True, False) if has_average else (True,):
            for column, value in _columns(store, cell, averaged).items():
                if value is not None:
                    table["average" if has_average and averaged else "no average"][column][key] = value
    return {weights: dict(columns) for weights, columns in table.items()}


def _columns(store: RunStore, cell: Cell, averaged: bool) -> dict[str, float | None]:
    run = store.run(cell)
    assert run is not None
    summary: dict[str, Any] = {**(run["summary"] or {})}
    tests = summary.get("test_accuracies" + suffix(averaged))
    if tests is None:  # older versions tested the best epoch only, and no other weights than these
        of_best = summary if averaged else run.get("unaveraged")
        tests = {"accuracy": of_best["test_accuracy"]} if of_best else {}
    epochs = store.epochs(cell)
    mean = summary.get("last_validation_accuracy" + suffix(averaged)) or mean_of_last(epochs, averaged)
    mean = mean if len(epochs) >= LAST_EPOCHS else None  # of fewer it would be another rule
    return {**{rule: tests.get(rule) for rule in RULES}, "last_ten": mean}
