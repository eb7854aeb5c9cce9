"""Table 2: rows, verdicts and margins, from runs whose results are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgat.config import OptimizerConfig
from fastgat.experiments import Plan, RunStore, paper
from fastgat.experiments.table2 import Table2
from fastgat.methods import GAT
from tests.experiments.made_up import check_tables, finish, plan

VALUES = {"dropout": 0.2, "random": 0.5, "fg-linf": 0.03, "fg-l2": 0.5, "gat": 1.0, "dropout-gat": 1.0}
TABLE = Table2()


def fixed(**settings: Any) -> Plan:
    return plan(grids={name: (value,) for name, value in VALUES.items()}, **settings)


def run(store: RunStore, asked: Plan, name: str, seed: int, validation: float, test: float) -> None:
    jobs = {(job.cell.config.method.name, job.cell.seed): job.cell for job in TABLE.jobs(asked, store)}  # type: ignore[attr-defined]
    finish(store, jobs[name, seed], validation, test)


def test_every_method_is_trained_seed_by_seed(tmp_path: Path) -> None:
    asked = fixed(seeds=2)
    names = [job.name for job in TABLE.jobs(asked, RunStore(tmp_path))]
    assert len(names) == len(set(names)) == 14
    assert ["seed0" in name for name in names] == [True] * 7 + [False] * 7


def test_rows_and_verdicts(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), fixed(seeds=2)
    for seed in range(2):
        run(store, asked, "baseline", seed, 0.7, 0.775 + 0.002 * seed)
        run(store, asked, "dropout", seed, 0.7, 0.75)
        run(store, asked, "gat", seed, 0.7, 0.81 + 0.002 * seed)
    figures = TABLE.collect(asked, store)
    assert figures is not None
    text, by_rule = TABLE.section(asked, figures).split("By each rule")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "77.60 ± 0.14" in rows["baseline"]
    assert "77.48 ± 0.46" in rows["baseline"]
    assert "agrees" in rows["baseline"]
    assert "worse" in rows["dropout"]
    assert "better" in rows["gat"]
    assert "cg 1" in rows["gat"]
    assert "0 of 2" in rows["fg-l2"]
    assert "| baseline | no average | 2 | 77.60 ± 1.27 | - | - | - |" in by_rule
    assert "| gat over the baseline | no average | 2 | +3.50 ± 0.00 | - | - | - |" in by_rule


def test_every_rule_with_and_without_the_average(tmp_path: Path) -> None:
    """Of a run that tells all, and of one by an older version, whose rows of epochs are all there is."""
    store, asked = RunStore(tmp_path), fixed(seeds=2)
    asked = replace(asked, base=replace(asked.base, optimizer=OptimizerConfig(ema=0.9)))
    for seed in range(2):
        for name, gain in (("baseline", 0.0), ("gat", 0.01 + 0.02 * seed)):
            run(store, asked, name, seed, 0.7, 0.8 + gain)
            folder = next((tmp_path / "cells").glob(f"cifar10-{name}*seed{seed}*"))
            summary = json.loads((folder / "summary.json").read_text())
            for suffix, less in (("", 0.0), ("_unaveraged", 0.1)):
                tests: dict[str, float | None] = {
                    "accuracy": 0.8 + gain - less,
                    "loss": 0.7 + gain - less,
                    "last": 0.6 + gain - less,
                }
                if seed == 1:
                    tests["loss"] = None
                summary |= {f"test_accuracies{suffix}": tests, f"last_validation_accuracy{suffix}": 0.5 + gain - less}
            (folder / "summary.json").write_text(json.dumps(summary))
    run(store, asked, "dropout", 0, 0.7, 0.75)
    run(store, asked, "random", 0, 0.7, 0.75)
    rows = [{"event": "epoch", "step": n, "epoch": n, "validation_accuracy": n / 100} for n in range(1, 13)]
    for folder in (tmp_path / "cells").glob("cifar10-*"):
        few = 9 if "random" in folder.name else 12  # of so few there is no mean of the last ten
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:few]))
    figures = TABLE.collect(asked, RunStore(tmp_path))
    assert figures is not None
    text = TABLE.section(asked, figures)
    check_tables(text)
    assert "| baseline | average | 2 | 80.00 ± 0.00 | 70.00 (n = 1) | 60.00 ± 0.00 | 50.00 ± 0.00 |" in text
    assert "| gat | no average | 2 | 72.00 ± 12.71 | 61.00 (n = 1) | 52.00 ± 12.71 | 42.00 ± 12.71 |" in text
    assert "| dropout | average | 1 | 75.00 | - | - | 7.50 |" in text
    assert "| random | average | 1 | 75.00 | - | - | - |" in text
    over = "+2.00 ± 12.71"
    assert f"| gat over the baseline | no average | 2 | {over} | +1.00 (n = 1) | {over} | {over} |" in text


def test_a_run_that_is_best_at_its_end_is_told(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), fixed(seeds=1)
    cells = {job.cell.config.method.name: job.cell for job in TABLE.jobs(asked, store)}  # type: ignore[attr-defined]
    finish(store, cells["baseline"], 0.7, best_epoch=asked.base.epochs - 1)
    finish(store, cells["gat"], 0.7, best_epoch=asked.base.epochs)
    figures = TABLE.collect(asked, store)
    assert figures is not None
    assert "\nOf gat a run was best in its last epoch" in TABLE.section(asked, figures)


def test_no_verdict_on_runs_that_are_not_the_papers(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), fixed(seeds=1)
    asked = replace(asked, base=replace(asked.base, data=replace(asked.base.data, train_images=5000)))
    run(store, asked, "baseline", 0, 0.7, 0.775)
    figures = TABLE.collect(asked, store)
    assert figures is not None
    text = TABLE.section(asked, figures)
    assert "No verdict" in text
    assert "agrees" not in text


def test_no_verdict_on_another_algorithm() -> None:
    asked = fixed(seeds=1)
    assert asked.comparable
    for method in (GAT(schedule="alternating", generator_steps=2), GAT(generator_interval=2)):
        assert not replace(asked, base=replace(asked.base, method=method)).comparable


def test_the_papers_margin_is_over_the_fast_gradient_that_ran(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), fixed(seeds=1)
    for name in ("gat", "fg-l2"):
        run(store, asked, name, 0, 0.5, 0.6)
    figures = TABLE.collect(asked, store)
    assert figures is not None
    assert figures["margins"][0]["paper"] == pytest.approx(0.8033 - 0.7799)
    assert "better one of the two" not in TABLE.section(asked, figures)


def test_margins_are_paired_and_over_the_better_fast_gradient_on_validation(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), fixed(seeds=3)
    for seed, (baseline, gat) in enumerate([(0.50, 0.53), (0.52, 0.54)]):
        run(store, asked, "baseline", seed, 0.5, baseline)
        run(store, asked, "gat", seed, 0.5, gat)
        run(store, asked, "fg-linf", seed, 0.6, 0.51)
        run(store, asked, "fg-l2", seed, 0.5, 0.99)
    run(store, asked, "gat", 2, 0.5, 0.9)  # without a baseline of its seed, it is in no pair
    figures = TABLE.collect(asked, store)
    assert figures is not None
    over_baseline, over_fast = figures["margins"]
    assert over_baseline["differences"] == pytest.approx([0.03, 0.02])
    assert over_fast["over"] == "fast gradient (fg-linf)"
    assert over_fast["differences"] == pytest.approx([0.02, 0.03])
    assert over_baseline["paper"] == pytest.approx(0.0285)
    assert over_fast["paper"] == pytest.approx(0.0221)
    assert "+2.50 ± 6.35 (95 %)" in TABLE.section(asked, figures)


def test_gat_is_also_held_against_dropout_and_its_plain_form(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), fixed(seeds=1)
    for name, test in (("baseline", 0.5), ("dropout", 0.52), ("gat", 0.53), ("dropout-gat", 0.56)):
        run(store, asked, name, 0, 0.5, test)
    figures = TABLE.collect(asked, store)
    assert figures is not None
    margins = {(each["method"], each["over"]): each["differences"]["accuracy"] for each in figures["margins_by_rule"]}
    expected = {
        ("dropout", "the baseline"): 0.02,
        ("gat", "the baseline"): 0.03,
        ("dropout-gat", "the baseline"): 0.06,
        ("gat", "dropout"): 0.01,
        ("dropout-gat", "dropout"): 0.04,
        ("dropout-gat", "gat"): 0.03,
    }
    assert margins.keys() == expected.keys()
    assert all(margins[pair] == pytest.approx({"0": value}) for pair, value in expected.items())


def test_a_margin_without_the_seed_that_chose(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), fixed(seeds=3)
    asked = replace(asked, grids={**asked.grids, "gat": (1.0, 3.0)})
    for job in TABLE.jobs(asked, store):
        method = job.cell.config.method  # type: ignore[attr-defined]
        if method.name == "gat":
            finish(store, job.cell, 0.6 if method.cg == 3 else 0.5, 0.60)  # type: ignore[attr-defined]
    for seed in range(3):
        run(store, asked, "baseline", seed, 0.5, 0.50)
    for seed, accuracy in ((1, 0.52), (2, 0.54)):
        run(store, asked, "gat", seed, 0.5, accuracy)
    figures = TABLE.collect(asked, store)
    assert figures is not None
    (margin,) = figures["margins"]
    assert margin["differences"] == pytest.approx([0.10, 0.02, 0.04])
    assert margin["unsearched"] == pytest.approx([0.02, 0.04])
    assert "| +3.00 ± 12.71 (95 %) |" in TABLE.section(asked, figures)


def test_a_search_in_which_all_diverged_is_shown(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), replace(fixed(seeds=2), grids={**fixed().grids, "gat": (1.0, 3.0)})
    for job in TABLE.jobs(asked, store):
        if job.cell.config.method.name == "gat":  # type: ignore[attr-defined]
            store.run_folder(job.cell).mkdir(parents=True)  # type: ignore[attr-defined]
            store.note_divergence(job.cell, "NaN")  # type: ignore[attr-defined]
    figures = TABLE.collect(asked, store)
    assert figures is not None
    text = TABLE.section(asked, figures)
    assert "| gat | - | - | 0 of 2 |" in text
    assert "| gat | cg 3 | - |  | 1 diverged |" in text
    assert set(TABLE.plots(figures)) == {"table2-search"}


def test_the_papers_figures() -> None:
    table = paper.TABLE2
    assert {name: len(rows) for name, rows in table.items()} == {"cifar10": 7, "cifar100": 7}
    assert table["cifar100"]["gat"].mean - table["cifar100"]["baseline"].mean == pytest.approx(0.0612)
    assert table["cifar10"]["dropout-gat"] == (0.8162, 0.0034)
