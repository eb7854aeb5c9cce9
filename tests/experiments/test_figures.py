"""Figures 2 to 4: what they wait for, and what they show of known numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastgat.evaluation.power import PERTURBATIONS
from fastgat.experiments import EXPERIMENTS, RunStore
from fastgat.experiments.robustness import EPSILONS, NETWORKS
from fastgat.methods import Baseline
from tests.experiments.made_up import check_tables, diverge, finish, plan, rows

GRIDS = {"gat": (1.0,), "fg-linf": (0.01,)}


def test_figure2_waits_for_its_baseline(tmp_path: Path) -> None:
    store, asked, figure = RunStore(tmp_path), plan(), EXPERIMENTS["figure2"]
    baseline = asked.cell(Baseline(), 0)
    assert [job.name for job in figure.jobs(asked, store)] == [baseline.name]
    finish(store, baseline, 0.7)
    measurements = figure.measurements(asked, store)
    assert len(measurements) == 5
    accuracies = {"generator": 0.4, "fg-l2 per sample": 0.5, "fg-l2 on average": 0.3}
    for number, job in enumerate(measurements[:3]):
        accuracy = {**dict.fromkeys(PERTURBATIONS, 0.6), **accuracies}
        row = {"cg": job.key["cg"], "power": 0.25, "accuracy": accuracy, "epochs": 5, "best_epoch": number}
        store.keep(job.name, {"key": job.key, "figures": row})
    store.keep(measurements[3].name, {"key": {}, "figures": None, "diverged": "NaN"})
    found = figure.collect(asked, store)
    assert found is not None
    text = figure.section(asked, found)
    check_tables(text)
    assert rows(text)["0.1"][:2] == ["0.500", "40.0"]
    assert "at 3 of 3 values of c_g, and less than fast gradient L2 of the same mean power at 0" in text
    assert figure.plots(found)["figure2"].axes


@pytest.mark.parametrize("name", ["figure3", "figure4"])
def test_robustness_waits_for_all_networks_of_a_seed(tmp_path: Path, name: str) -> None:
    store, asked, figure = RunStore(tmp_path), plan(seeds=2, grids=GRIDS), EXPERIMENTS[name]
    cells = {job.name: job.cell for job in figure.jobs(asked, store)}  # type: ignore[attr-defined]  # trainings all
    assert len(cells) == (6 if name == "figure3" else 7)
    seeds = [cell.seed for cell in cells.values()]
    assert (2 in seeds) == (name == "figure4"), "the source is a baseline that is not attacked"
    assert figure.measurements(asked, store) == []
    for cell in cells.values():
        if cell.seed == 1 and cell.config.to_dict()["method"]["name"] == "gat":
            diverge(store, cell)
        else:
            finish(store, cell, 0.7)
    (job,) = figure.measurements(asked, store)
    assert "seed0" in job.name
    accuracies = {
        network: [0.8 - 0.1 * i / (1 + j) for i in range(len(EPSILONS))] for j, network in enumerate(NETWORKS)
    }
    store.keep(job.name, {"key": job.key, "figures": {"accuracies": accuracies}})
    found = figure.collect(asked, store)
    assert found is not None
    text = figure.section(asked, found)
    check_tables(text)
    assert "n = 1 of 2" in text
    assert rows(text)["baseline"][:2] == ["80.0", "70.0"]
    assert figure.plots(found)[name].axes


def test_the_choice_of_images_is_part_of_what_is_measured(tmp_path: Path) -> None:
    store, figure = RunStore(tmp_path), EXPERIMENTS["figure3"]
    names = set()
    for samples, first in ((None, 0), (100, 0), (100, 1)):
        asked = plan(seeds=2 - first, samples=samples, grids=GRIDS)
        asked = replace(asked, base=replace(asked.base, seed=first))
        for cell in figure.cells(asked, store):
            if not store.finished(cell):
                finish(store, cell, 0.7)
        names |= {job.name for job in figure.measurements(asked, store) if "seed1" in job.name}
    assert len(names) == 3
