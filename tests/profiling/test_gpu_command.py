"""bench/gpu.py, what `make gpu` runs: its budget, and what is kept where a part fails; with parts that need no GPU."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from bench import gpu
from bench.gpu import KERNELS, Part, keep, parts, run
from fastgat.cli.profile import profile
from fastgat.data import dali

ROOT = Path(__file__).parents[2]
STEP = {
    "textbook": {"step_ms": 13.3},
    "fastgat": {"step_ms": 1.66, "fraction_of_floor": 0.1, "loader": {"over_step": 1.005}, "launches": None},
    "speedup": 8.0,
    "fastgat_over_textbook_fast_gradient": 0.26,
}


def test_all_parts_fit_into_ten_minutes_and_their_files_are_there(tmp_path: Path) -> None:
    everything = list(parts(tmp_path, tests=True))
    taken = [part.seconds for part in everything if not (part.name.endswith("dali") and dali.missing())]
    assert sum(taken) <= 60 * 9.5
    assert everything[0].name == "tests"
    assert [part.name for part in parts(tmp_path, tests=False)] == [part.name for part in everything[1:]]
    kernels = {path.name for path in (ROOT / "kernels").glob("*.py")} - {"__init__.py", "backend.py", "images.py"}
    kernels -= {"winograd.py"}  # for CPUs
    files = [path for paths in KERNELS.values() for path in paths]
    assert {Path(path).name for path in files} == {f"bench_{name}" for name in kernels}
    assert all((ROOT / path).exists() for path in files)


def test_its_profiles_are_commands_of_fastgat(tmp_path: Path) -> None:
    for part in parts(tmp_path, tests=False):
        if part.prints:
            assert part.command[:3] == ("-m", "fastgat", "profile")
            profile.make_context("profile", list(part.command[3:]))


@pytest.mark.parametrize("session", [False, True])
def test_a_part_that_takes_too_long_is_stopped_with_what_it_started(tmp_path: Path, session: bool) -> None:
    """Workers too, which have a session of their own."""
    start = f"subprocess.Popen(['sleep', '60'], start_new_session={session})"
    script = f"import subprocess; child = {start}; print(child.pid, flush=True); child.wait()"
    began = time.monotonic()
    assert run(Part("slow", ("-c", script), 1, prints=True), tmp_path / "pid", 2) == "stopped after 2 s"
    assert time.monotonic() - began < 30
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_exit_code_of_a_part_is_told(tmp_path: Path) -> None:
    assert run(Part("fine", ("-c", "print(1)"), 9, prints=True), tmp_path / "one", 60) is None
    assert (tmp_path / "one").read_text() == "1\n"
    assert run(Part("bad", ("-c", "raise SystemExit(3)"), 9), tmp_path / "two", 60) == "exit code 3"


def test_what_was_written_is_kept_but_half_a_file(tmp_path: Path) -> None:
    result: dict[str, Any] = {"steps": {}}
    for name, time_of in zip(KERNELS, ("2e-6", "4e-6"), strict=True):
        keep(
            result, name, f'{{"benchmarks": [{{"name": "one", "stats": {{"median": {time_of}}}, "extra_info": {{}}}}]}}'
        )
    keep(result, "seeds", '{"images_per_second": {"together": [1.0]}}')
    keep(result, "simultaneous 128 dali", '{"speedup": 8.0, ')
    kernels = [{"name": "one", "median_us": 2.0}, {"name": "one", "median_us": 4.0}]
    assert result == {"steps": {}, "kernels": kernels, "seeds": {"together": [1.0]}}


@pytest.fixture
def fake_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fakes(folder: Path, tests: bool) -> Iterator[Part]:
        yield Part("tests", ("-c", "raise SystemExit(1)"), 20)
        yield Part("simultaneous 128 resident", ("-c", f"print('''{json.dumps(STEP)}''')"), 20, prints=True)
        yield Part("seeds", ("-c", ""), 3600)

    monkeypatch.setattr(gpu, "parts", fakes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "environment", dict)


@pytest.mark.usefixtures("fake_parts")
def test_a_failure_costs_no_figures_of_others_and_is_named(tmp_path: Path) -> None:
    output = tmp_path / "found" / "gpu.json"
    done = CliRunner().invoke(gpu.main, ["--json", os.fspath(output)])
    assert done.exit_code == 1
    found = json.loads(output.read_text())
    assert found["failed"] == {"tests": "exit code 1"}
    assert found["steps"] == {"simultaneous 128 resident": json.loads(json.dumps(STEP))}
    assert found["left_out"] == ["seeds (no time)"]
    assert "failed: tests, exit code 1" in done.output
    assert "left out: seeds (no time)" in done.output
