"""Table 2: test accuracy of every method, and the margins of GAT."""

from __future__ import annotations

from typing import Any, ClassVar

from fastgat.experiments import paper, search
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.markdown import percent, points, table
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import Spread, interval, verdict
from fastgat.experiments.store import RunStore


class Table2(Experiment):
    name: ClassVar[str] = "table2"
    title: ClassVar[str] = "Table 2: test accuracy"
    chosen: ClassVar[tuple[str, ...]] = paper.METHODS

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        """Every method that has been chosen, seed by seed."""
        methods = [method for name in self.chosen if (method := search.chosen(plan, store, name)) is not None]
        return [plan.cell(method, seed) for seed in plan.numbers for method in methods]

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        """`rows`: a method each, what was chosen and how, and accuracies by seed; `margins` of GAT over others."""
        plan = self.plan(plan)
        rows = [row for name in self.chosen if (row := _row(plan, store, name)) is not None]
        if not any(row["accuracy"] or row["curve"] or row["diverged"] for row in rows):
            return None
        return {"dataset": plan.dataset, "rows": rows, "margins": _margins(plan, rows)}

    def remarks(self, plan: Plan) -> list[str]:
        if not plan.base.precision.amp:
            return []
        return ["Test accuracy is taken in mixed precision too; that of the figures in float32."]

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        plan = self.plan(plan)
        return _accuracies(plan, figures) + _margin_table(figures["margins"]) + _searches(figures["rows"])

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        from fastgat.experiments.plots import plot_searches

        curves = {row["method"]: row for row in figures["rows"] if row["curve"]}
        return {f"{self.name}-search": plot_searches(curves)} if curves else {}


def _row(plan: Plan, store: RunStore, name: str) -> dict[str, Any] | None:
    choice = search.choose(plan, store, name)
    if choice is None:
        return None
    if choice.method is None:
        nothing: dict[str, Any] = {key: {} for key in ("settings", "accuracy", "validation", "best_epoch")}
        return {"method": name, "curve": choice.curve, "diverged": 0, "cells": [], **nothing}
    cells = {seed: plan.cell(choice.method, seed) for seed in plan.numbers}
    done = {seed: summary for seed, cell in cells.items() if (summary := store.summary(cell)) is not None}
    settings = cells[plan.base.seed].config.to_dict()["method"]
    return {
        "method": name,
        "settings": {key: value for key, value in settings.items() if key != "name"},
        "curve": choice.curve,
        "accuracy": {str(seed): summary["test_accuracy"] for seed, summary in done.items()},
        "validation": {str(seed): summary["validation_accuracy"] for seed, summary in done.items()},
        "best_epoch": {str(seed): summary["best_epoch"] for seed, summary in done.items()},
        "diverged": sum(store.diverged(cell) is not None for cell in cells.values()),
        "cells": [cells[seed].name for seed in done],
    }


def _margins(plan: Plan, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """GAT over the baseline and over the better fast gradient (on validation), seed by seed; the paper's, where the
    classifier is the paper's. The runs that chose a value are in its favour: `unsearched` is without their seeds."""
    found = {row["method"]: row for row in rows if row["accuracy"]}
    if "gat" not in found:
        return []
    fast = [name for name in paper.FAST_GRADIENT if name in found]
    best = max(fast, key=lambda name: Spread.of(list(found[name]["validation"].values())).mean, default=None)
    theirs = paper.TABLE2.get(plan.dataset) if plan.base.model.classifier == "table1" else None
    margins = []
    for over, label in (("baseline", "the baseline"), (best, f"fast gradient ({best})")):
        if over is None or over not in found:
            continue
        own, others = found["gat"]["accuracy"], found[over]["accuracy"]
        both = [seed for seed in own if seed in others]
        differences = [own[seed] - others[seed] for seed in both]
        searched = {str(seed) for name in ("gat", over) if found[name]["curve"] for seed in search.seeds(plan)}
        unsearched = [own[seed] - others[seed] for seed in both if seed not in searched] if searched else None
        if differences:
            expected = None
            if theirs is not None:
                best_of_paper = max(paper.FAST_GRADIENT, key=lambda name: theirs[name].mean)
                expected = theirs["gat"].mean - theirs["baseline" if over == "baseline" else best_of_paper].mean
            margins.append({"over": label, "differences": differences, "unsearched": unsearched, "paper": expected})
    return margins


def _accuracies(plan: Plan, figures: dict[str, Any]) -> str:
    theirs = paper.TABLE2.get(figures["dataset"], {}) if plan.base.model.classifier == "table1" else {}
    rows = []
    for row in figures["rows"]:
        values = list(row["accuracy"].values())
        ours = Spread.of(values) if values else None
        expected = theirs.get(row["method"])
        judged = verdict(ours, expected) if ours and expected and plan.comparable else "-"
        said = f", {row['diverged']} diverged" if row["diverged"] else ""
        rows.append(
            [
                row["method"],
                _chosen(row),
                percent(ours),
                f"{len(values)} of {plan.seeds}{said}",
                ", ".join(str(epoch) for epoch in row["best_epoch"].values()) or "-",
                percent(Spread(expected.mean, expected.sd, paper.INITIALISATIONS)) if expected else "-",
                judged,
            ]
        )
    header = ("method", "chosen", "test accuracy, %", "n", "best epoch", "the paper, n = 50", "verdict")
    text = table(header, rows)
    if short := [row["method"] for row in figures["rows"] if plan.base.epochs in row["best_epoch"].values()]:
        text += f"\nOf {', '.join(short)} a run was best in its last epoch: longer training may do better.\n"
    if theirs and not plan.comparable:
        text += "\nNo verdict: these runs are not the paper's (see what differs), so only margins compare.\n"
    elif theirs:
        text += (
            "\nA row agrees where its mean is within sqrt(sd² + sd'²) of the paper's, the joint spread of single runs; "
            "a single run is given the paper's.\n"
        )
    return text


def _margin_table(margins: list[dict[str, Any]]) -> str:
    if not margins:
        return ""
    rows = []
    for margin in margins:
        rows.append(
            [
                margin["over"],
                _margin(margin["differences"]),
                ", ".join(points(difference) for difference in margin["differences"]),
                _margin(margin["unsearched"]),
                points(margin["paper"]) if margin["paper"] is not None else "-",
            ]
        )
    text = "\n" + table(("GAT over", "margin, points", "by seed", "without the search's seeds", "the paper"), rows)
    if any(margin["unsearched"] is not None for margin in margins):
        text += (
            "\nThe run that won a search, where it was as long, is its row's too: what favoured it on validation may "
            "favour it on test. Without the seeds of the search no run counts that chose anything.\n"
        )
    return text


def _margin(differences: list[float] | None) -> str:
    """Their mean, and Student's interval of it where there are several."""
    if not differences:
        return "-"
    several = " (95 %)" if len(differences) > 1 else ""
    return points(Spread.of(differences).mean, interval(differences)) + several


def _chosen(row: dict[str, Any]) -> str:
    shown = {search.PARAMETERS.get(row["method"]), "dropout"} & row["settings"].keys()
    return ", ".join(f"{key} {_number(row['method'], key, row['settings'][key])}" for key in sorted(shown)) or "-"


def _number(method: str, key: str, value: float) -> str:
    """An L-inf epsilon in pixels, everything else as it is."""
    return f"{value * 255:.3g}/255" if method == "fg-linf" and key == "epsilon" else f"{value:.3g}"


def _searches(rows: list[dict[str, Any]]) -> str:
    searched = [row for row in rows if row["curve"]]
    if not searched:
        return ""
    lines, edges = [], []
    for row in searched:
        parameter = search.PARAMETERS[row["method"]]
        taken = row["settings"].get(parameter)
        values = [tried["value"] for tried in row["curve"]]
        if taken in (min(values), max(values)):
            edges.append(row["method"])
        for tried in row["curve"]:
            value = _number(row["method"], parameter, tried["value"])
            accuracy = percent(Spread.of(tried["accuracies"])) if tried["accuracies"] else "-"
            said = ["chosen"] * (tried["value"] == taken) + [f"{tried['diverged']} diverged"] * bool(tried["diverged"])
            epochs = ", ".join(map(str, tried["best_epochs"]))
            lines.append([row["method"], f"{parameter} {value}", accuracy, epochs, ", ".join(said)])
    header = ("method", "value", "validation accuracy, %", "best epoch", "")
    text = "\nHow they were chosen, on validation images alone:\n\n" + table(header, lines)
    if edges:
        text += f"\nOf {', '.join(edges)} the choice is at the edge of what was tried: the best may lie beyond.\n"
    return text
