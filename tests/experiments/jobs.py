"""Jobs that cost nothing, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from fastgat.errors import DataError
from fastgat.experiments.base import Experiment
from fastgat.experiments.jobs import Job, Stopped
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.reporting.jobs import News, Report


@dataclass(frozen=True)
class Note(Job):
    """Notes in a file which process has done it, or ends as `does` says."""

    number: int
    does: str = "note"

    @property
    def name(self) -> str:
        return f"note-{self.number}"

    def done(self, store: RunStore) -> bool:
        return store.measured(self.name) is not None

    def run(self, store: RunStore, report: Report, stopped: Stopped) -> str | None:
        report(News(self.name, 0, ""))
        if self.does == "fail":
            raise DataError("the data are gone")
        if self.does == "break":
            raise KeyError("a mistake")
        if self.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "stop":
            return None
        if self.does == "signal":
            signal.raise_signal(signal.SIGTERM)
        if self.does == "sleep":
            time.sleep(100)
        if self.does == "exhaust":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        time.sleep(0.05)
        with (store.folder / "log").open("a") as log:
            log.write(f"{self.name} {os.getpid()}\n")
        store.keep(self.name, {"key": {}, "figures": {}})
        return "noted"


class Timing(Note):
    alone = True


@dataclass(frozen=True)
class Notes(Experiment):
    """`count` jobs, and one more, `last`, once they are done."""

    name = "notes"
    title = "Notes"

    count: int
    last: Job | None = None
    odd: Job | None = None

    def jobs(self, plan: Plan, store: RunStore) -> list[Job]:
        jobs: list[Job] = [Note(number) for number in range(self.count)]
        if self.last is not None and all(job.done(store) for job in jobs):
            jobs.append(self.last)
        return [self.odd, *jobs] if self.odd is not None else jobs

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        return None

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        return ""
