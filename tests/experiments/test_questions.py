"""The questions that the paper leaves open, answered from known numbers; and searches over any options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fastgat.config import ModelConfig
from fastgat.errors import ConfigError
from fastgat.experiments import EXPERIMENTS, Plan, RunStore
from fastgat.experiments.attacked import attack_job
from fastgat.experiments.cell import Cell
from fastgat.experiments.generator import Capacity, GeneratorVariants, Inputs
from fastgat.experiments.jobs import Training
from fastgat.experiments.search import Search
from fastgat.experiments.timing import _bare, _settings
from fastgat.methods import GAT, GradientPenalty
from tests.experiments.made_up import check_tables, diverge, finish, plan, rows

GRIDS = {"gat": (1.0,)}


def keep_costs(store: RunStore, asked: Plan, experiment: GeneratorVariants, ratios: Mapping[str, float]) -> None:
    """Leave what timing would, of the generators in `ratios`."""
    named = {json.dumps(_settings(_bare(c.config))): name for name, c in experiment.variants(asked, GAT(), 0).items()}
    for job in experiment.costings(asked):
        names = [named[json.dumps(settings)] for settings in job.key["settings"]]
        made = [
            {"step_ms": 50 * ratios[name], "ratio": ratios[name], "ratio_p20": ratios[name], "ratio_p80": 9.0}
            for name in names
            if name in ratios
        ]
        if len(made) == len(names):
            store.keep(job.name, {"key": job.key, "figures": {"costs": made, "rounds": 9, "batch_size": 128}})


def keep_attacks(store: RunStore, asked: Plan, cell: Cell, fast_gradient: float) -> None:
    job = attack_job(asked, cell)
    store.keep(job.name, {"key": job.key, "figures": {"fast_gradient": fast_gradient, "worst_case": 0.125}})


def test_inputs(tmp_path: Path) -> None:
    store, asked, experiment = RunStore(tmp_path), plan(seeds=2, grids=GRIDS), Inputs()
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
    names = ["Delta", "Delta / ||Delta||", "Delta and x"]
    keep_costs(store, asked, experiment, dict(zip(names, (2.0, 2.01, 2.1), strict=True)))
    found = experiment.collect(asked, store)
    assert found is not None
    text = experiment.section(asked, found)
    check_tables(text)
    first, second = (rows(part) for part in text.split("Times are"))
    assert first[r"Delta / \|\|Delta\|\|"] == ["2.01 (2.01 to 9.00)", "60.00", "71.00", "-", "-", "0.200", "1 of 2 |"]
    assert second["Delta and x"] == ["+0.00 ± 0.00", "no", "+4.50 ± 19.06", "-", "- |"]
    assert second[r"Delta / \|\|Delta\|\|"][:3] == ["+0.00", "open", "+1.00"]
    assert experiment.plots(found)["inputs"].axes


def test_c_g_is_chosen_for_the_papers_generator(tmp_path: Path) -> None:
    asked = plan(seeds=1, grids={"gat": (1.0, 2.0)}, points="8/2")
    model = ModelConfig(generator_width=8)
    asked = replace(asked, base=replace(asked.base, method=GAT(generator_interval=4), model=model))
    cells = [job.cell for job in Capacity().jobs(asked, RunStore(tmp_path)) if isinstance(job, Training)]
    assert [cell.config.model.generator_width for cell in cells] == [48, 48]
    assert [cell.config.method.period for cell in cells if isinstance(cell.config.method, GAT)] == [1, 1]


def test_readings(tmp_path: Path) -> None:
    """The two readings are searched and shown apart, on equally many values."""
    grids = dict.fromkeys(("gat-fixed", "gat"), (0.3, 1.0))
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
    assert list(by_name) == ["baseline", "dropout", "fg-l2", "gat-fixed", "gat", "gradient-penalty"]
    for name, delta in (("gat-fixed", "fixed"), ("gat", "through")):
        assert (by_name[name]["settings"]["cg"], by_name[name]["settings"]["delta"]) == (1.0, delta)
        assert list(by_name[name]["accuracy"].values()) == pytest.approx([0.7 + gains[delta]] * 2)
    assert not found["attacked"]
    assert "What attacks leave" not in experiment.section(asked, found)
    for seed in asked.seed_values:
        for delta, left in (("fixed", 0.3), ("through", 0.35 + 0.02 * seed)):
            keep_attacks(store, asked, asked.cell(GAT(cg=1.0, delta=delta), seed), left)
    keep_attacks(store, asked, asked.cell(GradientPenalty(penalty=0.1), 1), 0.4)
    found = experiment.collect(asked, store)
    assert found is not None
    text = experiment.section(asked, found)
    check_tables(text)
    table = rows(text.split("What attacks leave")[1].split("How they were chosen")[0])
    assert table["gat-fixed"] == ["30.00 ± 0.00", "12.50 ± 0.00", "2 |"]
    assert table["gat over gat-fixed"] == ["+6.00 ± 12.71", "+0.00 ± 0.00", "2 |"]
    assert table["gradient-penalty over gat-fixed"] == ["+10.00", "+0.00", "1 |"]
    assert table["gradient-penalty over gat"] == ["+3.00", "+0.00", "1 |"]


def test_capacity(tmp_path: Path) -> None:
    """Of three cheaper generators one is worse, one cannot be told apart, and of the cheapest too little is known."""
    store, experiment = RunStore(tmp_path), Capacity()
    asked = plan(seeds=3, grids=GRIDS, points="8/1,16/4,24/1,48/1")
    accuracies = {"48/1": (0.60, 0.61, 0.62), "24/1": (0.601, 0.609, 0.62), "16/4": (0.58, 0.59, 0.601)}
    for seed in asked.seed_values:
        for name, cell in experiment.of_seed(asked, store, seed).items():
            if name in accuracies:
                finish(store, cell, accuracies[name][seed], 0.7)
                keep_attacks(store, asked, cell, 0.3)
    assert len(experiment.costings(asked)) == 4
    keep_costs(store, asked, experiment, {"8/1": 1.1, "16/4": 1.2, "24/1": 1.4999, "48/1": 2.5})
    found = experiment.collect(asked, store)
    assert found is not None
    text = experiment.section(asked, found)
    check_tables(text)
    assert "24/1 is the cheapest generator that 3 seeds do not show to be worse than 48/1: 1.50 instead" in text
    assert [rows(text.split("Times are")[1])[name][1] for name in ("24/1", "16/4")] == ["no", "worse"]
    assert "On the front of validation accuracy, by means: 16/4; 24/1." in text
    assert ": 8/1; 16/4; 24/1.\n" in text.split("At most 1.5 times fast gradient L2")[1]
    assert "12.5 ± 0.0" in text
    assert len(experiment.plots(found)["capacity"].axes) == 4
    whole = replace(asked, points=None)
    assert len(experiment.cells(whole, store)) == len({cell.name for cell in experiment.cells(whole, store)}) == 54
    assert [len(job.key["settings"]) for job in experiment.costings(whole)] == [3] * 6
    again = experiment.collect(whole, store)
    assert again is not None
    assert {each["name"] for each in again["variants"]} == {"8/1", *accuracies}, "costs of a smaller plan count"


def test_of_one_seed_nothing_can_be_told(tmp_path: Path) -> None:
    store, asked, experiment = RunStore(tmp_path), plan(seeds=1, grids=GRIDS), Capacity()
    for cell in experiment.cells(asked, store):
        finish(store, cell, 0.6)
    keep_costs(store, asked, experiment, {name: 1.0 + i for i, name in enumerate(experiment.of_seed(asked, store, 0))})
    found = experiment.collect(asked, store)
    assert found is not None
    text = experiment.section(asked, found)
    assert "No generator that costs less than 48/1 can be shown to be as good" in text
    assert "cheapest that" not in text


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


def test_the_larger_network_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    asked, experiment = plan(seeds=1, grids={**GRIDS, "fg-l2": (0.5,)}), EXPERIMENTS["larger"]
    asked = replace(asked, base=replace(asked.base, model=ModelConfig(classifier="wrn-16-2")))
    jobs = experiment.jobs(asked, RunStore(tmp_path))
    assert {job.cell.config.model.classifier for job in jobs} == {"wrn-16-2"}  # type: ignore[attr-defined]  # trainings
    assert "The classifier of `larger` is wrn-16-2." in experiment.remarks(asked)


@pytest.mark.parametrize(
    ("points", "message"),
    [("24", "points are WIDTH/INTERVAL"), ("24/1,", "points are"), ("0/1", "at least 1"), ("24/0", "at least 1")],
)
def test_points_that_are_none(points: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(points=points)


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
    assert found["as_good"] == []


def test_a_search_names_every_value_that_is_as_good_as_the_best(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), plan()
    sweep = Search(tuple(({"cg": cg}, replace(asked.base, method=GAT(cg=cg))) for cg in (1.0, 2.0, 3.0)))
    for cg, accuracy in ((1.0, 0.6), (2.0, 0.7), (3.0, 0.7)):
        finish(store, asked.cell(GAT(cg=cg), 0), accuracy)
    found = sweep.collect(asked, store)
    assert found is not None
    assert (found["best"], found["as_good"]) == (1, [2])
    text = rows(sweep.section(asked, found))
    assert [text[name][-1] for name in ("1", "2", "3")] == ["|", "best |", "as good |"]
