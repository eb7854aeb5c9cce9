"""Hyperparameters that the paper does not give, chosen by validation accuracy: one for each method, by default from
equally many values. Test images play no part."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

from fastgat.errors import ConfigError
from fastgat.experiments.cell import Cell
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.methods import METHODS, Method, create_method
from fastgat.options import constraint

PARAMETERS = {
    "dropout": "dropout",
    "random": "epsilon",
    "fg-linf": "epsilon",
    "fg-l2": "epsilon",
    "gat": "cg",
    "dropout-gat": "cg",
}
"""The option that is searched, by method; dropout + GAT takes the rate that was chosen for dropout."""
GRIDS = {
    "dropout": (0.1, 0.15, 0.22, 0.33, 0.5),
    "random": (0.3, 0.6, 1.2, 2.4, 4.8),
    "fg-linf": (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    "fg-l2": (0.06, 0.12, 0.25, 0.5, 1.0),
    "gat": (0.3, 0.7, 1.7, 4.0, 10.0),
    "dropout-gat": (0.3, 0.7, 1.7, 4.0, 10.0),
}
"""Five values each, evenly spaced on a logarithmic scale."""


class Choice(NamedTuple):
    """A method with the value that validation has chosen (None where every run diverged), and a row for each value
    tried: `value`, `accuracies` (one a seed, at each run's best epoch), `best_epochs`, and `diverged` (how many came
    to nothing)."""

    method: Method | None
    curve: list[dict[str, Any]]


def cells(plan: Plan, store: RunStore, methods: tuple[str, ...]) -> list[Cell]:
    """The runs from which `methods` are chosen, those of the first seed first."""
    found = [cell for name in methods for cell in _candidates(plan, store, name)]
    return sorted(found, key=lambda cell: cell.seed)


def chosen(plan: Plan, store: RunStore, name: str) -> Method | None:
    """The method called `name` as validation would have it; None as long as that is not known, or if nothing came of
    any of its runs."""
    choice = choose(plan, store, name)
    return None if choice is None else choice.method


def choose(plan: Plan, store: RunStore, name: str) -> Choice | None:
    """How the method called `name` is chosen, or None as long as there are runs to be done."""
    values = grid(plan, name)
    if values is None:
        return Choice(create_method(name), [])
    methods = _variants(plan, store, name)
    if methods is None:
        return None
    if len(values) == 1:
        return Choice(methods[0], [])
    rows = []
    for value, method in zip(values, methods, strict=True):
        tried = _cells(plan, method)
        if not all(store.finished(cell) for cell in tried):
            return None
        rows.append({"value": value, **_result(store, tried)})
    if not any(row["accuracies"] for row in rows):
        return Choice(None, rows)
    best = max(range(len(rows)), key=lambda i: (-rows[i]["diverged"], mean(rows[i]["accuracies"] or [0.0])))
    return Choice(methods[best], rows)


def grid(plan: Plan, name: str) -> tuple[float, ...] | None:
    """The values of the method's hyperparameter, or None where it has none."""
    if name not in PARAMETERS:
        return None
    return tuple(plan.grids.get(name, GRIDS[name]))


def remarks(plan: Plan, methods: Sequence[str]) -> list[str]:
    """How the hyperparameters of `methods` come about, a line each."""
    tried = {name: len(values) for name in methods if (values := grid(plan, name)) is not None}
    searched = {name: count for name, count in tried.items() if count > 1}
    fixed = [name for name in tried if name not in searched]
    lines = []
    if searched:
        counts = ", ".join(f"{name} from {count} values" for name, count in searched.items())
        lines.append(
            "The paper does not give c_g, epsilon, dropout rate or noise power. Where they are searched, validation "
            f"accuracy chooses ({counts}), {plan.search_seeds} run(s) of "
            f"{plan.search_epochs or plan.base.epochs} epochs for each value; "
            "a run of the search that has a row's settings and seed is that row's too."
        )
    if fixed:
        lines.append(f"Of {', '.join(fixed)} the value is given, not searched.")
    if searched and len(set(tried.values())) > 1:
        lines.append("The search has not cost the same for every method: one with more values has an advantage.")
    if "dropout-gat" in methods:
        twice = {"dropout", "dropout-gat"} <= searched.keys()
        more = ", and so has two choices where others have one" if twice else ""
        lines.append(f"Dropout + GAT takes dropout's rate{more}.")
    return lines


def check_grids(grids: dict[str, tuple[float, ...]]) -> None:
    """Raises ConfigError unless each is of a method that is searched, and has values that it can take."""
    for name, values in grids.items():
        if name not in PARAMETERS:
            raise ConfigError(f"no values can be chosen for {name!r}; known: {', '.join(PARAMETERS)}")
        parameter = PARAMETERS[name]
        rule = constraint(METHODS[name].__dataclass_fields__[parameter])
        if len(set(values)) != len(values) or not values:
            raise ConfigError(f"the values for {name} must be some, each once, got {list(values)}")
        for value in values:
            rule.check(f"{parameter} of {name}", value)


def _variants(plan: Plan, store: RunStore, name: str) -> list[Method] | None:
    """The method with each of its values; None where another choice has to come first."""
    options: dict[str, Any] = plan.gat_options() if "cg" in METHODS[name].__dataclass_fields__ else {}
    if name == "dropout-gat":
        dropout = chosen(plan, store, "dropout")
        if dropout is None:
            return None
        options["dropout"] = dropout.classifier_dropout
    values = grid(plan, name)
    assert values is not None
    return [create_method(name, **{**options, PARAMETERS[name]: value}) for value in values]


def _candidates(plan: Plan, store: RunStore, name: str) -> list[Cell]:
    methods = _variants(plan, store, name) if grid(plan, name) is not None else None
    if methods is None or len(methods) == 1:
        return []
    return [cell for method in methods for cell in _cells(plan, method)]


def seeds(plan: Plan) -> range:
    """Those of the runs that choose."""
    return range(plan.base.seed, plan.base.seed + plan.search_seeds)


def _cells(plan: Plan, method: Method) -> list[Cell]:
    epochs = plan.search_epochs or plan.base.epochs
    return [plan.cell(method, seed, epochs=epochs) for seed in seeds(plan)]


def _result(store: RunStore, cells: list[Cell]) -> dict[str, Any]:
    summaries = [summary for cell in cells if (summary := store.summary(cell)) is not None]
    return {
        "accuracies": [summary["validation_accuracy"] for summary in summaries],
        "best_epochs": [summary["best_epoch"] for summary in summaries],
        "diverged": len(cells) - len(summaries),
    }
