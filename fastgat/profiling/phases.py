"""Where a step's time goes, by phase: measured on the uncompiled step, whose parts have edges."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from fastgat.engine.step import train_step
from fastgat.phases import PHASES, listening
from fastgat.profiling.sides import Fastgat, synchronize

STEPS, SECONDS = 5, 10.0
"""Steps that are looked at, and of which phases are timed for about so long at most: of slow steps fewer will do."""
OTHER = "other"


class Clock:
    """Adds up the time inside each phase; the time of an inner phase does not count for the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.totals = dict.fromkeys((*PHASES, OTHER), 0.0)
        self._open = [OTHER]
        self._since = self._now()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.turn()
        self._open.append(name)
        with torch.profiler.record_function(name):
            try:
                yield
            finally:
                self.turn()
                self._open.pop()

    def turn(self) -> None:
        now = self._now()
        self.totals[self._open[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def phase_times(side: Fastgat) -> dict[str, float]:
    """Milliseconds a step in each phase, uncompiled, its minibatches from its loader."""
    _run(side, 1)  # is slower: nothing is allocated yet
    steps = max(1, min(STEPS, int(SECONDS / sum(_run(side, 1).values()))))
    return {name: seconds * 1e3 / steps for name, seconds in _run(side, steps).items()}


def trace(side: Fastgat, file: Path) -> None:
    """Write a Chrome trace of a few uncompiled steps, each phase a named range."""
    with torch.profiler.profile(activities=torch.profiler.supported_activities(), acc_events=True) as recorded:
        _run(side, STEPS)
    recorded.export_chrome_trace(str(file))


@torch.no_grad()
def _run(side: Fastgat, steps: int) -> dict[str, float]:
    """Take some steps, and return the seconds in each phase."""
    _, draws = side.next_inputs()
    side.feeder.minibatches(len(draws))
    clock = Clock(side.device)
    with listening(clock.span):
        for _ in range(steps):
            train_step(side.state, side.method, "full", side.feeder.minibatches(len(draws)), draws)
    clock.turn()
    return clock.totals
