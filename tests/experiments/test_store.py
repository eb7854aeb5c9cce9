"""The store: claims that processes respect and a death releases, and what it makes of files that are not right."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgat.config import ModelConfig
from fastgat.errors import DataError, OutputError
from fastgat.experiments import RunStore
from fastgat.experiments.cell import Cell, code_of
from fastgat.experiments.table2 import Table2
from fastgat.methods import Baseline
from tests.experiments.made_up import diverge, finish, plan

TABLE, GRIDS = Table2(), {"dropout": (0.1,)}

HOLDER = """
import sys, time
from pathlib import Path
from fastgat.experiments import RunStore
with RunStore(Path(sys.argv[1])).claim("a job") as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_claim_holds_until_its_process_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "True\n"
        store = RunStore(tmp_path)
        with store.claim("a job") as mine:
            assert not mine
        with store.claim("another job") as mine:
            assert mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    deadline = time.monotonic() + 5
    while True:
        with store.claim("a job") as mine:
            if mine:
                break
        assert time.monotonic() < deadline, "the claim of a dead process still holds"


def test_code_that_has_changed_is_another_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cell(code: str) -> Cell:
        (tmp_path / "ones_own.py").write_text(code)
        monkeypatch.delitem(sys.modules, "ones_own", raising=False)
        code_of.cache_clear()  # as in another process
        return Cell(replace(plan().base, model=ModelConfig(classifier="ones_own:build")))

    monkeypatch.chdir(tmp_path)
    code = "def build(num_classes):\n    return None\n"
    before = cell(code)
    RunStore(tmp_path).note_code(before)
    assert RunStore(tmp_path).run(cell(code)) is None
    changed = cell(code + "\n")
    assert before.name == changed.name
    with pytest.raises(DataError, match="the code of ones_own:build has changed since; choose another --out"):
        RunStore(tmp_path).run(changed)


def test_code_is_known_where_only_results_json_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And writing that file imports nothing: only what a command names is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one_s_net.py").write_text("def build(num_classes):\n    return None\n")
    code_of.cache_clear()
    cell = Cell(replace(plan().base, model=ModelConfig(classifier="one_s_net:build")))
    store = RunStore(tmp_path / "out")
    finish(store, cell, 0.5)
    store.note_code(cell)
    (tmp_path / "one_s_net.py").write_text("raise AssertionError('this ran')\n")
    sys.modules.pop("one_s_net")
    code_of.cache_clear()
    store = RunStore(tmp_path / "out")
    store.write_archive()
    assert "one_s_net" not in sys.modules
    assert cell.name in store.archive.cells
    shutil.rmtree(tmp_path / "out" / "cells")
    (tmp_path / "one_s_net.py").write_text("def build(num_classes):\n    return 1\n")
    with pytest.raises(DataError, match="the code of one_s_net:build has changed since"):
        RunStore(tmp_path / "out").run(Cell(cell.config))


def test_a_claim_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with RunStore(tmp_path).claim("a job") as mine:
            assert mine


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"), RunStore(tmp_path / "file").claim("a job"):
        pass


def cell() -> Cell:
    return plan().cell(Baseline(), 0)


def test_a_cell_is_finished_when_its_summary_is_there(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.summary(cell()) is None
    assert not store.finished(cell())
    store.run_folder(cell()).mkdir(parents=True)
    assert not store.finished(cell())
    store.run_folder(cell()).rmdir()
    finish(store, cell(), 0.6)
    assert RunStore(tmp_path).finished(cell())
    assert not store.finished(plan().cell(Baseline(), 1))


def test_one_that_diverged_is_finished_too(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.run_folder(cell()).mkdir(parents=True)
    store.note_divergence(cell(), "the loss became NaN")
    assert store.finished(cell())
    assert store.summary(cell()) is None
    assert store.diverged(cell()) == "the loss became NaN"


def test_a_folder_with_another_run(tmp_path: Path) -> None:
    store, other = RunStore(tmp_path), Cell(replace(cell().config, batch_size=64))
    finish(store, other, 0.6)
    store.run_folder(other).rename(store.run_folder(cell()))
    with pytest.raises(DataError, match="another run"):
        store.summary(cell())


def test_a_damaged_file(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    finish(store, cell(), 0.6)
    (store.run_folder(cell()) / "summary.json").write_text('{"validation')
    with pytest.raises(DataError, match="damaged; remove it"):
        store.summary(cell())
    (store.run_folder(cell()) / "config.toml").write_text(cell().config.to_toml())
    store.write_archive()  # of whatever else is there
    assert not RunStore(tmp_path).archive.cells


def test_a_summary_of_something_else(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    finish(store, cell(), 0.6)
    (store.run_folder(cell()) / "summary.json").write_text("{}")
    with pytest.raises(DataError, match=r"summary.json: not what fastgat writes there \(the file has no"):
        store.summary(cell())


def test_a_full_disk_is_said_where_a_checkpoint_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path)
    finish(store, cell(), 0.6)
    (store.run_folder(cell()) / "best.safetensors").touch()

    def full(path: Path) -> None:
        raise OutputError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("fastgat.experiments.store.keep_classifier", full)
    with pytest.raises(OutputError, match="No space left on device"):
        store.make_slim(cell())


def test_results_json_stands_in_for_runs_that_were_not_kept(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    finish(store, cell(), 0.6)
    rows = [{"event": "epoch", "step": 5 * epoch, "epoch": epoch, "validation_loss": 1.5} for epoch in (1, 2)]
    (store.run_folder(cell()) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gone = plan().cell(Baseline(), 1)
    diverge(store, gone)
    (store.run_folder(gone) / "config.toml").write_text(gone.config.to_toml())
    store.keep("figure2-abc", {"key": {"cg": 1}, "figures": {"power": 2.0}})
    before = [store.run(cell()), store.run(gone), store.all_measured("figure2")]
    store.write_archive()
    for folder in ("cells", "measured"):
        shutil.rmtree(tmp_path / folder)
    store = RunStore(tmp_path)
    assert not store.archived
    after = [store.run(cell()), store.run(gone), store.all_measured("figure2")]
    assert after == before
    assert store.archived == {cell().name, gone.name, "figure2-abc"}
    assert [(row["epoch"], row["validation_loss"]) for row in store.epochs(cell())] == [(1, 1.5), (2, 1.5)]
    assert store.finished(cell())
    assert store.finished(gone)
    with pytest.raises(DataError, match="were not kept"):
        store.classifier(cell(), torch.device("cpu"))
    written = (tmp_path / "results.json").read_bytes()
    store.write_archive()
    assert (tmp_path / "results.json").read_bytes() == written


SUMMARY = {"validation_accuracy": 0.6, "test_accuracy": 0.5, "best_epoch": 1, "seconds": 3.0}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", {**SUMMARY, "validation_accuracy": "0.6"}),
        ("summary.json", {**SUMMARY, "best_epoch": None}),
        ("summary.json", {**SUMMARY, "seconds": [3]}),
        ("summary.json", {**SUMMARY, "test_accuracies": [0.5]}),
        ("summary.json", {**SUMMARY, "last_validation_accuracy": True}),
        ("diverged.json", {"reason": 1}),
        ("metrics.jsonl", {"event": "epoch", "step": 1, "epoch": "1"}),
        ("metrics.jsonl", {"event": "epoch", "step": 1, "epoch": 1, "validation_accuracy": {}}),
    ],
)
def test_values_of_other_types_are_one_line(tmp_path: Path, name: str, content: dict[str, object]) -> None:
    store = RunStore(tmp_path)
    finish(store, cell(), 0.6)
    (store.run_folder(cell()) / name).write_text(json.dumps(content) + "\n")
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as error:
        TABLE.collect(replace(plan(), grids=GRIDS), store)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"cells": {"a": {}}, "measured": {}, "epochs": []}'])
def test_a_damaged_results_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json"):
        RunStore(tmp_path)


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.keep("figure2-abc", {"key": {"cg": 1}, "figures": {"power": 2.0}})
    assert store.measured("figure2-abc") == {"key": {"cg": 1}, "figures": {"power": 2.0}}
    assert store.measured("figure2-other") is None
    store.keep("other-abc", {"key": {}, "figures": None})
    assert len(store.all_measured("figure2-")) == 1
