"""The result page tells what was run, on what, what came to nothing, and every setting that differs from the paper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgat.config import Augmentation, ModelConfig, OptimizerConfig, PrecisionConfig, RunConfig
from fastgat.errors import ConfigError
from fastgat.experiments import EXPERIMENTS, Plan, RunStore
from fastgat.experiments.page import check_page, collect, deviations, write_page
from fastgat.experiments.paper import METHODS
from fastgat.methods import GAT, Baseline
from tests.experiments.made_up import check_tables, diverge, finish, plan

TABLE2 = EXPERIMENTS["table2"]
PAPERS = {"epochs": 60, "batch_size": 64, "seed": 5}


def with_base(**changes: Any) -> Plan:
    asked = plan()
    return replace(asked, base=replace(asked.base, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": OptimizerConfig(lr=0.1)}, "classifier's learning rate is 0.1"),
        ({"optimizer": OptimizerConfig(generator_lr=1e-5)}, "generator's learning rate is 1e-05"),
        ({"optimizer": OptimizerConfig(lr_schedule="cosine")}, "`optimizer.lr_schedule` is cosine"),
        ({"optimizer": OptimizerConfig(ema=0.9)}, "`optimizer.ema` is 0.9"),
        ({"optimizer": OptimizerConfig(clip_grad=1.0)}, "`optimizer.clip_grad` is 1.0"),
        ({"model": ModelConfig(generator_width=8)}, "generator's width is 8"),
        ({"model": ModelConfig(classifier="timm:resnet18")}, "classifier is timm:resnet18"),
        ({"augmentation": Augmentation(flip=True)}, "`augmentation.flip` is True"),
        ({"run": RunConfig(early_stopping=3)}, "`run.early_stopping` is 3"),
    ],
)
def test_what_the_paper_has_otherwise_is_told_and_bars_a_verdict(changes: dict[str, Any], told: str) -> None:
    asked = with_base(**changes)
    assert any(told in line for line in deviations(asked, [TABLE2], METHODS))
    assert not asked.comparable


def test_what_the_paper_leaves_open_does_not() -> None:
    asked = with_base(**PAPERS, precision=PrecisionConfig(amp=True, channels_last=True))
    assert asked.comparable
    lines = deviations(asked, [TABLE2], METHODS)
    assert any("mixed precision" in line for line in lines)
    assert any("here 64 and 60" in line for line in lines)
    assert any("`simultaneous`" in line for line in lines)
    assert not any("channels_last" in line for line in lines)


def test_other_schedules_are_told() -> None:
    lines = deviations(
        with_base(method=GAT(schedule="paper", generator_steps=2, generator_interval=4)), [TABLE2], METHODS
    )
    assert not any("Schedule" in line for line in lines)
    assert any("2 generator steps" in line for line in lines)
    assert any("every 4th step" in line for line in lines)


def test_a_search_is_told_once_and_only_where_there_was_one() -> None:
    assert not any("accuracy chooses" in line for line in deviations(plan(), [EXPERIMENTS["time"]], METHODS))
    for asked in (["inputs"], ["table2", "figure3", "figure4", "capacity"]):
        lines = deviations(plan(), [EXPERIMENTS[name] for name in asked], METHODS)
        assert sum("accuracy chooses" in line for line in lines) == 1


def test_the_search_of_what_ran_is_told_and_whether_it_was_the_same_for_all() -> None:
    asked = plan(grids={"gat": (0.5, 1.0, 2.0), "dropout": (0.1, 0.3), "fg-l2": (0.5,)})
    text = "\n".join(deviations(asked, [TABLE2], {"baseline", "dropout", "fg-l2", "gat"}))
    assert "accuracy chooses (dropout from 2 values, gat from 3 values), 1 run(s)" in text
    assert "Of fg-l2 the value is given" in text
    assert "has not cost the same" in text
    assert "random" not in text
    assert "Dropout + GAT" not in text
    equal = "\n".join(deviations(plan(), [TABLE2], METHODS))
    assert "dropout-gat from 5 values" in equal
    assert "has not cost the same" not in equal
    assert "Dropout + GAT takes dropout's rate, and so has two choices" in equal
    readings = "\n".join(deviations(plan(), [EXPERIMENTS["readings"]], {"baseline", "gat"}))
    assert "(gat from 5 values, gat-fixed from 5 values)" in readings, "a reading of GAT is run as GAT"
    given = plan(grids={"dropout": (0.2,), "dropout-gat": (1.0,)})
    assert "Dropout + GAT takes dropout's rate." in "\n".join(deviations(given, [TABLE2], METHODS))


def test_the_page(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path / "store"), plan(seeds=2, grids={"gat": (1.0, 2.0), "fg-linf": (0.01,)})
    for seed in range(2):
        finish(store, asked.cell(Baseline(), seed), 0.7, 0.77)
    finish(store, asked.cell(GAT(cg=1.0), 0), 0.7, 0.8)
    finish(store, asked.cell(GAT(cg=2.0), 0), 0.6, 0.6)
    diverge(store, asked.cell(GAT(cg=1.0), 1))
    results = collect([TABLE2], asked, store)
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    written = write_page(page, [TABLE2], asked, results, "fastgat reproduce table2")
    text = page.read_text()
    check_tables(text)
    assert "| training | a machine; unknown CPUs, unknown | fastgat unknown, torch 9 | 4 | 0.00 |" in text
    assert f"{asked.cell(GAT(cg=1.0), 1).name}: the loss became NaN at step 7" in text
    assert "1 of 2, 1 diverged" in text
    assert "Of gat the choice is at the edge" in text
    assert "![table2-search](page/table2-search.png)" in text
    assert all(path.exists() for path in written)
    runs = json.loads((tmp_path / "docs" / "page" / "results.json").read_text())["runs"]
    assert {run["name"] for run in runs} == {path.name for path in (tmp_path / "store" / "cells").iterdir()}
    assert sorted(run.get("validation_accuracy", 0) for run in runs) == [0, 0.6, 0.7, 0.7, 0.7]


def test_a_file_in_the_place_of_the_plots(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    with pytest.raises(ConfigError, match="keeps its plots in a folder"):
        check_page(tmp_path / "results.md", tmp_path / "runs")


@pytest.mark.parametrize("runs", ["page", "", "page/../page"])
def test_a_page_whose_figures_would_lie_among_the_runs(tmp_path: Path, runs: str) -> None:
    page = tmp_path / ("page.md" if runs else "measured.md")
    with pytest.raises(ConfigError, match="where the runs are"):
        check_page(page, tmp_path / runs)


def test_a_page_that_could_not_be_written(tmp_path: Path) -> None:
    check_page(tmp_path / "page.md", tmp_path / "runs")
    for path in (tmp_path / "page", tmp_path, tmp_path / "results.json"):
        with pytest.raises(ConfigError, match="names a Markdown file"):
            check_page(path, tmp_path / "runs")
