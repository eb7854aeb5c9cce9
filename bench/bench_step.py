"""A whole training step: the textbook, fastgat's step uncompiled and compiled.

Each round takes a step of the textbook (float32, channels first) and one of the side that is timed, in turns, each in a
process of its own; `extra_info` has the textbook's median, the speed-up and the fraction of the floor. The first
gradients must agree, or there is no figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import DEVICE
from fastgat.config import PrecisionConfig, RunConfig, TrainConfig
from fastgat.methods import GAT, Baseline, FastGradientL2, Method
from fastgat.profiling.profile import check_parity, floor_ms
from fastgat.profiling.roofline import ceilings, work
from fastgat.profiling.sides import Spec
from fastgat.profiling.worker import Worker, prepare, steps

ROUNDS, BLOCK = (20, 20) if DEVICE == "cuda" else (5, 1)
FAST = PrecisionConfig(amp=True, channels_last=True)
FIXED = GAT(schedule="simultaneous", delta="fixed")

CASES: dict[str, tuple[Method, int, PrecisionConfig, bool]] = {
    "baseline": (Baseline(), 128, FAST, True),
    "fg-l2": (FastGradientL2(), 128, FAST, True),
    "gat through Delta": (GAT(), 128, FAST, True),
    "gat paper": (replace(FIXED, schedule="paper"), 128, FAST, True),
    "gat alternating": (replace(FIXED, schedule="alternating"), 128, FAST, True),
    "gat simultaneous": (FIXED, 128, FAST, True),
    "gat simultaneous uncompiled": (FIXED, 128, FAST, False),
    "gat simultaneous every 4th": (replace(FIXED, generator_interval=4), 128, FAST, True),
    "gat simultaneous batch 32": (FIXED, 32, FAST, True),
    "gat simultaneous float32 channels first": (FIXED, 128, PrecisionConfig(), True),
}


@pytest.fixture
def worker() -> Iterator[Callable[[Spec], Worker]]:
    """Starts workers, and ends them with the benchmark."""
    started: list[Worker] = []

    def start(spec: Spec) -> Worker:
        started.append(Worker(spec))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize("case", CASES)
def bench_step(benchmark: BenchmarkFixture, worker: Callable[[Spec], Worker], case: str) -> None:
    method, batch_size, precision, compiled = CASES[case]
    run = RunConfig(compile=compiled)
    ours = Spec("fastgat", TrainConfig(method=method, batch_size=batch_size, precision=precision, run=run))
    theirs = replace(ours.in_plain_precision(), implementation="textbook")
    side, textbook = worker(ours), worker(theirs)
    check_parity(side.ask(prepare)["moments"], textbook.ask(prepare)["moments"], ours)

    block = max(BLOCK, method.period)
    times: list[float] = []

    def take_turns() -> tuple[tuple[Any, ...], dict[str, Any]]:
        times.append(textbook.ask(steps, BLOCK))
        return (), {}

    benchmark.pedantic(lambda: side.ask(steps, block), setup=take_turns, rounds=ROUNDS)
    assert benchmark.stats is not None
    step_ms = benchmark.stats.stats.median / block * 1e3
    benchmark.extra_info |= {
        "method": method.name,
        "batch_size": batch_size,
        "steps_a_round": block,
        "step_ms": step_ms,
        "textbook_step_ms": statistics.median(times),
        "speedup": statistics.median(times) / step_ms,
        "fraction_of_floor": floor_ms(side.ask(ceilings), side.ask(work)) / step_ms,
        "images_per_second": batch_size / step_ms * 1e3,
    }
