"""fastgat data, and training on images of one's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastgat.engine.checkpoint import load_checkpoint, save_checkpoint
from tests.cli.conftest import Run
from tests.data.pictures import make_folder, make_shard, members

SMALL = ("--method", "baseline", "--no-compile", "--epochs", 1, "--batch-size", 8, "--loader", "torch", "--workers", 0)


def test_train_and_evaluate_on_a_folder(run: Run, tmp_path: Path) -> None:
    for part, each in (("train", 8), ("val", 3), ("test", 2)):
        make_folder(tmp_path / "images" / part, each)
    result = run("train", "--dataset", "folder:images", "--flip", "--padded-crop", 4, *SMALL, "--output", "out")
    assert result.code == 0, result.err
    assert f"folder:{tmp_path}/images: 24 / 9 / 6 images of 32 x 32 to train, validate, test" in result.out
    assert "loader      torch: asked for; augmented: flip, padded crop 4" in result.out
    assert "% waiting for data" in result.out
    assert json.loads(Path("out/summary.json").read_text())["test_accuracy"] is not None
    assert "6 images of folder:" in run("evaluate", "out", "--clean").out
    tensors, header = load_checkpoint(Path("out/last.safetensors"))
    header["config"]["data"]["data_dir"] = "ignored"  # as earlier versions let it be given
    save_checkpoint(Path("out/last.safetensors"), tensors, header)
    assert run("train", "--resume", "auto", "--output", "out", "--epochs", 2).code == 0
    Path("images").rename("moved")
    assert "images: no such folder" in run("evaluate", "out", "--clean").err
    assert "6 images of folder:moved" in run("evaluate", "out", "--clean", "--data-dir", "moved").out
    again = run("train", "--resume", "auto", "--output", "out", "--epochs", 3, "--dataset", "folder:moved")
    assert again.code == 0, again.err
    assert f"folder:{tmp_path}/moved" in Path("out/config.toml").read_text()
    refused = run("train", "--dataset", "folder:moved", "--data-dir", "elsewhere", *SMALL, "--output", "again")
    assert (refused.code, "says itself where the images are: leave out --data-dir" in refused.err) == (2, True)


def test_a_report_on_a_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, of another size, in the order of their classes."""
    monkeypatch.setenv("CXX", "no-such-compiler")  # tests/evaluation compares compiled networks
    for part, each in (("train", 8), ("val", 3), ("test", 2)):
        make_folder(tmp_path / "images" / part, each)
    arguments = ("train", "--dataset", "folder:images", "--image-size", 24, *SMALL, "--output", "out")
    assert run(*arguments).code == 0
    fast = ("--steps", 2, "--restarts", 2, "--apgd-steps", 2, "--queries", 5, "--generator-epochs", 1)
    result = run("evaluate", "out", *fast)
    assert result.code in (0, 3), result.err
    figures = json.loads(Path("out/evaluation.json").read_text())
    assert figures["attacked_samples"] == 6
    assert figures["equal_power"][0]["training"]["batches_an_epoch"] == 1
    assert figures["run_settings"]["samples"] == 100


def test_train_on_shards_without_test_images(run: Run, tmp_path: Path) -> None:
    for number in range(2):
        make_shard(tmp_path / f"s-{number}.tar", members(20, 20 * number))
    result = run("train", "--dataset", "webdataset:s-{0..1}.tar", *SMALL, "--output", "out")
    assert result.code == 0, result.err
    assert f"37 / 3 images of 32 x 32 to train, validate; from {tmp_path}/s-{{0..1}}.tar, a tenth" in result.out
    failed = run("evaluate", "out", "--clean")
    assert (failed.code, failed.err) == (
        1,
        f"fastgat: error: webdataset:{tmp_path}/s-{{0..1}}.tar has no test images: try --split validation\n",
    )
    assert "3 images of webdataset:" in run("evaluate", "out", "--clean", "--split", "validation").out
    weights = ("--weights", "out/best.safetensors", "--classifier", "table1", "--dataset", "webdataset:s-{0..1}.tar")
    assert run("evaluate", *weights, "--clean", "--split", "validation", "--output", "other").code == 0
    own, theirs = (json.loads(Path(folder, "evaluation-clean.json").read_text()) for folder in ("out", "other"))
    assert own["loss"] == theirs["loss"], "the same images are held out"


def test_a_skipped_image_is_told(run: Run, tmp_path: Path) -> None:
    make_folder(tmp_path / "images", 10)
    bad = tmp_path / "images" / "ants" / "000.jpg"
    bad.write_bytes(b"")
    failed = run("train", "--dataset", "folder:images", *SMALL, "--output", "out")
    assert failed.code == 1
    assert f"{bad}: is empty; --on-bad-sample skip goes on without it" in failed.err
    result = run("train", "--dataset", "folder:images", *SMALL, "--output", "out2", "--on-bad-sample", "skip")
    assert result.code == 0, result.err
    assert f"skipped     1 sample so far; the first: {bad}: is empty" in result.out


def test_other_classes_than_in_training_are_noticed(run: Run, tmp_path: Path) -> None:
    make_folder(tmp_path / "images", 10)
    arguments = ("train", "--dataset", "folder:images", *SMALL, "--output", "out")
    assert run(*arguments).code == 0
    (tmp_path / "images" / "bees").rename(tmp_path / "images" / "zebras")
    for again in (
        ("evaluate", "out", "--clean", "--split", "validation"),
        (*arguments, "--resume", "auto", "--epochs", 2),
    ):
        result = run(*again)
        assert result.code == 1
        assert "class 1 was bees in training, but is cats in the data" in result.err


def test_a_run_tells_that_its_images_have_changed(run: Run, tmp_path: Path) -> None:
    make_folder(tmp_path / "images", 12, size=(8, 8))
    arguments = ("train", "--dataset", "folder:images", *SMALL, "--output", "out")
    assert run(*arguments).code == 0
    evaluate = ("evaluate", "out", "--clean", "--split", "validation", "--checkpoint", "last")
    before = run(*evaluate).out
    (tmp_path / "images" / "bees" / "011.webp").rename(tmp_path / "images" / "bees" / "zzz.webp")
    resume = (*arguments, "--resume", "auto", "--epochs", 2)
    for again in (evaluate, resume):
        result = run(*again)
        assert result.code == 1
        assert result.err == (
            "fastgat: error: out/last.safetensors: its images have changed since it was made: 1 gone, such as "
            "bees/011.webp (class bees) and 1 added, such as bees/zzz.webp (class bees); --changed-data goes on, and "
            "leaves every image that is still there in its split\n"
        )
    assert run(*evaluate, "--changed-data").out == before  # neither is a validation image
    assert run(*resume, "--changed-data").code == 0
    assert run(*evaluate).code == 0  # the run now knows its new images
    assert "changed_data = false" in Path("out/config.toml").read_text()


def test_a_run_of_an_earlier_version_keeps_its_split(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "images", 12, size=(8, 8))
    arguments = ("train", "--dataset", "folder:images", *SMALL, "--output", "out")
    with monkeypatch.context() as earlier:
        earlier.setattr("fastgat.trainer.trainer.split_rule", lambda header: "position")
        assert run(*arguments).code == 0
    tensors, header = load_checkpoint(Path("out/last.safetensors"))
    del header["data"], header["config"]["data"]["changed_data"]
    save_checkpoint(Path("out/last.safetensors"), tensors, header)
    result = run(*arguments, "--resume", "auto", "--epochs", 2)
    assert "33 / 3 images of 32 x 32 to train, validate" in result.out, result.err
    assert load_checkpoint(Path("out/last.safetensors"))[1]["data"]["split"] == "position"
    (tmp_path / "images" / "bees" / "000.jpg").unlink()
    result = run(*arguments, "--resume", "auto", "--epochs", 3, "--changed-data")
    assert "1 gone, such as bees/000.jpg (class bees); this run, begun by an earlier version, cannot" in result.err


def test_the_default_run_folder_is_one_folder(run: Run, tmp_path: Path) -> None:
    make_folder(tmp_path / "my images", 10)
    assert run("train", "--dataset", "folder:my images", *SMALL).code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.endswith("-my-images-baseline-seed0")
    assert (made / "summary.json").exists()


def test_verify_reads_every_image(run: Run, tmp_path: Path) -> None:
    make_folder(tmp_path / "images", 5)
    result = run("data", "verify", "folder:images")
    assert result.code == 0
    listed = [
        f"folder:images: 11 / 4 images of 32 x 32 to train, validate; from {tmp_path}/images, "
        "a tenth of the training images held out to validate",
        "classes     3: ants, bees, cats",
    ]
    assert result.out.splitlines() == [*listed, "folder:images: 15 of 15 images in 3 classes can be decoded"]
    assert run("data", "verify", "folder:images", "--data-dir", "elsewhere").code == 2
    (tmp_path / "images" / "bees" / "notes.txt").touch()
    (tmp_path / "images" / "bees" / "001.png").write_bytes(b"no image")
    result = run("data", "verify", "folder:images")
    assert result.code == 1
    assert result.out.splitlines() == [
        f"{tmp_path}/images/bees/001.png: is not a JPEG, PNG or WebP image",
        *listed,
        "passed over 1 .txt (such as bees/notes.txt)",
        "folder:images: 14 of 15 images in 3 classes can be decoded",
    ]
    assert result.err == "fastgat: error: 1 images cannot be read\n"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker in /proc")
@pytest.mark.parametrize("whom", ["worker", "all"])
def test_workers_that_are_ended_and_interrupted(tmp_path: Path, whom: str) -> None:
    """A worker that dies ends the run in one line; Ctrl-C, which reaches all of them, in a checkpoint."""
    make_folder(tmp_path / "images", 20)
    arguments = ("train", "--dataset", "folder:images", *SMALL[:-1], 1, "--epochs", 5000, "--output", "out")
    command = [sys.executable, "-m", "fastgat", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            while not (tmp_path / "out" / "best.safetensors").exists():
                assert process.poll() is None
                time.sleep(0.02)
            if whom == "all":
                os.killpg(process.pid, signal.SIGINT)
            else:
                os.kill(int(workers_of(process.pid)[0]), signal.SIGKILL)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    if whom == "all":
        assert (process.returncode, errors) == (0, "")
        return
    assert process.returncode == 1
    assert errors.startswith("fastgat: error: DataLoader worker ")
    assert errors.count("\n") == 1


def workers_of(pid: int) -> list[str]:
    """The children of a process, once it has some."""
    found: list[str] = []
    while not found:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return found
