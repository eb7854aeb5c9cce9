"""Without Triton, as outside Linux, everything works by the references."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

sys.modules["triton"] = None
import torch
from fastgat.kernels import backend
from fastgat.kernels.dual_loss import sample_loss
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.perturbation import perturbation

assert not hasattr(backend.triton, "compile")
x = torch.rand(2, 3, 4, 4)
moved = perturbation(x, input_gradient(x, "l2").value)
print(sample_loss(moved.perturbed.flatten(1), torch.zeros(2).long()).loss.shape)
"""


def test_without_triton(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "torch.Size([2])\n"
