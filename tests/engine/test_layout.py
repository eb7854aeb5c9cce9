"""channels_last from end to end: in a step neither oneDNN, which says what it does, nor an operator of PyTorch's own
gives an activation another layout."""

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
sys.path.append(sys.argv[4])  # at its end: an installed fastgat comes first
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from fastgat.config import OptimizerConfig
from fastgat.batch import Batch
from fastgat.engine.step import Stepper
from fastgat.engine.state import TrainState
from fastgat.methods import GAT
from fastgat.methods.players import Draws
from fastgat.models import Classifier
from tests.support import SmallGenerator

class Restless(SmallGenerator):
    def forward(self, delta):
        first, *others = self.body
        return others[-1](others[0](first(delta).relu().contiguous()).relu()).tanh()

class Watch(TorchDispatchMode):
    # Images and logits do not count: they are summed up as they come.
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.dim() == 4 and len(t) == 32 and t.shape[1] not in (3, 10):
                if not t.is_contiguous(memory_format=layout):
                    print("PyTorch:", func, "x".join(map(str, t.shape)), flush=True)
        return out

layout = getattr(torch, sys.argv[1])
generator = {"quiet": SmallGenerator, "restless": Restless}[sys.argv[3]](layers=3)
networks = [network.to(memory_format=layout) for network in (Classifier(), generator)]
# Where oneDNN has no bfloat16, PyTorch does those convolutions by itself, and says nothing of it.
autocast = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
state = TrainState(*networks, OptimizerConfig(), GAT.metrics, autocast)
stepper = Stepper(state, GAT(schedule="simultaneous"), compiled=sys.argv[2] == "compiled")
inputs = [Batch(torch.rand(32, 3, 32, 32).contiguous(memory_format=layout), torch.arange(32) % 10)], [Draws()]
stepper.prepare(*inputs)
print("the step", flush=True)
stepper(*inputs)
if sys.argv[2] == "written":
    print("once more", flush=True)
    with Watch():
        stepper(*inputs)
"""
REORDER = re.compile(r"exec,cpu,reorder,.*,(32(?:x\d+){3}),[\d.]+$")

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU's library"),
    pytest.mark.skipif("mkldnn" not in torch.__config__.show().lower(), reason="needs oneDNN"),
]


def conversions(layout: str, how: str, generator: str = "quiet") -> tuple[int, list[str]]:
    """How many convolutions oneDNN does, and which activations get another layout, and from whom."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, layout, how, generator, str(Path(__file__).parents[2])],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    step, _, watched = done.stdout[done.stdout.index("the step") :].partition("once more")
    by_onednn = [f"oneDNN: {found.group(1)}" for line in step.splitlines() if (found := REORDER.search(line))]
    by_pytorch = [line for line in watched.splitlines() if line.startswith("PyTorch: ")]
    return step.count(",convolution,"), by_onednn + by_pytorch


@pytest.mark.parametrize("how", ["written", pytest.param("compiled", marks=[pytest.mark.slow, pytest.mark.long])])
def test_no_activation_changes_its_layout(how: str) -> None:
    convolutions, converted = conversions("channels_last", how)
    assert convolutions > 45, "two passes of F and one of G, each forward and backward"
    assert converted == []


@pytest.mark.parametrize(
    ("layout", "generator", "whose"),
    [("contiguous_format", "quiet", "oneDNN: "), ("channels_last", "restless", "PyTorch: aten.clone.default ")],
)
def test_the_check_would_see_one(layout: str, generator: str, whose: str) -> None:
    """Channels first, oneDNN converts to layouts of its own; and a network may do it by itself."""
    assert any(line.startswith(whose) for line in conversions(layout, "written", generator)[1])
