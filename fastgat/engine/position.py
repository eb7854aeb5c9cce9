"""The position of a run: steps, epochs and results so far, as a checkpoint's header has them."""

import math
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

from fastgat.typed import check_type


class EpochRow(TypedDict):
    """The fields that a checkpoint has at least for an epoch that is done."""

    epoch: int
    step: int
    images_per_second: float
    seconds: float
    validation_accuracy: float
    validation_loss: float


class Pass(TypedDict):
    """The pass that a loader of one's own was in: its number, and the random states that it began with."""

    number: int
    states: dict[str, Any]


@dataclass
class Position:
    """Steps done, the epoch that is going on, and the epochs that are done; plain values, as JSON has them.

    Attributes:
        seconds: of all epochs done, validation and all.
        epoch_seconds, epoch_waited: of the training in this epoch; of these, waiting for data.
        epoch_images, epoch_steps, epoch_sums: what this epoch's steps have learnt from, and the sums of their metrics.
        epochs: a row for each epoch done.
        best_epoch, best_accuracy: the epoch that the run's rule has chosen so far, and its validation accuracy.
        kept: of each file of `fastgat.engine.selection.candidates`, the epoch whose classifier it holds.
        passes: where a loader of one's own was in its passes (`fastgat.data.IterableLoader.passes`).
        skipped: why samples could not be read, one reason each.
    """

    step: int = 0
    steps_per_epoch: int = 0
    best_epoch: int | None = None
    best_accuracy: float = -1.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_waited: float = 0.0
    epoch_images: int = 0
    epoch_steps: int = 0
    epoch_sums: dict[str, float] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    passes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """The position in a checkpoint's header, whose types are right.

        Raises ValueError or TypeError where it cannot be that of a run.
        """
        at = cls(**values)
        check_type(at.epochs, list[EpochRow], "position.epochs")
        check_type(at.epochs, list[dict[str, float]], "position.epochs")
        check_type(at.passes, dict[str, Pass], "position.passes")
        times = (at.seconds, at.epoch_seconds, at.epoch_waited)
        if at.step < 0 or at.steps_per_epoch < 1 or not all(0 <= seconds < math.inf for seconds in times):
            raise ValueError("a number of its position is not possible")
        done = at.step // at.steps_per_epoch
        if at.epoch_steps and at.step % at.steps_per_epoch == 0:  # the last one is not validated yet
            done -= 1
        if len(at.epochs) != done or [row["epoch"] for row in at.epochs] != list(range(1, done + 1)):
            raise ValueError(f"its epochs are not those before step {at.step}")
        if not {at.best_epoch, *at.kept.values()} - {None} <= set(range(1, done + 1)):
            raise ValueError("its best epoch is not one of those done")
        return at

    def row(self, epoch: int | None) -> dict[str, Any] | None:
        """The row of an epoch, counted from 1."""
        return self.epochs[epoch - 1] if epoch is not None else None

    def add(
        self, sums: dict[str, float], steps: int, seconds: float = 0.0, waited: float = 0.0, images: int = 0
    ) -> dict[str, float]:
        """Add an interval to the epoch: sums of metrics over `steps` steps, seconds, those of them spent waiting for
        data, and images. Returns the interval's means; none where float16 skipped each of its steps.
        """
        self.epoch_seconds += seconds
        self.epoch_waited += waited
        self.epoch_images += images
        self.epoch_steps += steps
        for name, value in sums.items():
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value
        return {name: value / steps for name, value in sums.items()} if steps else {}

    def epoch_means(self) -> dict[str, float]:
        """The metrics of the epoch that is going on; none where each of its steps was skipped."""
        return {name: total / self.epoch_steps for name, total in self.epoch_sums.items()} if self.epoch_steps else {}

    def start_epoch(self) -> None:
        """Forget the sums of the epoch that is done."""
        self.epoch_seconds, self.epoch_waited, self.epoch_images, self.epoch_steps, self.epoch_sums = 0.0, 0.0, 0, 0, {}

    def mean_rate(self) -> float:
        """Images a second over all epochs done."""
        seconds = sum(row["seconds"] for row in self.epochs)
        images = sum(row["images_per_second"] * row["seconds"] for row in self.epochs)
        return images / seconds if seconds else 0.0
