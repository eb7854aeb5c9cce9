"""What an experiment has to do: cells to train and figures to compute, each done once and kept in the store."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastgat.engine.checkpoint import keep_classifier
from fastgat.engine.events import Callback, EpochEnd, Interval, Start
from fastgat.engine.loop import BEST, LAST
from fastgat.errors import NonFiniteError
from fastgat.experiments.cell import Cell, digest
from fastgat.experiments.store import Store
from fastgat.reporting.environment import environment
from fastgat.reporting.jobs import News, Report
from fastgat.trainer import Trainer


class Job(ABC):
    """Attributes: `alone`, whether nothing else should run on this machine meanwhile."""

    alone: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Unlike that of any other job; the name of a file."""

    @abstractmethod
    def done(self, store: Store) -> bool: ...

    @abstractmethod
    def run(self, store: Store, report: Report) -> bool:
        """Do it, or go on with it; False where a signal has interrupted that."""


@dataclass(frozen=True)
class Training(Job):
    """Train a cell, and keep its classifier, but not the optimisers: a cell is never trained further. One whose loss
    becomes NaN or infinite counts as done, and as diverged."""

    cell: Cell

    @property
    def name(self) -> str:
        return self.cell.name

    def done(self, store: Store) -> bool:
        return store.finished(self.cell)

    def run(self, store: Store, report: Report) -> bool:
        config = replace(self.cell.config, output=store.run_folder(self.cell), resume="auto")
        try:
            summary = Trainer(config, callbacks=[Follower(self.name, report)]).fit().summary
        except NonFiniteError as error:
            store.note_divergence(self.cell, str(error))
            report(News(self.name, 1, f"diverged: {error}", done=True))
            return True
        if summary is None:
            return False
        keep_classifier(store.run_folder(self.cell) / BEST)
        (store.run_folder(self.cell) / LAST).unlink()
        words = f"validation {summary['validation_accuracy']:.2%} in epoch {summary['best_epoch']}"
        report(News(self.name, 1, f"{words}, {summary['seconds']:,.0f} s", done=True))
        return True


class Follower(Callback):
    """Tells how far a training is."""

    def __init__(self, name: str, report: Report) -> None:
        self.name, self.report = name, report
        self.total, self.words = 1, ""

    def on_start(self, event: Start) -> None:
        self.total = event.epochs * event.steps_per_epoch
        self.report(News(self.name, event.step / self.total, self.words))

    def on_interval(self, event: Interval) -> None:
        self.report(News(self.name, event.step / self.total, self.words))

    def on_epoch(self, event: EpochEnd) -> None:
        self.words = f"epoch {event.epoch}, validation {event.validation_accuracy:.1%}"
        self.report(News(self.name, event.step / self.total, self.words))


@dataclass(frozen=True)
class Measurement(Job):
    """Compute figures, plain values, and keep them.

    Attributes:
        what: the first word of its name.
        key: what decides the figures, plain values; another key is another measurement.
        compute: the figures, from the store and a listener to the share that is done.
    """

    what: str
    key: Mapping[str, Any]
    compute: Callable[[Store, Callable[[float], None]], dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.what}-{digest(dict(self.key))}"

    def done(self, store: Store) -> bool:
        return store.measured(self.name) is not None

    def figures(self, store: Store) -> dict[str, Any] | None:
        found = store.measured(self.name)
        return None if found is None else found["figures"]

    def run(self, store: Store, report: Report) -> bool:
        began = time.perf_counter()
        report(News(self.name, 0, ""))
        figures = self.compute(store, lambda share: report(News(self.name, share, "")))
        seconds = time.perf_counter() - began
        made = {key: value for key, value in environment().items() if key != "command"}
        store.keep(self.name, {"key": self.key, "figures": figures, "seconds": seconds, "environment": made})
        report(News(self.name, 1, f"{seconds:,.0f} s", done=True))
        return True


class Timing(Measurement):
    """A measurement of time."""

    alone = True
