"""Times of a step: which of them are the same, which is shown, and what an epoch of them is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgat.config import ModelConfig, OptimizerConfig, PrecisionConfig, RunConfig
from fastgat.experiments import EXPERIMENTS, Plan, RunStore
from fastgat.experiments.timing import costing, costs, timing, timings
from fastgat.methods import GAT
from tests.experiments.made_up import check_tables, plan

TIME = EXPERIMENTS["time"]


def figures(ms: float, overhead: float = 2.0, rounds: int = 9) -> dict[str, Any]:
    side = {"step_ms": ms, "step_ms_p20": ms - 1, "step_ms_p80": ms + 1}
    sides = {"textbook": {**side, "step_ms": 4 * ms}, "fastgat": side}
    ratios = {"textbook": 3.5, "fastgat": overhead}
    return {"speedup": 4.0, "overhead": ratios, "rounds": rounds, "batch_size": 128, **sides}


def keep(store: RunStore, asked: Plan, found: dict[str, Any], config: Any = None) -> None:
    job = timing(asked, config or replace(asked.base, method=GAT()))
    store.keep(job.name, {"key": job.key, "figures": found})


def test_of_several_timings_the_one_of_most_rounds_is_shown(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), plan(timed="gat")
    keep(store, replace(asked, rounds=1), figures(100.0, 9.9, rounds=1))
    keep(store, replace(asked, rounds=9), figures(10.0, 2.0))
    found = TIME.collect(asked, store)
    assert found is not None
    assert len(found["rows"]) == 1
    text = TIME.section(asked, found)
    check_tables(text)
    assert "fastgat 2.00" in text
    assert "9.9" not in text
    assert "40.0 (9.0 to 11.0) | 10.0 (9.0 to 11.0) | 14.0 | 3.5 | 4.00" in text, "351 steps an epoch"


def test_what_decides_the_time_of_a_step() -> None:
    base = plan().base

    def name(**changes: Any) -> str:
        return timing(plan(), replace(base, **changes)).name

    same = (
        {"method": GAT(cg=0.3)},
        {"seed": 3},
        {"epochs": 7},
        {"optimizer": OptimizerConfig(clip_grad=1.0, ema=0.9, lr=0.1)},
        {"run": RunConfig(early_stopping=2, log_interval=3)},
    )
    assert {name(**changes) for changes in same} == {name()}
    others = (
        {"method": GAT(schedule="paper")},
        {"batch_size": 64},
        {"precision": PrecisionConfig(amp=True)},
        {"run": RunConfig(compile=False)},
        {"run": RunConfig(cuda_graph=False)},
    )
    assert len({name(), *(name(**changes) for changes in others)}) == 6


def test_an_epoch_is_that_of_the_data(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), plan("digits", timed="gat")
    keep(store, asked, figures(10.0))
    found = TIME.collect(asked, store)
    assert found is not None
    assert "an epoch of 1,257 images" in TIME.section(asked, found)


def test_a_timing_of_another_version_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = RunStore(tmp_path), plan(timed="gat")
    keep(store, asked, figures(10.0))
    monkeypatch.setattr("fastgat.experiments.timing.version", lambda package: "99")
    assert TIME.collect(asked, store) is None
    assert not any(job.done(store) for job in TIME.jobs(asked, store))


def test_timings_of_other_settings_are_left_alone(tmp_path: Path) -> None:
    store, asked = RunStore(tmp_path), plan()
    keep(store, asked, figures(10.0))
    assert len(timings(store, replace(asked.base, method=GAT()))) == 1
    assert timings(store, replace(asked.base, method=GAT(), batch_size=64)) == {}


@pytest.mark.long
def test_the_cost_of_a_step_over_fast_gradient(tmp_path: Path) -> None:
    """A wide generator that learns at every step has 4.4 times fast gradient's multiply-adds, at every 4th 2.7."""
    run, model = RunConfig(compile=False, device="cpu"), ModelConfig(generator_width=64)
    store, asked = RunStore(tmp_path), plan(rounds=3)
    base = replace(asked.base, batch_size=32, run=run, model=model)
    configs = [replace(base, method=GAT(generator_interval=every)) for every in (1, 4)]
    assert costing(asked, configs).run(store, lambda news: None, lambda: False) is not None
    (often,), (seldom,) = (list(costs(store, config, []).values()) for config in configs)
    assert 1 < seldom["ratio"] < often["ratio"]
    for cost in (often, seldom):
        assert 0 < cost["ratio_p20"] <= cost["ratio"] <= cost["ratio_p80"]
    assert costs(store, replace(configs[0], batch_size=64), []) == {}


def test_what_took_turns_stands_in_one_table(tmp_path: Path) -> None:
    """A timing of more rounds, in which other configurations took turns, does not mix with it."""
    store, asked = RunStore(tmp_path), plan(rounds=3)
    one, two, other = (replace(asked.base, method=GAT(generator_interval=every)) for every in (1, 2, 4))
    for rounds, configs, ratio in ((3, [one, two], 2.0), (9, [one, other], 7.0)):
        job = costing(replace(asked, rounds=rounds), configs)
        made = dict.fromkeys(("step_ms", "ratio", "ratio_p20", "ratio_p80"), ratio)
        store.keep(job.name, {"key": job.key, "figures": {"costs": [made, made], "rounds": rounds, "batch_size": 128}})
    together = [costing(asked, [one, two])]
    assert [cost["ratio"] for config in (one, two) for cost in costs(store, config, together).values()] == [2.0, 2.0]
    assert [cost["ratio"] for cost in costs(store, one, []).values()] == [7.0], "of the most rounds"
