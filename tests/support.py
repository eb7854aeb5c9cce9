"""What several tests need: small players, minibatches, and a plain way to run a method beside the textbook."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn
from torch.fx import Graph, GraphModule

from fastgat.batch import Batch
from fastgat.config import OptimizerConfig
from fastgat.engine.state import TrainState
from fastgat.engine.step import Stepper
from fastgat.methods import Method
from fastgat.methods.players import Draws
from fastgat.models import Classifier, Generator

DOUBLE = torch.float64


def minibatch(size: int = 4, side: int = 8, dtype: torch.dtype = DOUBLE, classes: int = 10) -> Batch:
    return Batch(torch.rand(size, 3, side, side, dtype=dtype), torch.randint(classes, (size,)))


def players(dropout: float = 0.0, dtype: torch.dtype = DOUBLE, width: int = 6) -> tuple[nn.Module, nn.Module]:
    """Table 1's networks, the generator narrow; its last layer enlarged so that perturbations matter."""
    generator = Generator(width)
    with torch.no_grad():
        generator.body[-1].weight.mul_(30)  # type: ignore[operator]  # a convolution
    return Classifier(dropout=dropout).to(dtype), generator.to(dtype)


class BatchNormNet(nn.Module):
    """A classifier whose samples interact in train mode."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


class SmallClassifier(nn.Module):
    """A classifier of a few layers, for what takes long to compile."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3))
        self.head = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).relu().mean((2, 3)))


class SmallGenerator(nn.Module):
    """A generator of a few layers, for what takes long to compile."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        widths = [3, *[4] * (layers - 1), 3]
        self.body = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(widths))

    def forward(self, delta: torch.Tensor) -> torch.Tensor:
        *hidden, last = self.body
        for layer in hidden:
            delta = layer(delta).relu()
        p: torch.Tensor = last(delta).tanh()
        return p


class Engine:
    """Copies of the players in the engine's state, stepped by a method."""

    def __init__(
        self,
        method: Method,
        classifier: nn.Module,
        generator: nn.Module | None = None,
        *,
        generator_lr: float = 1e-3,
        autocast: torch.dtype | None = None,
        statistics: str = "both",
        compiled: bool = False,
        memory: torch.Tensor | None = None,
        ema: float | None = None,
    ) -> None:
        self.method = method
        generator = copy.deepcopy(generator) if method.needs_generator else None
        optimizer = OptimizerConfig(lr=1e-3, generator_lr=generator_lr, ema=ema)
        self.state = TrainState(
            copy.deepcopy(classifier),
            generator,
            optimizer,
            method.metrics,
            autocast,
            statistics=statistics,
            memory=memory,
        )
        self.stepper = Stepper(self.state, method, compiled=compiled)
        self.prepared = False

    def step(
        self, batches: Sequence[Batch], draws: Sequence[Draws] | None = None, kind: str = "full"
    ) -> dict[str, float]:
        draws = draws or [Draws()] * len(batches)
        if not self.prepared:
            self.stepper.prepare(batches, draws)
            self.prepared = True
        self.stepper(batches, draws, kind)
        sums, _ = self.state.metrics.read()
        return sums


@contextmanager
def compiled_by(backend: Any) -> Iterator[None]:
    """torch.compile makes its graphs as ever, and hands them to `backend`: Inductor, or something quicker."""
    torch_compile: Any = torch.compile

    def made_by(function: Any, options: Any = None, **more: Any) -> Any:
        return torch_compile(function, backend=backend, options=options if backend == "inductor" else None, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", made_by)
        yield


def run_after(passes: Callable[[Graph], None], graphs: list[GraphModule]) -> Callable[..., Any]:
    """A compiler for `aot_autograd`: it runs a graph node by node after the passes, and keeps it in `graphs`."""

    def compiler(traced: GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        passes(traced.graph)
        traced.graph.lint()
        traced.recompile()
        graphs.append(traced)
        return traced.forward

    return compiler


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once for all processes that test side by side; the others wait for it."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    done = folder / "done"
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed: this one fails by itself
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """The largest, over all parameters, of max |a - b| / max |b|."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def numerical_gradient(function: object, at: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Central differences of a scalar function of a float64 tensor."""
    assert callable(function)
    gradient = torch.empty_like(at)
    for index in range(at.numel()):
        ends = []
        for sign in (1, -1):
            moved = at.clone()
            moved.view(-1)[index] += sign * step
            ends.append(float(torch.as_tensor(function(moved)).detach()))
        gradient.view(-1)[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def fastgat(
    *arguments: object, cwd: Path, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fastgat", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


class Probabilities(nn.Module):
    """Forgets that a classifier returns logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Classifier()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images).softmax(1)


class Pair(nn.Module):
    """Returns a tuple."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x
