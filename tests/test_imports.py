"""The layers of pyproject.toml, held by import-linter on the packages as a wheel lays them out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_point_one_way(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fastgat", tmp_path / "fastgat")
    shutil.copytree(ROOT / "kernels", tmp_path / "fastgat" / "kernels")
    # -S leaves out an editable install, which knows of the source tree only.
    command = [sys.executable, "-S", "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    result = subprocess.run(
        [*command, "--config", ROOT / "pyproject.toml", "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout
