"""fastgat train under torchrun: started together, killed, restarted, continued on another number of ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastgat.engine.checkpoint import load_checkpoint
from tests.support import fastgat

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TRAIN = (
    *("train", "--dataset", "digits", "--train-images", "64", "--batch-size", "16", "--generator-width", "4"),
    *("--no-compile", "--device", "cpu", "--checkpoint-interval", "2"),
)
FREE = ("--method", "free", "--replays", "2")

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


def test_a_rank_is_killed_and_torchrun_restarts_all(tmp_path: Path) -> None:
    """The same weights, bit for bit, as without."""
    code, out, errors = finish(start(*FREE, "--epochs", 8, "--output", "whole", folder=tmp_path))
    assert (code, errors) == (0, [])
    assert "ranks       2, with 8 images of each batch each" in out
    assert out.count("epoch 1/8") == 1

    process = start(*FREE, "--epochs", 8, "--output", "killed", folder=tmp_path, restarts=1)
    wait_for(tmp_path / "killed" / "best.safetensors", process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    code, out, errors = finish(process)
    assert code == 0
    assert errors == [
        "fastgat: error: another rank has gone; killed/last.safetensors holds the last checkpoint: continue with "
        "--resume auto"
    ]
    assert "continues   after step " in out
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert tensor.equal(killed[name]), name


def test_a_signal_ends_all_ranks_and_one_goes_on(tmp_path: Path) -> None:
    """SIGTERM to one rank: all end at a checkpoint of one step, from which one process continues."""
    process = start(*FREE, "--epochs", 500, "--output", "out", folder=tmp_path)
    wait_for(tmp_path / "out" / "best.safetensors", process)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    code, out, errors = finish(process)
    assert (code, errors) == (0, [])
    assert "interrupted by SIGTERM" in out
    header = load_checkpoint(tmp_path / "out" / "last.safetensors")[1]
    step = header["position"]["step"]
    epochs = str(step // 4 + 2)
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("last.safetensors", "best.safetensors"):
            (tmp_path / name / file).write_bytes((tmp_path / "out" / file).read_bytes())
        arguments = (*FREE, "--epochs", epochs, "--output", name, "--resume", "auto")
        if name == "two":
            code, out, errors = finish(start(*arguments, folder=tmp_path))
            assert (code, errors) == (0, [])
        else:
            ended = fastgat(*TRAIN, *arguments, cwd=tmp_path)
            assert ended.returncode == 0, ended.stderr
            out = ended.stdout
        assert f"continues   after step {step} " in out
        results.append(weights(tmp_path / name))
    one, two = results
    assert one.keys() == two.keys()
    for key in (key for key in one if key.startswith("classifier.")):
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-4)
    assert one["memory"].shape == two["memory"].shape == (16, 3, 32, 32)


def test_errors_are_told_once(tmp_path: Path) -> None:
    code, _, errors = finish(start("--method", "baseline", "--dataset", "folder:nowhere", folder=tmp_path))
    assert code == 1
    assert errors == [f"fastgat: error: rank 0: {tmp_path}/nowhere: no such folder"]
    code, _, errors = finish(start("--epochs", "none", folder=tmp_path))
    assert len(errors) == 1
    code, _, errors = finish(start("--method", "baseline", folder=tmp_path, restarts=1))
    assert set(errors) == {
        "fastgat: error: --max-restarts needs --output, where the restarted run finds its checkpoint"
    }
