"""`bench/precision.py` on a run of the trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.precision import GRADIENTS, IMAGES, main
from fastgat import TrainConfig, Trainer
from fastgat.config import DataConfig, ModelConfig, RunConfig
from fastgat.methods import GAT, Baseline
from fastgat.methods.base import Method


def train(method: Method, output: Path) -> Path:
    data = DataConfig(dataset="digits", train_images=128)
    model, run = ModelConfig(generator_width=4), RunConfig(compile=False)
    Trainer(TrainConfig(method=method, epochs=1, output=output, data=data, model=model, run=run)).fit()
    return output


@pytest.mark.slow
@pytest.mark.long
def test_it_says_what_a_run_rounds_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.precision.BATCH", 32)
    run, report = train(GAT(), tmp_path / "run"), tmp_path / "report.json"
    ended = CliRunner().invoke(main, [str(run), "--batches", "2", "--json", str(report)])
    assert ended.exit_code == 0, ended.output
    found = json.loads(report.read_text())
    assert {*IMAGES, *GRADIENTS} <= set(found["relative_errors"])
    assert found["images"] == 64
    for name in GRADIENTS:
        assert all(0 < error < 0.2 for error in found["relative_errors"][name])


def test_a_run_without_a_generator_is_refused(tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, [str(train(Baseline(), tmp_path / "run"))])
    assert ended.exit_code == 1
    assert "trained by baseline, which has no generator" in ended.output
