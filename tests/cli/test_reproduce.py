"""fastgat reproduce and fastgat search: end to end, killed and continued, two at once, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench.pages import DOCS, KEPT, PAGES, RESULTS, command, kept_runs
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.reporting.run_folder import read_metrics
from tests.cli.conftest import Run

SHORT = ("--dataset", "digits", "--epochs", 2, "--train-images", 64, "--batch-size", 32, "--no-compile")
TINY = "tests.experiments.tiny:build"
SEARCH = ("search", "--method", "fg-l2", "--over", "epsilon=0.1,0.4", *SHORT, "--deterministic")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["table2 figure2 figure3 figure4", pytest.param("all", marks=pytest.mark.long)])
def test_all_of_it_quickly(what: str, run: Run, tmp_path: Path) -> None:
    arguments = ("reproduce", *what.split(), "--quick", "--classifier", TINY, "--out", "out")
    done = run(*arguments, "--page", "docs/page.md")
    assert done.code == 0, done.err
    page = (tmp_path / "docs" / "page.md").read_text()
    for heading in ("Table 2", "Figure 2", "Figure 3", "Figure 4", "How it was run", "What differs"):
        assert heading in page
    assert ("Training time" in page) == (what == "all")
    assert f"fastgat reproduce {what} --quick --classifier {TINY}\n" in page, (
        "the command, without what decides nothing"
    )
    assert "digits is not a data set of the paper" in page
    for picture in ("table2-search", "figure2", "figure3", "figure4"):
        assert (tmp_path / "docs" / "page" / f"{picture}.png").stat().st_size > 10_000
        assert f"page/{picture}.png" in page
    results = json.loads((tmp_path / "docs" / "page" / "results.json").read_text())
    assert results["figures"].keys() - {"time"} == {"table2", "figure2", "figure3", "figure4"}
    rows = {row["method"]: row for row in results["figures"]["table2"]["rows"]}
    assert all(len(row["accuracy"]) == 2 for row in rows.values())
    assert rows["gat"]["settings"]["cg"] in (1.0, 4.0)
    again = run(*arguments)
    assert "jobs left" not in again.out, "nothing is done twice"
    assert (tmp_path / "out" / "results.md").read_text().split("\n", 5)[5:] == page.replace("page/", "results/").split(
        "\n", 5
    )[5:]


def best(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.parent.name: safetensors.torch.load_file(path) for path in folder.glob("cells/*/best.safetensors")}


@pytest.mark.slow
@pytest.mark.long
def test_a_search_that_was_killed_goes_on_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    whole = run(*SEARCH, "--out", "whole")
    assert whole.code == 0, whole.err
    assert "best" in whole.out
    arguments = [sys.executable, "-m", "fastgat", *map(str, SEARCH), "--out", "killed"]
    killed = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/cells/*/best.safetensors")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(tmp_path.glob("killed/cells/*/summary.json"))) < 2, "it was too late to kill it"
    done = run(*SEARCH, "--out", "killed")
    assert done.code == 0, done.err
    expected, found = best(tmp_path / "whole"), best(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert len(found) == 2
    for name, tensors in expected.items():
        assert tensors.keys() == found[name].keys()
        assert all(torch.equal(tensor, found[name][key]) for key, tensor in tensors.items())
        assert all(key.startswith("classifier.") for key in tensors), "a finished cell keeps its classifier alone"


@pytest.mark.slow
@pytest.mark.long
def test_two_commands_on_one_folder_share_the_work(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "fastgat", *map(str, SEARCH), "--seeds", "2", "--out", "out"]
    both = [
        subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [command.communicate(timeout=240) for command in both]
    assert [command.returncode for command in both] == [0, 0], said
    done = [line.split(":")[0] for out, _ in said for line in out.splitlines() if "jobs left" in line]
    assert len(done) == len(set(done)) == 4, "each run by one of them"
    tables = [
        [line for line in out.splitlines() if "jobs left" not in line and "waiting" not in line] for out, _ in said
    ]
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.long
def test_a_signal_ends_parallel_work_at_a_checkpoint(tmp_path: Path) -> None:
    longer = [*map(str, SEARCH), "--epochs", "2000", "--jobs", "2", "--json", "--out", "out"]
    arguments, pipe = [sys.executable, "-m", "fastgat", *longer], subprocess.PIPE
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as command:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("out/cells/*/best.safetensors"))) < 2:
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(command.pid, signal.SIGTERM)
        out, err = command.communicate(timeout=30)
    assert command.returncode == 0
    assert "the same command goes on" in err
    assert json.loads(out) == {"complete": False, "rows": []}, "no run has ended"
    for cell in tmp_path.glob("out/cells/*"):
        _, header = load_checkpoint(cell / "last.safetensors")
        *_, last = read_metrics(cell / "metrics.jsonl")
        assert header["position"]["step"] == last["step"], "the checkpoint is of the last step, not of one before"


OLD = Path(__file__).parents[1] / "experiments" / "fixtures" / "reproduce-0.1.0"
"""A folder of version 0.1.0, stopped in the middle of GAT's tenth epoch, and what that version made of it."""
OLD_COMMAND = (
    *("reproduce", "table2", "figure3", "--quick", "--seeds", 1, "--epochs", 30, "--batch-size", 32),
    *("--grid", "gat=1", "--classifier", TINY, "--generator-width", 4),
    *("--delta", "fixed", "--lr", 0.01, "--deterministic"),
)


def test_a_folder_of_an_older_version_goes_on(run: Run, tmp_path: Path) -> None:
    shutil.copytree(OLD / "folder", tmp_path / "out")
    done = run(*OLD_COMMAND, "--out", "out")
    assert done.code == 0, done.err
    trained = [line.split(":")[0] for line in done.out.splitlines() if "jobs left" in line]
    assert trained == ["digits-gat-seed0-b19068c9", "digits-dropout-gat-seed0-a271e54b"], "finished cells are kept"
    rows = read_metrics(tmp_path / "out" / "cells" / trained[0] / "metrics.jsonl")
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == list(range(1, 31))
    weights = safetensors.torch.load_file(tmp_path / "out" / "cells" / trained[0] / "best.safetensors")
    for name, expected in safetensors.torch.load_file(OLD / "gat.safetensors").items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-5)
    before, after = (
        json.loads(path.read_text())["figures"]
        for path in (OLD / "results.json", tmp_path / "out/results/results.json")
    )
    assert after["figure3"] == before["figure3"], "what was measured is not measured again"
    accuracies = [{row["method"]: row["accuracy"]["0"] for row in each["table2"]["rows"]} for each in (before, after)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.01)


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_comes_from_what_is_committed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("fastgat.experiments.timing.version", lambda package: "0.1.0")  # that made the timings
    kept = RESULTS / PAGES[name] / "results.json"
    before = kept.read_bytes()
    page = tmp_path / f"{name}.md"
    done = run(*command(DOCS / page.name), "--out", kept.parent, "--collect-only", "--page", page)
    assert done.code == 0, done.err
    assert page.read_text() == (DOCS / page.name).read_text()
    for path in (DOCS / name).iterdir():
        assert (tmp_path / name / path.name).exists()
    written, committed = (json.loads((folder / name / "results.json").read_text()) for folder in (tmp_path, DOCS))
    assert written["runs"] == committed["runs"]
    assert written["figures"].keys() == committed["figures"].keys()
    assert kept.read_bytes() == before


def test_the_page_of_the_kept_runs_comes_from_what_is_committed() -> None:
    assert kept_runs() == (DOCS / KEPT).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reproduce", "table3"), "did you mean 'table2'?"),
        (("reproduce", "table2", "--dataset", "mnist"), "experiments run on cifar10, cifar100, digits"),
        (("reproduce", "readings", "--delta", "fixed"), "leave --delta out"),
        (("reproduce", "larger", "--classifier", "table1"), "larger than the paper's"),
        (("reproduce", "table2", "--rounds", "5"), "--rounds has no effect on table2"),
        (
            ("reproduce", "table2", "readings", "--grid", "gradient-penalty=1", "--points", "8/1"),
            "--points has no effect",
        ),
        (("reproduce", "table2", "--grid", "gat-fixed=1"), "--grid gat-fixed has no effect on table2"),
        (("reproduce", "capacity", "--generator-width", "8"), "--generator-width has no effect on capacity"),
        (("reproduce", "table2", "--page", "page.json"), "names a Markdown file"),
        (("reproduce", "table2", "--grid", "gat"), "--grid takes METHOD=X"),
        (("reproduce", "table2", "--grid", "gat=a,b"), "must be a number"),
        (("reproduce", "table2", "--grid", "gta=1"), "no values can be chosen for 'gta'"),
        (("reproduce", "table2", "--grid", "gat=1", "--grid", "gat=2"), "given twice"),
        (("reproduce", "table2", "--page", "results"), "names a Markdown file"),
        (("reproduce", "table2", "--seeds", "0"), "seeds must be at least 1"),
        (("reproduce", "table2", "--quick", "--classifier", "tests.support:SmallClassifier"), "that takes `dropout`"),
        (("reproduce", "table2", "--quick", "--collect-only"), "holds no figures of table2"),
        (("search", "--method", "baseline"), "no hyperparameter of its own"),
        (("search", "--over", "c_g=1"), "no option 'c_g'"),
        (("search", "--over", "cg"), "--over takes NAME=X"),
        (("search", "--over", "cg=1,1"), "appears twice"),
        (("search", "--method", "baseline", "--over", "momentum=0.5"), "--momentum has no effect"),
        (("search", "--over", "dataset=digits"), "no option 'dataset'"),
        (("search", "--over", "cg=1", "--over", "cg=2"), "given twice"),
        (("search", "--over", "deterministic=true,false"), "make a difference"),
        (("search", "--over", "batch-size=a"), "takes whole numbers"),
        (("search", "--method", "baseline", "--over", "cg=1,2"), "cg"),
        (("search", "--output", "here"), "No such option"),
        (("search", "--method", "fg-l2", "--epsilon", "7"), "--epsilon is what the search is over"),
        (("search", "--cg", "5", "--over", "cg=1,2"), "--cg is what the search is over"),
    ],
)
def test_what_makes_no_sense(run: Run, arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not [*tmp_path.glob("out/cells/*")], "nothing has been trained"
