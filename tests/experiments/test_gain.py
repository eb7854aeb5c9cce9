"""The study of the gain: each of its commands is one that fastgat takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gain import SHARED, parts
from fastgat.cli.reproduce import check_used, plan_from, reproduce
from fastgat.cli.search import search
from fastgat.experiments import EXPERIMENTS

COMMANDS = {"reproduce": reproduce, "search": search}
PARTS = parts(1.0, 1.0, 0.1)


@pytest.mark.parametrize("name", PARTS)
def test_its_commands_are_understood(name: str, tmp_path: Path) -> None:
    for what, *arguments in PARTS[name]:
        where = ["--out", str(tmp_path), "--jobs", "4", "--data-dir", str(tmp_path)]
        given = dict(COMMANDS[what].make_context(what, [*arguments, *where]).params)
        if what == "reproduce":
            experiments = [EXPERIMENTS[each] for each in given.pop("what")]
            for other in ("out", "jobs", "page", "keep_whole", "collect_only"):
                given.pop(other)
            grids = given.pop("grids")
            plan = plan_from(given.pop("quick"), grids, given)
            check_used(experiments, plan, grids, given)
            assert "gat" in plan.grids


def test_parts_that_share_a_folder_differ_in_their_seeds_alone() -> None:
    for name, other in SHARED.items():
        (one,), (two,) = PARTS[name], PARTS[other]
        assert one[:-1] == two[:-1]
        assert one[-2] == "--seeds"
