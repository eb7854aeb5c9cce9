"""Benchmarks: parity first, then medians of synchronised calls, beside the bytes that must move.

    pytest bench/ --benchmark-only

Each operation is timed as its eager reference, as the reference compiled by Inductor and, on a GPU, as its kernel;
there all three are replayed from a graph, as they are in a step, so that launching them is not what is measured.
`extra_info` holds device, versions, bytes and GB/s, so that a JSON file of a run explains itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastgat.engine.step import end_failed_capture

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDES = ["eager", "compiled"] + (["kernel"] if DEVICE == "cuda" else [])
INPUT_SETS = 4
"""Rotated through, so that a small cache is not what is measured."""
CALLS = 100
"""How many are replayed at once on a GPU, where launching one from Python takes longer than most of them do."""

Operation = Callable[..., Any]


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    from fastgat.reporting.environment import environment

    machine_info["fastgat"] = environment()


@pytest.fixture(params=SIDES)
def measure(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Callable[..., None]:
    """Check that a side of an operation does what its reference does, then time it over several sets of inputs.

    Raises AssertionError, and so reports no figure, where the results differ.
    """

    def measure(reference: Operation, kernel: Operation, inputs: list[tuple[Any, ...]], moved: int) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(reference, fullgraph=True)
        operation = {"eager": reference, "compiled": compiled, "kernel": kernel}[request.param]
        for arguments in inputs:
            torch.testing.assert_close(operation(*arguments), reference(*arguments), rtol=2e-2, atol=1e-3)
        if benchmark.disabled:
            benchmark(operation, *inputs[0])
            return
        if DEVICE == "cuda":
            benchmark.pedantic(replayed(operation, inputs), rounds=50, iterations=CALLS, warmup_rounds=5)
        else:
            sets = itertools.cycle(inputs)
            benchmark.pedantic(lambda: operation(*next(sets)), rounds=50, warmup_rounds=5)
        assert benchmark.stats is not None
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {"bytes": moved, "GB/s": round(moved / seconds / 1e9, 2), "torch": torch.__version__}

    return measure


def replayed(operation: Operation, inputs: list[tuple[Any, ...]]) -> Callable[[], None]:
    """Called CALLS times, does so many calls of the operation on the device, as one captured graph, and waits for them.

    All of it happens in the last of the calls, which are only there to be counted.
    """
    graph, stream, calls = torch.cuda.CUDAGraph(), torch.cuda.Stream(), itertools.count(1)
    here = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for arguments in itertools.islice(itertools.cycle(inputs), CALLS):
                operation(*arguments)
    except BaseException:  # or no later benchmark could draw its inputs
        end_failed_capture(stream)
        torch.cuda.set_stream(here)
        raise

    def call() -> None:
        if next(calls) % CALLS == 0:
            graph.replay()
            torch.cuda.synchronize()

    return call
