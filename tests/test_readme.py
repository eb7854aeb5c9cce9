"""What the README and docs/ say is true: their Python runs, their options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastgat.cli.evaluate import evaluate
from fastgat.cli.export import export
from fastgat.cli.profile import profile
from fastgat.cli.reproduce import reproduce
from fastgat.cli.search import search
from fastgat.cli.train import train
from fastgat.methods import METHODS
from tests.data.pictures import make_folder

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
FOREIGN = {"--help", "--no-tests", "--benchmark-only", "--no-deps", "--original"}
"""Options of other programs: pytest, pip, those in bench/."""
TORCHRUN = {"--standalone", "--nnodes", "--nproc-per-node", "--max-restarts"}
TORCHRUN |= {"--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"}
SLURM = {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--signal", "--requeue"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in BLOCK.findall(page.read_text()):
        # fewer images than the README's, and nothing is compiled: that would take minutes
        quick = block.replace('dataset="digits"', 'dataset="digits", train_images=256')
        with torch.compiler.set_stance("force_eager"):
            exec(compile(quick, page.name, "exec"), {})


@pages
def test_options_exist(page: Path) -> None:
    commands = (train, profile, evaluate, export, search, reproduce)
    parameters = [parameter for command in commands for parameter in command.params]
    known = {name for option in parameters for name in (*option.opts, *option.secondary_opts)}
    known |= FOREIGN | TORCHRUN | SLURM
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text())) <= known


def test_the_maps_of_the_design_lead_to_functions_that_are_there() -> None:
    rows = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| (.+?) \|", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    assert len(rows) >= 19
    for file, functions in rows:
        code = (ROOT / "fastgat" / file).read_text()
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", functions):
            assert re.search(rf"^ *def {name}\(", code, re.MULTILINE), f"{file}: {name}"


@pytest.mark.slow
def test_the_script_for_images_of_one_s_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("onnx")
    (script,) = re.findall(
        r'```python title="own_images.py"\n(.*?)```', (ROOT / "docs/library.md").read_text(), re.DOTALL
    )
    assert len(script.splitlines()) <= 25
    make_folder(tmp_path / "photos", 40)
    monkeypatch.chdir(tmp_path)
    for asked, quick in {"epochs=30": "epochs=1", "samples=50": "samples=2", "amp=True, ": ""}.items():
        assert asked in script
        script = script.replace(asked, quick)
    exec(compile(script, "own_images.py", "exec"), {})
    assert Path("runs/photos/classifier.onnx").exists()


def test_methods_are_listed() -> None:
    for method in METHODS:
        assert f"`{method}`" in README.read_text()
        assert f"| `{method}` |" in (ROOT / "docs/train.md").read_text()
