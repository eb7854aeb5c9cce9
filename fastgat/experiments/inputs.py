"""Whether the generator gains from more than the gradient: the image beside it, or its direction alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from fastgat.experiments import search
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Job, Training
from fastgat.experiments.markdown import percent, points, table
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import Spread, interval
from fastgat.experiments.store import Store
from fastgat.methods import GAT

INPUTS = {
    "gradient": "Delta, the paper's",
    "normalised": "Delta / ||Delta||",
    "with-image": "Delta and x",
}


class Inputs(Experiment):
    name: ClassVar[str] = "inputs"
    title: ClassVar[str] = "What the generator is given"

    def jobs(self, plan: Plan, store: Store) -> list[Job]:
        choice = search.choose(plan, store, "gat")
        if choice is None:
            return search.jobs(plan, store, ("gat",))
        return [Training(_cell(plan, choice.method, name, seed)) for seed in plan.numbers for name in INPUTS]

    def collect(self, plan: Plan, store: Store) -> dict[str, Any] | None:
        choice = search.choose(plan, store, "gat")
        if choice is None:
            return None
        rows = {}
        for name in INPUTS:
            cells = {seed: _cell(plan, choice.method, name, seed) for seed in plan.numbers}
            rows[name] = {
                str(seed): {
                    "test": summary["test_accuracy"],
                    "validation": summary["validation_accuracy"],
                    "perturbation_norm": store.epochs(cell)[summary["best_epoch"] - 1]["perturbation_norm"],
                }
                for seed, cell in cells.items()
                if (summary := store.summary(cell)) is not None
            }
        return {"rows": rows} if any(rows.values()) else None

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        paper, rows = figures["rows"]["gradient"], []
        for name, runs in figures["rows"].items():
            if not runs:
                continue
            means = {key: Spread.of([run[key] for run in runs.values()]) for key in next(iter(runs.values()))}
            gains = [runs[seed]["test"] - paper[seed]["test"] for seed in runs if seed in paper]
            gain = points(Spread.of(gains).mean, interval(gains)) if gains and name != "gradient" else "-"
            norm = means["perturbation_norm"].mean
            rows.append(
                [
                    INPUTS[name],
                    percent(means["validation"]),
                    percent(means["test"]),
                    str(len(runs)),
                    gain,
                    f"{norm:.3f}",
                ]
            )
        header = ("generator's input", "validation, %", "test, %", "n", "points over Delta", "perturbation norm")
        return table(header, rows) + (
            "\nc_g was chosen for Delta, and kept; differences are paired by seed, with their 95 % interval.\n"
        )


def _cell(plan: Plan, method: Any, name: str, seed: int) -> Cell:
    assert isinstance(method, GAT)
    return plan.cell(replace(method, generator_input=name), seed)
