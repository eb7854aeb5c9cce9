"""fastgat train under torchrun: started together, killed, restarted, continued on another number of ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastgat.engine.checkpoint import load_checkpoint
from tests.data.pictures import make_folder
from tests.support import fastgat, made_once

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TRAIN = (
    *("train", "--dataset", "digits", "--train-images", "64", "--batch-size", "16"),
    *("--no-compile", "--device", "cpu", "--checkpoint-interval", "2", "--epochs", "3"),
    *("--method", "free", "--replays", "2", "--select", "accuracy"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc"),
]


def start(*arguments: object, folder: Path, restarts: int = 0) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "--max-restarts", str(restarts), "-m", "fastgat", *TRAIN, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_ADDR2LINE": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, what was printed, and fastgat's own lines of errors."""
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    sys.stderr.write(err)  # shown where a test fails
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("fastgat: error: ")]


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """The process of each rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update({int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")})
    return found


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.safetensors")[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks."""

    def make(folder: Path) -> None:
        code, out, errors = finish(start("--output", "whole", folder=folder))
        assert (code, errors) == (0, [])
        assert "ranks       2, with 8 images of each batch each" in out
        assert out.count("epoch 1/3") == 1

    return made_once(tmp_path_factory, "undisturbed-ranks", make) / "whole"


@pytest.mark.long
def test_a_rank_is_killed_and_torchrun_restarts_all(undisturbed: Path, tmp_path: Path) -> None:
    """The same weights, bit for bit, as without."""
    process = start("--output", "killed", folder=tmp_path, restarts=1)
    wait_for(tmp_path / "killed" / "best.safetensors", process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    code, out, errors = finish(process)
    assert code == 0
    (error,) = errors
    assert error.startswith("fastgat: error: another rank has gone, or cannot be reached (")
    assert error.endswith("); killed/last.safetensors holds the last checkpoint: continue with --resume auto")
    assert "continues   after step " in out
    whole, killed = weights(undisturbed), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert tensor.equal(killed[name]), name


@pytest.mark.long
def test_a_signal_ends_all_ranks_and_one_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM to one rank: all end at a checkpoint of one step, and one process goes on, its batches theirs."""
    process = start("--output", "out", folder=tmp_path)
    wait_for(tmp_path / "out" / "best.safetensors", process)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    code, out, errors = finish(process)
    assert (code, errors) == (0, [])
    assert "interrupted by SIGTERM" in out
    step = load_checkpoint(tmp_path / "out" / "last.safetensors")[1]["position"]["step"]
    assert 4 <= step < 24
    ended = fastgat(*TRAIN, "--output", "out", "--resume", "auto", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"continues   after step {step} " in ended.stdout
    whole, alone = weights(undisturbed), weights(tmp_path / "out")
    assert whole.keys() == alone.keys()
    assert whole["memory"].shape == alone["memory"].shape == (16, 3, 32, 32)
    ours, theirs = (torch.cat([each[name].flatten() for name in whole if is_weight(name)]) for each in (alone, whole))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.01  # float32, and Free takes signs


def is_weight(name: str) -> bool:
    return name.startswith("classifier.")


def test_errors_are_told_once(tmp_path: Path) -> None:
    code, _, errors = finish(start("--dataset", "folder:nowhere", folder=tmp_path))
    assert code == 1
    assert errors == [f"fastgat: error: rank 0: {tmp_path}/nowhere: no such folder"]


def test_before_ranks_are_connected_each_speaks_for_itself(tmp_path: Path) -> None:
    code, _, errors = finish(start("--alpha", "2", folder=tmp_path))
    assert code != 0
    assert errors
    assert all(re.match(r"fastgat: error: rank [01]: .*alpha", error) for error in errors)


@pytest.mark.long
def test_torchrun_s_own_signal_leaves_a_checkpoint(tmp_path: Path) -> None:
    """It reaches every process of a rank's group, workers of its loader too."""
    for part in ("train", "val"):
        make_folder(tmp_path / "images" / part, 24)
    loading = ("--dataset", "folder:images", "--loader", "torch", "--workers", "1", "--epochs", "500")
    process = start(*loading, "--output", "out", folder=tmp_path)
    wait_for(tmp_path / "out" / "best.safetensors", process)
    process.send_signal(signal.SIGTERM)
    _, out, errors = finish(process)
    assert errors == []
    assert "interrupted by SIGTERM" in out
