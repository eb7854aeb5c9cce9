"""What becomes of a sample that cannot be read: an error, or a count and a substitute."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fastgat.batch import Batch
from fastgat.errors import DataError

Rows = NDArray[np.int64]
"""Samples, by their numbers in a set."""
Marks = NDArray[np.bool_]
POLICIES = ("error", "skip")


class BadSamples:
    """The samples of a set that could not be read so far, by row.

    Where they are skipped, the place of one in a training batch is taken by the next good sample of that batch, so that
    batches stay full and the stream stays a function of its position; in evaluation it is left out.
    """

    def __init__(self, policy: str = "error") -> None:
        self.policy = policy
        self.reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.reasons)

    def report(self, row: int, name: str, flaw: object) -> None:
        """Take note of a bad sample, the file `name`. Raises DataError where that is the policy."""
        reason = f"{name}: {flaw}"
        if self.policy == "error":
            raise DataError(f"{reason}; --on-bad-sample skip goes on without it")
        with self._lock:
            self.reasons.setdefault(int(row), reason)

    def first(self) -> str | None:
        """The first reason."""
        return next(iter(self.reasons.values()), None)

    def substitutes(self, rows: Rows) -> Rows:
        """For each place of a batch the place whose sample it gets: its own, or that of the next good one.

        Raises DataError where there is none.
        """
        bad = self._marks(rows)
        if not bad.any():
            return np.arange(len(rows))
        if bad.all():
            raise DataError(f"no sample of a whole batch can be read; one of them: {self.reasons[int(rows[0])]}")
        places = np.arange(2 * len(rows))
        twice = np.concatenate([bad, bad])
        after = np.minimum.accumulate(np.where(twice, len(twice), places)[::-1])[::-1]
        return after[: len(rows)] % len(rows)

    def good_places(self, rows: Rows) -> Rows:
        """The places of those that can be read, as far as is known; maybe none."""
        return np.flatnonzero(~self._marks(rows))

    def without_empty(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches that have a sample left. Raises DataError where none has."""
        any_left = False
        for batch in batches:
            if len(batch.labels):
                any_left = True
                yield batch
        if self.reasons and not any_left:
            raise DataError(f"no sample of the whole set can be read; one of them: {self.first()}")

    def _marks(self, rows: Rows) -> Marks:
        if not self.reasons:
            return np.zeros(len(rows), bool)
        return np.isin(rows, np.fromiter(list(self.reasons), np.int64))
