"""The tools that count launches, as far as a torch without CUDA goes."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch._C._autograd import DeviceType

from bench import convolutions
from bench.convolutions import DEFAULT, NONE, OFF, WAYS, measure, report, serve_with
from bench.launches import taken_as_given
from fastgat.cli.profile import KERNELS, _show_kernels
from fastgat.config import BEYOND_CUDNN, CONVOLUTIONS, RunConfig, TrainConfig
from fastgat.engine.graph_passes import GraphPasses
from fastgat.profiling.roofline import summarised
from fastgat.profiling.sides import Spec
from fastgat.profiling.worker import Worker, prepare, steps

ROOT = Path(__file__).parents[2]
NULL_GPU = ROOT / "bench" / "null_gpu"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it counts")
@pytest.mark.parametrize(
    ("module", "advice"),
    [("bench.launches", ": python -m bench.null_gpu bench/launches.py"), ("bench.convolutions", "")],
)
def test_without_a_gpu_it_says_what_to_do(module: str, advice: str) -> None:
    result = run("-m", module)
    assert result.returncode == 1
    assert result.stderr == f"Error: there is no GPU here{advice}\n"


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


def event(name: str, us: float = 0.0, on_gpu: bool = True, annotation: bool = False) -> SimpleNamespace:
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return SimpleNamespace(name=name, device_type=device, device_time=us, is_user_annotation=annotation)


def test_kernels_are_counted_and_timed_by_name() -> None:
    """Of two steps; copies, ranges of the profiler and what runs on the host are no kernels."""
    step = [event("convolution", 10), event("convolution", 14), event("relu", 3)]
    host = [event("aten::relu", 7, on_gpu=False), *[event("cudaGraphLaunch", on_gpu=False)] * 2]
    rest = [event("Memcpy DtoD", 5), event("Memset", 1), event("a range", 99, annotation=True), *host]
    found = summarised([*step, *step, *rest], steps=2)
    assert (found["kernels"], found["launches"]) == (3, 1)
    assert found["by_kernel"] == [
        {"name": "convolution", "calls": 2, "us": 24},
        {"name": "relu", "calls": 1, "us": 3},
    ]


def test_the_slowest_kernels_are_shown_and_the_others_added_up() -> None:
    kernels = [{"name": f"kernel {i} " + 200 * "x", "calls": 2.0, "us": 100.0 - i} for i in range(KERNELS + 3)]
    printed = io.StringIO()
    _show_kernels(Console(file=printed, width=100), kernels)
    lines = printed.getvalue().splitlines()
    assert sum("kernel " in line for line in lines) == 1 + KERNELS
    assert lines[-1].split() == ["252.0", "us", "15%", "6", "x", "3", "others"]
    slowest = next(line for line in lines if "kernel 0 " in line)
    assert slowest.split()[:5] == ["100.0", "us", "6%", "2", "x"], "a long name is cut, and no number"


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_in_a_way_is_off(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {name: getattr(module, attribute) for name, (module, attribute, _) in OFF.items()}
    seen: list[str] = []

    def look(*_: object) -> None:
        seen.extend(name for name, (module, attribute, _) in OFF.items() if getattr(module, attribute) is there[name])
        assert GraphPasses().uuid() == way, "or Inductor's cache would take one for the other"

    monkeypatch.setattr(convolutions, "serve", look)
    serve_with(way, None, None)  # type: ignore[arg-type]  # what nobody looks at
    assert set(seen) == set(WAYS[way].defaults)


def test_the_ways_are_each_thing_alone_and_all_together() -> None:
    assert [way.defaults for way in WAYS.values()][:4] == [(), ("timed",), ("filled",), ("timed", "filled")]
    beyond = {way.convolutions for way in WAYS.values()}
    assert {"cudnn", *BEYOND_CUDNN, "+".join(BEYOND_CUDNN)} <= beyond <= set(CONVOLUTIONS)


def test_the_best_way_is_one_that_won_and_is_named_with_what_it_saves() -> None:
    default = [2.0, 2.2, 2.1, 2.0]
    lucky = [1.0, 1.0, 2.3, 2.3]  # half of the rounds are not enough
    times = {NONE: [3.0] * 4, DEFAULT: default, "lucky": lucky, "better": [time * 0.9 for time in default]}
    lines = report(times, {"wrong": "another gradient"})
    assert lines[0].split()[:3] == [NONE, "3.000", "ms"]
    assert lines[-3].split()[0] == "better"
    assert lines[-3].endswith("0.62"), "over the step without any of them"
    assert lines[-2].split(maxsplit=1) == ["wrong", "refused: another gradient"]
    assert lines[-1] == "best: better, 10.0% less than by default"
    assert report({NONE: [3.0] * 4, DEFAULT: default, "lucky": lucky}, {})[-1] == f"best: {DEFAULT}, the default"
    assert report({NONE: [3.0] * 4}, {DEFAULT: "failed"})[-1] == "no best: the default was refused"


class FakeWorker(contextlib.nullcontext[Any]):
    """A side whose step takes as long as its name, and one of which computes another gradient."""

    def __init__(self, spec: Spec, target: Any) -> None:
        (self.way,) = target.args
        assert spec.config.run.convolutions == WAYS[self.way].convolutions
        super().__init__(self)

    def ask(self, question: Any, *arguments: int) -> Any:
        if question is steps:
            return float(len(self.way))
        if self.way.endswith("and stream"):
            raise RuntimeError("it does not compile")  # what a worker makes of any other error
        wrong = self.way.endswith("and backward")
        return {"moments": np.array([1.0, 2.0 if wrong else 1.0])}


def test_a_wrong_gradient_and_a_failure_are_refused_and_the_others_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "Worker", FakeWorker)
    times, refused = measure(Spec("fastgat", TrainConfig(run=RunConfig(device="cpu"))), rounds=3)
    assert refused.keys() == {"both, and backward", "both, and stream"}
    assert refused["both, and stream"] == "it does not compile"
    assert "do not compute the same gradient" in refused["both, and backward"]
    assert set(times) == set(WAYS) - set(refused)
    assert all(values == [len(name)] * 3 for name, values in times.items())


def test_what_is_known_is_written_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "Worker", FakeWorker)
    written = []
    spec = Spec("fastgat", TrainConfig(run=RunConfig(device="cpu")))
    measure(spec, 2, ["both, and stream"], lambda times, refused: written.append((copy.deepcopy(times), len(refused))))
    assert written[:3] == [({NONE: []}, 0), ({NONE: [], DEFAULT: []}, 0), ({NONE: [], DEFAULT: []}, 1)]
    assert [len(times[DEFAULT]) for times, _ in written[3:]] == [1, 2]


def test_a_side_can_go_without_some_of_what_a_gpu_gains_by() -> None:
    config = TrainConfig(method="baseline", batch_size=4, run=RunConfig(device="cpu", compile=False))
    with Worker(Spec("fastgat", config, image_size=16), functools.partial(serve_with, "none")) as worker:
        assert worker.ask(prepare)["moments"].any()


def test_what_is_taken_as_given_is_there() -> None:
    """A name that has changed is an AttributeError."""
    with taken_as_given():
        pass
