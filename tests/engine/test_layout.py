"""channels_last from end to end: oneDNN, which says what it does, converts no activation's layout in a step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEP = """
import sys
sys.path.append(sys.argv[3])  # at its end: an installed fastgat comes first
import torch
from fastgat.config import OptimizerConfig
from fastgat.data.batch import Batch
from fastgat.engine.compiled import Stepper
from fastgat.engine.state import TrainState
from fastgat.methods import GAT
from fastgat.methods.players import Draws
from fastgat.models import Classifier
from tests.support import SmallGenerator
layout = getattr(torch, sys.argv[1])
networks = [network.to(memory_format=layout) for network in (Classifier(), SmallGenerator(layers=3))]
# Where oneDNN has no bfloat16, PyTorch does those convolutions by itself, and says nothing of it.
autocast = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
state = TrainState(*networks, OptimizerConfig(), GAT.metrics, autocast)
stepper = Stepper(state, GAT(schedule="simultaneous"), compiled=sys.argv[2] == "compiled")
inputs = [Batch(torch.rand(32, 3, 32, 32).contiguous(memory_format=layout), torch.arange(32) % 10)], [Draws()]
stepper.prepare(*inputs)
print("the step", flush=True)
stepper(*inputs)
"""
REORDER = re.compile(r"exec,cpu,reorder,.*,(\d+(?:x\d+)*),[\d.]+$")


def conversions(layout: str, how: str) -> tuple[int, list[str]]:
    """How many convolutions a step has, and the shapes of the batch's tensors that are converted for them."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, layout, how, str(Path(__file__).parents[2])],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout[done.stdout.index("the step") :].splitlines()
    shapes = [found.group(1) for line in lines if (found := REORDER.search(line))]
    convolutions = sum(",convolution," in line for line in lines)
    return convolutions, [shape for shape in shapes if shape.startswith("32x") and shape.count("x") == 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU's library")
@pytest.mark.skipif("mkldnn" not in torch.__config__.show().lower(), reason="needs oneDNN")
@pytest.mark.parametrize("how", ["written", pytest.param("compiled", marks=pytest.mark.long)])
def test_no_activation_changes_its_layout(how: str) -> None:
    convolutions, converted = conversions("channels_last", how)
    assert convolutions > 45, "two passes of F and one of G, each forward and backward"
    assert converted == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU's library")
@pytest.mark.skipif("mkldnn" not in torch.__config__.show().lower(), reason="needs oneDNN")
def test_the_check_would_see_one() -> None:
    """Channels first, oneDNN converts to its own layouts."""
    assert conversions("contiguous_format", "written")[1]
