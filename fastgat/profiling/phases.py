"""Where a step's time goes, by phase: measured on the step as it is written, whose parts have edges."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastgat.data.resident import ResidentLoader
from fastgat.data.sampler import Sampler
from fastgat.data.sets import ImageSet
from fastgat.engine.step import train_step
from fastgat.phases import PHASES, listening, phase

if TYPE_CHECKING:
    from fastgat.profiling.sides import Fastgat

STEPS = 5
OTHER = "other"


class Clock:
    """Adds up the time inside each phase; an inner phase's time is not its outer one's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.totals = dict.fromkeys((*PHASES, OTHER), 0.0)
        self._open = [OTHER]
        self._since = self._now()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        with torch.profiler.record_function(name):
            try:
                yield
            finally:
                self._turn()
                self._open.pop()

    def stop(self) -> None:
        self._turn()

    def _turn(self) -> None:
        now = self._now()
        self.totals[self._open[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def phase_times(side: Fastgat) -> dict[str, float]:
    """Milliseconds a step in each phase, uncompiled, its minibatches gathered from memory."""
    _run(side, Clock(side.device))
    clock = Clock(side.device)
    with listening(clock.span):
        _run(side, clock)
    return {name: seconds * 1e3 / STEPS for name, seconds in clock.totals.items()}


def trace(side: Fastgat, file: Path) -> None:
    """Write a Chrome trace of a few steps as they are written, each phase a named range."""
    clock = Clock(side.device)
    activities = list(torch.profiler.supported_activities())
    with torch.profiler.profile(activities=activities) as recorded, listening(clock.span):
        _run(side, clock)
    recorded.export_chrome_trace(str(file))


def _run(side: Fastgat, clock: Clock) -> None:
    spec = side.spec
    batches, _ = side.next_inputs()
    pixels = torch.cat([batch.images for batch in batches] * 4).permute(0, 2, 3, 1).mul(255).byte().cpu().numpy()
    labels = torch.cat([batch.labels for batch in batches] * 4).cpu().numpy()
    loader = ResidentLoader(
        ImageSet(pixels, labels),
        Sampler(len(labels), spec.config.batch_size),
        device=side.device,
        channels_last=spec.config.precision.channels_last,
    )
    stream = loader.stream(0)
    _, draws = side.next_inputs()
    clock._turn()
    clock.totals[OTHER] = 0.0
    for _ in range(STEPS):
        with phase("data"):
            minibatches = [next(stream) for _ in draws]
        train_step(side.state, side.method, minibatches, draws)
    clock.stop()
