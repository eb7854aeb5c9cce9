"""Checkpoints of an earlier fastgat (0.1.0, format 3) go on, to the weights that it went on to itself.

Each folder of `before/` holds a run on digits that was stopped in its second epoch of three, and the classifier that
the earlier version ended with; a digest of all that was learnt holds for the processor and the torch that made it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgat import TrainConfig, Trainer
from fastgat.engine.checkpoint import load_checkpoint

BEFORE = Path(__file__).parent / "before"
LEARNT = ("classifier", "generator", "ema")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4, bias=False)  # batch norm would cancel it
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More would add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("run", ["gat", "free"])
def test_a_checkpoint_of_before_ends_with_the_same_weights(tmp_path: Path, run: str) -> None:
    folder = shutil.copytree(BEFORE / run, tmp_path / run)
    before, header = load_checkpoint(folder / "last.safetensors")
    config = TrainConfig.from_run({**header["config"], "output": str(folder), "resume": "auto"})
    assert Trainer(config, classifier=Small()).fit().summary is not None
    tensors = load_checkpoint(folder / "last.safetensors")[0]
    expected = json.loads((folder / "expected.json").read_text())
    for name, values in expected["weights"].items():
        torch.testing.assert_close(
            tensors[name].double().flatten(), torch.tensor(values).double(), rtol=1e-4, atol=1e-6
        )
    made_with = expected["made_with"]
    if made_with == {"torch": torch.__version__, "processor": processor()}:
        learnt = (name for name in sorted(before) if name.startswith(LEARNT))
        content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in learnt)
        assert hashlib.sha256(content).hexdigest() == expected["digest"], "bit for bit"


def processor() -> str:
    """A digest of what decides which instructions torch chooses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return ""
    decides = ("vendor_id", "cpu family", "model", "stepping", "flags")
    return hashlib.sha256("".join(line for line in lines if line.startswith(decides)).encode()).hexdigest()
