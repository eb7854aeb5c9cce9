"""The script that trains robust networks on a GPU: each of its commands is one that fastgat takes, and what they leave
is what it reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import robust
from fastgat.cli.evaluate import evaluate
from fastgat.cli.options import overrides
from fastgat.cli.profile import profile
from fastgat.cli.recipes import load_recipe
from fastgat.cli.train import train
from fastgat.config import TrainConfig, merge

COMMANDS = {"profile": profile, "train": train, "evaluate": evaluate}


def test_its_commands_are_understood(tmp_path: Path) -> None:
    for what, *arguments in robust.parts(tmp_path).values():
        where = ["--data-dir", str(tmp_path)] if what != "profile" else []
        given = dict(COMMANDS[what].make_context(what, [*arguments, *where]).params)
        if what == "train":
            config = TrainConfig.from_dict(merge(load_recipe(given["recipe"]), overrides(given)))
            assert (config.epochs, config.batch_size, config.precision.amp) == (30, 128, True)
            assert config.optimizer.lr_schedule == "cyclic"
            assert config.model.classifier == "preactresnet18-bn"


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(command: list[str], seconds: float, output: Any) -> int | None:
        assert command[:3] == [sys.executable, "-m", "fastgat"]
        if len(ran) == 3:
            return None
        ran.append(command[3])
        if command[3] == "profile":
            output.write(json.dumps({"textbook": {"images_per_second": 10.0}, "speedup": 2.0, "device": "a GPU"}))
        else:
            (tmp_path / "n-fgsm").mkdir(exist_ok=True)
            (tmp_path / "n-fgsm" / "summary.json").write_text('{"seconds": 1, "images_per_second": 20, "epochs": 30}')
        return 0

    monkeypatch.setattr(robust, "run", run)
    result = CliRunner().invoke(robust.main, ["--out", str(tmp_path)])
    assert ran == ["profile", "train", "evaluate"]
    assert "stopped after 9 minutes; the same command goes on" in result.output
    found = json.loads((tmp_path / "robust.json").read_text())
    assert found["n-fgsm"]["images_per_second, textbook"] == 10
    assert found["n-fgsm"]["images_per_second"] == 20
    ran.clear()
    CliRunner().invoke(robust.main, ["--out", str(tmp_path)])
    assert ran == ["evaluate", "profile", "train"], "the other comparison comes last"
