"""Finished cells that nobody has trained, for what is computed from them."""

from __future__ import annotations

import json
from typing import Any

from fastgat.config import DataConfig, TrainConfig
from fastgat.experiments import Plan, Store
from fastgat.experiments.cell import Cell


def plan(dataset: str = "cifar10", **settings: Any) -> Plan:
    return Plan(base=TrainConfig(epochs=5, data=DataConfig(dataset=dataset)), **settings)


def finish(store: Store, cell: Cell, validation: float, test: float = 0.5, best_epoch: int = 1) -> None:
    """Leave in the store what a training of `cell` would."""
    folder = store.run_folder(cell)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(cell.config.to_toml())
    (folder / "environment.json").write_text(json.dumps({"device": "a machine", "packages": {"torch": "9"}}))
    summary = {"validation_accuracy": validation, "test_accuracy": test, "best_epoch": best_epoch, "seconds": 3.0}
    (folder / "summary.json").write_text(json.dumps(summary))
