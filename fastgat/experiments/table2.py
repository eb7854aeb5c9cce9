"""Table 2: test accuracy of every method, and the margins of GAT; by each rule that picks an epoch."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

from fastgat.config import ModelConfig
from fastgat.errors import ConfigError
from fastgat.experiments import paper, search
from fastgat.experiments.attacked import attack_job, remark
from fastgat.experiments.cell import Cell
from fastgat.experiments.images import samples_remark
from fastgat.experiments.jobs import Measurement
from fastgat.experiments.plan import Plan
from fastgat.experiments.plots import plot_searches
from fastgat.experiments.rules import COLUMNS, by_rule
from fastgat.experiments.spread import BySeed, Spread, paired, verdict
from fastgat.experiments.store import RunStore

LARGER = "timm:resnet18"
FORMS_OF_GAT = "gat-fixed", "gat", "dropout-gat"
"""Each is also held against those before it."""
RIVALS_OF_GAT = "dropout", "gradient-penalty"
"""What GAT is held against beside the baseline and fast gradient: does it gain more, or add to them?"""


class Row(TypedDict):
    """A method of the table: what was chosen and how, its accuracies and best epochs by seed, the cells behind them."""

    method: str
    settings: dict[str, Any]
    curve: list[search.Outcome]
    accuracy: BySeed
    validation: BySeed
    best_epoch: dict[str, int]
    by_rule: dict[str, dict[str, BySeed]]
    diverged: int
    cells: list[str]


class Table2(search.Searching):
    name = "table2"
    title = "Table 2: test accuracy"
    template = "table2"
    chosen = paper.METHODS

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        """Every method that has been chosen, seed by seed."""
        methods = [method for name in self.chosen if (method := search.chosen(plan, store, name)) is not None]
        return [plan.cell(method, seed) for seed in plan.seed_values for method in methods]

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        """What was chosen and how, and accuracies by seed, in `rows`; margins of GAT, and of every method by rule."""
        plan = self.plan(plan)
        rows = [row for name in self.chosen if (row := _row(plan, store, name)) is not None]
        if not any(row["accuracy"] or row["curve"] or row["diverged"] for row in rows):
            return None
        margins = {"margins": _margins(plan, rows, self.expected(plan)), "margins_by_rule": _margins_by_rule(rows)}
        return {"dataset": plan.dataset, "columns": COLUMNS, "rows": rows, **margins}

    def remarks(self, plan: Plan) -> list[str]:
        if not plan.base.precision.amp:
            return []
        return ["Test accuracy is taken in mixed precision too; that of the figures in float32."]

    def expected(self, plan: Plan) -> dict[str, paper.Accuracy]:
        """What the paper reports, by method, where its classifier is used."""
        return paper.TABLE2.get(plan.dataset, {}) if plan.base.model.classifier == "table1" else {}

    def verdict(self, plan: Plan, row: Row) -> str:
        """The verdict on a row of `collect` beside the paper's."""
        expected = self.expected(plan).get(row["method"])
        if expected is None or not row["accuracy"] or not plan.comparable:
            return "-"
        return verdict(Spread.of(list(row["accuracy"].values())), expected)

    def setting(self, row: Row, value: float | None = None) -> str:
        """The chosen settings of a row in words, or those with `value`; an L-inf epsilon in 1/255."""
        parameter = search.PARAMETERS.get(row["method"], "")
        names = {parameter, "dropout"} & row["settings"].keys()
        values = {name: row["settings"][name] for name in sorted(names)} if value is None else {parameter: value}
        if row["method"] == "fg-linf":
            return ", ".join(f"{name} {each * 255:.3g}/255" for name, each in values.items())
        return ", ".join(f"{name} {each:.3g}" for name, each in values.items())

    def best_in_last_epoch(self, plan: Plan, rows: list[Row]) -> list[str]:
        return [row["method"] for row in rows if plan.base.epochs in row["best_epoch"].values()]

    def remark(self, row: Row, tried: search.Outcome) -> str:
        """The remark on a value that was tried."""
        chosen = tried["value"] == _taken(row)
        return ", ".join(["chosen"] * chosen + [f"{tried['diverged']} diverged"] * bool(tried["diverged"]))

    def at_the_edge(self, rows: list[Row]) -> list[str]:
        """The methods whose choice is the least or the greatest value that was tried."""
        tried = {row["method"]: [each["value"] for each in row["curve"]] for row in rows if row["curve"]}
        edges = {name: (min(values), max(values)) for name, values in tried.items()}
        return [row["method"] for row in rows if _taken(row) in edges.get(row["method"], ())]

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        curves = {row["method"]: row for row in figures["rows"] if row["curve"]}
        return {f"{self.name}-search": plot_searches(curves)} if curves else {}


class Readings(Table2):
    """Whether the derivative through Delta gains what Delta held fixed does not, and more than a gradient penalty; and
    what attacks leave of the three."""

    name = "readings"
    title = "Delta fixed or through, and a gradient penalty"
    chosen = ("baseline", "dropout", "fg-l2", "gat-fixed", "gat", "gradient-penalty")
    attacked = "gat-fixed", "gat", "gradient-penalty"
    attacks = staticmethod(remark)
    extent = (*Table2.extent, "samples")

    def check(self, plan: Plan, given: Mapping[str, Any]) -> None:
        if plan.gat_options()["delta"] == "fixed":
            raise ConfigError("readings compares Delta fixed (gat-fixed) with through (gat): leave --delta out")

    def remarks(self, plan: Plan) -> list[str]:
        return [*super().remarks(plan), *samples_remark(plan)]

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        """Attacks on them, where the weights were kept or it is known what attacks leave."""
        cells = (cell for name in self.attacked for cell in self._trained(plan, store, name))
        jobs = ((cell, attack_job(plan, cell)) for cell in cells)
        return [job for cell, job in jobs if job.done(store) or store.has_weights(cell)]

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        """The same, and in `attacked` by method and measure the accuracies by seed."""
        found = super().collect(plan, store)
        if found is None:
            return None
        left = {name: self._left(plan, store, name) for name in self.attacked}
        return found | {"attacked": {name: each for name, each in left.items() if each}}

    def gaps(self, left: dict[str, dict[str, BySeed]]) -> dict[str, dict[str, list[float]]]:
        """How much more attacks leave of each method than of those before it, by measure, for the seeds of both."""
        return {
            f"{name} over {other}": {
                measure: list(paired(left[name][measure], left[other][measure]).values()) for measure in left[name]
            }
            for other, name in itertools.combinations(left, 2)
        }

    def _trained(self, plan: Plan, store: RunStore, name: str) -> list[Cell]:
        method = search.chosen(plan, store, name)
        cells = [plan.cell(method, seed) for seed in plan.seed_values] if method is not None else []
        return [cell for cell in cells if store.summary(cell) is not None]

    def _left(self, plan: Plan, store: RunStore, name: str) -> dict[str, BySeed]:
        found: dict[str, BySeed] = {}
        for cell in self._trained(plan, store, name):
            for measure, accuracy in (attack_job(plan, cell).figures(store) or {}).items():
                found.setdefault(measure, {})[str(cell.seed)] = accuracy
        return found


class Larger(Table2):
    """Whether the method carries to a larger network: the baseline, fast gradient and GAT on a ResNet-18, or on the
    classifier that is asked for."""

    name = "larger"
    title = "A larger network"
    chosen = ("baseline", "fg-l2", "gat")

    def check(self, plan: Plan, given: Mapping[str, Any]) -> None:
        if given["classifier"] == ModelConfig().classifier:
            raise ConfigError(f"larger needs a --classifier larger than the paper's; without one it takes {LARGER}")

    def plan(self, plan: Plan) -> Plan:
        asked = plan.base.model.classifier
        classifier = LARGER if asked == ModelConfig().classifier else asked
        return replace(plan, base=replace(plan.base, model=replace(plan.base.model, classifier=classifier)))

    def remarks(self, plan: Plan) -> list[str]:
        return [*super().remarks(plan), f"The classifier of `{self.name}` is {self._classifier(plan)}."]

    def _classifier(self, plan: Plan) -> str:
        return self.plan(plan).base.model.classifier


def _taken(row: Row) -> float | None:
    """The chosen value of the method's hyperparameter."""
    return row["settings"].get(search.PARAMETERS.get(row["method"], ""))


def _row(plan: Plan, store: RunStore, name: str) -> Row | None:
    choice = search.choose(plan, store, name)
    if choice is None:
        return None
    cells = (
        {str(seed): plan.cell(choice.method, seed) for seed in plan.seed_values} if choice.method is not None else {}
    )
    done = {seed: summary for seed, cell in cells.items() if (summary := store.summary(cell)) is not None}
    settings: dict[str, Any] = next((cell.config.to_dict()["method"] for cell in cells.values()), {})
    return {
        "method": name,
        "settings": {key: value for key, value in settings.items() if key != "name"},
        "curve": choice.curve,
        "accuracy": {seed: summary["test_accuracy"] for seed, summary in done.items()},
        "validation": {seed: summary["validation_accuracy"] for seed, summary in done.items()},
        "best_epoch": {seed: summary["best_epoch"] for seed, summary in done.items()},
        "by_rule": by_rule(store, {seed: cells[seed] for seed in done}),
        "diverged": sum(store.diverged(cell) is not None for cell in cells.values()),
        "cells": [cells[seed].name for seed in done],
    }


def _margins(plan: Plan, rows: list[Row], theirs: dict[str, paper.Accuracy]) -> list[dict[str, Any]]:
    """GAT over the baseline and over the better fast gradient (on validation), seed by seed; the paper's, where the
    classifier is the paper's. Seeds that chose a value favour it: `unsearched` leaves them out."""
    done = {row["method"]: row for row in rows if row["accuracy"]}
    if "gat" not in done:
        return []
    margins = []
    for over, label in _rivals({name: row["validation"] for name, row in done.items()}).items():
        differences = paired(done["gat"]["accuracy"], done[over]["accuracy"])
        if not differences:
            continue
        searched = {str(seed) for name in ("gat", over) if done[name]["curve"] for seed in search.seeds(plan)}
        unsearched = [value for seed, value in differences.items() if seed not in searched] if searched else None
        expected = None
        if theirs:
            rivals = [name for name in paper.FAST_GRADIENT if name in done] if over != "baseline" else [over]
            expected = theirs["gat"].mean - max(theirs[name].mean for name in rivals)
        margin = {"over": label, "differences": list(differences.values())}
        margins.append({**margin, "unsearched": unsearched, "paper": expected})
    return margins


def _margins_by_rule(rows: list[Row]) -> list[dict[str, Any]]:
    """Each method over the baseline and over the better fast gradient, GAT also over dropout, a gradient penalty and
    its plain form, by `weights`: differences by seed, by column."""
    margins = []
    for weights in dict.fromkeys(weights for row in rows for weights in row["by_rule"]):
        done = {row["method"]: row["by_rule"][weights] for row in rows if weights in row["by_rule"]}
        rivals = _rivals({row["method"]: row["validation"] for row in rows if row["method"] in done})
        compared = [
            (method, over, label)
            for method, (over, label) in itertools.product(done, rivals.items())
            if method not in (over, "baseline") and not {method, over} <= {*paper.FAST_GRADIENT}
        ]
        for number, method in enumerate(FORMS_OF_GAT):
            rivals_of_gat = *RIVALS_OF_GAT, *FORMS_OF_GAT[:number]
            compared += [(method, over, over) for over in rivals_of_gat if {method, over} <= done.keys()]
        for method, over, label in compared:
            pairs = {column: paired(done[method].get(column, {}), done[over].get(column, {})) for column in COLUMNS}
            margins.append({"method": method, "over": label, "weights": weights, "differences": pairs})
    return margins


def _rivals(validation: dict[str, BySeed]) -> dict[str, str]:
    """The baseline and the better fast gradient on validation, as far as they are there, with what they are called."""
    done = {name: list(values.values()) for name, values in validation.items() if values}
    fast = [name for name in paper.FAST_GRADIENT if name in done]
    rivals = {"baseline": "the baseline"} if "baseline" in done else {}
    if fast:
        better = max(fast, key=lambda name: Spread.of(done[name]).mean)
        rivals[better] = f"fast gradient ({better})"
    return rivals
