"""Hostile input ends in one line, or is rightly accepted: never in a traceback, a hang or a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgat.errors import CheckpointError, FastgatError
from tests.fuzz.fuzzer import Fuzzer, outcome, replaced, shown_table, small_run, table

KINDS = {
    "option": 60,
    "TOML": 40,
    "TOML's bytes": 30,
    "bit of a checkpoint": 60,
    "value in a checkpoint's header": 60,
    "safetensors' header": 60,
    "file that is none": 20,
    "run folder": 4,
    "reproduce folder": 6,
}
"""How many of each class are tried every time."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("fuzz") / "original")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_ends_well(run: Path, tmp_path: Path, kind: str) -> None:
    fuzzer = Fuzzer(tmp_path, run)
    for case in fuzzer.cases(kind, KINDS[kind]):
        result = outcome(case)
        assert result.kind in ("one line", "accepted"), f"{case.name}: {result.text}"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_inputs_end_well(tmp_path: Path) -> None:
    counts, wrong = table(tmp_path, 1000, seed=1)
    assert not wrong, "\n".join([*wrong, shown_table(counts)])


def test_what_the_fuzzer_forges_has_the_right_checksum(run: Path, tmp_path: Path) -> None:
    """Otherwise its cases would end at the checksum, and try nothing else."""
    fuzzer = Fuzzer(tmp_path, run)
    path = tmp_path / "forged.safetensors"
    path.write_bytes(fuzzer.forged(json.dumps(fuzzer.header() | {"more": 1})))
    fuzzer.evaluate(path)
    path.write_bytes(path.read_bytes().replace(b"more", b"less"))
    with pytest.raises(CheckpointError, match="checksum"):
        fuzzer.evaluate(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("random", "numpy", "state", "pos"), 10**9),  # numpy reads memory that is not its own there
        (("random", "numpy", "state", "key"), [1, 2, 3]),
        (("position", "passes", "1", "states", "numpy"), []),
        (("position", "passes", "0", "states", "numpy", "state", "pos"), -1),
        (("position", "passes", "0", "states"), 1),
        (("position", "epochs", 0, "loss"), {"name": None}),
        (("position", "step"), 2**62),
        (("position", "seconds"), float("nan")),
        (("config", "run", "compile"), "yes"),
    ],
    ids=str,
)
def test_a_header_that_no_run_has_written(
    run: Path, tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    fuzzer = Fuzzer(tmp_path, run)
    path = tmp_path / "header.safetensors"
    path.write_bytes(fuzzer.forged(json.dumps(replaced(fuzzer.header(), place, value))))
    with pytest.raises(FastgatError):
        fuzzer.resume(path)
