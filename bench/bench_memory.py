"""What a GAT step takes in memory, from rest to its peak, in a process of its own; the time is that of two steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastgat.config import PrecisionConfig, TrainConfig
from fastgat.methods import GAT
from fastgat.profiling.sides import Spec
from fastgat.profiling.worker import Worker, peak_memory, prepare

FAST = Spec(
    "fastgat",
    TrainConfig(method=GAT(delta="fixed"), precision=PrecisionConfig(amp=True, channels_last=True)),
)
SIDES = {
    "fastgat": FAST,
    "textbook": replace(FAST.in_plain_precision(), implementation="textbook"),
    "textbook like for like": replace(FAST, implementation="textbook"),
}


@pytest.mark.parametrize("side", SIDES)
def bench_memory(benchmark: BenchmarkFixture, side: str) -> None:
    with Worker(SIDES[side]) as worker:
        worker.ask(prepare)
        peak = benchmark.pedantic(worker.ask, args=(peak_memory,), rounds=1)
    benchmark.extra_info["peak_memory_bytes"] = peak
