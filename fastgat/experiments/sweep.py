"""A search over any settings of a run: every combination trained, the best by validation accuracy named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, ClassVar

from fastgat.config import TrainConfig
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.markdown import percent, table
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import Spread
from fastgat.experiments.store import RunStore


@dataclass(frozen=True)
class Sweep(Experiment):
    """Attributes: `variants`, each combination of values, by the names of their options, with its configuration."""

    name: ClassVar[str] = "search"
    title: ClassVar[str] = "Search on validation images"

    variants: tuple[tuple[dict[str, Any], TrainConfig], ...]

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        return [cell for seed in plan.numbers for cell in self._cells(plan, seed)]

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        rows: list[dict[str, Any]] = []
        for number, (values, config) in enumerate(self.variants):
            cells = [self._cells(plan, seed)[number] for seed in plan.numbers]
            done = [summary for cell in cells if (summary := store.summary(cell)) is not None]
            rows.append(
                {
                    "values": values,
                    "config": config.to_dict(),
                    "accuracies": [summary["validation_accuracy"] for summary in done],
                    "best_epochs": [summary["best_epoch"] for summary in done],
                    "diverged": sum(store.diverged(cell) is not None for cell in cells),
                }
            )
        ranked = [i for i, row in enumerate(rows) if row["accuracies"] and not row["diverged"]]
        best = max(ranked, key=lambda i: mean(rows[i]["accuracies"]), default=None)
        return {"rows": rows, "best": best} if any(row["accuracies"] or row["diverged"] for row in rows) else None

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        lines = []
        for number, row in enumerate(figures["rows"]):
            accuracy = percent(Spread.of(row["accuracies"])) if row["accuracies"] else "-"
            said = f"{row['diverged']} diverged" if row["diverged"] else ""
            epochs = ", ".join(map(str, row["best_epochs"])) or "-"
            mark = "best" if number == figures["best"] else said
            values = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row["values"].values())
            lines.append([*values, accuracy, str(len(row["accuracies"])), epochs, mark])
        return table((*figures["rows"][0]["values"], "validation accuracy, %", "n", "best epoch", ""), lines)

    def _cells(self, plan: Plan, seed: int) -> list[Cell]:
        """On the plan's device, which is this process's own where several share the machine."""
        device = plan.base.run.device
        return [Cell(replace(config, seed=seed, run=replace(config.run, device=device))) for _, config in self.variants]
