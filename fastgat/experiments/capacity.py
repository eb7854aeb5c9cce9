"""How large a generator has to be, and how often it has to learn: accuracy against what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from fastgat.config import TrainConfig
from fastgat.experiments import search
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Job, Training
from fastgat.experiments.markdown import percent, table
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import Spread
from fastgat.experiments.store import Store
from fastgat.experiments.timing import timing, timings
from fastgat.methods import GAT

WIDTHS = (8, 16, 32, 48, 64)
INTERVALS = (1, 2, 4)


class Capacity(Experiment):
    name: ClassVar[str] = "capacity"
    title: ClassVar[str] = "Capacity of the generator"

    def jobs(self, plan: Plan, store: Store) -> list[Job]:
        choice = search.choose(plan, store, "gat")
        if choice is None:
            return search.jobs(plan, store, ("gat",))
        cells = [cell for seed in plan.numbers for cell in _cells(plan, choice.method, seed).values()]
        return [*map(Training, cells), *(timing(plan, cell.config) for cell in cells[: len(WIDTHS) * len(INTERVALS)])]

    def collect(self, plan: Plan, store: Store) -> dict[str, Any] | None:
        choice = search.choose(plan, store, "gat")
        if choice is None:
            return None
        points = []
        for width, interval in _cells(plan, choice.method, plan.base.seed):
            cells = [_cells(plan, choice.method, seed)[width, interval] for seed in plan.numbers]
            done = [summary for cell in cells if (summary := store.summary(cell)) is not None]
            if done:
                points.append(
                    {
                        "width": width,
                        "interval": interval,
                        "accuracies": [summary["test_accuracy"] for summary in done],
                        "validation": [summary["validation_accuracy"] for summary in done],
                        "overheads": _overheads(plan, store, cells[0].config),
                    }
                )
        return {"points": points} if points else None

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        rows = [
            [
                str(point["width"]),
                str(point["interval"]),
                percent(Spread.of(point["validation"])),
                percent(Spread.of(point["accuracies"])),
                str(len(point["accuracies"])),
                "; ".join(f"{ratio:.2f} ({device})" for device, ratio in point["overheads"].items()) or "-",
            ]
            for point in figures["points"]
        ]
        header = ("width", "generator steps every", "validation, %", "test, %", "n", "time over fast gradient L2")
        return table(header, rows) + (
            "\nThe paper's generator has width 48 and learns at every step. A step that the generator sits out still "
            "perturbs.\n"
        )

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        from fastgat.experiments.plots import plot_capacity

        points = [point for point in figures["points"] if point["overheads"]]
        return {"capacity": plot_capacity(points)} if points else {}


def _cells(plan: Plan, method: Any, seed: int) -> dict[tuple[int, int], Cell]:
    assert isinstance(method, GAT)
    return {
        (width, interval): plan.cell(
            replace(method, generator_interval=interval),
            seed,
            model=replace(plan.base.model, generator_width=width),
        )
        for width in WIDTHS
        for interval in INTERVALS
    }


def _overheads(plan: Plan, store: Store, config: TrainConfig) -> dict[str, float]:
    """The time of a step over one of fast gradient, both in fastgat, by device."""
    return {figures["device"]: figures["overhead"]["fastgat"] for figures in timings(plan, store, config)}
