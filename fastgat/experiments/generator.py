"""Questions about GAT's generator: how large it has to be, how often it has to learn, what it should be given."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

from fastgat.experiments import search
from fastgat.experiments.archive import Measured
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Measurement
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.experiments.timing import measured, timing, timings
from fastgat.methods import GAT

WIDTHS = (8, 16, 32, 48, 64)
INTERVALS = (1, 2, 4)
INPUTS = {
    "gradient": "Delta, the paper's",
    "normalised": "Delta / ||Delta||",
    "with-image": "Delta and x",
}


class GeneratorVariants(search.Searching):
    """Base: GAT with the c_g that was chosen, and its generator changed in one way."""

    chosen: ClassVar[tuple[str, ...]] = ("gat",)

    @abstractmethod
    def variants(self, plan: Plan, method: GAT, seed: int) -> dict[Any, Cell]:
        """The runs of one seed, by what was changed."""

    def of_seed(self, plan: Plan, store: RunStore, seed: int) -> dict[Any, Cell]:
        """The same; none as long as c_g has not been chosen."""
        method = search.chosen(plan, store, "gat")
        return self.variants(plan, method, seed) if isinstance(method, GAT) else {}

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        return [cell for seed in plan.numbers for cell in self.of_seed(plan, store, seed).values()]


class Capacity(GeneratorVariants):
    name: ClassVar[str] = "capacity"
    title: ClassVar[str] = "Capacity of the generator"

    def variants(self, plan: Plan, method: GAT, seed: int) -> dict[Any, Cell]:
        return {
            (width, interval): plan.cell(
                replace(method, generator_interval=interval),
                seed,
                model=replace(plan.base.model, generator_width=width),
            )
            for width in WIDTHS
            for interval in INTERVALS
        }

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        return [timing(plan, cell.config) for cell in self.of_seed(plan, store, plan.base.seed).values()]

    def measured(self, plan: Plan, store: RunStore) -> dict[str, Measured]:
        cells = self.of_seed(plan, store, plan.base.seed).values()
        return {name: each for cell in cells for name, each in measured(store, cell.config).items()}

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        rows = []
        for (width, interval), first in self.of_seed(plan, store, plan.base.seed).items():
            cells = [self.of_seed(plan, store, seed)[width, interval] for seed in plan.numbers]
            if summaries := store.summaries(cells):
                row = {
                    "width": width,
                    "interval": interval,
                    "accuracies": [summary["test_accuracy"] for summary in summaries],
                    "validation": [summary["validation_accuracy"] for summary in summaries],
                }
                times = timings(store, first.config).items()
                rows.append({**row, "overheads": {device: time["overhead"]["fastgat"] for device, time in times}})
        return {"points": rows} if rows else None

    def remarks(self, plan: Plan) -> list[str]:
        width = plan.base.model.generator_width
        return [f"Every generator has the c_g that was chosen at width {width}."]

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        from fastgat.experiments.plots import plot_capacity

        timed = [point for point in figures["points"] if point["overheads"]]
        return {"capacity": plot_capacity(timed)} if timed else {}


class Inputs(GeneratorVariants):
    name: ClassVar[str] = "inputs"
    title: ClassVar[str] = "What the generator is given"
    inputs = INPUTS

    def variants(self, plan: Plan, method: GAT, seed: int) -> dict[Any, Cell]:
        return {name: plan.cell(replace(method, generator_input=name), seed) for name in INPUTS}

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        rows: dict[str, dict[str, Any]] = {name: {} for name in INPUTS}
        for seed in plan.numbers:
            for name, cell in self.of_seed(plan, store, seed).items():
                summary = store.summary(cell)
                if summary is not None:
                    norms = {row["epoch"]: row.get("perturbation_norm") for row in store.epochs(cell)}
                    accuracies = {"test": summary["test_accuracy"], "validation": summary["validation_accuracy"]}
                    rows[name][str(seed)] = {**accuracies, "perturbation_norm": norms.get(summary["best_epoch"])}
        return {"rows": rows} if any(rows.values()) else None

    def remarks(self, plan: Plan) -> list[str]:
        return ["Every generator has the c_g that was chosen for Delta."]

    def gains(self, rows: dict[str, Any], name: str) -> list[float] | None:
        """Test accuracy over that with Delta alone, by seed."""
        paper, runs = rows["gradient"], rows[name]
        return None if name == "gradient" else [runs[s]["test"] - paper[s]["test"] for s in runs if s in paper]

    def norms(self, runs: dict[str, Any]) -> list[float]:
        return [run["perturbation_norm"] for run in runs.values() if run["perturbation_norm"] is not None]
