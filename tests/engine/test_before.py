"""Checkpoints of an earlier fastgat (0.1.0, format 3) go on, to the weights that it went on to itself.

Each folder of `before/` holds a run on digits that was stopped in its second epoch of three, and the classifier that
the earlier version ended with. Not to the last bit: processors that say that they are alike add up in other orders.
"""

from __future__ import annotations

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
    _, header = load_checkpoint(folder / "last.safetensors")
    config = TrainConfig.from_run({**header["config"], "output": str(folder), "resume": "auto"})
    assert Trainer(config, classifier=Small()).fit().summary is not None
    tensors = load_checkpoint(folder / "last.safetensors")[0]
    expected = json.loads((folder / "expected.json").read_text())
    for name, values in expected["weights"].items():
        torch.testing.assert_close(
            tensors[name].double().flatten(), torch.tensor(values).double(), rtol=1e-4, atol=1e-6
        )
