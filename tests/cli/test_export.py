"""fastgat export: where the file goes, and its exit codes."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run

TRAIN = ("train", "--dataset", "digits", "--train-images", 64, "--method", "baseline", "--epochs", 1, "--no-compile")


def test_on_the_command_line(run: Run, tmp_path: Path) -> None:
    assert run(*TRAIN, "--batch-size", 32, "--output", tmp_path / "run").code == 0
    done = run("export", tmp_path / "run", "--output", tmp_path / "a.safetensors")
    assert done.code == 0
    assert done.out.strip() == str(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size > 900_000
    assert run("export", tmp_path / "nothing").code == 1
    done = run("export", tmp_path / "run", "--output", tmp_path / "no" / "folder.safetensors")
    assert done.code == 1
    assert "cannot be written" in done.err
    assert run("export", tmp_path / "run", "--format", "pickle").code == 2
    assert run("export", tmp_path / "run", "--image-size", "48X40").code == 0
    for size in ("48x", "x", "-1", "1x2x3", "9" * 5000):
        assert "is neither N nor HxW" in run("export", tmp_path / "run", "--image-size", size).err
