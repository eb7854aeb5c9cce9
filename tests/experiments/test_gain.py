"""The study of the gain: each of its commands is one that fastgat takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gain import SHARED, parts
from fastgat.cli.reproduce import plan_from, reproduce
from fastgat.cli.search import search

COMMANDS = {"reproduce": reproduce, "search": search}
PARTS = parts(1.0, 1.0, 0.1)


@pytest.mark.parametrize("name", PARTS)
def test_its_commands_are_understood(name: str, tmp_path: Path) -> None:
    for what, *arguments in PARTS[name]:
        where = ["--out", str(tmp_path), "--jobs", "4", "--data-dir", str(tmp_path)]
        given = dict(COMMANDS[what].make_context(what, [*arguments, *where]).params)
        if what == "reproduce":
            for other in ("what", "out", "jobs", "page", "collect_only"):
                given.pop(other)
            plan = plan_from(given.pop("quick"), given.pop("grids"), given)
            assert {"gat", "gat-fixed", "gradient-penalty"} <= plan.grids.keys()


def test_parts_that_share_a_folder_differ_in_their_seeds_alone() -> None:
    for name, other in SHARED.items():
        (one,), (two,) = PARTS[name], PARTS[other]
        assert one[:-1] == two[:-1]
        assert one[-2] == "--seeds"
