"""SIGKILL at random moments: a run that is killed and resumed ends with the weights of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastgat.engine.checkpoint import load_checkpoint
from tests.support import fastgat

TRAIN = (
    *(
        "train",
        "--dataset",
        "digits",
        "--method",
        "dropout-gat",
        "--generator-width",
        "4",
        "--device",
        "cpu",
        "--no-compile",
    ),
    *(
        "--train-images",
        "160",
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--deterministic",
        "--checkpoint-interval",
        "5",
        "--ema",
        "0.9",
    ),
)


def kill_after(seconds: float, folder: Path) -> int:
    """Resume the run, kill it `seconds` after it has begun to train; returns the step it had saved."""
    command = [sys.executable, "-m", "fastgat", *TRAIN, "--output", str(folder), "--resume", "auto"]
    last = folder / "last.safetensors"
    started = folder / "environment.json"
    started.unlink(missing_ok=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while not (started.exists() and last.exists()):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
    return int(load_checkpoint(last)[1]["position"]["step"])


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.long)])
def test_kills_change_nothing(kills: int, tmp_path: Path) -> None:
    began = time.monotonic()
    whole = fastgat(*TRAIN, "--output", tmp_path / "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    share = (time.monotonic() - began) / (2 * kills)
    moments = random.Random(time.time_ns())
    steps = [kill_after(moments.uniform(0, share), tmp_path / "killed") for _ in range(kills)]
    assert steps == sorted(steps)
    ended = fastgat(*TRAIN, "--output", tmp_path / "killed", "--resume", "auto", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for name in ("last.safetensors", "best.safetensors"):
        tensors, others = (load_checkpoint(tmp_path / run / name)[0] for run in ("whole", "killed"))
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert tensor.equal(others[key]), f"{key} differs after kills at steps {steps}"
