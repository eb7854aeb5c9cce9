"""Hyperparameters that the paper does not give, chosen by validation accuracy; test images play no part.

`fastgat reproduce` chooses one for each method, by default from equally many values; `fastgat search` ranks any
settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, ClassVar, NamedTuple, NotRequired, TypedDict

from fastgat.config import TrainConfig
from fastgat.errors import ConfigError
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Job, Training
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.methods import METHODS, Method, create_method
from fastgat.options import constraint

SEARCHED: dict[str, tuple[str, tuple[float, ...]]] = {
    "dropout": ("dropout", (0.1, 0.15, 0.22, 0.33, 0.5)),
    "random": ("epsilon", (0.3, 0.6, 1.2, 2.4, 4.8)),
    "fg-linf": ("epsilon", (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255)),
    "fg-l2": ("epsilon", (0.06, 0.12, 0.25, 0.5, 1.0)),
    "gat": ("cg", (0.3, 0.7, 1.7, 4.0, 10.0)),
    "dropout-gat": ("cg", (0.3, 0.7, 1.7, 4.0, 10.0)),
    "gat-fixed": ("cg", (0.3, 0.7, 1.7, 4.0, 10.0)),
    "gradient-penalty": ("penalty", (0.01, 0.03, 0.1, 0.3, 1.0)),
}
"""By method the option that is searched, and five values, evenly spaced on a logarithmic scale; dropout + GAT takes
the rate that was chosen for dropout."""
PARAMETERS = {name: parameter for name, (parameter, _) in SEARCHED.items()}
GRIDS = {name: values for name, (_, values) in SEARCHED.items()}
READINGS: dict[str, tuple[str, dict[str, Any]]] = {"gat-fixed": ("gat", {"delta": "fixed"})}
"""What is compared beside the methods: a method under another name, with options of its own."""


class Outcome(TypedDict):
    """What came of the runs of one setting, or of one `value` of a hyperparameter: accuracies on validation images at
    their best epochs, one a run, and the number of runs that diverged."""

    value: NotRequired[float]
    accuracies: list[float]
    best_epochs: list[int]
    diverged: int


class Choice(NamedTuple):
    """A method with the value that validation has chosen (None where every run diverged), and each value tried."""

    method: Method | None
    curve: list[Outcome]


class Searching(Experiment):
    """Base of experiments whose methods are `chosen` by a search."""

    extent: ClassVar[tuple[str, ...]] = ("seeds", "search_epochs", "search_seeds")

    def jobs(self, plan: Plan, store: RunStore) -> list[Job]:
        return [*map(Training, cells(self.plan(plan), store, self.chosen)), *super().jobs(plan, store)]


@dataclass(frozen=True)
class Search(Experiment):
    """A search over any settings of a run: every combination is trained, and the best named.

    Attributes:
        variants: each combination of values, by the names of their options, with its configuration.
    """

    name = "search"
    title = "Search on validation images"

    variants: tuple[tuple[dict[str, Any], TrainConfig], ...]

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        return [self._cell(plan, config, seed) for seed in plan.seed_values for _, config in self.variants]

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        outcomes = [
            compare(store, [self._cell(plan, config, seed) for seed in plan.seed_values]) for _, config in self.variants
        ]
        if not any(each["accuracies"] or each["diverged"] for each in outcomes):
            return None
        number = best(outcomes)
        rows = [
            {"values": values, "config": config.to_dict(), **outcome}
            for (values, config), outcome in zip(self.variants, outcomes, strict=True)
        ]
        if number is None or outcomes[number]["diverged"]:
            return {"rows": rows, "best": None, "as_good": []}
        equals = [i for i, each in enumerate(outcomes) if i != number and _rank(each) == _rank(outcomes[number])]
        return {"rows": rows, "best": number, "as_good": equals}

    def _cell(self, plan: Plan, config: TrainConfig, seed: int) -> Cell:
        """On the plan's device, which is this process's own where several share the machine."""
        return Cell(replace(config, seed=seed, run=replace(config.run, device=plan.base.run.device)))


def compare(store: RunStore, tried: Sequence[Cell]) -> Outcome:
    """The outcome of the finished runs among `tried`."""
    summaries = store.summaries(tried)
    return {
        "accuracies": [summary["validation_accuracy"] for summary in summaries],
        "best_epochs": [summary["best_epoch"] for summary in summaries],
        "diverged": sum(store.diverged(cell) is not None for cell in tried),
    }


def best(rows: Sequence[Outcome]) -> int | None:
    """The index of the best row on validation: fewest diverged runs, then highest mean; the first of equals.

    None without accuracies.
    """
    ranked = [i for i, row in enumerate(rows) if row["accuracies"]]
    return max(ranked, key=lambda i: _rank(rows[i]), default=None)


def _rank(row: Outcome) -> tuple[int, float]:
    return -row["diverged"], mean(row["accuracies"]) if row["accuracies"] else 0.0


def cells(plan: Plan, store: RunStore, methods: tuple[str, ...]) -> list[Cell]:
    """The runs from which `methods` are chosen, those of the first seed first."""
    variants = [_variants(plan, store, name) for name in methods]
    candidates = [cell for tried in variants if len(tried) > 1 for method in tried for cell in _cells(plan, method)]
    return sorted(candidates, key=lambda cell: cell.seed)


def chosen(plan: Plan, store: RunStore, name: str) -> Method | None:
    """The method called `name` with the value that validation has chosen; None until it has, or if every run
    diverged."""
    choice = choose(plan, store, name)
    return None if choice is None else choice.method


def choose(plan: Plan, store: RunStore, name: str) -> Choice | None:
    """The choice of the method called `name`, or None as long as there are runs to be done."""
    methods = _variants(plan, store, name)
    if not methods:
        return None
    if len(methods) == 1:
        return Choice(methods[0], [])
    tried = [_cells(plan, method) for method in methods]
    if not all(store.finished(cell) for runs in tried for cell in runs):
        return None
    values = grid(plan, name)
    rows: list[Outcome] = [{"value": value, **compare(store, runs)} for value, runs in zip(values, tried, strict=True)]
    number = best(rows)
    return Choice(None if number is None else methods[number], rows)


def grid(plan: Plan, name: str) -> tuple[float, ...]:
    """The values of a method's hyperparameter."""
    return tuple(plan.grids.get(name, GRIDS[name]))


def check_grids(grids: dict[str, tuple[float, ...]]) -> None:
    """Raises ConfigError unless each is of a method that is searched, and has values that it can take."""
    for name, values in grids.items():
        if name not in PARAMETERS:
            raise ConfigError(f"no values can be chosen for {name!r}; known: {', '.join(PARAMETERS)}")
        parameter = PARAMETERS[name]
        rule = constraint(METHODS[READINGS.get(name, (name,))[0]].__dataclass_fields__[parameter])
        if len(set(values)) != len(values) or not values:
            raise ConfigError(f"the values for {name} must be one or more different numbers, got {list(values)}")
        for value in values:
            rule.check(f"{parameter} of {name}", value)


def _variants(plan: Plan, store: RunStore, name: str) -> list[Method]:
    """The method with each value of its hyperparameter, if it has one; none where another choice has to come first."""
    if name not in PARAMETERS:
        return [create_method(name)]
    method, reading = READINGS.get(name, (name, {}))
    options = plan.gat_options() | reading if "cg" in METHODS[method].__dataclass_fields__ else {}
    if name == "dropout-gat":
        dropout = chosen(plan, store, "dropout")
        if dropout is None:
            return []
        options["dropout"] = dropout.classifier_dropout
    return [create_method(method, **{**options, PARAMETERS[name]: value}) for value in grid(plan, name)]


def seeds(plan: Plan) -> range:
    """The seeds of the runs that choose."""
    return range(plan.base.seed, plan.base.seed + plan.search_seeds)


def _cells(plan: Plan, method: Method) -> list[Cell]:
    epochs = plan.search_epochs or plan.base.epochs
    return [plan.cell(method, seed, epochs=epochs) for seed in seeds(plan)]
