"""Whether the generator gains from more than the gradient: the image beside it, or its direction alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from fastgat.experiments import search
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.markdown import percent, points, table
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import Spread, interval
from fastgat.experiments.store import RunStore
from fastgat.methods import GAT, Method

INPUTS = {
    "gradient": "Delta, the paper's",
    "normalised": "Delta / ||Delta||",
    "with-image": "Delta and x",
}


class Inputs(Experiment):
    name: ClassVar[str] = "inputs"
    title: ClassVar[str] = "What the generator is given"
    chosen: ClassVar[tuple[str, ...]] = ("gat",)

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        method = search.chosen(plan, store, "gat")
        return [_cell(plan, method, name, seed) for seed in plan.numbers for name in INPUTS] if method else []

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        method = search.chosen(plan, store, "gat")
        if method is None:
            return None
        rows: dict[str, dict[str, Any]] = {name: {} for name in INPUTS}
        for name in INPUTS:
            for seed in plan.numbers:
                cell = _cell(plan, method, name, seed)
                summary = store.summary(cell)
                if summary is not None:
                    norms = {row["epoch"]: row.get("perturbation_norm") for row in store.epochs(cell)}
                    rows[name][str(seed)] = {
                        "test": summary["test_accuracy"],
                        "validation": summary["validation_accuracy"],
                        "perturbation_norm": norms.get(summary["best_epoch"]),
                    }
        return {"rows": rows} if any(rows.values()) else None

    def remarks(self, plan: Plan) -> list[str]:
        return ["Every generator has the c_g that was chosen for Delta."]

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        of_paper, lines = figures["rows"]["gradient"], []
        for name, runs in figures["rows"].items():
            if runs:
                gains = [runs[seed]["test"] - of_paper[seed]["test"] for seed in runs if seed in of_paper]
                norms = [run["perturbation_norm"] for run in runs.values() if run["perturbation_norm"] is not None]
                gain = points(Spread.of(gains).mean, interval(gains)) if gains and name != "gradient" else "-"
                lines.append(
                    [
                        INPUTS[name],
                        *(percent(Spread.of([run[key] for run in runs.values()])) for key in ("validation", "test")),
                        f"{len(runs)} of {plan.seeds}",
                        gain,
                        f"{Spread.of(norms).mean:.3f}" if norms else "-",
                    ]
                )
        header = ("generator's input", "validation, %", "test, %", "n", "points over Delta", "perturbation norm")
        return table(header, lines) + (
            "\nDifferences are paired by seed, with their 95 % interval; the norm is the mean over the best epoch.\n"
        )


def _cell(plan: Plan, method: Method, name: str, seed: int) -> Cell:
    assert isinstance(method, GAT)
    return plan.cell(replace(method, generator_input=name), seed)
