"""One side of a comparison in a process of its own: it shares no memory, allocator or compiler state with the other."""

import contextlib
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

import torch

from fastgat.engine.device import give_back_freed_memory
from fastgat.processes import kernel_figure
from fastgat.profiling.sides import Fastgat, Side, Spec, build, synchronize
from fastgat.worker import WorkerProcess

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


class Worker(WorkerProcess):
    """The process of one side, which answers questions: functions of the side and of what else they are given."""

    def __init__(self, spec: Spec, target: Callable[..., None] | None = None) -> None:
        """Start it; `target`, if given, runs there in place of `serve` and calls it."""
        super().__init__(target or serve, spec, advice="try a smaller --batch-size")

    def ask(self, question: Callable[[Any, *Arguments], Answer], *arguments: *Arguments) -> Answer:
        """What `question` returns, there; raises what it raised."""
        self.send((question, arguments))
        return self.receive()


def prepare(side: Side) -> dict[str, Any]:
    """Take the first step; the time from nothing to its end, compilation included, and the gradient that it took."""
    seconds = side.build_seconds + side.seconds(side.step)
    first = {"cold_start_seconds": seconds, "moments": side.moments().numpy()}
    steps(side, 3)  # to warm up
    return first


def steps(side: Side, count: int) -> float:
    """Milliseconds a step, over `count` steps with a synchronised clock."""
    return 1e3 * side.seconds(side.step, count)


BUFFERED = 8  # more batches than any loader keeps ready


class Fed(NamedTuple):
    """Milliseconds a step: on preloaded minibatches, with its loader, and of these those of waiting for it."""

    bare: float
    fed: float
    waited: float


def fed_steps(side: Fastgat, count: int) -> Fed:
    """Time `count` steps on preloaded minibatches, then as many with the loader."""
    bare = steps(side, count)
    for _ in range(BUFFERED):  # what the loader has made ready meanwhile
        side.feeder.minibatches(side.method.minibatches())
    side.fed_step()
    synchronize(side.device)
    side.feeder.waited = 0.0
    fed = side.seconds(side.fed_step, count)
    return Fed(bare, 1e3 * fed, side.feeder.waited * 1e3 / count)


def peak_memory(side: Side) -> int | None:
    """The most memory that steps take, in bytes: on a GPU what its allocator holds, weights and all; on a CPU what the
    process grows by, from rest to the peak. None where the system does not tell."""
    if side.device.type == "cuda":
        synchronize(side.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(side.device)
        steps(side, 2)
        return torch.cuda.max_memory_reserved(side.device)
    if not sys.platform.startswith("linux"):
        return None
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted afresh
    except OSError:
        return None
    at_rest = kernel_figure("self/status", "VmRSS:")
    steps(side, 2)
    peak = kernel_figure("self/status", "VmHWM:")
    return peak - at_rest if peak is not None and at_rest is not None else None


def serve(pipe: Connection, spec: Spec) -> None:
    """Build the side at the first question, and answer until nobody asks any more."""
    side = None
    with contextlib.suppress(EOFError):
        while True:
            question, arguments = pipe.recv()
            if side is None:
                began = time.perf_counter()
                side = build(spec)
                side.build_seconds = time.perf_counter() - began
            pipe.send(question(side, *arguments))
