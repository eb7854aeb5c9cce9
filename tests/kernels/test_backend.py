"""What takes kernels, and where they launch; without Triton, as outside Linux, everything works by the references."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastgat.kernels.backend import runs_kernel
from fastgat.kernels.dual_loss import perturbed_loss, sample_loss
from fastgat.kernels.image_batch import image_batch
from fastgat.kernels.input_gradient import input_gradient
from fastgat.kernels.perturbation import perturbation, perturbation_gradient
from fastgat.kernels.projected_step import projected_step
from torch import Tensor
from torch._subclasses import FakeTensorMode

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


def test_kernels_take_what_they_compute_in_on_cuda() -> None:
    with FakeTensorMode():
        single, double = (torch.empty(2, device="cuda", dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert runs_kernel(single)
    assert not runs_kernel(double)
    assert not runs_kernel(single, double)
    assert not runs_kernel(torch.empty(2))


@pytest.mark.usefixtures("kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there kernels are compiled, not interpreted")
def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    guarded: list[Tensor] = []
    launches: list[str] = []
    launch = interpreter.GridExecutor.__call__

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        guarded.append(tensor)
        yield
        guarded.pop()

    def checked(self: Any, *arguments: Any, **options: Any) -> None:
        launches.append(self.fn.__name__)
        assert len(guarded) == 1, f"{self.fn.__name__} launches on whichever device is current"
        launch(self, *arguments, **options)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", checked)
    x, labels, loss = torch.rand(2, 3, 4, 4), torch.tensor([1, 0]), torch.rand(2)
    input_gradient(x, "l2")
    perturbation(x, x)
    perturbation_gradient(x, x, x, loss)
    sample_loss(x.flatten(1), labels)
    perturbed_loss(x.flatten(1), labels, loss, 0.5)
    projected_step(x, x, x, size=0.1, epsilon=0.1)
    image_batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels)
    assert len(launches) == 7
    assert not guarded
