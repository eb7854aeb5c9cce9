"""How large a generator has to be, and how often it has to learn: accuracy against what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from fastgat.experiments import search
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Measurement
from fastgat.experiments.markdown import percent, table
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import Spread
from fastgat.experiments.store import RunStore
from fastgat.experiments.timing import measured, timing, timings
from fastgat.methods import GAT, Method

WIDTHS = (8, 16, 32, 48, 64)
INTERVALS = (1, 2, 4)


class Capacity(Experiment):
    name: ClassVar[str] = "capacity"
    title: ClassVar[str] = "Capacity of the generator"
    chosen: ClassVar[tuple[str, ...]] = ("gat",)

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        method = search.chosen(plan, store, "gat")
        return [cell for seed in plan.numbers for cell in _cells(plan, method, seed).values()] if method else []

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        method = search.chosen(plan, store, "gat")
        cells = _cells(plan, method, plan.base.seed).values() if method else []
        return [timing(plan, cell.config) for cell in cells]

    def measured(self, plan: Plan, store: RunStore) -> dict[str, dict[str, Any]]:
        method = search.chosen(plan, store, "gat")
        cells = _cells(plan, method, plan.base.seed).values() if method else []
        return {name: each for cell in cells for name, each in measured(store, cell.config).items()}

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        method = search.chosen(plan, store, "gat")
        if method is None:
            return None
        points = []
        for width, interval in _cells(plan, method, plan.base.seed):
            cells = [_cells(plan, method, seed)[width, interval] for seed in plan.numbers]
            done = [summary for cell in cells if (summary := store.summary(cell)) is not None]
            if done:
                points.append(
                    {
                        "width": width,
                        "interval": interval,
                        "accuracies": [summary["test_accuracy"] for summary in done],
                        "validation": [summary["validation_accuracy"] for summary in done],
                        "overheads": {
                            device: figures["overhead"]["fastgat"]
                            for device, figures in timings(store, cells[0].config).items()
                        },
                    }
                )
        return {"points": points} if points else None

    def remarks(self, plan: Plan) -> list[str]:
        width = plan.base.model.generator_width
        return [f"Every generator has the c_g that was chosen at width {width}."]

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        rows = [
            [
                str(point["width"]),
                str(point["interval"]),
                percent(Spread.of(point["validation"])),
                percent(Spread.of(point["accuracies"])),
                f"{len(point['accuracies'])} of {plan.seeds}",
                "; ".join(f"{ratio:.2f} ({device})" for device, ratio in point["overheads"].items()) or "-",
            ]
            for point in figures["points"]
        ]
        header = ("width", "generator learns every", "validation, %", "test, %", "n", "time over fast gradient L2")
        return table(header, rows) + (
            "\nThe paper's generator has width 48 and learns at every step; where it sits a step out, it still "
            "perturbs. Times are fastgat's, of both.\n"
        )

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        from fastgat.experiments.plots import plot_capacity

        points = [point for point in figures["points"] if point["overheads"]]
        return {"capacity": plot_capacity(points)} if points else {}


def _cells(plan: Plan, method: Method, seed: int) -> dict[tuple[int, int], Cell]:
    assert isinstance(method, GAT)
    return {
        (width, interval): plan.cell(
            replace(method, generator_interval=interval), seed, model=replace(plan.base.model, generator_width=width)
        )
        for width in WIDTHS
        for interval in INTERVALS
    }
