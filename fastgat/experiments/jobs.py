"""Jobs of an experiment: cells to train and figures to compute, each done once and kept in the store."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastgat.engine.device import device_name, pick_device
from fastgat.engine.events import Callback, EpochEnd, Interval, Start
from fastgat.errors import DataError, NonFiniteError
from fastgat.experiments.archive import Measured
from fastgat.experiments.cell import Cell
from fastgat.experiments.longer import shorter_run
from fastgat.experiments.store import RunStore
from fastgat.reporting.environment import environment
from fastgat.reporting.jobs import News, Report
from fastgat.store import key_digest
from fastgat.trainer import Trainer
from fastgat.typed import check_type

Stopped = Callable[[], object]  # whether a signal has come
Advance = Callable[[float], None]  # called with the share that is done
FORMAT = 1  # bump to invalidate stored measurements


class Job(ABC):
    """A piece of work with a name; `alone` if nothing else should run on this machine meanwhile."""

    alone: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Its unique name, which can be a file's."""

    @abstractmethod
    def done(self, store: RunStore) -> bool: ...

    @abstractmethod
    def run(self, store: RunStore, report: Report, stopped: Stopped) -> str | None:
        """Do it, or continue it. Returns the outcome in a few words, or None where a signal came first."""


@dataclass(frozen=True)
class Training(Job):
    """Train a cell, from the end of a shorter run where there is one. Its classifier is kept, its optimisers only where
    the store keeps cells whole.

    One whose loss becomes NaN or infinite counts as done, and as diverged.
    """

    cell: Cell

    @property
    def name(self) -> str:
        return self.cell.name

    def done(self, store: RunStore) -> bool:
        return store.finished(self.cell) and store.slim(self.cell)

    def run(self, store: RunStore, report: Report, stopped: Stopped) -> str | None:
        if not store.finished(self.cell):
            store.note_code(self.cell)
            shorter, resume = shorter_run(store, self.cell), "auto"
            if shorter is not None:
                report(News("", 0, f"{self.name}: goes on after epoch {shorter.config.epochs} of {shorter.name}"))
                resume = str(store.run_folder(shorter))
            config = replace(self.cell.config, output=store.run_folder(self.cell), resume=resume)
            try:
                if Trainer(config, callbacks=[Follower(self.name, report)]).fit().summary is None:
                    return None
            except NonFiniteError as error:
                store.note_divergence(self.cell, str(error))
        store.make_slim(self.cell)
        summary = store.summary(self.cell)
        if summary is None:
            return f"diverged: {store.diverged(self.cell)}"
        accuracy, epoch = summary["validation_accuracy"], summary["best_epoch"]
        return f"validation {accuracy:.2%} in epoch {epoch}, {summary['seconds']:,.0f} s"


class Follower(Callback):
    """Reports how far a training is."""

    def __init__(self, name: str, report: Report) -> None:
        self.name, self.report = name, report
        self.total, self.words = 1, ""

    def on_start(self, event: Start) -> None:
        self.total = event.epochs * event.steps_per_epoch
        self.on_interval(event)

    def on_epoch(self, event: EpochEnd) -> None:
        self.words = f"epoch {event.epoch}, validation {event.validation_accuracy:.1%}"
        self.on_interval(event)

    def on_interval(self, event: Start | Interval | EpochEnd) -> None:
        self.report(News(self.name, event.step / self.total, self.words))


class _Stop(Exception):  # noqa: N818  # not an error
    """A signal has come in the middle of a measurement."""


@dataclass(frozen=True)
class Measurement(Job):
    """Compute figures, plain values, and keep them; what diverges is done too, without figures.

    Attributes:
        what: the first word of its name.
        key: what decides the figures, plain values; another key is another measurement.
        compute: the figures, from the store and a listener to the share that is done.
        shape: the type of the figures, a TypedDict.
        device: where it is computed, as `--device` takes it.
        alone: whether nothing else should run on this machine meanwhile, as for a timing.
    """

    what: str
    key: Mapping[str, Any]
    compute: Callable[[RunStore, Advance], dict[str, Any]]
    shape: Any
    device: str
    alone: bool = False

    @property
    def name(self) -> str:
        return f"{self.what}-{key_digest({'format': FORMAT, **self.key}, 8)}"

    def done(self, store: RunStore) -> bool:
        return store.measured(self.name) is not None

    def figures(self, store: RunStore) -> dict[str, Any] | None:
        content = store.measured(self.name)
        return None if content is None else checked_figures(store, content, self.shape)

    def run(self, store: RunStore, report: Report, stopped: Stopped) -> str | None:
        def advance(share: float) -> None:
            report(News(self.name, share, ""))
            if stopped():
                raise _Stop

        began, reason, figures = time.perf_counter(), None, None
        try:
            advance(0)
            figures = self.compute(store, advance)
        except NonFiniteError as error:
            reason = str(error)
        except _Stop:
            return None
        seconds = time.perf_counter() - began
        made = {key: value for key, value in environment().items() if key != "command"}
        made["device"] = device_name(pick_device(self.device))
        content = {"key": self.key, "figures": figures, "diverged": reason, "seconds": seconds, "environment": made}
        store.keep(self.name, content)
        return f"diverged: {reason}" if reason else f"{seconds:,.0f} s"


def checked_figures(store: RunStore, content: Measured, shape: Any) -> dict[str, Any] | None:
    """The figures of a kept measurement, None where it diverged. Raises DataError if they are not of type `shape`."""
    if content["figures"] is not None:
        try:
            check_type(content["figures"], shape, "figures")
        except ValueError as error:
            raise DataError(f"{store.folder}: what was measured is not what fastgat writes there ({error})") from None
    return content["figures"]
