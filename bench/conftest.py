"""Benchmarks: parity first, then medians of synchronised calls, beside the bytes that must move.

    pytest bench/ --benchmark-only

Each operation is timed as its eager reference, as the reference compiled by Inductor and, on a GPU, as its kernel.
`extra_info` holds device, versions, bytes and GB/s, so that a JSON file of a run explains itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDES = ["eager", "compiled"] + (["kernel"] if DEVICE == "cuda" else [])
INPUT_SETS = 4
"""Rotated through, so that the second-level cache of a GPU is not what is measured."""

Operation = Callable[..., Any]


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    from fastgat.reporting.environment import environment

    machine_info["fastgat"] = environment()


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """Check that an operation does what its reference does, then time it over several sets of inputs.

    Raises AssertionError, and so reports no figure, where the results differ.
    """

    def measure(operation: Operation, reference: Operation, inputs: list[tuple[Any, ...]], moved: int) -> None:
        for arguments in inputs:
            torch.testing.assert_close(operation(*arguments), reference(*arguments), rtol=2e-2, atol=1e-3)
        rounds = iter(range(10**9))

        def call() -> None:
            operation(*inputs[next(rounds) % len(inputs)])
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(call, rounds=50, warmup_rounds=5)
        assert benchmark.stats is not None
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {"bytes": moved, "GB/s": round(moved / seconds / 1e9, 2), "torch": torch.__version__}

    return measure


def compiled(function: Operation) -> Operation:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)
