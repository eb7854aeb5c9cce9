"""A cell's name: the same for whatever computes the same, another for everything else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgat.config import DataConfig, ModelConfig, OptimizerConfig, PrecisionConfig, RunConfig, TrainConfig
from fastgat.deciding import deciding_settings
from fastgat.experiments.cell import Cell
from fastgat.methods import GAT, Baseline, FastGradientL2, PGDTraining

CONFIG = TrainConfig(method=GAT(cg=0.3), data=DataConfig(dataset="cifar10"))


@pytest.mark.parametrize(
    "changes",
    [
        {"output": Path("elsewhere")},
        {"resume": "run"},
        {"run": RunConfig(device="cpu", compile=False, cuda_graph=False, log_interval=7, checkpoint_interval=3)},
        {"data": DataConfig(dataset="cifar10", data_dir=Path("here"), loader="torch", workers=2)},
        {"data": DataConfig(dataset="cifar10", train_images=45_000)},
        {"data": DataConfig(dataset="cifar10", image_size=32)},
        {"precision": PrecisionConfig(amp_dtype="float16")},
    ],
)
def test_what_decides_nothing_is_not_in_it(changes: dict[str, Any]) -> None:
    assert Cell(replace(CONFIG, **changes)).name == Cell(CONFIG).name


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"epochs": 31},
        {"batch_size": 64},
        {"method": GAT(cg=0.3, schedule="paper")},
        {"method": GAT(cg=0.31)},
        {"method": Baseline()},
        {"data": DataConfig(dataset="cifar100")},
        {"data": DataConfig(dataset="cifar10", train_images=100)},
        {"optimizer": OptimizerConfig(generator_lr=1e-5)},
        {"model": ModelConfig(generator_width=8)},
        {"precision": PrecisionConfig(amp=True)},
        {"data": DataConfig(dataset="folder:here", image_size=64)},
        {"run": RunConfig(early_stopping=5)},
    ],
)
def test_what_decides_something_is(changes: dict[str, Any]) -> None:
    assert Cell(replace(CONFIG, **changes)).name != Cell(CONFIG).name


def test_a_generator_that_is_not_there_decides_nothing() -> None:
    config = replace(CONFIG, method=Baseline())
    other = replace(config, optimizer=OptimizerConfig(generator_lr=1e-5), model=ModelConfig(generator_width=8))
    assert Cell(other).name == Cell(config).name
    assert deciding_settings(other) == deciding_settings(config), "or a run could not be gone on with"


@pytest.mark.parametrize("said", [{"select_norm": "linf"}, {"select_epsilon": 8 / 255}, {"select": "robust"}])
def test_the_method_s_own_perturbations_may_be_named(said: dict[str, Any]) -> None:
    config = replace(CONFIG, method=PGDTraining())
    other = replace(config, **said)
    assert other.threat == config.threat
    assert deciding_settings(other) == deciding_settings(config), "or a run could not be gone on with"
    assert Cell(other).name == Cell(config).name
    assert deciding_settings(replace(config, select_norm="l2", select_epsilon=8 / 255)) != deciding_settings(config)
    assert deciding_settings(replace(config, select_epsilon=4 / 255)) != deciding_settings(config)


def test_people_can_read_it_and_file_systems_take_it() -> None:
    name = Cell(replace(CONFIG, method=FastGradientL2(epsilon=0.25), seed=3)).name
    assert re.fullmatch(r"cifar10-fg-l2-epsilon0\.25-seed3-[0-9a-f]{8}", name)
    assert "/" not in Cell(replace(CONFIG, data=DataConfig(dataset="folder:a/b c"))).name


def test_it_stays_the_same_from_version_to_version() -> None:
    """Runs that were kept are found by it."""
    assert Cell(replace(CONFIG, method=GAT(cg=0.3, delta="fixed"))).name == "cifar10-gat-cg0.3-seed0-7233ea3c"
    through = replace(CONFIG, seed=1, epochs=40, batch_size=32, method=GAT())
    assert Cell(through).name.startswith("cifar10-gat-deltathrough-seed1-"), "fixed was the default at first"


def test_runs_of_versions_without_delta_held_it_fixed() -> None:
    older = CONFIG.to_dict()
    assert older["method"].pop("delta") == "through"
    assert TrainConfig.from_run(older).chosen_method == GAT(cg=0.3, delta="fixed")
    assert TrainConfig.from_run(CONFIG.to_dict()) == CONFIG
    other = TrainConfig(method="baseline")
    assert TrainConfig.from_run(other.to_dict()) == other


def test_an_option_that_older_runs_lack_changes_nothing_until_it_is_used() -> None:
    """`clamp` came later: its default is what they computed."""
    older = CONFIG.to_dict()
    assert older["method"].pop("clamp") is False
    assert deciding_settings(TrainConfig.from_dict(older)) == deciding_settings(CONFIG)
    clamped = replace(CONFIG, method=GAT(cg=0.3, clamp=True))
    assert deciding_settings(clamped) != deciding_settings(CONFIG)
    assert Cell(clamped).name != Cell(CONFIG).name


@pytest.mark.parametrize("kind", ["data.extra_data", "model.init_from"])
def test_a_file_is_known_by_what_it_holds(tmp_path: Path, kind: str) -> None:
    def name(file: Path) -> str:
        if kind == "model.init_from":
            return Cell(replace(CONFIG, model=ModelConfig(init_from=file))).name
        return Cell(replace(CONFIG, data=DataConfig(dataset="cifar10", extra_data=file))).name

    one, same, other = (tmp_path / folder / "file" for folder in ("one", "same", "other"))
    for path, content in ((one, "1"), (same, "1"), (other, "2")):
        path.parent.mkdir()
        path.write_text(content)
    assert name(one) == name(same) != name(other)
    before = name(one)
    one.write_text("another")
    assert name(one) != before
