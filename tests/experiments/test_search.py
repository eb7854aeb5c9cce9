"""Hyperparameters are chosen by validation accuracy, from runs that are all there."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fastgat.errors import ConfigError
from fastgat.experiments import RunStore, paper, search
from fastgat.experiments.plan import Plan
from fastgat.methods import GAT, METHODS, Dropout, DropoutGAT
from tests.experiments.made_up import finish, plan

GRIDS = {"gat": (0.5, 1.0, 2.0), "dropout": (0.1, 0.2), "dropout-gat": (1.0, 3.0)}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


def finish_all(store: RunStore, asked: Plan, accuracies: dict[float, float], test: float = 0.5) -> None:
    for cg, validation in accuracies.items():
        finish(store, asked.cell(GAT(cg=cg), 0), validation, test)


def test_the_best_on_validation_is_taken_whatever_the_test_says(store: RunStore) -> None:
    asked = plan(grids=GRIDS)
    assert search.choose(asked, store, "gat") is None
    finish(store, asked.cell(GAT(cg=0.5), 0), 0.6, test=0.99)
    finish(store, asked.cell(GAT(cg=1.0), 0), 0.7, test=0.1, best_epoch=4)
    assert search.choose(asked, store, "gat") is None, "a run is missing"
    finish(store, asked.cell(GAT(cg=2.0), 0), 0.65, test=0.5)
    choice = search.choose(asked, store, "gat")
    assert choice is not None
    assert choice.method == GAT(cg=1.0)
    assert [row["value"] for row in choice.curve] == [0.5, 1.0, 2.0]
    assert choice.curve[1] == {"value": 1.0, "accuracies": [0.7], "best_epochs": [4], "diverged": 0}


def test_one_that_diverged_is_not_taken(store: RunStore) -> None:
    asked = plan(grids=GRIDS, search_seeds=2)
    for cg in GRIDS["gat"]:
        for seed in range(2):
            cell = asked.cell(GAT(cg=cg), seed)
            if cg == 0.5 and seed == 1:
                store.run_folder(cell).mkdir(parents=True)
                store.note_divergence(cell, "NaN")
            else:
                finish(store, cell, 0.9 if cg == 0.5 else 0.5 + cg / 100)
    choice = search.choose(asked, store, "gat")
    assert choice is not None
    assert choice.method == GAT(cg=2.0)
    assert choice.curve[0]["diverged"] == 1


def test_nothing_to_choose_from(store: RunStore) -> None:
    asked = plan(grids=GRIDS)
    for cg in GRIDS["gat"]:
        cell = asked.cell(GAT(cg=cg), 0)
        store.run_folder(cell).mkdir(parents=True)
        store.note_divergence(cell, "NaN")
    choice = search.choose(asked, store, "gat")
    assert choice is not None
    assert choice.method is None
    assert [row["diverged"] for row in choice.curve] == [1, 1, 1]
    assert search.chosen(asked, store, "gat") is None


def test_a_single_value_is_not_searched(store: RunStore) -> None:
    asked = plan(grids={"gat": (0.7,)})
    assert search.cells(asked, store, ("gat", "baseline")) == []
    choice = search.choose(asked, store, "gat")
    assert choice is not None
    assert (choice.method, choice.curve) == (GAT(cg=0.7), [])


def test_dropout_gat_takes_the_rate_chosen_for_dropout(store: RunStore) -> None:
    asked = plan(grids=GRIDS)
    names = [cell.name for cell in search.cells(asked, store, ("dropout-gat",))]
    assert names == [], "dropout comes first"
    for rate, validation in ((0.1, 0.5), (0.2, 0.6)):
        finish(store, asked.cell(Dropout(dropout=rate), 0), validation)
    names = [cell.name for cell in search.cells(asked, store, ("dropout-gat",))]
    assert names == [asked.cell(DropoutGAT(cg=cg, dropout=0.2), 0).name for cg in GRIDS["dropout-gat"]]


def test_every_method_has_the_same_budget() -> None:
    assert len({len(values) for values in search.GRIDS.values()}) == 1
    assert (
        set(search.GRIDS)
        == set(search.PARAMETERS)
        == {
            *paper.METHODS,
            "gat-fixed",
            "gradient-penalty",
        }
        - {"baseline"}
    )
    for name, values in search.GRIDS.items():
        ratios = [b / a for a, b in itertools.pairwise(values)]
        assert max(ratios) / min(ratios) < 1.2, f"{name}: not evenly spaced on a logarithmic scale"
        method, _ = search.READINGS.get(name, (name, {}))
        assert search.PARAMETERS[name] in METHODS[method].__dataclass_fields__


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({"baseline": (1.0,)}, "no values can be chosen for 'baseline'"),
        ({"gat": (1.0, 1.0)}, "one or more different numbers"),
        ({"gat": ()}, "one or more different numbers"),
        ({"gat": (-1.0,)}, "cg of gat must be at least 0"),
        ({"dropout": (1.0,)}, "dropout of dropout must be below 1"),
    ],
)
def test_values_that_make_no_sense(grids: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search.check_grids(grids)
