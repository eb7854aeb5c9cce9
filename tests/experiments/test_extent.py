"""An experiment names the options of the plan that it heeds: these, and no others, change what it does."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fastgat.config import DataConfig, TrainConfig
from fastgat.experiments import EXPERIMENTS, Experiment, Plan, RunStore
from fastgat.experiments.jobs import Measurement, Training
from tests.experiments.made_up import finish

OTHER: dict[str, Any] = {
    "seeds": 2,
    "search_epochs": 3,
    "search_seeds": 2,
    "samples": 7,
    "generator_images": 64,
    "generator_epochs": 3,
    "rounds": 2,
    "timed": "gat",
    "points": "8/1,48/1",
}
"""A value of each option that is not the default of the plan below."""


def everything(experiment: Experiment, plan: Plan, folder: Path) -> set[str]:
    """The names of all its jobs, each done in no time."""
    store = RunStore(folder)
    done: set[str] = set()
    while left := {job.name: job for job in experiment.jobs(plan, store) if job.name not in done}:
        done |= left.keys()
        for job in left.values():
            if isinstance(job, Training):
                finish(store, job.cell, 0.5)
                (store.run_folder(job.cell) / "best.safetensors").touch()
            else:
                assert isinstance(job, Measurement)
                store.keep(job.name, {"key": job.key, "figures": None, "diverged": "made up"})
    return done


def test_there_is_a_value_of_every_option() -> None:
    assert OTHER.keys() == {field.name for field in fields(Plan)} - {"base", "grids"}


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_it_heeds(name: str, option: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]
    plan = Plan(seeds=1, base=TrainConfig(epochs=5, data=DataConfig(dataset="cifar10")))
    before = everything(experiment, plan, tmp_path / "before")
    after = everything(experiment, replace(plan, **{option: OTHER[option]}), tmp_path / "after")
    assert (after != before) == (option in experiment.extent)
