"""The questions that the paper leaves open, answered from known numbers; and searches over any options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastgat.experiments import EXPERIMENTS, RunStore
from fastgat.experiments.jobs import Training
from fastgat.experiments.plots import pareto
from fastgat.experiments.search import Search
from fastgat.experiments.timing import timing
from fastgat.methods import GAT
from tests.experiments.made_up import check_tables, diverge, finish, plan, rows
from tests.experiments.test_timing import figures

GRIDS = {"gat": (1.0,)}


def test_inputs(tmp_path: Path) -> None:
    store, asked, experiment = RunStore(tmp_path), plan(seeds=2, grids=GRIDS), EXPERIMENTS["inputs"]
    gains = {"gradient": 0.0, "normalised": 0.01, "with-image": 0.03}
    for cell in experiment.cells(asked, store):
        method = cell.config.method
        assert isinstance(method, GAT)
        if method.generator_input == "normalised" and cell.seed == 1:
            diverge(store, cell)
            continue
        finish(store, cell, 0.6, 0.7 + gains[method.generator_input] * (1 + cell.seed), best_epoch=2)
        lines = [{"event": "epoch", "step": 9 * n, "epoch": n, "perturbation_norm": n / 10} for n in (1, 2, 3)]
        path = store.run_folder(cell) / "metrics.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = experiment.collect(asked, store)
    assert found is not None
    text = experiment.section(asked, found)
    check_tables(text)
    table = rows(text)
    assert table[r"Delta / \|\|Delta\|\|"] == ["60.00", "71.00", "1 of 2", "+1.00", "0.200 |"]
    assert table["Delta and x"][1:4] == ["74.50 ± 2.12", "2 of 2", "+4.50 ± 19.06"]


def test_readings(tmp_path: Path) -> None:
    """The two readings are searched and shown apart, on equally many values."""
    grids = dict.fromkeys(("gat", "gat-through"), (0.3, 1.0))
    single = {"dropout": (0.5,), "fg-l2": (0.25,), "gradient-penalty": (0.1,)}
    store, asked, experiment = RunStore(tmp_path), plan(seeds=2, grids={**grids, **single}), EXPERIMENTS["readings"]
    gains = {"fixed": 0.01, "through": 0.03}
    while cells := [
        job.cell for job in experiment.jobs(asked, store) if isinstance(job, Training) and not job.done(store)
    ]:
        for cell in cells:
            method = cell.config.method
            gain = gains[method.delta] * method.cg if isinstance(method, GAT) else 0.0
            finish(store, cell, 0.6 + gain, 0.7 + gain, best_epoch=2)
    found = experiment.collect(asked, store)
    assert found is not None
    by_name = {row["method"]: row for row in found["rows"]}
    assert list(by_name) == ["baseline", "dropout", "fg-l2", "gat", "gat-through", "gradient-penalty"]
    for name, delta in (("gat", "fixed"), ("gat-through", "through")):
        assert (by_name[name]["settings"]["cg"], by_name[name]["settings"]["delta"]) == (1.0, delta)
        assert list(by_name[name]["accuracy"].values()) == pytest.approx([0.7 + gains[delta]] * 2)
    check_tables(experiment.section(asked, found))


def test_capacity(tmp_path: Path) -> None:
    store, asked, experiment = RunStore(tmp_path), plan(seeds=1, grids=GRIDS), EXPERIMENTS["capacity"]
    cells = experiment.cells(asked, store)
    assert len(cells) == len({cell.name for cell in cells}) == 15
    for number, cell in enumerate(cells[:2]):
        finish(store, cell, 0.6, 0.7)
        job = timing(asked, cell.config)
        store.keep(job.name, {"key": job.key, "figures": figures(10.0, 1.5 + number)})
    finish(store, cells[2], 0.65, 0.75)
    found = experiment.collect(asked, store)
    assert found is not None
    text = experiment.section(asked, found)
    check_tables(text)
    assert [point["interval"] for point in found["points"]] == [1, 2, 4]
    assert "1.50 (" in text
    assert "2.50 (" in text
    assert experiment.plots(found)["capacity"].axes
    assert len(experiment.measurements(asked, store)) == 15


def test_the_front_is_what_no_cheaper_point_reaches() -> None:
    points = [(1.0, 70.0), (2.0, 69.0), (3.0, 75.0), (3.0, 74.0), (4.0, 75.0), (5.0, 80.0)]
    assert pareto(points) == [(1.0, 70.0), (3.0, 75.0), (5.0, 80.0)]


def test_a_larger_network_is_not_held_against_the_papers(tmp_path: Path) -> None:
    store, asked, experiment = (
        RunStore(tmp_path),
        plan(seeds=1, grids={**GRIDS, "fg-l2": (0.5,)}),
        EXPERIMENTS["larger"],
    )
    for job in experiment.jobs(asked, store):
        cell = job.cell  # type: ignore[attr-defined]  # trainings all
        assert cell.config.model.classifier == "timm:resnet18"
        finish(store, cell, 0.6, 0.7)
    found = experiment.collect(asked, store)
    assert found is not None
    text = experiment.section(asked, found)
    check_tables(text)
    assert "77.48" not in text
    assert [margin["paper"] for margin in found["margins"]] == [None, None]


@pytest.mark.parametrize("best", [0, 1])
def test_a_search_ranks_by_validation(tmp_path: Path, best: int) -> None:
    store, asked = RunStore(tmp_path), plan(seeds=2)
    variants = tuple(({"cg": cg}, replace(asked.base, method=GAT(cg=cg))) for cg in (1.0, 2.0, 3.0))
    sweep = Search(variants)
    for seed in range(2):
        for number in range(2):
            cell = asked.cell(GAT(cg=number + 1.0), seed)
            finish(store, cell, 0.7 if number == best else 0.6, test=0.1 if number == best else 0.9)
    diverge(store, asked.cell(GAT(cg=3.0), 0))
    finish(store, asked.cell(GAT(cg=3.0), 1), 0.99)
    found = sweep.collect(asked, store)
    assert found is not None
    assert found["best"] == best
    text = sweep.section(asked, found)
    check_tables(text)
    assert rows(text)["3"][-1] == "1 diverged |"
