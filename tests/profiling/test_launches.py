"""The tools that count launches, as far as a torch without CUDA goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NULL_GPU = ROOT / "bench" / "null_gpu"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it counts")
def test_without_a_gpu_it_says_what_to_do() -> None:
    result = run("-m", "bench.launches")
    assert result.returncode == 1
    assert result.stderr == "Error: there is no GPU here: python -m bench.null_gpu bench/launches.py\n"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has what it wants")
def test_the_null_gpu_wants_a_build_of_torch_for_cuda() -> None:
    result = run("-m", "bench.null_gpu", "bench/launches.py")
    assert result.returncode == 1
    assert result.stderr == "null_gpu: this torch is a build without CUDA\n"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("source", sorted(NULL_GPU.glob("*.c")), ids=lambda path: path.name)
def test_its_stubs_compile(source: Path) -> None:
    """Those of the driver with the signatures of its header."""
    triton = pytest.importorskip("triton")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    subprocess.run(["cc", "-fsyntax-only", f"-I{headers}", source], check=True)
