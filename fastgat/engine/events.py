"""The events that the engine tells its listeners; it prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgat.engine.selection import Collapse


@dataclass(frozen=True)
class Start:
    """Training is about to begin, or to go on from `step`.

    `history` has a row for each epoch done. `facts` says what runs on what (data set and why, device, networks), for
    people and for environment.json.
    """

    step: int
    epoch: int
    epochs: int
    steps_per_epoch: int
    best_epoch: int | None
    history: list[dict[str, Any]]
    facts: dict[str, str]
    output: Path
    stop: Callable[[str], None] = field(repr=False)


@dataclass(frozen=True)
class Compiling:
    """The step is being compiled, which takes a while the first time."""


@dataclass(frozen=True)
class Compiled:
    """The step has been compiled, in `seconds`, or cannot be: `failure` says why, and it runs uncompiled."""

    seconds: float
    captured: bool = False
    failure: str | None = None


@dataclass(frozen=True)
class Skipped:
    """How many samples of this run could not be read so far, and what was wrong with the first."""

    count: int = 0
    first: str | None = None


@dataclass(frozen=True)
class Interval:
    """Means over the steps since the last one; `step` is the number of steps done.

    `metrics` is empty where float16 skipped each of them. `data_wait` is the share of the time in which the step had to
    wait for its data.
    """

    step: int
    epoch: int
    metrics: dict[str, float]
    images_per_second: float
    data_wait: float


@dataclass(frozen=True)
class EpochEnd:
    """An epoch is done and validated; `metrics` are its means. Epochs count from 1.

    `validation` has `validation_accuracy` and `validation_loss`, of the moving average where there is one; then the
    same with `_unaveraged` behind, of the classifier itself. Where the run measures it, `validation_robust_accuracy`
    is there too, which took `robust_seconds`, and `collapse` tells that it has collapsed. `data_wait` is the share of
    its `seconds` in which the step had to wait for its data.
    """

    step: int
    epoch: int
    metrics: dict[str, float]
    validation: dict[str, float]
    best_epoch: int
    images_per_second: float
    seconds: float
    data_wait: float
    stop: Callable[[str], None] = field(repr=False)
    skipped: Skipped = Skipped()
    robust_seconds: float | None = None
    collapse: Collapse | None = None

    @property
    def validation_accuracy(self) -> float:
        return self.validation["validation_accuracy"]

    def row(self) -> dict[str, Any]:
        """The epoch as one flat dictionary of plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            **self.metrics,
            **self.validation,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "data_wait": self.data_wait,
            "skipped_samples": self.skipped.count,
            **({"robust_seconds": self.robust_seconds} if self.robust_seconds is not None else {}),
        }


@dataclass(frozen=True)
class End:
    """Training has ended; `summary` is None where it was interrupted and can be continued."""

    step: int
    reason: str
    summary: dict[str, Any] | None


class Callback:
    """Listens to the engine; override what is of interest. `stop(reason)` ends training after the epoch.

    It may put networks into eval mode: once all have been told, every layer is in its mode of before.
    """

    def on_start(self, event: Start) -> None: ...

    def on_compiling(self, event: Compiling) -> None: ...

    def on_compiled(self, event: Compiled) -> None: ...

    def on_interval(self, event: Interval) -> None: ...

    def on_epoch(self, event: EpochEnd) -> None: ...

    def on_end(self, event: End) -> None: ...
