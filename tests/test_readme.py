"""What the README says is true: its Python runs, its options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastgat.cli.profile import profile
from fastgat.cli.train import train
from fastgat.methods import METHODS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_options_and_methods_exist() -> None:
    parameters = [*train.params, *profile.params]
    known = {name for option in parameters for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= known
    for method in METHODS:
        assert f"| `{method}` |" in README
